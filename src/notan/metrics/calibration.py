"""What a model's probabilities are worth: reliability, ECE, Brier, average precision, thresholds.

All of it is of the probability of foreground, pixel by pixel, and is read from a
``ProbabilityHistogram``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from notan.metrics.histogram import TENTH_BINS, TENTHS

if TYPE_CHECKING:
    from notan.metrics.histogram import ProbabilityHistogram, Real


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

    Of the plain threshold, without tidying. To look at, not to choose from: a threshold is chosen
    on the validation split.

    Attributes:
        mean_dice: One for each of ``THRESHOLDS``, each image alike.
    """

    mean_dice: tuple[float, ...]

    @property
    def area(self) -> float:
        """Area under the curve (trapezoids) over the width of its thresholds, 0..1."""
        ends = (self.mean_dice[0] + self.mean_dice[-1]) / 2
        return (sum(self.mean_dice[1:-1]) + ends) / (len(self.mean_dice) - 1)
