"""Reading a data folder: which files it has, and a few numbers of each.

Nothing stops at a file that is missing or damaged: that becomes a finding. Every file is opened
once, and its pixels are gone when its sample is read; the checks judge the numbers that stay.
"""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from notan.checking.alignment import Alignment, align
from notan.checking.diagnosis import Finding, Severity, number_of
from notan.data.annotations.formats import FORMATS, read_annotations
from notan.data.copies import Plane, digest_of, thumbnail_of
from notan.data.folders import annotations_in_words, label_reader
from notan.data.layouts import (
    SUFFIXES,
    SUFFIXES_OF,
    find_parts,
    image_files,
    match,
    passed_over,
    unread_partner,
)
from notan.data.layouts import WHOLE as WHOLE
from notan.data.pets import pair_of, split_names
from notan.data.samples import Labels
from notan.data.shards import find_pack, packed_pair
from notan.data.survey import ImageValues, choose_reading, look_into_channels, reading_lines
from notan.errors import DataError, UnsupportedError
from notan.io.headers import read_contents, read_format, read_size
from notan.io.images import PLAIN, read_channels, turn_upright
from notan.io.masks import read_trimap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from notan.config import Data, TrimapBorder
    from notan.data.layouts import FolderPart, Matching
    from notan.data.shards import Pack
    from notan.io.images import ImageReading
    from notan.types import Image8, Mask, Size

UNLISTED = "unlisted"
"""The split of files that stand in the Oxford pets' folders but in none of its lists."""

NAMED = 3
"""Names that a message gives before it only counts."""


@dataclass(frozen=True)
class Entry:
    """One sample as the folder has it; a missing image or mask is None.

    An image may lie in several files, one for each channel.
    """

    name: str
    split: str
    image: Path | None
    mask: Path | None
    channels: tuple[Path, ...] = ()


def collect(
    folder: Path, layout: str, mask_folder: Path | None = None
) -> tuple[list[Entry], list[Finding]]:
    """List the samples of a data folder, and what their names alone give away.

    Args:
        folder: An existing data folder.
        layout: As ``find_layout`` names it.
        mask_folder: The name of the folders with the masks; None: the usual names.

    Raises:
        DataError: A folder cannot be listed, or there is neither an image nor a mask; or a file of
            annotations cannot be read.
    """
    try:
        if pack := find_pack(folder):
            entries, findings = _packed(pack)
        elif layout in FORMATS:
            entries, findings = _annotated(folder, layout)
        elif layout == "pets":
            entries, findings = _pets(folder)
        else:
            entries, findings = _parts_of(folder, mask_folder)
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: could not be listed ({error.strerror or error}); "
            "check its permissions and the disk it lies on"
        ) from error
    if not entries:
        raise DataError(
            f"{folder}: no images and no masks here; "
            f"files ending in {', '.join(sorted(SUFFIXES))} were wanted"
        )
    return entries, findings


def _packed(pack: Pack) -> tuple[list[Entry], list[Finding]]:
    """List the images of packed data."""
    pairs = ((packed_pair(pack, sample), sample.split) for sample in pack.samples)
    entries = [
        Entry(pair.name, split, pair.image, pair.mask, pair.channels) for pair, split in pairs
    ]
    return entries, [Finding("recognised", "note", f"{pack.folder}: {pack.in_words()}")]


def _annotated(folder: Path, layout: str) -> tuple[list[Entry], list[Finding]]:
    """List the images of a labelling tool's export."""
    found = read_annotations(folder, layout)
    entries = [
        Entry(pair.name, split, pair.image, pair.mask, pair.channels)
        for split, pairs in found.pairs.items()
        for pair in pairs
    ]
    words = f"{folder}: {annotations_in_words(found, layout)}"
    findings = [Finding("recognised", "note", words)]
    findings += (Finding("annotation-fault", "error", fault) for fault in found.faults)
    return entries, findings


def _parts_of(folder: Path, mask_folder: Path | None) -> tuple[list[Entry], list[Finding]]:
    """List the images and masks of the folder itself and of each of its parts."""
    entries: list[Entry] = []
    findings: list[Finding] = []
    for part in find_parts(folder, mask_folder):
        images, masks = part.files
        found = _entries(part.split, images, part.matching)
        entries += found
        for what, files in (("image", images), ("mask", masks)):
            findings += _same_stems(part.split, files, what)
        findings += _without_partner(part, found)
        findings += _unclear(part)
        findings += _ignored(part)
        findings += _recognised(part, folder)
    return entries, findings


def _entries(split: str, images: Sequence[Path], matching: Matching) -> list[Entry]:
    """Return the pairs; what has no partner, or is a second one, stands alone, and is read too."""
    pairs = [Entry(each.stem, split, each, matching.partners.get(each)) for each in images]
    return pairs + [Entry(each.stem, split, None, each) for each in matching.masks_alone]


def _recognised(part: FolderPart, folder: Path) -> Iterator[Finding]:
    """Note folders and files that were taken by other names than images/ and masks/."""
    names = (part.images.name, part.masks.name)
    if names != ("images", "masks") and part.matching.partners:
        message = f"{folder}: {part.in_words(folder)}"
        yield Finding("recognised", "note", message, (), part.split)


def _unclear(part: FolderPart) -> Iterator[Finding]:
    for path, several in part.matching.unclear.items():
        names = " and ".join(each.name for each in several)
        message = f"{path}: {names} may both belong to it; take away, or rename, the wrong ones"
        yield Finding("unclear-partner", "error", message, (path, *several), part.split)


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


def _without_partner(part: FolderPart, entries: Sequence[Entry]) -> Iterator[Finding]:
    where = {"image": part.images, "mask": part.masks}
    unclear = {*part.matching.unclear, *(p for s in part.matching.unclear.values() for p in s)}
    names = {
        "image": {entry.name for entry in entries if entry.image},
        "mask": {entry.name for entry in entries if entry.mask},
    }
    for entry in entries:
        path, what, wanted = (
            (entry.image, "image", "mask") if entry.image else (entry.mask, "mask", "image")
        )
        if path is None or path in unclear or entry.name in names[wanted]:
            continue
        lonely = sorted(names[wanted] - names[what])
        close = difflib.get_close_matches(entry.name, lonely, n=1, cutoff=0.4)
        hint = f" (the nearest without a partner is {close[0]})" if close else ""
        if other := unread_partner(path, where[wanted]):
            hint = f" ({other.name} is of a kind that is not read)"
        message = (
            f"{path}: there is no {wanted} {entry.name}.* in {where[wanted]}{hint}; "
            "image and mask must have the same name before the dot"
        )
        yield Finding(f"{what}-without-{wanted}", "error", message, (path,), part.split)


def _ignored(part: FolderPart) -> Iterator[Finding]:
    """Note what stands among the images and is never read."""
    for folder in dict.fromkeys((part.images, part.masks)):
        if not folder.is_dir():
            continue
        read = set(image_files(folder))
        others = sorted(
            path for path in folder.iterdir() if path not in read and not path.name.startswith(".")
        )
        if others:
            message = (
                f"{folder}: {_named(others)} never read, because only image files directly in this "
                f"folder are ({passed_over(folder)} passed over); move or rename what should count"
            )
            yield Finding("ignored-file", "note", message, tuple(others), part.split)


def _pets(folder: Path) -> tuple[list[Entry], list[Finding]]:
    """List the samples of the official lists, then the files that are in none of them."""
    entries: list[Entry] = []
    findings: list[Finding] = []
    missing: list[Finding] = []
    for split in ("train", "validation", "test"):
        try:
            names = split_names(folder, split)
        except DataError as error:
            findings.append(Finding("unreadable-list", "error", str(error), (), split))
            continue
        for name in names:
            pair = pair_of(folder, name)
            there = [path if path.is_file() else None for path in (pair.image, pair.mask)]
            entries.append(Entry(name, split, there[0], there[1]))
            kinds = ("mask-without-image", "image-without-mask")
            for path, found, kind in zip((pair.image, pair.mask), there, kinds, strict=True):
                if found is None:
                    message = (
                        f"{path}: the {split} list names {name}, but this file is missing; "
                        "get a whole copy with: notan download oxford-iiit-pet"
                    )
                    files = tuple(file for file in there if file)
                    missing.append(Finding(kind, "error", message, files, split))
    findings += missing
    listed = {path for entry in entries for path in (entry.image, entry.mask)}
    folders = (folder / "images", folder / "annotations" / "trimaps")
    rest = [[path for path in image_files(each) if path not in listed] for each in folders]
    unlisted = _entries(UNLISTED, rest[0], match(*rest))
    if unlisted:
        files = tuple(path for entry in unlisted for path in (entry.image, entry.mask) if path)
        message = f"{folder}: {_named(files)} in none of the lists, so no split reads them"
        findings.append(Finding("unlisted", "note", message, files, UNLISTED))
    return [*entries, *unlisted], findings


def _named(files: Sequence[Path]) -> str:
    """Return the first names and how many more there are, with the verb that goes with them."""
    names = ", ".join(path.name for path in files[:NAMED])
    if len(files) > NAMED:
        names += f" and {number_of(len(files) - NAMED, 'other')}"
    return f"{names} {'is' if len(files) == 1 else 'are'}"


PLACE_SIDE = 16

Fault: TypeAlias = Literal["unreadable", "truncated", "ambiguous", "unsupported"]
Content = TypeVar("Content")


@dataclass(frozen=True)
class FileFacts:
    """What is kept of an image or mask that could be read.

    Attributes:
        path: The file.
        split: The split it belongs to.
        size: (height, width), upright.
        digest: The same for the same pixels, whatever the format.
    """

    path: Path
    split: str
    size: Size
    digest: str

    def finding(self, kind: str, message: str, severity: Severity = "warning") -> Finding:
        """Return a finding about this file alone; its path goes before the message."""
        return Finding(kind, severity, f"{self.path}: {message}", (self.path,), self.split)


@dataclass(frozen=True)
class ImageFacts(FileFacts):
    """An image in numbers.

    Attributes:
        colour_mean: Mean of each channel, 0..255.
        colour_std: Their standard deviations.
        thumbnail: float32, (32, 32), grey, mean 0 and standard deviation 1.
    """

    colour_mean: tuple[float, ...]
    colour_std: tuple[float, ...]
    thumbnail: Plane


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
        alignment: How its outline fits the image's edges; None without an image of its size.
        turned: How it would fit if it had been drawn on the image before that was turned upright by
            its EXIF orientation; None where the image is not turned.
    """

    encoding: str
    coverage: float
    frame_coverage: float
    is_empty: bool
    is_full: bool
    lone_share: float
    outline_loss: float
    place: Plane
    alignment: Alignment | None
    turned: Alignment | None = None


@dataclass(frozen=True)
class Facts:
    """One sample in numbers.

    Attributes:
        entry: Its files.
        image: None where it is missing or cannot be read.
        mask: The same.
        findings: What is wrong with the files as such.
    """

    entry: Entry
    image: ImageFacts | None
    mask: MaskFacts | None
    findings: tuple[Finding, ...]


class MaskPixels(NamedTuple):
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


def read_choices(entries: Sequence[Entry], data: Data) -> tuple[list[Finding], ImageReading]:
    """Say what reading the images chooses among several readings, from their headers.

    Returns:
        A note for each choice, or an error where no choice fits all; and how they are read.
    """
    chosen: dict[str, list[Path]] = defaultdict(list)
    images: list[ImageValues] = []
    for entry in entries:
        # what cannot be read is found when it is read
        with contextlib.suppress(DataError):
            if entry.image is not None:
                images.append(look_into_channels((entry.image, *entry.channels)))
    errors: list[Finding] = []
    reading = PLAIN
    try:
        reading = choose_reading(data, images)
    except DataError as error:
        errors.append(Finding("mixed-channels", "error", str(error)))
        usual = Counter(each.contents.channels[0] for each in images).most_common(1)[0][0]
        images = [each for each in images if each.contents.channels[0] == usual]
        with contextlib.suppress(DataError):
            reading = choose_reading(data.model_copy(update={"channels": None}), images)
    for each in images:
        for choice in each.contents.choices_for(reading.channels):
            chosen[choice].append(each.path)
    findings = errors + [
        Finding("image-choice", "note", f"{number_of(len(files), 'image')}: {choice}", tuple(files))
        for choice, files in chosen.items()
    ]
    findings += [Finding("image-choice", "note", line) for line in reading_lines(reading, images)]
    return findings, reading


def mask_reader(layout: str, data: Data) -> Callable[[Path], MaskPixels]:
    """Return how masks of a layout are read; for the errors see ``label_reader``."""
    if layout == "pets":
        return partial(_read_trimap, trimap_border=data.trimap_border)
    return partial(_read_two_classes, read_labels=label_reader(layout, data))


class SampleReader:
    """Reads samples as the settings say, each file once, and keeps a few numbers of each."""

    def __init__(self, layout: str, data: Data, reading: ImageReading) -> None:
        """Take how files are read.

        Args:
            layout: As ``find_layout`` names it.
            data: What the owner says of images and masks.
            reading: How image files are read.

        Raises:
            ConfigError: The owner names a class that is not there.
            DataError: There are several classes, and the owner does not say which counts.
        """
        found = read_annotations(data.path, layout) if data.path and layout in FORMATS else None
        self._painted = found is not None and bool(found.annotations)
        self._upright = reading.upright
        self._reading = reading
        self._read_mask = mask_reader(layout, data)

    def read(self, entry: Entry) -> Facts:
        """Read a sample; a file that cannot be read becomes a finding, not an error."""
        findings: list[Finding] = []
        image = pixels = mask = None
        if entry.image:
            pixels = _read(
                entry.image,
                lambda path: read_channels((path, *entry.channels), self._reading),
                "image",
                entry.split,
                findings,
            )
            image = None if pixels is None else _image_facts(entry.image, entry.split, pixels)
        if entry.mask:
            labels = _read(
                entry.mask, self._read_mask, "mask", entry.split, findings, painted=self._painted
            )
            mask = None if labels is None else _mask_facts(entry.mask, entry.split, labels, pixels)
            if labels is not None and mask is not None and pixels is not None and entry.image:
                mask = replace(mask, turned=self._turned(entry.image, labels, pixels))
        return Facts(entry, image, mask, tuple(findings))

    def _turned(self, path: Path, labels: MaskPixels, pixels: Image8) -> Alignment | None:
        """Say how the mask would fit if it was drawn before the image was turned upright."""
        orientation = read_contents(path).orientation
        if orientation == 1 or not self._upright:
            return None
        outline = turn_upright(labels.outline, orientation)
        return align(pixels, outline) if outline.shape == pixels.shape[:2] else None


def _read(
    path: Path,
    read: Callable[[Path], Content],
    what: str,
    split: str,
    findings: list[Finding],
    *,
    painted: bool = False,
) -> Content | None:
    """Return what a reader makes of a file, or None with a finding that says why not.

    What is painted from annotations is no image file.
    """
    try:
        kind = "" if painted else read_format(path)
        if kind and path.suffix.lower() not in SUFFIXES_OF.get(kind, (path.suffix.lower(),)):
            message = (
                f"{path}: is a {kind} file by its content; it is read as that, "
                "but other programs trust the name; rename or convert it"
            )
            findings.append(Finding("wrong-type-for-name", "warning", message, (path,), split))
        return read(path)
    except DataError as error:
        kind = f"{'ambiguous' if painted else _fault(path, error)}-{what}"
        findings.append(Finding(kind, "error", str(error), (path,), split))
        return None


def _fault(path: Path, error: DataError) -> Fault:
    """Tell a file whose pixels are damaged from one whose values are not understood."""
    if isinstance(error, UnsupportedError):
        return "unsupported"
    try:
        read_size(path)
    except DataError:
        return "unreadable"
    # the readers chain what a decoder raised; their own refusals have no such cause
    return "ambiguous" if error.__cause__ is None else "truncated"


def _read_two_classes(path: Path, *, read_labels: Callable[[Path], Labels]) -> MaskPixels:
    labels = read_labels(path)
    return MaskPixels(labels, labels.mask, labels.mask)


def _read_trimap(path: Path, *, trimap_border: TrimapBorder) -> MaskPixels:
    inner, between = read_trimap(path, "ignore")
    outer = inner if between is None else inner | between
    labels = Labels(
        outer if trimap_border == "foreground" else inner,
        between if trimap_border == "ignore" else None,
        f"trimap, trimap_border = {trimap_border}",
    )
    return MaskPixels(labels, inner, _half_way(inner, outer))


def _half_way(inner: Mask, outer: Mask) -> Mask:
    """Return the mask that ends half-way from one outline to the other."""
    if not inner.any() or outer.all():
        return inner
    to_inner = cv2.distanceTransform((~inner).astype(np.uint8), cv2.DIST_L2, 3)
    to_background = cv2.distanceTransform(outer.astype(np.uint8), cv2.DIST_L2, 3)
    middle: Mask = outer & (np.asarray(to_inner) <= np.asarray(to_background))
    return middle


def _image_facts(path: Path, split: str, pixels: Image8) -> ImageFacts:
    mean, std = cv2.meanStdDev(pixels)
    return ImageFacts(
        path,
        split,
        (pixels.shape[0], pixels.shape[1]),
        digest_of(pixels),
        colour_mean=tuple(mean.ravel().tolist()),
        colour_std=tuple(std.ravel().tolist()),
        thumbnail=thumbnail_of(pixels),
    )


def _mask_facts(path: Path, split: str, read: MaskPixels, image: Image8 | None) -> MaskFacts:
    mask, ignore = read.labels.mask, read.labels.ignore
    counted = mask if ignore is None else mask[~ignore]
    bits = mask.astype(np.uint8)
    length = _outline_length(bits)
    smooth = _outline_length(np.asarray(cv2.medianBlur(bits, 5), np.uint8))
    small = cv2.resize(
        mask.astype(np.float32), (PLACE_SIDE, PLACE_SIDE), interpolation=cv2.INTER_AREA
    )
    fits = image is not None and image.shape[:2] == mask.shape
    return MaskFacts(
        path,
        split,
        (mask.shape[0], mask.shape[1]),
        digest_of(mask),
        encoding=read.labels.encoding,
        coverage=float(counted.mean()) if counted.size else 0.0,
        frame_coverage=float(np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()),
        is_empty=not read.certain.any(),
        is_full=bool(counted.size) and bool(counted.all()),
        lone_share=float((bits != np.asarray(cv2.medianBlur(bits, 3))).mean()),
        outline_loss=1 - smooth / length if length else 0.0,
        place=np.asarray(small, np.float32),
        alignment=align(image, read.outline) if image is not None and fits else None,
    )


def _outline_length(bits: npt.NDArray[np.uint8]) -> int:
    """Count the places where neighbours, above or beside each other, differ."""
    return int(np.count_nonzero(bits[1:] != bits[:-1])) + int(
        np.count_nonzero(bits[:, 1:] != bits[:, :-1])
    )
