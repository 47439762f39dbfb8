"""The Oxford-IIIT Pet dataset's own layout, with its official lists and trimaps.

Source: Parkhi, Vedaldi, Zisserman, Jawahar, "Cats and Dogs", CVPR 2012.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from notan.data.samples import FileSource, Labels, Pair
from notan.errors import DataError
from notan.io.masks import read_trimap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.config import TrimapBorder

VALIDATION_EVERY = 10
"""Every tenth line of trainval.txt is validation: the rule behind the published numbers."""


def looks_like_pets(folder: Path) -> bool:
    """Say whether a folder has the dataset's own layout."""
    return (folder / "annotations" / "trimaps").is_dir() and (folder / "images").is_dir()


def pets_source(folder: Path, split: str, trimap_border: TrimapBorder) -> FileSource:
    """Return one part of the dataset.

    Args:
        folder: Holds ``images/`` and ``annotations/`` with ``trainval.txt``, ``test.txt`` and
            ``trimaps/``.
        split: ``train`` and ``validation`` share ``trainval.txt`` (nine lines to one), ``test``
            is ``test.txt``, ``trainval`` is that whole list, ``all`` is both lists.
        trimap_border: What the trimap's border counts as.

    Raises:
        DataError: A list, image or trimap is missing; the message names the first.
    """
    names = split_names(folder, split)
    pairs = [_existing_pair(pair_of(folder, name)) for name in names]
    return FileSource(pairs, partial(trimap_labels, trimap_border=trimap_border))


def trimap_labels(path: Path, *, trimap_border: TrimapBorder) -> Labels:
    """Read a trimap: 1 is foreground, 2 background, and 3, the border, what the rule says.

    Raises:
        DataError: The file is unreadable or holds other values.
    """
    mask, ignore = read_trimap(path, trimap_border)
    return Labels(mask, ignore, f"trimap, trimap_border = {trimap_border}")


def split_names(folder: Path, split: str) -> Sequence[str]:
    """Return the images that the dataset's lists give to a split, in the lists' order.

    Args:
        folder: The dataset's folder.
        split: As for ``pets_source``.

    Raises:
        DataError: A list is missing, unreadable or empty.
    """
    annotations = folder / "annotations"
    if split == "test":
        return _read_list(annotations / "test.txt")
    listed = _read_list(annotations / "trainval.txt")
    if split == "trainval":
        return listed
    if split == "all":
        return [*listed, *_read_list(annotations / "test.txt")]
    validation = listed[::VALIDATION_EVERY]
    if split == "validation":
        return validation
    held_back = set(validation)
    return [name for name in listed if name not in held_back]


def has_list(folder: Path, split: str) -> bool:
    """Say whether the folder holds the dataset's list of a split: ``trainval`` or ``test``."""
    return (folder / "annotations" / f"{split}.txt").is_file()


def pair_of(folder: Path, name: str) -> Pair:
    """Say where an image and its trimap should lie, whether or not they are there."""
    return Pair(
        name,
        folder / "images" / f"{name}.jpg",
        folder / "annotations" / "trimaps" / f"{name}.png",
    )


def _read_list(path: Path) -> list[str]:
    """Read the first word of every line: the image's name."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: the dataset's list cannot be read ({error}); "
            "get a whole copy with: notan download oxford-iiit-pet"
        ) from error
    names = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    if not names:
        raise DataError(f"{path}: the list is empty; at least one image's name was wanted")
    return names


def _existing_pair(pair: Pair) -> Pair:
    for path in (pair.image, pair.mask):
        if not path.is_file():
            raise DataError(
                f"{path}: the list names {pair.name}, but this file is missing; "
                "get a whole copy with: notan download oxford-iiit-pet"
            )
    return pair
