"""Ranking: one image's probabilities in order, foreground and background apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from notan.errors import ShapeError

if TYPE_CHECKING:
    import numpy.typing as npt

    from notan.types import Mask, Probability

    Sorted = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Ranking:
    """The probabilities of the counted pixels, rising.

    Attributes:
        foreground: float32, of the pixels that are foreground in truth.
        background: float32, of those that are background.
    """

    foreground: Sorted
    background: Sorted

    @classmethod
    def of(cls, probability: Probability, truth: Mask, ignore: Mask | None = None) -> Ranking:
        """Sort one image's probabilities.

        Args:
            probability: float32, (height, width), the chance of foreground, 0..1.
            truth: bool, of the same shape, True = foreground.
            ignore: bool, of the same shape, True = not counted; None = every pixel counts.

        Raises:
            ShapeError: The arrays are not of one shape, or the probabilities are not in 0..1.
        """
        if probability.shape != truth.shape or (ignore is not None and ignore.shape != truth.shape):
            raise ShapeError(
                f"probabilities of shape {probability.shape} and a truth of shape {truth.shape}; "
                "both, and the ignored area, must be of one size (height, width)"
            )
        counted = np.ones_like(truth) if ignore is None else ~ignore
        kinds = [
            np.sort(probability[counted & kind].astype(np.float32, copy=False))
            for kind in (truth, ~truth)
        ]
        for kind in kinds:
            if kind.size and not (kind[0] >= 0 and kind[-1] <= 1):  # NaN sorts to the end
                raise ShapeError("some probabilities are not in 0..1; logits need a sigmoid first")
        return cls(*kinds)

    def average_precision(self) -> float | None:
        """Return the mean precision over all thresholds, weighted by the recall that each adds.

        Returns:
            0..1; None where no pixel is foreground.

        Source: Zhu 2004, "Recall, Precision and Average Precision"; as in scikit-learn, not
            interpolated.
        """
        if not self.foreground.size:
            return None
        found = len(self.foreground) - np.searchsorted(self.foreground, self.foreground)
        alarms = len(self.background) - np.searchsorted(self.background, self.foreground)
        return float((found / (found + alarms)).mean())
