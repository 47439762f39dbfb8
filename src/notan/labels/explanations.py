"""What may have gone wrong with a mask: each explanation is tried out against a prediction.

A mask that was shifted, eroded, dilated or inverted agrees with a good prediction once that is
undone. Shifts are tried all at once by cross-correlation, sizes by thresholds on a distance map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from notan.metrics import Counts
from notan.preprocess import resize_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from notan.types import Mask

Kind: TypeAlias = Literal["inverted", "shifted", "eroded", "dilated", "swapped"]
KINDS: tuple[Kind, ...] = ("inverted", "shifted", "eroded", "dilated", "swapped")

LONG_SIDE = 512
"""Shifts and sizes are searched at this long side at most, and then applied at the mask's own."""

REACH_FRACTION = 0.2
"""The farthest shift tried, as a share of each side."""

SIZE_FRACTION = 0.1
"""The most that is eroded or dilated, as a share of the short side."""

Plane: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """One thing that may have gone wrong with a mask, and what undoing it gives.

    Attributes:
        kind: What went wrong.
        before: Dice of the mask as it is with the prediction, 0..1.
        after: Dice once it is undone, 0..1; of a swap, both are means over the two images.
        down: How far down the mask was shifted, in pixels; negative: up.
        right: How far to the right, in pixels; negative: to the left.
        pixels: How many pixels were eroded or dilated.
        other: The image whose mask it was swapped with.
    """

    kind: Kind
    before: float
    after: float
    down: int = 0
    right: int = 0
    pixels: int = 0
    other: str = ""

    @property
    def gain(self) -> float:
        """How much better the mask agrees once it is undone, -1..1."""
        return self.after - self.before

    def in_words(self) -> str:
        """Say what happened and by which numbers."""
        looks, undone = {
            "inverted": ("inverted", "the other way round"),
            "shifted": (f"shifted by {way(self.down, self.right)}", "shifted back"),
            "eroded": (f"eroded by {_pixels(self.pixels)}", "dilated again"),
            "dilated": (f"dilated by {_pixels(self.pixels)}", "eroded again"),
            "swapped": (f"swapped with that of {self.other}", "swapped back"),
        }[self.kind]
        numbers = f"Dice with the model {self.before:.2f} as it is, {self.after:.2f} {undone}"
        return f"looks {looks} ({numbers})"


def way(down: int, right: int) -> str:
    """Return a shift in words, such as ``"12 down, 7 right"``."""
    vertical = f"{abs(down)} {'down' if down > 0 else 'up'}" if down else ""
    horizontal = f"{abs(right)} {'right' if right > 0 else 'left'}" if right else ""
    return ", ".join(part for part in (vertical, horizontal) if part)


def _pixels(count: int) -> str:
    return f"{count} pixel" if count == 1 else f"{count} pixels"


def explain(mask: Mask, prediction: Mask, ignore: Mask | None = None) -> Iterator[Explanation]:
    """Try out what may have gone wrong with a mask, the best of each kind.

    Whether an explanation is worth anything, its gain says.

    Args:
        mask: The given mask, bool, (height, width).
        prediction: What a network makes of the image, of the same size.
        ignore: True = not counted; None = every pixel counts.
    """
    counted = np.ones_like(mask) if ignore is None else ~ignore
    before = Counts.of(prediction, mask, ignore).dice
    yield Explanation("inverted", before, Counts.of(prediction, ~mask, ignore).dice)
    height, width = mask.shape
    scale = min(1.0, LONG_SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = [resize_mask(each, size) for each in (mask & counted, prediction & counted, counted)]
    yield from _shifted(mask, prediction, counted, _best_shift(*small), 1 / scale)
    yield from _resized(mask, prediction, counted, small, 1 / scale)


def _shifted(
    mask: Mask, prediction: Mask, counted: Mask, shift: tuple[int, int], scale: float
) -> Iterator[Explanation]:
    down, right = (round(step * scale) for step in shift)
    if (down, right) == (0, 0):
        return
    before = Counts.of(prediction, mask, ~counted).dice
    back = moved(mask & counted, -down, -right)
    yield Explanation("shifted", before, Counts.of(prediction, back, ~counted).dice, down, right)


def moved(mask: Mask, down: int, right: int) -> Mask:
    """Shift a mask; what comes in from outside the image is background."""
    result = np.zeros_like(mask)
    (top, rows), (left, columns) = (
        _window(step, side) for step, side in zip((down, right), mask.shape, strict=True)
    )
    result[rows, columns] = mask[top, left]
    return result


def _window(step: int, side: int) -> tuple[slice, slice]:
    """Return where a shift by ``step`` takes pixels of a side from, and where it puts them."""
    step = max(-side, min(side, step))
    return slice(max(0, -step), side - max(0, step)), slice(max(0, step), side - max(0, -step))


def _best_shift(mask: Mask, prediction: Mask, counted: Mask) -> tuple[int, int]:
    """Return by how much the mask is shifted against the prediction: where Dice is highest.

    Equal shifts: the shortest. The mask is moved back into a frame of background: were only the
    part counted that both show, a far shift would gain by leaving the prediction's faults outside.
    """
    height, width = mask.shape
    reach = tuple(max(1, int(side * REACH_FRACTION)) for side in (height, width))
    overlap = _correlation(mask, prediction, reach)
    areas = _correlation(mask, counted, reach) + np.count_nonzero(prediction)
    dice = 2 * overlap / np.maximum(areas, 1)
    rows, columns = np.mgrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    dice = np.round(dice, 6) - 1e-9 * np.hypot(rows, columns)
    row, column = np.unravel_index(int(dice.argmax()), dice.shape)
    return int(row) - reach[0], int(column) - reach[1]


def _correlation(one: Mask, other: Mask, reach: tuple[int, ...]) -> Plane:
    """Count the pixels true in both, for every shift of ``one`` against ``other``, by FFT."""
    shape = [cv2.getOptimalDFTSize(side + far) for side, far in zip(one.shape, reach, strict=True)]
    product = np.fft.rfft2(one, shape) * np.conj(np.fft.rfft2(other, shape))
    counts = np.fft.irfft2(product, shape)
    rows, columns = (np.arange(-far, far + 1) for far in reach)
    return np.asarray(np.round(counts[np.ix_(rows, columns)]), np.float64)


def _resized(
    mask: Mask, prediction: Mask, counted: Mask, small: list[Mask], scale: float
) -> Iterator[Explanation]:
    """Find how far the mask must be dilated, and how far eroded, to agree best."""
    before = Counts.of(prediction, mask, ~counted).dice
    tries: tuple[tuple[Kind, Callable[[Mask, float], Mask], bool], ...] = (
        ("eroded", dilate, False),
        ("dilated", erode, True),
    )
    for kind, undo, of_background in tries:
        pixels = max(1, round(_best_growth(*small, of_background=of_background) * scale))
        after = Counts.of(prediction, undo(mask, pixels), ~counted).dice
        yield Explanation(kind, before, after, pixels=pixels)


def _best_growth(mask: Mask, prediction: Mask, counted: Mask, *, of_background: bool) -> int:
    """Return by how many pixels foreground or background must grow for the highest Dice."""
    most = max(1, int(min(mask.shape) * SIZE_FRACTION))
    rings = np.ceil(_distance(~mask if of_background else mask)).clip(max=most + 1).astype(np.int64)
    grown = np.cumsum(np.bincount(rings[counted], minlength=most + 2))
    overlap = np.cumsum(np.bincount(rings[counted & prediction], minlength=most + 2))
    predicted = overlap[-1]
    if of_background:
        grown, overlap = grown[-1] - grown, overlap[-1] - overlap
    dice = 2 * overlap / np.maximum(grown + predicted, 1)
    return 1 + int(dice[1 : most + 1].argmax())


def dilate(mask: Mask, pixels: float) -> Mask:
    """Add every pixel within a distance of the foreground."""
    return np.asarray(_distance(mask) <= pixels, bool)


def erode(mask: Mask, pixels: float) -> Mask:
    """Keep every pixel farther from the background than a distance; the frame is no background."""
    return ~dilate(~mask, pixels)


def _distance(mask: Mask) -> Plane:
    """Return each pixel's distance to the foreground, in pixels; infinity where there is none."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    background = (~mask).astype(np.uint8)
    return np.asarray(
        cv2.distanceTransform(background, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float64
    )
