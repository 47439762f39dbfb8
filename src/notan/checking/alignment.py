"""How well a mask's outline lies on an image's edges, and where it would lie better.

The outline is moved over the image by every shift within reach. At each, the edges beneath it
count by their strength and by whether they run along it: without the direction, fur and grass
fit any outline.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from notan.checking.diagnosis import number_of
from notan.modelfile.preprocess import by_channels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notan.types import Image8, Mask

LONG_SIDE = 160
"""Images are shrunk to this long side: shifts of a few pixels do not matter here."""

REACH_FRACTION = 0.12
"""The farthest shift tried, as a share of the long side."""

MAP_SIDE = 39
"""Side of the map of all shifts that is kept of each image; the middle is no shift."""

LEAST_INSIDE = 0.6
"""A shift that pushes more than the rest of the outline out of the image is not judged."""

Plane = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.floating]
Planes: TypeAlias = tuple[Plane, Plane, Plane]
"""Strength of the edges, and strength times cosine and sine of their doubled angle."""


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


def align(image: Image8, mask: Mask) -> Alignment | None:
    """Move a mask's outline over its image and see where it fits.

    Args:
        image: uint8, (height, width, channels).
        mask: bool, of the same size.

    Returns:
        The fits; None when there is no outline, or the image is flat.
    """
    height, width = mask.shape
    scale = min(1.0, LONG_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    work = partial(cv2.resize, dsize=size, interpolation=cv2.INTER_AREA)
    small = by_channels(work, image).astype(np.float32)
    soft = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    reach = max(3, round(REACH_FRACTION * max(size)))
    if min(size) <= reach:
        return None
    fits = _fits(_edges(small), _outline(np.asarray(soft, np.float32)), reach)
    return None if fits is None else _judge(fits, reach, 1 / scale)


def _gradient(plane: Plane) -> tuple[Plane, Plane]:
    smooth = by_channels(partial(cv2.GaussianBlur, ksize=(0, 0), sigmaX=1.0), plane)
    across, down = (
        by_channels(partial(cv2.Sobel, ddepth=cv2.CV_32F, dx=x, dy=1 - x), smooth) for x in (1, 0)
    )
    return across, down


def _edges(image: Plane) -> Planes:
    """Take each pixel's gradient in its strongest channel."""
    across, down = _gradient(image)
    strength = np.hypot(across, down)
    channel = strength.argmax(axis=2)[..., None]
    across, down = (np.take_along_axis(each, channel, 2)[..., 0] for each in (across, down))
    strength = strength.max(axis=2)
    # the strongest edges must not outvote the rest of the outline
    return _directed(across, down, strength / (strength + 2 * np.median(strength) + 1e-6))


def _outline(mask: Plane) -> Planes:
    across, down = _gradient(mask)
    strength = np.hypot(across, down)
    strength[:2] = strength[-2:] = 0  # where the foreground is cut off by the frame is no outline
    strength[:, :2] = strength[:, -2:] = 0
    return _directed(across, down, strength)


def _directed(across: Plane, down: Plane, strength: Plane) -> Planes:
    """Double the angles, so that opposite directions are the same edge."""
    square = across**2 + down**2 + 1e-12
    cosine = strength * (across**2 - down**2) / square
    return strength, cosine, strength * 2 * across * down / square


def _fits(edges: Planes, outline: Planes, reach: int) -> Plane | None:
    """Correlate edges and outline at all shifts at once, by Fourier transform."""
    height, width = outline[0].shape
    shape = (height + 2 * reach, width + 2 * reach)
    shifts = np.arange(-reach, reach + 1)

    def correlated(ours: Sequence[Plane], theirs: Sequence[Numbers]) -> Numbers:
        """Sum over planes that belong together."""
        spectra = (
            np.conj(np.fft.rfft2(one, shape)) * np.fft.rfft2(other, shape)
            for one, other in zip(ours, theirs, strict=True)
        )
        return np.asarray(np.fft.irfft2(sum(spectra), shape)[np.ix_(shifts, shifts)])

    weight = correlated(outline[:1], [np.ones((height, width))])
    whole = float(outline[0].sum())
    judged = weight >= LEAST_INSIDE * whole
    if whole < 1 or not judged.any():
        return None
    fit = correlated(outline, edges) / np.maximum(weight, 1e-6)
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


def shift_in_words(down: int, right: int) -> str:
    """Return a shift such as ``"12 pixels down and 7 pixels to the right"``."""
    vertical = f"{number_of(abs(down), 'pixel')} {'down' if down > 0 else 'up'}" if down else ""
    side = "right" if right > 0 else "left"
    horizontal = f"{number_of(abs(right), 'pixel')} to the {side}" if right else ""
    return " and ".join(part for part in (vertical, horizontal) if part)
