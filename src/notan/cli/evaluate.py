"""``notan evaluate`` and ``notan inference``: score a model on a split; write its masks too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from notan.cli.flags import (
    BackendFlag,
    DataPath,
    Device,
    ModelFile,
    PrecisionFlag,
    Split,
    Threads,
    Threshold,
    TrimapBorderFlag,
    Tta,
    shows,
)

if TYPE_CHECKING:
    from notan.data.samples import Sample
    from notan.metrics import Score
    from notan.prediction.predictor import Prediction

OutFolder = Annotated[Path | None, shows("a fresh folder beside the model", "FOLDER")]
ToleranceFlag = Annotated[str | None, shows("0.75%", "PIXELS|PERCENT%")]
GroupsFile = Annotated[Path | None, shows("by foreground size, and breed for the pets", "FILE.csv")]


def evaluate(
    *,
    model: ModelFile,
    data_path: DataPath = None,
    split: Split = "test",
    trimap_border: TrimapBorderFlag = None,
    tolerance: ToleranceFlag = None,
    groups: GroupsFile = None,
    threshold: Threshold = None,
    tta: Tta = None,
    allow_training_images: bool = False,
    batch_size: int = 8,
    device: Device = "auto",
    backend: BackendFlag = "auto",
    precision: PrecisionFlag = "fp32",
    threads: Threads = None,
    out: OutFolder = None,
) -> None:
    """Score a model on a split, at the images' own size, and write a table of the images.

    Prints the means with their intervals, the pooled scores, boundaries, probabilities and
    groups, with the rules they were taken by; writes images.csv and score.json.

    Args:
        model: A best.safetensors that train wrote, or an .onnx file that export made of one.
        data_path: The folder with the images and masks.
        split: Which images; all takes every image of a folder that has no parts.
        trimap_border: What the border of Oxford's trimaps counts as.
        tolerance: How far a boundary may lie off and still count as right: 2 (pixels) or
            0.75% (of the image's diagonal).
        groups: A table of what you know of the images: a column with their names, and one or
            more to give the mean Dice of each group by.
        threshold: Calibrated probability from which a pixel is foreground; leaves out what else
            validation chose for the mask.
        tta: Ask the network several views of each image and take the mean: hflip (left
            and right), vflip (top and bottom), rot90 (quarter turns), scale, or several:
            hflip,vflip. Slower by the number of views.
        allow_training_images: Score images that the model was trained on too, and mark the score.
        batch_size: Images predicted at once; changes the speed, not the score.
        device: Where to compute.
        backend: What runs the network: a checkpoint runs on torch, an .onnx file on openvino or
            else onnxruntime, whichever is installed.
        precision: bf16 is quicker on processors that know it, and may move a few pixels.
        threads: Of the processor, at most.
        out: Where the table goes.
    """
    task = Task(
        model,
        data_path,
        split,
        trimap_border,
        tolerance,
        groups,
        threshold,
        tta,
        allow_training_images,
    )
    machine = Machine(device, backend, precision, threads)
    score, folder = _score(task, batch_size, machine, out, write_images=False)
    print(score.summary())
    print(folder)


def inference(
    *,
    model: ModelFile,
    data_path: DataPath = None,
    split: Split = "test",
    trimap_border: TrimapBorderFlag = None,
    tolerance: ToleranceFlag = None,
    groups: GroupsFile = None,
    threshold: Threshold = None,
    tta: Tta = None,
    allow_training_images: bool = False,
    batch_size: int = 1,
    device: Device = "auto",
    backend: BackendFlag = "auto",
    precision: PrecisionFlag = "fp32",
    threads: Threads = None,
    out: OutFolder = None,
) -> None:
    """Score a model on a split and write every mask and overlay as PNG.

    Does what evaluate does, prints "Mean Dice Score: ..." first, and writes masks/NAME.png
    (0 / 255) and overlays/NAME.png (prediction orange, outline of the truth blue) at the
    images' own size.

    Args:
        model: A best.safetensors that train wrote, or an .onnx file that export made of one.
        data_path: The folder with the images and masks.
        split: Which images; all takes every image of a folder that has no parts.
        trimap_border: What the border of Oxford's trimaps counts as.
        tolerance: How far a boundary may lie off and still count as right: 2 (pixels) or
            0.75% (of the image's diagonal).
        groups: A table of what you know of the images: a column with their names, and one or
            more to give the mean Dice of each group by.
        threshold: Calibrated probability from which a pixel is foreground; leaves out what else
            validation chose for the mask.
        tta: Ask the network several views of each image and take the mean: hflip (left
            and right), vflip (top and bottom), rot90 (quarter turns), scale, or several:
            hflip,vflip. Slower by the number of views.
        allow_training_images: Score images that the model was trained on too, and mark the score.
        batch_size: Images predicted at once; changes the speed, not the masks.
        device: Where to compute.
        backend: What runs the network: a checkpoint runs on torch, an .onnx file on openvino or
            else onnxruntime, whichever is installed.
        precision: bf16 is quicker on processors that know it, and may move a few pixels.
        threads: Of the processor, at most.
        out: Where masks, overlays and table go.
    """
    task = Task(
        model,
        data_path,
        split,
        trimap_border,
        tolerance,
        groups,
        threshold,
        tta,
        allow_training_images,
    )
    machine = Machine(device, backend, precision, threads)
    score, folder = _score(task, batch_size, machine, out, write_images=True)
    print(f"Mean Dice Score: {score.mean_dice:.4f}")
    print(score.summary())
    print(folder)


@dataclass(frozen=True)
class Task:
    """What is scored, and by which rules: the flags that both commands share."""

    model: Path
    data_path: Path | None
    split: str
    trimap_border: TrimapBorderFlag
    tolerance: str | None
    groups: Path | None
    threshold: float | None
    tta: str | None
    allow_training_images: bool


@dataclass(frozen=True)
class Machine:
    """What computes, by the flags of both commands."""

    device: str
    backend: str
    precision: PrecisionFlag
    threads: int | None


def _score(
    task: Task,
    batch_size: int,
    machine: Machine,
    out: Path | None,
    *,
    write_images: bool,
) -> tuple[Score, Path]:
    from notan.evaluation.evaluate import evaluate as score_all
    from notan.evaluation.evaluate import open_data, write_score
    from notan.io.write import fresh_folder
    from notan.metrics import Tolerance
    from notan.modelfile.card import read_card
    from notan.prediction.formats import write_overlay_and_mask
    from notan.prediction.predictor import Predictor
    from notan.prediction.tta import parse_augment

    tolerance = Tolerance.parse(task.tolerance) if task.tolerance is not None else None
    augment = parse_augment(task.tta) if task.tta is not None else ()
    card = read_card(task.model)
    data = open_data(
        card,
        task.split,
        data_path=task.data_path,
        trimap_border=task.trimap_border,
        groups=task.groups,
    )
    predictor = Predictor.load(
        task.model,
        device=machine.device,
        backend=machine.backend,
        precision=machine.precision,
        threads=machine.threads,
        threshold=task.threshold,
        augment=augment,
    )
    kind = "inference" if write_images else "evaluate"
    folder = out or fresh_folder(task.model.parent / f"{kind}-{task.split}")

    def write(sample: Sample, prediction: Prediction) -> None:
        write_overlay_and_mask(folder, sample.name, sample.image, prediction.mask, sample.mask)

    score = score_all(
        predictor,
        data.source,
        split=task.split,
        trimap_border=data.trimap_border,
        batch_size=batch_size,
        on_prediction=write if write_images else None,
        tolerance=tolerance,
        groupings=data.groupings,
        allow_training_images=task.allow_training_images,
    )
    write_score(folder, score)
    return score, folder
