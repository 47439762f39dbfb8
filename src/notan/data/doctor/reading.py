"""Reading one sample's files once and keeping a few numbers of them.

Nothing here judges: the ``check_*`` files do, when all samples are read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from notan.data.doctor.alignment import Alignment, align
from notan.data.doctor.likeness import Look, look_at
from notan.data.files import Labels
from notan.data.folder import mask_labels
from notan.data.formats import read_format, read_image, read_size, read_trimap
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from notan.config import TrimapBorder
    from notan.data.doctor.collect import Entry
    from notan.types import Mask, RGBImage, Size

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
