"""What a mean over images is worth: bootstrap intervals, and paired comparisons of two models.

The resampling and the tests are SciPy's; what is here is how images go into them, and what is
said where there are too few or they do not differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator

from notan.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

Differences: TypeAlias = npt.NDArray[np.float64]

Undefined = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number that may be NaN, for which JSON has null."""

CONFIDENCE = 0.95
RESAMPLES = 2000
FEWEST = 2
"""Images without which there is no spread to speak of."""

FEW = 13
"""Images that differ, up to which all signs of their differences can be tried: 2 to the 13th."""

ROUNDING = 1e-12
"""Differences below this are the computer's rounding of scores that are the same."""


@dataclass(frozen=True)
class Interval:
    """A mean over images, and the range that it would likely fall in with other images.

    Attributes:
        mean: Over the images; NaN where there are none.
        low: Lower end of the interval; NaN where there are too few images for one.
        high: Upper end, likewise.
        images: How many.
    """

    mean: Undefined
    low: Undefined
    high: Undefined
    images: int


@dataclass(frozen=True)
class PairedComparison:
    """What one model scored against another on the same images.

    Attributes:
        difference: Mean of second minus first, with its bootstrap interval.
        p_value: Of Wilcoxon's signed-rank test, two-sided; 1 where no image differs.
        effect_size: Mean difference in standard deviations of the differences (Cohen's d_z);
            0 where no image differs, NaN for a single image, infinite where all differ alike.
        wins: Images on which the second is better.
        ties: Images on which both score the same.
        losses: Images on which the second is worse.
    """

    difference: Interval
    p_value: float
    effect_size: float
    wins: int
    ties: int
    losses: int


def mean_interval(
    values: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a mean with its bootstrap interval over images.

    Args:
        values: One for each image; at least one, all finite.
        confidence: Of the interval, 0..1.
        resamples: How often the images are drawn anew, with replacement.
        seed: The same seed gives the same interval.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; the bias-corrected and
        accelerated interval, which suits Dice's skew. Where all values are one, the interval is
        that value.
    """
    mean = fmean(values)
    if len(values) < FEWEST:
        return Interval(mean, math.nan, math.nan, len(values))
    if max(values) - min(values) <= ROUNDING * max(1.0, abs(mean)):
        return Interval(mean, mean, mean, len(values))
    from scipy.stats import bootstrap  # late: SciPy's statistics take a second to import

    ends = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=100,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(ends.low), float(ends.high), len(values))


def compare_paired(
    first: Sequence[float],
    second: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> PairedComparison:
    """Compare two models' scores on the same images.

    Args:
        first: One model's score of each image.
        second: The other's, of the same images in the same order.
        confidence: Of the interval of the difference, 0..1.
        seed: Of the bootstrap.

    Raises:
        ShapeError: They are not of the same images.

    Source: Wilcoxon 1945, with Pratt's handling of images that both score alike; Demšar 2006 on
        why paired and rank-based.
    """
    if len(first) != len(second):
        raise ShapeError(
            f"{len(first)} scores against {len(second)}; a paired comparison wants one of each "
            "for every image"
        )
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    differences[np.abs(differences) <= ROUNDING] = 0
    difference = mean_interval(differences.tolist(), confidence=confidence, seed=seed)
    return PairedComparison(
        difference=difference,
        p_value=_signed_rank_p(differences),
        effect_size=_effect_size(differences),
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of several comparisons for their number, in the order given.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure": the smallest times
        the number of comparisons, the next times one less, and so on; never falling, at most 1.
    """
    corrected = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _signed_rank_p(differences: Differences) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test.

    Where few images differ, every way to choose the signs is tried: the normal approximation
    calls five images out of a hundred that all favour one side significant (0.025), which by
    chance happens to 2 in 32.
    """
    from scipy.stats import permutation_test, rankdata, wilcoxon

    differing = differences != 0
    number = int(differing.sum())
    if number < FEWEST:
        return 1.0
    if number > FEW:
        return float(wilcoxon(differences, zero_method="pratt").pvalue)
    ranks = rankdata(np.abs(differences).round(12))[differing] * np.sign(differences[differing])
    test = permutation_test(
        (ranks,), np.sum, permutation_type="samples", n_resamples=2**FEW, vectorized=True
    )
    return float(test.pvalue)


def _effect_size(differences: Differences) -> float:
    if not differences.any():
        return 0.0
    if len(differences) < FEWEST:
        return math.nan
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    return mean / spread if spread > ROUNDING else math.copysign(math.inf, mean)
