"""Data folders: ``notan check`` is the data doctor, ``notan download`` fetches a dataset."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from notan.cli.flags import (
    DEFAULT,
    READING,
    DataPath,
    ModelClass,
    Overrides,
    ReadingFlags,
    Switch,
    flag,
    only_data,
    settings_of,
)
from notan.config import Layout, load_run
from notan.errors import ConfigError

if TYPE_CHECKING:
    from notan.checking import Diagnosis
    from notan.checking.label_errors import LabelPlan, LabelSearch

JSON, PAGE = "check.json", "check.html"


def check(
    *,
    data_path: DataPath = None,
    strict: Switch = False,
    layout: Annotated[Layout, arg(metavar="auto|pets|folder|coco|...")] = DEFAULT.data.layout,
    model: Annotated[Path | None, flag("FILE", "masks are not ranked")] = None,
    model_class: ModelClass = None,
    folds: Annotated[int | None, flag("N", "3, with --model")] = None,
    epochs: Annotated[int | None, flag("N", "the model's own, with --model")] = None,
    out: Annotated[Path | None, flag("FOLDER", "a fresh folder, runs/check")] = None,
    reading: OmitArgPrefixes[ReadingFlags] = READING,
    overrides: Overrides = (),
) -> None:
    """Say what is wrong with the images and masks of a folder.

    Finds unreadable and mismatched files, masks that can be misread, are inverted, shifted or
    ragged, and images that stand in two splits. Prints a summary, and writes check.json and
    check.html, a page with images. The exit code is 0 when nothing is wrong, 2 with errors,
    and 1 with warnings under --strict.

    With --model, the masks of the training and validation images are judged too, by networks
    with that model's settings that are trained here without them; this takes as long as --folds
    trainings. A check that was stopped goes on when it is given the same --out again.

    Args:
        strict: Count warnings as a failure too.
        layout: How images and masks are arranged, or as which tool wrote them; auto looks.
        model: A best.safetensors of a run on this folder; ranks the masks by how much they look
            like mistakes.
        folds: Parts that the images are divided into; each is judged by a network trained on
            the others.
        epochs: Of each of these trainings.
        out: Where check.json and check.html go.
        overrides: Any other setting of the data: data.channels=4 data.masks.crowd=foreground
    """
    from notan.checking import examine
    from notan.io.write import fresh_folder

    if data_path is None:
        raise ConfigError("no data folder was given; name one with --data-path FOLDER")
    plan = _plan(model, folds, epochs, model_class)
    flags = {**settings_of(reading), "data.layout": layout}
    only_data(overrides, "a check takes")
    diagnosis = examine(data_path, load_run(flags=flags, overrides=overrides).data)
    diagnosis = diagnosis.model_copy(update={"is_final": plan is None})
    folder = out or fresh_folder(Path("runs") / "check")
    _write(folder, diagnosis)
    print(diagnosis.summary())
    if plan:
        from notan.checking.label_errors import search_labels

        search = search_labels(plan, diagnosis, out=folder)
        diagnosis = search.add_to(diagnosis)
        _write(folder, diagnosis, search)
        print(search.describe(), diagnosis.verdict(), sep="\n")
    print(folder / PAGE)
    code = diagnosis.exit_code(strict)
    if code:
        sys.exit(code)


def _plan(
    model: Path | None, folds: int | None, epochs: int | None, model_class: str | None
) -> LabelPlan | None:
    if model is not None:
        from notan.checking.label_errors import plan_search  # imports torch; a plain check does not

        return plan_search(model, folds=folds, epochs=epochs, network=model_class)
    for name, value in (("folds", folds), ("epochs", epochs), ("model-class", model_class)):
        if value is not None:
            raise ConfigError(
                f"--{name} is about the networks that judge masks; give --model FILE too, a "
                "best.safetensors of a run on this folder"
            )
    return None


def _write(folder: Path, diagnosis: Diagnosis, search: LabelSearch | None = None) -> None:
    from notan.io.write import encoded, write_bytes
    from notan.report.check import check_page

    everything = diagnosis.to_json(labels=search.to_json() if search else None)
    write_bytes(folder / JSON, encoded(everything + "\n"))
    write_bytes(folder / PAGE, encoded(check_page(diagnosis, search)))


def download(
    dataset: Positional[Annotated[Literal["oxford-iiit-pet"], arg(metavar="oxford-iiit-pet")]],
    *,
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("dataset"),
) -> None:
    """Download a dataset from its own site and verify it.

    Whole archives are kept until they are unpacked, so the command may be given again.

    Args:
        dataset: The Oxford-IIIT Pet dataset (Parkhi et al., CVPR 2012; CC BY-SA 4.0; 0.8 GB).
        out: The folder in which the dataset's folder is made.
    """
    from notan.data.download import download_pets

    del dataset  # there is one; its name is there to be read
    print(download_pets(out))
