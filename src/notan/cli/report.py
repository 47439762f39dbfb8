"""``notan report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from notan.cli.flags import Device, shows


def report(
    run: Positional[Annotated[Path, arg(metavar="RUN")]],
    *,
    data_path: Annotated[Path | None, shows("the run's own", "FOLDER")] = None,
    split: Annotated[Literal["val", "test"], arg(metavar="val|test")] = "val",
    device: Device = "auto",
    out: Annotated[Path | None, shows("the run folder", "FOLDER")] = None,
) -> None:
    """Write one page that says what a run did and what its model is worth.

    Writes report.html, which needs nothing else, its foregrounds as PNG into report/, and
    report.json with everything that the page shows. The newest score of the split that evaluate or
    inference left in the run folder is shown; where there is none, the images are scored now. What
    is missing, the page says. Train writes the page too, at its end.

    Args:
        run: The folder of a run, finished or not.
        data_path: The folder with the images and masks.
        split: Whose score and images to show; no other part of the data is read.
        device: Where to compute.
        out: Where the page goes.
    """
    from notan.report.run import write_report

    print(write_report(run, split=split, data_path=data_path, device=device, out=out))
