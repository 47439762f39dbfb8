"""ProbabilityHistogram: figure and ground pixels by their probability, in one pass, addable.

Everything about probabilities is read from it (``notan.metrics.calibration``), for one picture or
for all pooled, without keeping any picture's probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from notan.errors import ShapeError

if TYPE_CHECKING:
    import numpy.typing as npt

    from notan.types import Mask, Probability

    Whole = npt.NDArray[np.int64]
    Real = npt.NDArray[np.float64]

THRESHOLDS = tuple(hundredth / 100 for hundredth in range(1, 100))
"""0.01 .. 0.99: the thresholds at which pixels are counted exactly."""

LOGIT_STEP = 0.004
LOGITS = (-80.0, 16.64)
"""The Predictor's smallest logit, and one from which on a float32 probability is 1."""


def _edges() -> npt.NDArray[np.float32]:
    """Return where the bins begin: even steps of the logit, and every threshold.

    Networks are sure of most pixels: even steps of the probability would throw nearly all pixels
    into the first and the last bin, and lose their order there.
    """
    even = 1 / (1 + np.exp(-np.arange(*LOGITS, LOGIT_STEP)))
    # float32, because NumPy compares float32 probabilities with a threshold in float32
    return np.unique(np.concatenate([[0.0], even, THRESHOLDS, [1.0]]).astype(np.float32))


EDGES = _edges()
"""float32, rising: bin i holds probabilities from EDGES[i] to just below EDGES[i + 1]; the last
holds 1."""

THRESHOLD_BINS = np.searchsorted(EDGES, np.asarray(THRESHOLDS, dtype=np.float32))
"""The bin at which each threshold begins."""


@dataclass(frozen=True, eq=False)
class ProbabilityHistogram:
    """How many figure and ground pixels have which probability.

    Attributes:
        figure: int64, one for each bin: pixels that are figure in truth.
        ground: int64, likewise: pixels that are ground.
        probability: float64, likewise: the sum of both kinds' probabilities.
        squared_error: Sum over all pixels of (probability - truth) squared.
    """

    figure: Whole
    ground: Whole
    probability: Real
    squared_error: float

    @classmethod
    def empty(cls) -> ProbabilityHistogram:
        """Return the histogram of no pixel."""
        nothing = np.zeros(len(EDGES), dtype=np.int64)
        return cls(nothing, nothing, nothing.astype(np.float64), 0.0)

    @classmethod
    def of(
        cls, probability: Probability, truth: Mask, ignore: Mask | None = None
    ) -> ProbabilityHistogram:
        """Sort one picture's pixels into the bins.

        Args:
            probability: float32, (height, width), the chance of figure, 0..1.
            truth: bool, of the same shape, True = figure.
            ignore: bool, of the same shape, True = not counted; None = every pixel counts.

        Raises:
            ShapeError: The arrays are not of one shape, or the probabilities are not in 0..1.
        """
        if probability.shape != truth.shape or (ignore is not None and ignore.shape != truth.shape):
            raise ShapeError(
                f"probabilities of shape {probability.shape} and a truth of shape {truth.shape}; "
                "both, and the ignored area, must be of one size (height, width)"
            )
        counted = slice(None) if ignore is None else ~ignore
        chance = probability[counted].ravel().astype(np.float32, copy=False)
        is_figure = truth[counted].ravel()
        if not ((chance >= 0) & (chance <= 1)).all():
            raise ShapeError("some probabilities are not in 0..1; logits need a sigmoid first")
        bins = np.searchsorted(EDGES, chance, side="right") - 1
        everything = np.bincount(bins, minlength=len(EDGES))
        figure = np.bincount(bins[is_figure], minlength=len(EDGES))
        exact = chance.astype(np.float64)
        return cls(
            figure=figure,
            ground=everything - figure,
            probability=np.asarray(np.bincount(bins, exact, minlength=len(EDGES)), np.float64),
            squared_error=float(np.square(exact - is_figure).sum()),
        )

    def __add__(self, other: ProbabilityHistogram) -> ProbabilityHistogram:
        """Pool two histograms, as if their pictures were one."""
        return ProbabilityHistogram(
            self.figure + other.figure,
            self.ground + other.ground,
            self.probability + other.probability,
            self.squared_error + other.squared_error,
        )

    @property
    def pixels(self) -> int:
        """How many pixels were counted."""
        return int(self.figure.sum() + self.ground.sum())

    def at_thresholds(self) -> tuple[Whole, Whole]:
        """Return how many figure and ground pixels each threshold calls figure.

        Returns:
            True and false positives at each of ``THRESHOLDS``: exactly the pixels for which
            ``probability >= threshold``.
        """
        return _from_top(self.figure)[THRESHOLD_BINS], _from_top(self.ground)[THRESHOLD_BINS]


def _from_top(counts: Whole) -> Whole:
    """Return, for each bin, how many lie in it or above."""
    return np.cumsum(counts[::-1])[::-1]
