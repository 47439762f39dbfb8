"""Which images look alike: a 64-bit hash finds candidates, small grey copies confirm them.

Source: the DCT hash follows C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions" (2010), but leaves the first coefficient, the mean brightness, out. The second step is
ours: a hash alone calls two frames of a standing camera the same image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from notan.types import RGBImage

THUMBNAIL_SIDE = 32
HASH_SIDE = 8
DIFFERENT_BITS = 8
"""Hashes that differ in more of their 64 bits belong to different images."""

MOST_DIFFERENCE = 0.25
MEAN_DIFFERENCE = 0.06
"""How far two thumbnails may differ, in their standard deviations: at 99 of 100 places, and on
average. Resized and recompressed copies differ by up to 0.18 at that place, two frames of a street
camera that waits at the lights, where only people and cars move, by 0.35 and more."""

ASPECT_TOLERANCE = 0.05
BLOCK_ELEMENTS = 4_000_000

Thumbnail = npt.NDArray[np.float32]

_ONES = np.array([number.bit_count() for number in range(1 << 16)], dtype=np.uint8)


class Look(NamedTuple):
    """What an image looks like, small.

    Attributes:
        thumbnail: float32, (32, 32), grey, mean 0 and standard deviation 1.
        hash: 64 bits.
        aspect: Width over height.
    """

    thumbnail: Thumbnail
    hash: int
    aspect: float


def look_at(image: RGBImage) -> Look:
    """Make an image's thumbnail and hash."""
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    # shrinking before greying: 3 small channels are cheaper than one large one
    small = cv2.resize(image, side, interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    thumbnail: Thumbnail = ((grey - grey.mean()) / (grey.std() + 1e-6)).astype(np.float32)
    waves = np.asarray(cv2.dct(thumbnail))[:HASH_SIDE, :HASH_SIDE].ravel()
    bits = waves > np.median(waves[1:])
    bits[0] = False
    number = int.from_bytes(np.packbits(bits).tobytes(), "big")
    return Look(thumbnail, number, image.shape[1] / image.shape[0])


def alike(looks: Sequence[Look]) -> Iterator[tuple[int, int]]:
    """Yield every pair of images that are copies of each other, resized or recompressed.

    Args:
        looks: One for each image.

    Yields:
        The places of the two, the smaller first.
    """
    for first, second in _candidates(np.array([look.hash for look in looks], dtype=np.uint64)):
        if _same(looks[first], looks[second]):
            yield first, second


def _candidates(hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Compare all pairs, some rows at a time, so that memory stays bounded."""
    count = len(hashes)
    rows = max(1, BLOCK_ELEMENTS // max(1, count))
    for top in range(0, count, rows):
        block: npt.NDArray[Any] = hashes[top : top + rows, None] ^ hashes[None, top:]
        quarters = block.view(np.uint16).reshape(*block.shape, 4)
        distance = _ONES[quarters].sum(axis=2, dtype=np.uint8)
        for row, column in np.argwhere(distance <= DIFFERENT_BITS).tolist():
            if row < column:
                yield top + row, top + column


def _same(one: Look, other: Look) -> bool:
    if abs(one.aspect / other.aspect - 1) > ASPECT_TOLERANCE:
        return False
    difference = np.abs(one.thumbnail - other.thumbnail)
    most = float(np.percentile(difference, 99))
    return most < MOST_DIFFERENCE and float(difference.mean()) < MEAN_DIFFERENCE
