"""Copies: the same image twice, as it is or resized and recompressed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from notan.io.images import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from notan.types import Image8, Mask, Size

Plane = npt.NDArray[np.float32]

BLANK_DEVIATION = 1.5
"""Grey levels of 255; the darkest real images under the microscope have 2.4."""

DIFFERENT_BITS = 8
"""Hashes that differ in more of their 64 bits belong to different images."""

MOST_DIFFERENCE = 0.25
MEAN_DIFFERENCE = 0.06
"""How far two thumbnails may differ, in their standard deviations: at 99 of 100 places, and on
average. Resized and recompressed copies differ by up to 0.18 at that place, two frames of a street
camera that waits at the lights, where only people and cars move, by 0.35 and more."""

THUMBNAIL_SIDE = 32
HASH_SIDE = 8
ASPECT_TOLERANCE = 0.05
BLOCK_ELEMENTS = 4_000_000
MOST_COMPARED = 20_000
"""Images that are compared each with each in seconds; of more, only exact copies are found."""


class Comparable(Protocol):
    """What is known of an image that is compared with others."""

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""

    @property
    def thumbnail(self) -> Plane:
        """As ``thumbnail_of`` makes it."""


@dataclass(frozen=True)
class ImageLook:
    """An image as far as copies of it can be told.

    Attributes:
        size: (height, width) in pixels.
        digest: The same for the same pixels, whatever the format.
        thumbnail: float32, (32, 32), grey, mean 0 and standard deviation 1.
        is_blank: Whether it is next to one colour; such images are alike and no copies.
    """

    size: Size
    digest: str
    thumbnail: Plane
    is_blank: bool


def look_at(image: Image8) -> ImageLook:
    """Keep of an image what copies of it are told by."""
    _, deviations = cv2.meanStdDev(image)
    is_blank = float(np.max(deviations)) < BLANK_DEVIATION
    size = image.shape[0], image.shape[1]
    return ImageLook(size, digest_of(image), thumbnail_of(image), is_blank)


def digest_of(pixels: Image8 | Mask) -> str:
    """Return 32 hexadecimal digits that only the same pixels in the same shape have."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def thumbnail_of(image: Image8) -> Plane:
    """Shrink an image to 32 x 32 grey values of mean 0 and standard deviation 1, float32."""
    # shrinking before greying: 3 small channels are cheaper than one large one
    small = cv2.resize(shown(image), (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.asarray((grey - grey.mean()) / (grey.std() + 1e-6), np.float32)


def all_copies(images: Sequence[ImageLook | None]) -> Iterator[tuple[int, int]]:
    """Yield pairs of copies, exact ones and near ones, so that each copy is linked to the others.

    Args:
        images: None for one that could not be read.

    Yields:
        The places of the two.
    """
    same: dict[str, list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        if image and not image.is_blank:
            same[image.digest].append(place)
    for first, *others in same.values():
        yield from ((first, other) for other in others)
    places = [first for first, *_ in same.values()]
    if len(places) <= MOST_COMPARED:
        distinct = [image for place in places if (image := images[place])]
        yield from ((places[one], places[two]) for one, two in near_copies(distinct))


def near_copies(images: Sequence[Comparable]) -> Iterator[tuple[int, int]]:
    """Yield every pair of images that are copies of each other, resized or recompressed.

    A 64-bit hash finds candidates, the thumbnails confirm them.

    Yields:
        The places of the two, the smaller first.

    Source: the DCT hash follows C. Zauner, "Implementation and Benchmarking of Perceptual Image
        Hash Functions" (2010), but leaves the first coefficient, the mean brightness, out. The
        second step is ours: a hash alone calls two frames of a standing camera the same image.
    """
    hashes = np.array([_hash(image.thumbnail) for image in images], dtype=np.uint64)
    for first, second in _candidates(hashes):
        one, other = images[first], images[second]
        aspects = one.size[1] / one.size[0], other.size[1] / other.size[0]
        if abs(aspects[0] / aspects[1] - 1) > ASPECT_TOLERANCE:
            continue
        difference = np.abs(one.thumbnail - other.thumbnail)
        if (
            float(np.percentile(difference, 99)) < MOST_DIFFERENCE
            and float(difference.mean()) < MEAN_DIFFERENCE
        ):
            yield first, second


def _hash(thumbnail: Plane) -> int:
    """Return 64 bits: which of the coarsest waves are stronger than the middle one."""
    waves = np.asarray(cv2.dct(thumbnail))[:HASH_SIDE, :HASH_SIDE].ravel()
    bits = waves > np.median(waves[1:])
    bits[0] = False
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _candidates(hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Compare all pairs, some rows at a time, so that memory stays bounded."""
    ones = np.array([number.bit_count() for number in range(1 << 16)], dtype=np.uint8)
    count = len(hashes)
    rows = max(1, BLOCK_ELEMENTS // max(1, count))
    for top in range(0, count, rows):
        block: npt.NDArray[Any] = hashes[top : top + rows, None] ^ hashes[None, top:]
        quarters = block.view(np.uint16).reshape(*block.shape, 4)
        distance = ones[quarters].sum(axis=2, dtype=np.uint8)
        for row, column in np.argwhere(distance <= DIFFERENT_BITS).tolist():
            if row < column:
                yield top + row, top + column
