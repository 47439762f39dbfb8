"""Which files a data folder has, split by split, without stopping at what is missing."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notan.data.doctor.diagnosis import Finding, number_of
from notan.data.folder import PART_NAMES, SUFFIXES, has_pairs, image_files, part_folder
from notan.data.pets import pair_of, split_names
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

UNLISTED = "unlisted"
"""The split of files that stand in the Oxford pets' folders but in none of its lists."""

WHOLE = "all"
"""The split of a folder that has no parts."""

FIRST = 3
"""Names that a message gives before it only counts."""


@dataclass(frozen=True)
class Entry:
    """One sample as the folder has it; a missing image or mask is None."""

    name: str
    split: str
    image: Path | None
    mask: Path | None


@dataclass(frozen=True)
class Collection:
    """The files of a data folder and what their names alone give away."""

    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...]


def collect(folder: Path, layout: str) -> Collection:
    """List the samples of a data folder.

    Args:
        folder: An existing data folder.
        layout: ``"pets"`` or ``"folder"``.

    Raises:
        DataError: A folder cannot be listed, or there is neither an image nor a mask.
    """
    try:
        collection = _collect_pets(folder) if layout == "pets" else _collect_parts(folder)
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: could not be listed ({error.strerror or error}); "
            "check its permissions and the disk it lies on"
        ) from error
    if not collection.entries:
        raise DataError(
            f"{folder}: no images and no masks here; "
            f"files ending in {', '.join(sorted(SUFFIXES))} were wanted"
        )
    return collection


def _collect_parts(folder: Path) -> Collection:
    """List images/ and masks/ of the folder itself and of each of its parts."""
    entries: list[Entry] = []
    findings: list[Finding] = []
    for split, part in _parts(folder):
        images = _files(part / "images")
        masks = _files(part / "masks")
        found = _matched(split, images, masks)
        entries += found
        findings += _same_stems(split, images, "image")
        findings += _same_stems(split, masks, "mask")
        findings += _without_partner(part, split, found)
        findings += _ignored(part, split)
    return Collection(tuple(entries), tuple(findings))


def _parts(folder: Path) -> Iterator[tuple[str, Path]]:
    if has_pairs(folder):
        yield WHOLE, folder
    for split, names in PART_NAMES.items():
        part = part_folder(folder, split)
        if part:
            yield split, part
            continue
        for name in names:
            if any((folder / name / inside).is_dir() for inside in ("images", "masks")):
                yield split, folder / name
                break


def _files(folder: Path) -> list[Path]:
    return image_files(folder) if folder.is_dir() else []


def _matched(split: str, images: Sequence[Path], masks: Sequence[Path]) -> list[Entry]:
    """Pair files by stem; a second file of a stem stands alone, so that it is read too."""
    waiting: dict[str, list[Path]] = {}
    for mask in masks:
        waiting.setdefault(mask.stem, []).append(mask)
    entries = []
    for image in images:
        partners = waiting.get(image.stem)
        partner = partners.pop(0) if partners else None
        entries.append(Entry(image.stem, split, image, partner))
    rest = [mask for partners in waiting.values() for mask in partners]
    return entries + [Entry(mask.stem, split, None, mask) for mask in rest]


def _same_stems(split: str, files: Sequence[Path], what: str) -> Iterator[Finding]:
    seen: dict[str, Path] = {}
    for path in files:
        first = seen.setdefault(path.stem, path)
        if first is not path:
            message = (
                f"{path}: {first.name} has the same name before the dot, so it is unclear which "
                f"{what} is meant; rename or remove one of them"
            )
            yield Finding("same-stem-twice", "error", message, (first, path), split)


def _without_partner(part: Path, split: str, entries: Sequence[Entry]) -> Iterator[Finding]:
    imaged = {entry.name for entry in entries if entry.image}
    masked = {entry.name for entry in entries if entry.mask}
    for entry in entries:
        if entry.image and entry.name not in masked:
            hint = _nearest(entry.name, masked - imaged)
            message = (
                f"{entry.image}: there is no mask {entry.name}.* in {part / 'masks'}{hint}; "
                "image and mask must have the same name before the dot"
            )
            yield Finding("image-without-mask", "error", message, (entry.image,), split)
        elif entry.mask and entry.name not in imaged:
            hint = _nearest(entry.name, imaged - masked)
            message = (
                f"{entry.mask}: there is no image {entry.name}.* in {part / 'images'}{hint}; "
                "image and mask must have the same name before the dot"
            )
            yield Finding("mask-without-image", "error", message, (entry.mask,), split)


def _nearest(name: str, others: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(others), n=1, cutoff=0.4)
    return f" (the nearest without a partner is {close[0]})" if close else ""


def _ignored(part: Path, split: str) -> Iterator[Finding]:
    """Note what stands among the images and is never read."""
    for folder in (part / "images", part / "masks"):
        if not folder.is_dir():
            continue
        images = set(image_files(folder))
        others = sorted(
            path
            for path in folder.iterdir()
            if path not in images and not path.name.startswith(".")
        )
        if others:
            message = (
                f"{folder}: {_named(others)} {'is' if len(others) == 1 else 'are'} never read, "
                "because only image files directly in this folder are; move or rename what "
                "should count"
            )
            yield Finding("ignored-file", "note", message, tuple(others), split)


def _collect_pets(folder: Path) -> Collection:
    """List the samples of the official lists, then the files that are in none of them."""
    entries: list[Entry] = []
    findings: list[Finding] = []
    for split in ("train", "validation", "test"):
        try:
            names = split_names(folder, split)
        except DataError as error:
            findings.append(Finding("unreadable-list", "error", str(error), (), split))
            continue
        pairs = [pair_of(folder, name) for name in names]
        entries += [
            Entry(
                pair.name,
                split,
                pair.image if pair.image.is_file() else None,
                pair.mask if pair.mask.is_file() else None,
            )
            for pair in pairs
        ]
    findings += _listed_but_missing(folder, entries)
    unlisted = _unlisted(folder, entries)
    if unlisted:
        files = tuple(path for entry in unlisted for path in (entry.image, entry.mask) if path)
        message = (
            f"{folder}: {_named(files)} {'is' if len(files) == 1 else 'are'} in none of the lists, "
            "so no split reads them"
        )
        findings.append(Finding("unlisted", "note", message, files, UNLISTED))
    return Collection((*entries, *unlisted), tuple(findings))


def _listed_but_missing(folder: Path, entries: Sequence[Entry]) -> Iterator[Finding]:
    for entry in entries:
        pair = pair_of(folder, entry.name)
        for path, there, kind in (
            (pair.image, entry.image, "mask-without-image"),
            (pair.mask, entry.mask, "image-without-mask"),
        ):
            if there is None:
                message = (
                    f"{path}: the {entry.split} list names {entry.name}, but this file is missing; "
                    "get a whole copy with: notan download oxford-iiit-pet"
                )
                files = tuple(file for file in (entry.image, entry.mask) if file)
                yield Finding(kind, "error", message, files, entry.split)


def _unlisted(folder: Path, entries: Sequence[Entry]) -> list[Entry]:
    listed = {path for entry in entries for path in (entry.image, entry.mask)}
    images = [path for path in image_files(folder / "images") if path not in listed]
    trimaps = image_files(folder / "annotations" / "trimaps")
    return _matched(UNLISTED, images, [path for path in trimaps if path not in listed])


def _named(files: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in files[:FIRST])
    return names if len(files) <= FIRST else f"{names} and {number_of(len(files) - FIRST, 'other')}"
