"""A clean drawn folder for the data doctor's tests, and how single files of it are spoilt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from notan.checking import examine
from notan.data.synthetic import DrawnSource, write_folder

if TYPE_CHECKING:
    from pathlib import Path

    from notan.checking import Finding

Array = npt.NDArray[Any]

PARTS = {"train": 18, "val": 6, "test": 6}
SIZE = (96, 120)


def write_clean(folder: Path) -> Path:
    """Write train/, val/ and test/ of drawn images; drawn-0000 is the first of train."""
    first = 0
    for part, count in PARTS.items():
        write_folder(DrawnSource(count, size=SIZE, seed=5, first=first), folder / part)
        first += count
    return folder


def image_path(folder: Path, number: int, part: str = "train") -> Path:
    return folder / part / "images" / f"drawn-{number:04d}.png"


def mask(folder: Path, number: int, part: str = "train") -> Path:
    return folder / part / "masks" / f"drawn-{number:04d}.png"


def pixels(path: Path) -> Array:
    with Image.open(path) as opened:
        return np.array(opened)


def write(path: Path, values: Array) -> None:
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def found(folder: Path, kind: str) -> list[Finding]:
    """Return the findings of one kind in a folder."""
    return [finding for finding in examine(folder).findings if finding.kind == kind]


def only(folder: Path, kind: str) -> Finding:
    """Return the one finding above a note, and see that it is of this kind."""
    findings = [finding for finding in examine(folder).findings if finding.severity != "note"]
    assert [finding.kind for finding in findings] == [kind], findings
    return findings[0]
