"""ProbabilityHistogram: foreground and background pixels counted by their probability.

Everything about probabilities is read from it (``notan.metrics.calibration``), for one image or
for all pooled, without keeping any image's probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from notan.metrics.ranking import Ranking, Sorted

    Whole = npt.NDArray[np.int64]
    Real = npt.NDArray[np.float64]

THRESHOLDS = tuple(hundredth / 100 for hundredth in range(1, 100))
"""0.01 .. 0.99: the thresholds at which pixels are counted exactly."""

TENTHS = tuple(tenth / 10 for tenth in range(10))
"""0 .. 0.9: where the bins of the reliability curve begin."""

LOGIT_STEP = 0.002
LOGITS = (-80.0, 16.64)
"""The smallest that the sigmoid is given, and one from which on a float32 probability is 1."""


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

TENTH_BINS = np.searchsorted(EDGES, np.asarray(TENTHS, dtype=np.float32))
"""The bin at which each tenth begins."""


@dataclass(frozen=True, eq=False)
class ProbabilityHistogram:
    """How many foreground and background pixels have which probability.

    Attributes:
        foreground: int64, one for each bin: pixels that are foreground in truth.
        background: int64, likewise: pixels that are background.
        probability: float64, one for each of ``TENTHS``: the sum of its pixels' probabilities.
        squared_error: Sum over all pixels of (probability - truth) squared.
    """

    foreground: Whole
    background: Whole
    probability: Real
    squared_error: float

    @classmethod
    def empty(cls) -> ProbabilityHistogram:
        """Return the histogram of no pixel."""
        nothing = np.zeros(len(EDGES), dtype=np.int64)
        return cls(nothing, nothing, np.zeros(len(TENTHS)), 0.0)

    @classmethod
    def of(cls, ranking: Ranking) -> ProbabilityHistogram:
        """Count one image's pixels, exactly."""
        foreground, background = (
            _counts(kind) for kind in (ranking.foreground, ranking.background)
        )
        probability = _sums(ranking.foreground) + _sums(ranking.background)
        errors = (1 - ranking.foreground.astype(np.float64), ranking.background.astype(np.float64))
        squared_error = sum(float(np.square(error).sum()) for error in errors)
        return cls(foreground, background, probability, squared_error)

    def __add__(self, other: ProbabilityHistogram) -> ProbabilityHistogram:
        """Pool two histograms, as if their images were one."""
        return ProbabilityHistogram(
            self.foreground + other.foreground,
            self.background + other.background,
            self.probability + other.probability,
            self.squared_error + other.squared_error,
        )

    @property
    def pixels(self) -> int:
        """How many pixels were counted."""
        return int(self.foreground.sum() + self.background.sum())

    def at_thresholds(self) -> tuple[Whole, Whole]:
        """Return how many foreground and background pixels each threshold calls foreground.

        Returns:
            True and false positives at each of ``THRESHOLDS``: exactly the pixels for which
            ``probability >= threshold``.
        """
        return _from_top(self.foreground)[THRESHOLD_BINS], _from_top(self.background)[
            THRESHOLD_BINS
        ]


def _counts(ordered: Sorted) -> Whole:
    """Return how many of a kind's probabilities each bin holds."""
    return np.diff(np.searchsorted(ordered, EDGES), append=len(ordered))


def _sums(ordered: Sorted) -> Real:
    """Return the sum of a kind's probabilities in each tenth."""
    parts = np.split(ordered, np.searchsorted(ordered, EDGES[TENTH_BINS[1:]]))
    return np.asarray([part.sum(dtype=np.float64) for part in parts])


def _from_top(counts: Whole) -> Whole:
    """Return, for each bin, how many lie in it or above."""
    return np.cumsum(counts[::-1])[::-1]
