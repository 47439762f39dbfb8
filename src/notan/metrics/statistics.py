"""What a mean over pictures is worth: bootstrap intervals, and paired comparisons of two models.

The resampling and the tests are SciPy's; what is here is how pictures go into them, and what is
said where there are too few or they do not differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE = 0.95
RESAMPLES = 2000
FEWEST = 2
"""Pictures without which there is no spread to speak of."""


@dataclass(frozen=True)
class Interval:
    """A mean over pictures, and the range that it would likely fall in with other pictures.

    Attributes:
        mean: Over the pictures.
        low: Lower end of the interval; NaN where there are too few pictures for one.
        high: Upper end, likewise.
        number: How many pictures.
    """

    mean: float
    low: float
    high: float
    number: int


@dataclass(frozen=True)
class PairedComparison:
    """What one model scored against another on the same pictures.

    Attributes:
        difference: Mean of second minus first, with its bootstrap interval.
        p_value: Of Wilcoxon's signed-rank test, two-sided; 1 where no picture differs.
        effect_size: Mean difference in standard deviations of the differences (Cohen's d_z);
            0 where no picture differs.
        wins: Pictures on which the second is better.
        ties: Pictures on which both score the same.
        losses: Pictures on which the second is worse.
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
    """Return a mean with its bootstrap interval over pictures.

    Args:
        values: One for each picture; at least one, all finite.
        confidence: Of the interval, 0..1.
        resamples: How often the pictures are drawn anew, with replacement.
        seed: The same seed gives the same interval.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; the bias-corrected and
        accelerated interval, which suits Dice's skew. Where all values are one, the interval is
        that value.
    """
    mean = fmean(values)
    if len(values) < FEWEST:
        return Interval(mean, math.nan, math.nan, len(values))
    if min(values) == max(values):
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
    """Compare two models' scores on the same pictures.

    Args:
        first: One model's score of each picture.
        second: The other's, of the same pictures in the same order.
        confidence: Of the interval of the difference, 0..1.
        seed: Of the bootstrap.

    Source: Wilcoxon 1945, with Pratt's handling of pictures that both score alike; Demšar 2006 on
        why paired and rank-based.
    """
    from scipy.stats import wilcoxon

    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    same = not differences.any()
    spread = float(differences.std(ddof=1)) if len(differences) >= FEWEST else 0.0
    difference = mean_interval(differences.tolist(), confidence=confidence, seed=seed)
    return PairedComparison(
        difference=difference,
        p_value=1.0 if same else float(wilcoxon(differences, zero_method="pratt").pvalue),
        effect_size=difference.mean / spread if spread else 0.0,
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
    )
