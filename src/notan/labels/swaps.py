"""Swapped masks: would two images agree far better if they changed masks?

Small copies of all masks and predictions are kept, a bit for each pixel, so that every image can
be compared with every other of its size: 10,000 images take 80 MB.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from notan.labels.explanations import Explanation
from notan.preprocess import resize_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.types import Mask, Size

LONG_SIDE = 128
ROWS = 256
"""Predictions compared with all masks at once; keeps the table of Dice scores small."""

Bits = npt.NDArray[np.uint8]
Table = npt.NDArray[np.float32]


class _Small(NamedTuple):
    name: str
    mask: Bits
    prediction: Bits


class Swaps:
    """Collects masks and predictions, then finds for each image whose mask may be its own."""

    def __init__(self) -> None:
        self._of_size: dict[Size, list[_Small]] = defaultdict(list)

    def add(self, name: str, mask: Mask, prediction: Mask) -> None:
        """Keep small copies of an image's mask and of its prediction, both of one size."""
        height, width = mask.shape
        scale = min(1.0, LONG_SIDE / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        bits = (np.packbits(resize_mask(each, size)) for each in (mask, prediction))
        self._of_size[height, width].append(_Small(name, *bits))

    def explanations(self) -> Iterator[tuple[str, Explanation]]:
        """Give each image's name with the image of its size that it best changes masks with.

        Both Dice scores are means over the two images, of the small copies: among many masks
        one fits any prediction by chance, but not the other way round too. An image that is
        alone in its size has none.
        """
        for group in self._of_size.values():
            if len(group) < 2:
                continue
            masks = _unpacked([each.mask for each in group])
            predictions = _unpacked([each.prediction for each in group])
            own = np.concatenate(
                [
                    _dice(row[None], mask[None])[0]
                    for row, mask in zip(predictions, masks, strict=True)
                ]
            )
            for first in range(0, len(group), ROWS):
                rows = slice(first, first + ROWS)
                there = _dice(predictions[rows], masks)
                back = _dice(predictions, masks[rows]).T
                before, after = (own[rows, None] + own) / 2, (there + back) / 2
                gains = after - before
                for row, place in enumerate(range(len(group))[rows]):
                    gains[row, place] = -np.inf  # an image changes masks with another one
                    best = int(gains[row].argmax())
                    scores = float(before[row, best]), float(after[row, best])
                    yield group[place].name, Explanation("swapped", *scores, other=group[best].name)


def _unpacked(bits: list[Bits]) -> Table:
    return np.unpackbits(np.stack(bits), axis=1).astype(np.float32)


def _dice(predictions: Table, masks: Table) -> Table:
    """Return Dice of every prediction (rows) with every mask (columns); 1 where both are empty."""
    areas = predictions.sum(axis=1)[:, None] + masks.sum(axis=1)[None]
    overlap = predictions @ masks.T
    return np.where(areas > 0, 2 * overlap / np.maximum(areas, 1), 1).astype(np.float32)
