"""``notan check``: the data doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from notan.cli.flags import DEFAULT, DataPath, shows

if TYPE_CHECKING:
    from notan.checking import Diagnosis
    from notan.checking.label_errors import LabelPlan, LabelSearch

JSON, PAGE = "check.json", "check.html"


def check(
    *,
    data_path: DataPath = None,
    strict: bool = False,
    trimap_border: Annotated[
        Literal["foreground", "background", "ignore"], arg(metavar="foreground|background|ignore")
    ] = DEFAULT.data.trimap_border,
    layout: Annotated[
        Literal["auto", "pets", "folder"], arg(metavar="auto|pets|folder")
    ] = DEFAULT.data.layout,
    model: Annotated[Path | None, shows("none; masks are not ranked", "FILE")] = None,
    folds: Annotated[int | None, shows("3, with --model", "N")] = None,
    epochs: Annotated[int | None, shows("the model's own, with --model", "N")] = None,
    out: Annotated[Path | None, shows("a fresh folder, runs/check", "FOLDER")] = None,
) -> None:
    """Look at every image and mask of a data folder, and say what is wrong with them.

    Finds unreadable and mismatched files, masks that can be misread, are inverted, shifted or
    ragged, and images that stand in two splits. Prints a summary, and writes check.json and
    check.html, a page with images. The exit code is 0 when nothing is wrong, 2 with errors,
    and 1 with warnings under --strict.

    With --model, the masks of the training and validation images are judged too, by networks
    with that model's settings that are trained here without them; this takes as long as --folds
    trainings. A check that was stopped goes on when it is given the same --out again.

    Args:
        data_path: The folder with the images and masks.
        strict: Count warnings as a failure too.
        trimap_border: What the border of Oxford's trimaps counts as.
        layout: How the folder is arranged; auto looks.
        model: A best.safetensors of a run on this folder; ranks the masks by how much they look
            like mistakes.
        folds: Parts that the images are divided into; each is judged by a network trained on
            the others.
        epochs: Of each of these trainings.
        out: Where check.json and check.html go.
    """
    from notan.checking import examine
    from notan.errors import ConfigError
    from notan.io.write import fresh_folder

    if data_path is None:
        raise ConfigError("no data folder was given; name one with --data-path FOLDER")
    plan = _plan(model, folds, epochs)
    diagnosis = examine(data_path, trimap_border=trimap_border, layout=layout)
    folder = out or fresh_folder(Path("runs") / "check")
    _write(folder, diagnosis)
    print(diagnosis.summary())
    if plan:
        from notan.checking.label_errors import search_labels

        search = search_labels(plan, diagnosis, out=folder)
        diagnosis = search.add_to(diagnosis)
        _write(folder, diagnosis, search)
        print(search.describe())
    print(folder / PAGE)
    code = diagnosis.exit_code(strict)
    if code:
        sys.exit(code)


def _plan(model: Path | None, folds: int | None, epochs: int | None) -> LabelPlan | None:
    from notan.errors import ConfigError

    if model is None:
        words = (("folds", folds), ("epochs", epochs))
        given = [f"--{name}" for name, value in words if value is not None]
        if given:
            raise ConfigError(
                f"{given[0]} is about the networks that judge masks; give --model FILE too, a "
                "best.safetensors of a run on this folder"
            )
        return None
    # imports torch, which a plain check does without
    from notan.checking.label_errors import plan_search

    return plan_search(model, folds=folds, epochs=epochs)


def _write(folder: Path, diagnosis: Diagnosis, search: LabelSearch | None = None) -> None:
    from notan.io.write import write_bytes
    from notan.report.check import check_page

    everything = diagnosis.to_json(labels=search.to_json() if search else None)
    write_bytes(folder / JSON, (everything + "\n").encode())
    write_bytes(folder / PAGE, check_page(diagnosis, search).encode())
