"""``notan check``: the data doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from notan.cli.flags import DEFAULT, DataPath, shows

JSON, PAGE = "check.json", "check.html"


def check(
    *,
    data_path: DataPath = None,
    strict: bool = False,
    border: Annotated[
        Literal["figure", "ground", "ignore"], arg(metavar="figure|ground|ignore")
    ] = DEFAULT.data.border,
    layout: Annotated[
        Literal["auto", "pets", "folder"], arg(metavar="auto|pets|folder")
    ] = DEFAULT.data.layout,
    out: Annotated[Path | None, shows("a fresh folder, runs/check", "FOLDER")] = None,
) -> None:
    """Look at every picture and mask of a data folder, and say what is wrong with them.

    Finds unreadable and mismatched files, masks that can be misread, are inverted, shifted or
    ragged, and pictures that stand in two splits. Prints a summary, and writes check.json and
    check.html, a page with pictures. The exit code is 0 when nothing is wrong, 2 with errors,
    and 1 with warnings under --strict.

    Args:
        data_path: The folder with the pictures and masks.
        strict: Count warnings as a failure too.
        border: What the border of Oxford's trimaps counts as.
        layout: How the folder is arranged; auto looks.
        out: Where check.json and check.html go.
    """
    from notan.data.doctor import examine
    from notan.errors import ConfigError
    from notan.files import fresh_folder, write_bytes
    from notan.report.check import check_page

    if data_path is None:
        raise ConfigError("no data folder was given; name one with --data-path FOLDER")
    diagnosis = examine(data_path, border=border, layout=layout)
    folder = out or fresh_folder(Path("runs") / "check")
    write_bytes(folder / JSON, (diagnosis.to_json() + "\n").encode())
    write_bytes(folder / PAGE, check_page(diagnosis).encode())
    print(diagnosis.summary())
    print(folder / PAGE)
    code = diagnosis.exit_code(strict)
    if code:
        sys.exit(code)
