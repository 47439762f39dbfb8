"""``notan evaluate`` and ``inference`` score a model on a split; ``report`` writes a run's page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from notan.cli.flags import (
    MACHINE,
    MASKS,
    AllowTrainingImages,
    DataPath,
    Device,
    KnownDataPath,
    MachineFlags,
    MaskFlags,
    ModelClass,
    ModelFile,
    Split,
    TrimapBorderRule,
    flag,
    load_predictor,
)

if TYPE_CHECKING:
    from notan.metrics import Score

OutFolder = Annotated[
    Path | None, flag("FOLDER", "a fresh folder beside the model", help="Where everything goes.")
]


@dataclass(frozen=True)
class ScoreFlags:
    """By which rules the score is taken.

    Attributes:
        tolerance: How far a boundary may lie off and still count as right: 2 (pixels) or
            0.75% (of the image's diagonal).
        groups: A table of what you know of the images: a column with their names, and one or
            more to give the mean Dice of each group by.
    """

    trimap_border: TrimapBorderRule = None
    tolerance: Annotated[str | None, flag("PIXELS|PERCENT%", "0.75%")] = None
    groups: Annotated[
        Path | None, flag("FILE.csv", "by foreground size, and breed for the pets")
    ] = None
    allow_training_images: AllowTrainingImages = False


SCORE = ScoreFlags()
"""The group of which no flag is given."""


def evaluate(
    *,
    model: ModelFile,
    data_path: DataPath = None,
    split: Split = "test",
    out: OutFolder = None,
    score: OmitArgPrefixes[ScoreFlags] = SCORE,
    mask: OmitArgPrefixes[MaskFlags] = MASKS,
    machine: OmitArgPrefixes[MachineFlags] = MACHINE,
) -> None:
    """Score a model on a split.

    Prints the means with their intervals, the pooled scores, boundaries, probabilities and
    groups at the images' own size, with the rules they were taken by; writes images.csv and
    score.json.
    """
    found, folder = _score("evaluate", model, data_path, split, out, score, mask, machine)
    print(found.summary())
    print(folder)


def inference(
    *,
    model: ModelFile,
    data_path: DataPath = None,
    split: Split = "test",
    out: OutFolder = None,
    score: OmitArgPrefixes[ScoreFlags] = SCORE,
    mask: OmitArgPrefixes[MaskFlags] = MASKS,
    machine: OmitArgPrefixes[MachineFlags] = MACHINE,
) -> None:
    """Score a model on a split and write its masks too.

    Does what evaluate does, prints "Mean Dice Score: ..." first, and writes masks/NAME.png
    (0 / 255) and overlays/NAME.png (prediction orange, outline of the truth blue) at the
    images' own size.
    """
    found, folder = _score("inference", model, data_path, split, out, score, mask, machine)
    print(f"Mean Dice Score: {found.mean_dice:.4f}")
    print(found.summary())
    print(folder)


def _score(
    kind: Literal["evaluate", "inference"],
    model: Path,
    data_path: Path | None,
    split: str,
    out: Path | None,
    score: ScoreFlags,
    mask: MaskFlags,
    machine: MachineFlags,
) -> tuple[Score, Path]:
    """Score the model, and write the table and for ``inference`` the images into a folder."""
    from notan.api import evaluate as score_split
    from notan.api import model_file
    from notan.io.write import fresh_folder

    folder = out or fresh_folder(model_file(model).parent / f"{kind}-{split}")
    found = score_split(
        load_predictor(model, mask, machine),
        data_path,
        split=split,
        trimap_border=score.trimap_border,
        tolerance=score.tolerance,
        groups=score.groups,
        allow_training_images=score.allow_training_images,
        batch_size=machine.batch_size,
        out=folder,
        write_images=kind == "inference",
    )
    return found, folder


def report(
    run: Positional[Annotated[Path, arg(metavar="RUN")]],
    *,
    data_path: KnownDataPath = None,
    split: Annotated[Literal["val", "test"], arg(metavar="val|test")] = "val",
    model_class: ModelClass = None,
    device: Device = "auto",
    out: Annotated[Path | None, flag("FOLDER", "the run folder")] = None,
) -> None:
    """Write the page of a run: what it did, what it is worth.

    Writes report.html, which needs nothing else, its charts as PNG into report/, and
    report.json with everything that the page shows. The newest score of the split that evaluate or
    inference left in the run folder is shown; where there is none, the images are scored now. What
    is missing, the page says. Train writes the page too, at its end.

    Args:
        run: The folder of a run, finished or not.
        split: Whose score and images to show; no other part of the data is read.
        out: Where the page goes.
    """
    from notan.report.run import write_report

    page = write_report(
        run, split=split, data_path=data_path, device=device, out=out, network=model_class
    )
    print(page)
