"""What a model's probabilities are worth: calibration, ranking and the choice of a threshold.

All of it is of the probability of foreground, pixel by pixel. Of one image it is exact; pooled over
images it is read from a ``ProbabilityHistogram``, so that no image's probabilities are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from notan.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from notan.types import Mask, Probability

    Whole = npt.NDArray[np.int64]
    Real = npt.NDArray[np.float64]
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
            np.diff(np.searchsorted(kind, EDGES), append=len(kind))
            for kind in (ranking.foreground, ranking.background)
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
        true, false = (
            np.cumsum(each[::-1])[::-1][THRESHOLD_BINS]
            for each in (self.foreground, self.background)
        )
        return true, false


def _sums(ordered: Sorted) -> Real:
    """Return the sum of a kind's probabilities in each tenth."""
    parts = np.split(ordered, np.searchsorted(ordered, EDGES[TENTH_BINS[1:]]))
    return np.asarray([part.sum(dtype=np.float64) for part in parts])


@dataclass(frozen=True)
class ReliabilityBin:
    """The pixels whose probability lies in one tenth of 0..1.

    Attributes:
        low: Lower end, which belongs to the bin.
        high: Upper end, which belongs to the next bin (1 belongs to the last).
        pixels: How many; bins without any are left out of a curve.
        mean_probability: What the model said of them, exact.
        foreground_fraction: The part of them that is foreground in truth, 0..1; a calibrated model
            says just that.
    """

    low: float
    high: float
    pixels: int
    mean_probability: float
    foreground_fraction: float


def reliability(histogram: ProbabilityHistogram) -> tuple[ReliabilityBin, ...]:
    """Return the reliability curve: ten bins of equal width, those without pixels left out.

    Source: DeGroot and Fienberg 1983, doi:10.2307/2987588; Niculescu-Mizil and Caruana, ICML 2005.
    """
    foreground = np.add.reduceat(histogram.foreground, TENTH_BINS)
    pixels = foreground + np.add.reduceat(histogram.background, TENTH_BINS)
    ends = (*TENTHS[1:], 1.0)
    return tuple(
        ReliabilityBin(
            TENTHS[index],
            ends[index],
            int(pixels[index]),
            float(histogram.probability[index] / pixels[index]),
            float(foreground[index] / pixels[index]),
        )
        for index in range(len(TENTHS))
        if pixels[index]
    )


def expected_calibration_error(histogram: ProbabilityHistogram) -> float | None:
    """Return the mean distance, over pixels, of what was said from what was true, 0..1.

    Returns:
        ECE over the bins of ``reliability``; None without pixels.

    Source: Naeini, Cooper, Hauskrecht, AAAI 2015; Guo et al. 2017, arXiv:1706.04599, who measure
        the confidence in the chosen class, where this measures the probability of foreground.
    """
    curve, pixels = reliability(histogram), histogram.pixels
    gaps = (each.pixels * abs(each.mean_probability - each.foreground_fraction) for each in curve)
    return sum(gaps) / pixels if pixels else None


def brier(histogram: ProbabilityHistogram) -> float | None:
    """Return the mean squared distance of probability from truth, exact; None without pixels.

    Source: Brier 1950, Monthly Weather Review 78.
    """
    return histogram.squared_error / histogram.pixels if histogram.pixels else None


def average_precision(histogram: ProbabilityHistogram) -> float | None:
    """Return the mean precision over all thresholds, weighted by the recall that each adds.

    Pixels of one bin count as tied, which for one image ``Ranking`` does not need. On networks'
    probabilities this moves the result by less than 0.001; a test keeps it.

    Returns:
        0..1; None where no pixel is foreground.
    """
    foreground = histogram.foreground[::-1]
    if not foreground.any():
        return None
    found = np.cumsum(foreground)
    called = found + np.cumsum(histogram.background[::-1])
    precision = found / np.maximum(called, 1)
    return float((foreground * precision).sum() / found[-1])


def dice_at_thresholds(histogram: ProbabilityHistogram) -> Real:
    """Return Dice at each of ``THRESHOLDS``; 1 where both masks are empty."""
    true_positive, false_positive = histogram.at_thresholds()
    whole = true_positive + false_positive + histogram.foreground.sum()
    return np.where(whole, 2 * true_positive / np.maximum(whole, 1), 1.0)


@dataclass(frozen=True)
class ThresholdSweep:
    """Mean per-image Dice at each threshold: how much hangs on the choice.

    Of the plain threshold, without other postprocessing. To look at, not to choose from: a
    threshold is chosen on the validation split.

    Attributes:
        thresholds: ``THRESHOLDS``.
        mean_dice: One for each, each image alike.
        area: Under the curve (trapezoids) over the width of its thresholds, 0..1.
    """

    thresholds: tuple[float, ...]
    mean_dice: tuple[float, ...]
    area: float

    @classmethod
    def of(cls, mean_dice: Sequence[float]) -> ThresholdSweep:
        """Put a curve over ``THRESHOLDS`` with its area."""
        area = float(np.trapezoid(mean_dice)) / (len(mean_dice) - 1)
        return cls(THRESHOLDS, tuple(mean_dice), area)
