"""Which pictures the words on a command line mean, and what their masks are called."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from notan.data.folder import picture_files
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def find_pictures(inputs: Iterable[Path]) -> dict[str, Path]:
    """Return the pictures by the name of their output.

    A picture's output has its stem; pictures that share a stem keep their whole file names
    (``cat.jpg``, ``cat.png``), so that neither mask replaces the other.

    Args:
        inputs: Files, whatever they are called, and folders, of which every picture is taken.

    Raises:
        DataError: An input is missing, a folder holds no picture, nothing was given, or two
            pictures have one and the same file name.
    """
    files = [file for path in inputs for file in _files(path)]
    if not files:
        raise DataError("no pictures were given; name files or folders")
    files = list(dict.fromkeys(files))
    stems = Counter(path.stem for path in files)
    found: dict[str, Path] = {}
    for path in files:
        name = path.stem if stems[path.stem] == 1 else path.name
        if name in found:
            raise DataError(
                f"{path}: {found[name]} has the same name, so one mask would replace the other; "
                "predict them one after the other with another --out"
            )
        found[name] = path
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = picture_files(path)
        if not files:
            raise DataError(f"{path}: there are no pictures in this folder")
        return files
    if not path.exists():
        raise DataError(f"{path}: there is no such picture or folder")
    return [path]
