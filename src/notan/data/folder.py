"""Any folder of pairs: images/ and masks/, matched by stem, alone or inside train/ val/ test/."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from notan.data.files import FileSource, Labels, Pair
from notan.data.formats import read_mask
from notan.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".webp",
        ".pgm",
        ".ppm",
        ".pbm",
        ".tga",
        ".jp2",
        ".avif",
    ]
)
"""File names that count as images; what is inside decides how they are decoded."""

PART_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid"),
    "test": ("test",),
}


def looks_like_folder(folder: Path) -> bool:
    """Say whether a folder holds images/ and masks/, directly or in a part."""
    return has_pairs(folder) or any(part_folder(folder, split) for split in PART_NAMES)


def part_folder(folder: Path, split: str) -> Path | None:
    """Return the folder of a part (train, validation or test), or None where there is none."""
    for name in PART_NAMES[split]:
        if has_pairs(folder / name):
            return folder / name
    return None


def folder_source(folder: Path) -> FileSource:
    """Return the pairs of ``folder/images`` and ``folder/masks``, in the order of their names.

    Raises:
        DataError: There are no pairs, an image has no mask, or a mask no image.
    """
    images = _by_stem(folder / "images")
    masks = _by_stem(folder / "masks")
    if not images:
        raise DataError(
            f"{folder / 'images'}: no images here; "
            f"files ending in {', '.join(sorted(SUFFIXES))} were wanted"
        )
    _require_partners(images, masks, folder / "masks", "mask")
    _require_partners(masks, images, folder / "images", "image")
    return FileSource([Pair(stem, images[stem], masks[stem]) for stem in images], mask_labels)


def mask_labels(path: Path) -> Labels:
    """Read a two-class mask by the one rule of ``notan.data.formats``.

    Raises:
        DataError: The file is unreadable or its values are ambiguous.
    """
    reading = read_mask(path)
    return Labels(reading.mask, None, reading.encoding)


def has_pairs(folder: Path) -> bool:
    """Say whether a folder holds images/ and masks/ itself."""
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def image_files(folder: Path) -> list[Path]:
    """Return a folder's image files by name; hidden files (``._x.jpg``) are none."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def loose_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, or else of the ``images/`` in it, by name.

    Raises:
        DataError: There are none.
    """
    for place in (folder, folder / "images"):
        if place.is_dir() and (files := image_files(place)):
            return files
    raise DataError(
        f"{folder}: no images here; files ending in {', '.join(sorted(SUFFIXES))} were wanted, "
        "in the folder itself or in images/"
    )


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in image_files(folder):
        if path.stem in found:
            raise DataError(
                f"{path}: {found[path.stem].name} has the same stem, so its partner is unclear; "
                "rename or remove one of them"
            )
        found[path.stem] = path
    return found


def _require_partners(
    files: dict[str, Path], partners: dict[str, Path], where: Path, wanted: str
) -> None:
    alone = [stem for stem in files if stem not in partners]
    if not alone:
        return
    near = [stem for stem in partners if stem not in files]
    closest = difflib.get_close_matches(alone[0], near, n=1, cutoff=0.4)
    hint = f" (the nearest is {partners[closest[0]].name})" if closest else ""
    others = f", nor for {len(alone) - 1} others" if len(alone) > 1 else ""
    raise DataError(
        f"{files[alone[0]]}: there is no {wanted} {alone[0]}.* in {where}{hint}{others}; "
        "image and mask must have the same name before the dot"
    )
