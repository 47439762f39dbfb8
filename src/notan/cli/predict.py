"""``notan predict``: masks for any images."""

from __future__ import annotations

import itertools
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

from tyro.conf import arg

from notan.cli.flags import (
    BackendFlag,
    Device,
    Inputs,
    ModelOrDefault,
    PrecisionFlag,
    Scale,
    Threads,
    Threshold,
    Tta,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tqdm import tqdm

    from notan.prediction.inputs import Found, Item
    from notan.prediction.pipeline import Pipeline
    from notan.prediction.predictor import Predictor
    from notan.prediction.table import PredictionTable

logger = logging.getLogger("notan")

MOST_NAMED = 5


def predict(
    inputs: Inputs,
    *,
    model: ModelOrDefault = None,
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("predictions"),
    format: Annotated[str, arg(metavar="NAME,...")] = "mask,overlay",  # noqa: A002 - the flag's name
    threshold: Threshold = None,
    tta: Tta = None,
    tiles: bool = False,
    scale: Scale = None,
    frame_step: Annotated[int, arg(metavar="N")] = 1,
    resume: bool = False,
    batch_size: int = 1,
    device: Device = "auto",
    backend: BackendFlag = "auto",
    precision: PrecisionFlag = "fp32",
    threads: Threads = None,
) -> None:
    """Write the mask and the overlay of any image, folder of images or video.

    Writes masks/NAME.png (0 / 255) and overlays/NAME.png at the images' own size, and
    predictions.csv with the Dice that the model expects of each mask and whether a person should
    check it. NAME is the file's, without its suffix; where two files share it, with it, and with
    their folders if need be. Frames of a video are called NAME-000001, pages of a TIFF
    NAME-p0001; of an animated GIF, PNG or WebP the first frame is taken.

    A file that cannot be read does not stop the others: it is named at the end and in failed.csv,
    and the exit code is 3. Ctrl-C leaves whole files only; the same command with --resume goes on.

    Args:
        inputs: Image files, videos, folders of them, patterns such as 'plates/**/*.tif' (in
            quotes, or your shell expands them), or - for an image on standard input.
        model: A best.safetensors that train wrote, or an .onnx file that export made of one. The
            model in the box wants OpenVINO or ONNX Runtime: pip install 'notan[openvino]'.
        out: Where everything goes.
        format: What to write, separated by commas: mask, overlay, cutout (RGBA), probability,
            probability16, probability-float (TIFF), rle (one rle.csv for all images),
            coco-rle (one coco-rle.json), polygons (one COCO polygons.json), geojson, contours
            (SVG).
        threshold: Calibrated probability from which a pixel is foreground; leaves out what else
            validation chose for the mask.
        tta: Ask the network several views of each image and take the mean: hflip (left
            and right), vflip (top and bottom), rot90 (quarter turns), scale, or several:
            hflip,vflip. Slower by the number of views.
        tiles: Cut every image into overlapping tiles, as images that are too large for one go
            always are.
        scale: Of an image in tiles, network pixels for each of its pixels, such as 0.5.
        frame_step: Of a video, take the first frame and every N-th after it.
        resume: Leave out what an earlier run with the same settings has written into the folder.
        batch_size: Images predicted at once.
        device: Where to compute.
        backend: What runs the network: a checkpoint runs on torch, an .onnx file on openvino or
            else onnxruntime, whichever is installed.
        precision: bf16 is quicker on processors that know it, and may move a few pixels.
        threads: Of the processor, at most.
    """
    from notan.prediction.formats import Writers
    from notan.prediction.inputs import find_inputs, refuse_outputs_over_inputs
    from notan.prediction.pipeline import Pipeline
    from notan.prediction.predictor import Predictor
    from notan.prediction.table import PredictionTable
    from notan.prediction.tiles import make_tiling
    from notan.prediction.tta import parse_augment

    _require_at_least_one("--frame-step", frame_step)
    _require_at_least_one("--batch-size", batch_size)
    found = find_inputs(inputs)
    augment = parse_augment(tta) if tta is not None else ()
    predictor = Predictor.load(
        _default_model() if model is None else model,
        device=device,
        backend=backend,
        precision=precision,
        threads=threads,
        threshold=threshold,
        augment=augment,
        tiling=make_tiling(always=tiles, scale=scale),
    )
    writers = Writers([name.strip() for name in format.split(",")], out, resume=resume)
    refuse_outputs_over_inputs(found, writers.paths)
    table = PredictionTable.begin(out, _settings(predictor, precision), resume=resume)
    try:
        _run(Pipeline(predictor, writers, table, batch_size=batch_size), found, frame_step)
    finally:
        writers.close()
    if unsure := table.summary():
        print(unsure)
    kept = f" ({table.kept} were there already)" if table.kept else ""
    print(f"{table.predicted + table.kept} of {table.total} images: {out}{kept}")
    _raise_failures(table)


def _default_model() -> Path:
    from notan.modelfile.default import DEFAULT_MODEL, WHAT_IT_KNOWS

    logger.info("no --model was given: %s", WHAT_IT_KNOWS)
    return DEFAULT_MODEL


def _settings(predictor: Predictor, precision: str) -> dict[str, str]:
    """Name what decides how a mask comes out, beside its image."""
    card = predictor.card
    return {
        "model": card.sha256 if card else "not known",
        "postprocessing": predictor.postprocessing.model_dump_json(),
        "tta": predictor.augment or "none",
        "tiling": predictor.tiling.model_dump_json(),
        "precision": precision,
    }


def _run(pipeline: Pipeline, found: Sequence[Found], frame_step: int) -> None:
    from tqdm import tqdm

    from notan.errors import StoppedBySignal
    from notan.prediction.inputs import items_of

    items = itertools.chain.from_iterable(items_of(file, frame_step=frame_step) for file in found)
    with tqdm(total=len(found), unit="image", leave=False, disable=None) as bar:
        pipeline.progress = _Progress(bar)
        try:
            pipeline.run(items)
        except KeyboardInterrupt as stop:
            raise StoppedBySignal(
                f"stopped by Ctrl-C; {len(pipeline.table.rows)} images are done and whole: "
                "give the same command with --resume to go on",
                signal.SIGINT,
            ) from stop


class _Progress:
    """Moves a bar on, and lengthens it by the frames and pages that are found on the way."""

    def __init__(self, bar: tqdm[NoReturn]) -> None:
        self.bar = bar
        self.seen: set[Path] = set()

    def __call__(self, item: Item) -> None:
        if item.siblings > 1 and item.path not in self.seen:
            self.seen.add(item.path)
            self.bar.total = (self.bar.total or 0) + item.siblings - 1
        self.bar.update()


def _require_at_least_one(flag: str, value: int) -> None:
    from notan.errors import ConfigError

    if value < 1:
        raise ConfigError(f"{flag} is {value}; 1 or more is wanted")


def _raise_failures(table: PredictionTable) -> None:
    from notan.errors import DataError

    failures = table.failures
    if not failures:
        return
    reasons = "; ".join(failure.reason for failure in failures[:MOST_NAMED])
    more = f"; and {len(failures) - MOST_NAMED} more" if len(failures) > MOST_NAMED else ""
    raise DataError(
        f"{len(failures)} of {table.total} images could not be read: {reasons}{more}; all in "
        "failed.csv"
    )
