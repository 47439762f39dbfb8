"""Which images are copies of each other, and whether a mask lies where its object is.

Which images look alike: a 64-bit hash finds candidates, small grey copies confirm them.

Source: the DCT hash follows C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions" (2010), but leaves the first coefficient, the mean brightness, out. The second step is
ours: a hash alone calls two frames of a standing camera the same image.

How well a mask's outline lies on an image's edges, and where it would lie better.

The outline is moved over the image by every shift within reach. At each, the edges beneath it
count by their strength and by whether they run along it: without the direction, fur and grass
fit any outline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from notan.types import Mask, RGBImage

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


LONG_SIDE = 160
"""Images are shrunk to this long side: shifts of a few pixels do not matter here."""

REACH_FRACTION = 0.12
"""The farthest shift tried, as a share of the long side."""

MAP_SIDE = 39
"""Side of the map of all shifts that is kept of each image; the middle is no shift."""

LEAST_INSIDE = 0.6
"""A shift that pushes more than the rest of the outline out of the image is not judged."""

Plane = npt.NDArray[np.float32]


class Alignment(NamedTuple):
    """How well the outline fits, shifted and as it is, in standard deviations over all shifts.

    Attributes:
        down: The best shift, in pixels of the image.
        right: The same, to the right.
        distance: The best shift's length in pixels at the reduced size.
        best: The fit there.
        here: The fit without a shift, give or take a pixel.
        rival: The best fit elsewhere.
        fits: float32, (39, 39), the fit at every shift; row 0 is farthest up.
        step: One step of that map, in pixels of the image.
    """

    down: int
    right: int
    distance: float
    best: float
    here: float
    rival: float
    fits: Plane
    step: float


def align(image: RGBImage, mask: Mask) -> Alignment | None:
    """Move a mask's outline over its image and see where it fits.

    Args:
        image: uint8, (height, width, 3).
        mask: bool, of the same size.

    Returns:
        The fits; None when there is no outline, or the image is flat.
    """
    height, width = mask.shape
    scale = min(1.0, LONG_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    soft = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    reach = max(3, round(REACH_FRACTION * max(size)))
    if min(size) <= reach:
        return None
    fits = _fits(_edges(small), _outline(np.asarray(soft, np.float32)), reach)
    return None if fits is None else _judge(fits, reach, 1 / scale)


def _gradient(plane: Plane) -> tuple[Plane, Plane]:
    smooth = cv2.GaussianBlur(plane, (0, 0), 1.0)
    across = cv2.Sobel(smooth, cv2.CV_32F, 1, 0)
    return np.asarray(across, np.float32), np.asarray(
        cv2.Sobel(smooth, cv2.CV_32F, 0, 1), np.float32
    )


def _edges(image: Plane) -> tuple[Plane, Plane, Plane]:
    """Take each pixel's gradient in its strongest channel; return strength and direction."""
    across, down = _gradient(image)
    strength = np.hypot(across, down)
    channel = strength.argmax(axis=2)[..., None]
    across = np.take_along_axis(across, channel, 2)[..., 0]
    down = np.take_along_axis(down, channel, 2)[..., 0]
    strength = strength.max(axis=2)
    # the strongest edges must not outvote the rest of the outline
    return _directed(across, down, strength / (strength + 2 * np.median(strength) + 1e-6))


def _outline(mask: Plane) -> tuple[Plane, Plane, Plane]:
    across, down = _gradient(mask)
    strength = np.hypot(across, down)
    strength[:2] = strength[-2:] = 0  # where the foreground is cut off by the frame is no outline
    strength[:, :2] = strength[:, -2:] = 0
    return _directed(across, down, strength)


def _directed(across: Plane, down: Plane, strength: Plane) -> tuple[Plane, Plane, Plane]:
    """Return the strength and, doubled, its angle: opposite directions are the same edge."""
    square = across**2 + down**2 + 1e-12
    cosine = strength * (across**2 - down**2) / square
    return strength, cosine, strength * 2 * across * down / square


def _fits(
    edges: tuple[Plane, Plane, Plane], outline: tuple[Plane, Plane, Plane], reach: int
) -> Plane | None:
    """Correlate edges and outline at all shifts at once, by Fourier transform."""
    height, width = outline[0].shape
    shape = (height + 2 * reach, width + 2 * reach)
    spectra = [np.fft.rfft2(plane, shape) for plane in outline]
    product = sum(
        np.conj(mine) * np.fft.rfft2(theirs, shape)
        for mine, theirs in zip(spectra, edges, strict=True)
    )
    inside = np.conj(spectra[0]) * np.fft.rfft2(np.ones((height, width)), shape)
    shifts = np.arange(-reach, reach + 1)
    window = np.ix_(shifts, shifts)
    found = np.fft.irfft2(product, shape)[window]
    weight = np.fft.irfft2(inside, shape)[window]
    whole = float(outline[0].sum())
    judged = weight >= LEAST_INSIDE * whole
    if whole < 1 or not judged.any():
        return None
    fit = found / np.maximum(weight, 1e-6)
    fit[~judged] = fit[judged].mean()
    if fit.std() < 1e-6:
        return None
    return np.asarray((fit - fit.mean()) / fit.std(), np.float32)


def _judge(fits: Plane, reach: int, scale: float) -> Alignment:
    row, column = np.unravel_index(int(fits.argmax()), fits.shape)
    down, right = int(row) - reach, int(column) - reach
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    elsewhere = np.hypot(rows - down, columns - right) > max(3, reach / 3)
    near = slice(reach - 1, reach + 2)
    return Alignment(
        down=round(down * scale),
        right=round(right * scale),
        distance=float(np.hypot(down, right)),
        best=float(fits.max()),
        here=float(fits[near, near].max()),
        rival=float(fits[elsewhere].max()),
        fits=np.asarray(cv2.resize(fits, (MAP_SIDE, MAP_SIDE)), np.float32),
        step=reach / (MAP_SIDE // 2) * scale,
    )
