"""What the data doctor reads of a folder, each file once.

Which files a data folder has, split by split, without stopping at what is missing.

Reading one sample's files once and keeping a few numbers of them.

Nothing here judges: the ``check_*`` files do, when all samples are read.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from notan.checking.alignment import Alignment, Look, align, look_at
from notan.checking.diagnosis import Finding, number_of
from notan.data.folders import (
    PART_NAMES,
    SUFFIXES,
    has_pairs,
    image_files,
    mask_labels,
    pair_of,
    part_folder,
    split_names,
)
from notan.data.samples import Labels
from notan.errors import DataError
from notan.io.images import read_format, read_image, read_size
from notan.io.masks import read_trimap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from notan.config import TrimapBorder
    from notan.types import Mask, RGBImage, Size

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


FaultKind: TypeAlias = Literal["unreadable", "truncated", "ambiguous"]
MAP_SIDE = 16

Map = npt.NDArray[np.float32]


class Fault(NamedTuple):
    """Why a file could not be used: no image at all, damaged pixels, or unclear values."""

    kind: FaultKind
    message: str


@dataclass(frozen=True)
class FileFacts:
    """What image and mask files have in common.

    Attributes:
        path: The file.
        format: What it really is, such as ``"PNG"``; None when it is no image.
        fault: Why it could not be read, or None.
        size: (height, width), upright; None with a fault.
        digest: The same for the same pixels, whatever the format; "" with a fault.
    """

    path: Path
    format: str | None
    fault: Fault | None
    size: Size | None
    digest: str


@dataclass(frozen=True)
class ImageFacts(FileFacts):
    """An image in numbers: its colours are means and deviations of R, G, B on 0..255."""

    colour_mean: tuple[float, ...] = ()
    colour_std: tuple[float, ...] = ()
    look: Look | None = None


@dataclass(frozen=True)
class MaskFacts(FileFacts):
    """A mask in numbers.

    Attributes:
        encoding: How its values were read.
        coverage: The share of foreground in what is not ignored, 0..1.
        frame_coverage: The share of foreground along the image's four sides, 0..1.
        is_empty: Whether no pixel is foreground; of a trimap, whether none is 1.
        is_full: Whether every pixel that counts is foreground.
        lone_share: The share of pixels that differ from most of their eight neighbours.
        outline_loss: The share of the outline that is gone when the mask is smoothed.
        place: float32, (16, 16), the foreground shrunk: where in the image it lies.
    """

    encoding: str = ""
    coverage: float = 0.0
    frame_coverage: float = 0.0
    is_empty: bool = False
    is_full: bool = False
    lone_share: float = 0.0
    outline_loss: float = 0.0
    place: Map | None = None


@dataclass(frozen=True)
class Facts:
    """One sample in numbers; a missing file is None."""

    entry: Entry
    image: ImageFacts | None
    mask: MaskFacts | None
    alignment: Alignment | None = None

    @property
    def split(self) -> str:
        """The split of the sample."""
        return self.entry.split


class ReadMask(NamedTuple):
    """A mask file's pixels.

    Attributes:
        labels: The mask under the border rule.
        certain: Foreground for certain: without the border of a trimap.
        outline: The mask whose outline runs along the foreground's edge: through the middle of a
            trimap's border.
    """

    labels: Labels
    certain: Mask
    outline: Mask


MaskReader: TypeAlias = "Callable[[Path], ReadMask]"


def mask_reader(layout: str, trimap_border: TrimapBorder) -> MaskReader:
    """Return how masks of a layout are read."""
    return (
        partial(_read_trimap, trimap_border=trimap_border)
        if layout == "pets"
        else _read_two_classes
    )


def read_sample(entry: Entry, read: MaskReader) -> Facts:
    """Read a sample's files once; a file that cannot be read becomes a fault, not an error."""
    image, pixels = _image_facts(entry.image) if entry.image else (None, None)
    mask, outline = _mask_facts(entry.mask, read) if entry.mask else (None, None)
    alignment = None
    if pixels is not None and outline is not None and pixels.shape[:2] == outline.shape:
        alignment = align(pixels, outline)
    return Facts(entry, image, mask, alignment)


def _read_two_classes(path: Path) -> ReadMask:
    labels = mask_labels(path)
    return ReadMask(labels, labels.mask, labels.mask)


def _read_trimap(path: Path, *, trimap_border: TrimapBorder) -> ReadMask:
    inner, between = read_trimap(path, "ignore")
    outer = inner if between is None else inner | between
    labels = Labels(
        outer if trimap_border == "foreground" else inner,
        between if trimap_border == "ignore" else None,
        f"trimap, trimap_border = {trimap_border}",
    )
    return ReadMask(labels, inner, _between(inner, outer))


def _between(inner: Mask, outer: Mask) -> Mask:
    """Return the mask that ends half-way from one outline to the other."""
    if not inner.any() or outer.all():
        return inner
    to_inner = cv2.distanceTransform((~inner).astype(np.uint8), cv2.DIST_L2, 3)
    to_background = cv2.distanceTransform(outer.astype(np.uint8), cv2.DIST_L2, 3)
    middle: Mask = outer & (np.asarray(to_inner) <= np.asarray(to_background))
    return middle


def _image_facts(path: Path) -> tuple[ImageFacts, RGBImage | None]:
    try:
        kind = read_format(path)
    except DataError as error:
        fault = Fault("unreadable", str(error))
        return ImageFacts(path, None, fault, None, ""), None
    try:
        pixels = read_image(path)
    except DataError as error:
        return ImageFacts(path, kind, _fault(path, error), None, ""), None
    mean, std = cv2.meanStdDev(pixels)
    facts = ImageFacts(
        path,
        kind,
        None,
        (pixels.shape[0], pixels.shape[1]),
        _digest(pixels),
        tuple(mean.ravel().tolist()),
        tuple(std.ravel().tolist()),
        look_at(pixels),
    )
    return facts, pixels


def _mask_facts(path: Path, read: MaskReader) -> tuple[MaskFacts, Mask | None]:
    try:
        kind = read_format(path)
    except DataError as error:
        return MaskFacts(path, None, Fault("unreadable", str(error)), None, ""), None
    try:
        reading = read(path)
    except DataError as error:
        return MaskFacts(path, kind, _fault(path, error), None, ""), None
    mask, ignore = reading.labels.mask, reading.labels.ignore
    counted = mask if ignore is None else mask[~ignore]
    lone_share, outline_loss = _raggedness(mask)
    facts = MaskFacts(
        path,
        kind,
        None,
        (mask.shape[0], mask.shape[1]),
        _digest(mask),
        encoding=reading.labels.encoding,
        coverage=float(counted.mean()) if counted.size else 0.0,
        frame_coverage=_frame_coverage(mask),
        is_empty=not reading.certain.any(),
        is_full=bool(counted.all()) and bool(counted.size),
        lone_share=lone_share,
        outline_loss=outline_loss,
        place=_place(mask),
    )
    return facts, reading.outline


def _fault(path: Path, error: DataError) -> Fault:
    """Tell a file whose pixels are damaged from one whose values are not understood."""
    try:
        read_size(path)
    except DataError:
        return Fault("unreadable", str(error))
    # the readers chain what a decoder raised; their own refusals have no such cause
    return Fault("ambiguous" if error.__cause__ is None else "truncated", str(error))


def _digest(pixels: RGBImage | Mask) -> str:
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _frame_coverage(mask: Mask) -> float:
    sides = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    return float(np.concatenate(sides).mean())


def _raggedness(mask: Mask) -> tuple[float, float]:
    """Return the share of lone pixels and the share of outline that smoothing takes away."""
    bits = mask.astype(np.uint8)
    lone = float((bits != np.asarray(cv2.medianBlur(bits, 3))).mean())
    length = _outline_length(bits)
    smooth = _outline_length(np.asarray(cv2.medianBlur(bits, 5), np.uint8))
    return lone, 1 - smooth / length if length else 0.0


def _outline_length(bits: npt.NDArray[np.uint8]) -> int:
    return int(np.count_nonzero(bits[1:] != bits[:-1])) + int(
        np.count_nonzero(bits[:, 1:] != bits[:, :-1])
    )


def _place(mask: Mask) -> Map:
    small = cv2.resize(mask.astype(np.float32), (MAP_SIDE, MAP_SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)
