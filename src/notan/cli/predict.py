"""Models in use: ``notan predict`` and ``submit``."""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from notan.cli.flags import (
    MACHINE,
    MASKS,
    DataPath,
    MachineFlags,
    MaskFlags,
    Switch,
    flag,
    load_predictor,
)
from notan.errors import ConfigError, DataError, StoppedBySignal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from notan.prediction.formats import Writers
    from notan.prediction.inputs import Found
    from notan.prediction.items import Item
    from notan.prediction.pipeline import Pipeline
    from notan.prediction.predictor import Predictor
    from notan.prediction.table import PredictionTable
    from notan.scale.blocks import Manifest
    from notan.scale.ray_engine import OneProcessPrediction, RayPrediction

logger = logging.getLogger("notan")

MOST_NAMED = 5

LONG_SECONDS = 5.0
"""A job that takes longer says how quick it was and what it waited for."""


@dataclass(frozen=True)
class InputFlags:
    """How inputs are gone through.

    Attributes:
        frame_step: Of a video, take the first frame and every N-th after it.
        tiles: Cut every image into overlapping tiles, as images that are too large for one go
            always are.
        scale: Of an image in tiles, network pixels for each of its pixels, such as 0.5.
    """

    frame_step: Annotated[int, arg(metavar="N")] = 1
    tiles: Switch = False
    scale: Annotated[float | None, flag("FRACTION", "as training saw its images")] = None


@dataclass(frozen=True)
class EngineFlags:
    """What hands out the work.

    Attributes:
        engine: ray predicts blocks of images on all GPUs, or sets of cores, of one machine or many
            (pip install 'notan[ray]').
        address: HOST:PORT of a Ray that runs, or auto for the one on this machine.
    """

    engine: Annotated[Literal["local", "ray"], arg(metavar="local|ray")] = "local"
    address: Annotated[str | None, flag("HOST:PORT|auto", "one is started here")] = None


INPUT, ENGINE = InputFlags(), EngineFlags()


def predict(
    inputs: Positional[
        Annotated[tuple[Path, ...], arg(metavar="INPUT ...", help_behavior_hint="")]
    ],
    *,
    model: Annotated[Path | None, flag("FILE", "the default model, for cats and dogs")] = None,
    out: Annotated[Path, arg(metavar="FOLDER|ADDRESS")] = Path("predictions"),
    format: Annotated[str, arg(metavar="NAME,...")] = "mask,overlay",  # noqa: A002 - the flag's name
    resume: Switch = False,
    profile: Switch = False,
    input: OmitArgPrefixes[InputFlags] = INPUT,  # noqa: A002 - the title of its flags
    mask: OmitArgPrefixes[MaskFlags] = MASKS,
    machine: OmitArgPrefixes[MachineFlags] = MACHINE,
    engine: OmitArgPrefixes[EngineFlags] = ENGINE,
) -> None:
    """Write the masks of images, folders and videos.

    Writes masks/NAME.png (0 / 255) and overlays/NAME.png at the images' own size, and
    predictions.csv with the Dice that the model expects of each mask and whether a person should
    check it. NAME is the file's, without its suffix; where two files share it, with it, and with
    their folders if need be. Frames of a video are called NAME-000001, pages of a TIFF
    NAME-p0001; of an animated GIF, PNG or WebP the first frame is taken.

    A file that cannot be read does not stop the others: it is named at the end and in failed.csv,
    and the exit code is 3. Ctrl-C and SIGTERM leave whole files only; the same command with
    --resume goes on.

    Args:
        inputs: Image files, videos, folders of them, patterns such as 'plates/**/*.tif' (in
            quotes, or your shell expands them), or - for an image on standard input; addresses
            of the same, such as s3://bucket/folder (pip install 'notan[remote]' s3fs); lists of
            such files: a .txt with one a line, a .csv or .parquet with a column image or url.
        model: A best.safetensors that train wrote, or an .onnx file that export made of one.
        out: Where everything goes; in a store too, s3://bucket/folder, which is given a block of
            up to 256 images at a time.
        format: What to write, separated by commas: mask, overlay, cutout (RGBA), probability,
            probability16, probability-float (TIFF), rle (one rle.csv for all images),
            coco-rle (one coco-rle.json), polygons (one COCO polygons.json), geojson, contours
            (SVG).
        resume: Leave out what an earlier run with the same settings has written into the folder,
            where the file's content is the same as then.
        profile: Measure first, on a sample of the files, what the time goes to and what to do about
            it; kept as profile.md.
    """
    from notan.prediction.formats import Writers
    from notan.prediction.inputs import (
        find_inputs,
        is_in_store,
        refuse_outputs_over_inputs,
        what_is_no_input,
    )
    from notan.prediction.tiles import make_tiling

    if input.frame_step < 1:
        raise ConfigError(f"--frame-step is {input.frame_step}; 1 or more is wanted")
    _refuse_no_batch(machine)
    _refuse_beside_engine(engine, inputs, profile=profile)
    is_far = is_in_store(out)
    if is_far and profile:
        raise ConfigError("--profile is kept in a folder; leave it out, or give --out a folder")
    found = find_inputs(inputs)
    if model is None:
        _say_what_the_default_model_knows()
    tiling = make_tiling(always=input.tiles, scale=input.scale)
    load = functools.partial(load_predictor, model, mask, machine, tiling=tiling)
    names = [name.strip() for name in format.split(",")]
    writers = Writers(names, out, resume=resume)
    refuse_outputs_over_inputs(found, writers.paths)
    if engine.engine == "ray" or is_far:
        table = _predict_in_blocks(
            *(load, found, writers),
            resume=resume,
            frame_step=input.frame_step,
            machine=machine,
            engine=engine,
        )
    else:
        table = _predict_here(
            *(load(), found, writers),
            resume=resume,
            frame_step=input.frame_step,
            batch_size=machine.batch_size,
            profile=profile,
        )
    _say_what_is_done(table)
    for folder in (each for each in inputs if each.is_dir()):
        if others := what_is_no_input(folder):
            print(f"passed over in {folder}: {others}")
    _raise_failures(table)


def _refuse_beside_engine(engine: EngineFlags, inputs: Sequence[Path], *, profile: bool) -> None:
    if engine.engine == "local" and engine.address is not None:
        raise ConfigError(f"--address {engine.address}: of a Ray; give --engine ray too")
    if engine.engine == "ray" and profile:
        raise ConfigError("--profile measures one process; leave it or --engine ray out")
    if engine.engine == "ray" and Path("-") in inputs:
        raise ConfigError("standard input is read by one process; leave - or --engine ray out")


def _predict_here(
    predictor: Predictor,
    found: Sequence[Found],
    writers: Writers,
    *,
    resume: bool,
    frame_step: int,
    batch_size: int | None,
    profile: bool,
) -> PredictionTable:
    """Predict in this process."""
    from notan.prediction.items import items_of_all
    from notan.prediction.pipeline import Pipeline
    from notan.prediction.table import PredictionTable, output_settings

    table = PredictionTable.begin(writers.out, output_settings(predictor), resume=resume)
    batch_size = predictor.choose_batch_size(batch_size)
    if profile:
        from notan.prediction.profile import profile_prediction

        page = profile_prediction(
            *(predictor, found, writers.names), batch_size=batch_size, frame_step=frame_step
        )
        page.save(writers.out)
        print(page.in_words())
    pipeline = Pipeline(predictor, writers, table, batch_size=batch_size, images=len(found))
    reading = predictor.preprocessor.reading
    items = items_of_all(found, frame_step=frame_step, reading=reading)
    try:
        with _Progress(len(found)) as progress, _saying_how_to_go_on(pipeline):
            pipeline.progress = progress.image
            pipeline.run(items)
    finally:
        writers.close()
    if pipeline.timing.seconds >= LONG_SECONDS and pipeline.timing.images:
        logger.info("%s", pipeline.timing.in_words())
    return table


def _predict_in_blocks(
    load: Callable[[], Predictor],
    found: Sequence[Found],
    writers: Writers,
    *,
    resume: bool,
    frame_step: int,
    machine: MachineFlags,
    engine: EngineFlags,
) -> PredictionTable:
    """Predict on the workers of a Ray, or in this process what goes into a store."""
    from notan.scale.ray_engine import OneProcessPrediction, RayPrediction

    is_ray = engine.engine == "ray"
    prediction = (RayPrediction if is_ray else OneProcessPrediction)(
        *(load, writers.out, writers.names),
        frame_step=frame_step,
        batch_size=machine.batch_size,
        resume=resume,
    )
    begun = time.monotonic()
    with _Progress(len(found)) as progress, _saying_how_to_go_on(prediction):
        prediction.progress = progress.block
        if isinstance(prediction, RayPrediction):
            table = prediction.run(
                found, address=engine.address, device=machine.device, cores=machine.threads
            )
        else:
            table = prediction.run(found)
    if (seconds := time.monotonic() - begun) >= LONG_SECONDS and table.predicted:
        by = f"{prediction.workers} workers and the start of Ray" if is_ray else "one process"
        logger.info(
            "%.1f images a second from files to files, by %s", table.predicted / seconds, by
        )
    return table


def _say_what_is_done(table: PredictionTable) -> None:
    if unsure := table.summary():
        print(unsure)
    notes = [f"{table.kept} were there already"] if table.kept else []
    notes += [f"{table.changed} changed since: predicted anew"] if table.changed else []
    kept = f" ({'; '.join(notes)})" if notes else ""
    print(f"{table.predicted + table.kept} of {table.total} images: {table.place}{kept}")


def _say_what_the_default_model_knows() -> None:
    from notan.modelfile.default import WHAT_IT_KNOWS

    logger.info("no --model was given: %s", WHAT_IT_KNOWS)


@contextlib.contextmanager
def _saying_how_to_go_on(work: Pipeline | OneProcessPrediction | RayPrediction) -> Iterator[None]:
    """Add to Ctrl-C and SIGTERM how much is done by then."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if work.table is None:  # nothing was begun
            raise
        number = stop.number if isinstance(stop, StoppedBySignal) else signal.SIGINT
        by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        raise StoppedBySignal(
            f"stopped by {by}; {len(work.table.rows)} images are done and whole: "
            "give the same command with --resume to go on",
            number,
        ) from stop


class _Progress:
    """A bar that is lengthened by the frames and pages that are found on the way.

    In the end it says what reading has chosen.
    """

    def __init__(self, files: int) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=files, unit="image", leave=False, disable=None)
        self.seen: set[Path] = set()
        self.choices: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        for choice, count in self.choices.items():
            logger.info("images: %s (%d)", choice, count)

    def image(self, item: Item) -> None:
        """Move on by an image."""
        if item.siblings > 1 and item.path not in self.seen:
            self.seen.add(item.path)
            self.bar.total = (self.bar.total or 0) + item.siblings - 1
        self.choices.update(item.choices)
        self.bar.update()

    def block(self, manifest: Manifest, files: int) -> None:
        """Move on by all images of a block."""
        self.bar.total = (self.bar.total or 0) + manifest.images - files
        self.choices.update(manifest.choices)
        self.bar.update(manifest.images)


def _refuse_no_batch(machine: MachineFlags) -> None:
    """Refuse it before the model is loaded."""
    if machine.batch_size is not None and machine.batch_size < 1:
        raise ConfigError(f"--batch-size is {machine.batch_size}; 1 or more is wanted")


def _raise_failures(table: PredictionTable) -> None:
    failures = table.failures
    if not failures:
        return
    reasons = "; ".join(failure.reason for failure in failures[:MOST_NAMED])
    more = f"; and {len(failures) - MOST_NAMED} more" if len(failures) > MOST_NAMED else ""
    raise DataError(
        f"{len(failures)} of {table.total} images could not be read: {reasons}{more}; all in "
        "failed.csv"
    )


SUBMISSION = Path("submission.csv")


def submit(
    *,
    model: Annotated[Path | None, flag("FILE")] = None,
    data_path: DataPath = None,
    list: Annotated[Path | None, flag("FILE")] = None,  # noqa: A002 - the flag's name
    out: Annotated[Path | None, flag("FILE", SUBMISSION)] = None,
    check: Annotated[Path | None, flag("FILE")] = None,
    mask: OmitArgPrefixes[MaskFlags] = MASKS,
    machine: OmitArgPrefixes[MachineFlags] = MACHINE,
) -> None:
    """Write a leaderboard's file, or check one.

    Writes image_id,encoded_mask: the names and the order of the list, and Kaggle's run lengths at
    the images' own size (column by column, from 1; an empty mask is an empty cell). The images
    need no masks: they lie in the folder, in its images/ or in images/ of its train/, val/, test/.

    With --check FILE nothing is predicted: every row is read strictly, and all that is wrong is
    listed, with exit code 3. --list adds the names, --data-path the images' sizes.

    Args:
        model: A best.safetensors that train wrote, or an .onnx file that export made of one.
        list: One name a line, with or without the file's suffix; what follows it is passed over.
        out: The file to write.
        check: A file to check.
    """
    if check is not None:
        _refuse_beside_check(model, out, mask, machine)
        _check_submission(check, data_path, list)
        return
    if model is None or data_path is None or list is None:
        flags = {"--model": model, "--data-path": data_path, "--list": list}
        missing = ", ".join(flag for flag, value in flags.items() if value is None)
        raise ConfigError(f"{missing}: needed to write a submission; see notan submit --help")
    _refuse_no_batch(machine)
    _write_submission(model, data_path, list, out or SUBMISSION, mask, machine)


def _write_submission(
    model: Path,
    data_path: Path,
    listing: Path,
    out: Path,
    mask: MaskFlags,
    machine: MachineFlags,
) -> None:
    from tqdm import tqdm

    from notan.prediction.submission import (
        find_images,
        read_list,
        refuse_to_replace,
        write_submission,
    )

    refuse_to_replace(out, [model, listing])
    images = find_images(read_list(listing, data_path), data_path)
    predictor = load_predictor(model, mask, machine)
    with tqdm(total=len(images), unit="image", leave=False, disable=None) as bar:
        batch_size = predictor.choose_batch_size(machine.batch_size)
        write_submission(predictor, images, out, batch_size=batch_size, progress=bar.update)
    print(f"{len(images)} images: {out}")


def _refuse_beside_check(
    model: Path | None, out: Path | None, mask: MaskFlags, machine: MachineFlags
) -> None:
    values = {"model": model, "out": out, **vars(mask), **vars(machine)}
    unset = {"model": None, "out": None, **vars(MASKS), **vars(MACHINE)}
    given = [f"--{name.replace('_', '-')}" for name in values if values[name] != unset[name]]
    if given:
        raise ConfigError(
            f"{', '.join(given)}: --check predicts nothing, so this has no meaning beside it; "
            "leave one of them out"
        )


def _check_submission(path: Path, data_path: Path | None, listing: Path | None) -> None:
    from notan.prediction.submission import check_submission, find_images, read_list, read_sizes

    names = read_list(listing, data_path) if listing is not None else None
    sizes = None
    if data_path is not None:
        if names is None:
            raise ConfigError("--data-path: needs --list, which says what the images are called")
        sizes = read_sizes(find_images(names, data_path))
    findings = check_submission(path, names, sizes)
    if findings.count:
        print(findings.in_words())
        problems = "1 problem" if findings.count == 1 else f"{findings.count} problems"
        raise DataError(f"{path}: {problems}, listed above; mend them before you submit it")
    print(f"fine: {findings.images} images")
