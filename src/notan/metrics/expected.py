"""Whether a model knows when it is wrong: its expected Dice against the true one."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notan.metrics.image import ImageScore


@dataclass(frozen=True)
class Agreement:
    """How the Dice that a model expected of itself agrees with the Dice that it reached.

    Attributes:
        rank_correlation: Spearman's, -1..1; None where one of the two is the same throughout.
        flagged: Images that the model asked to have checked; 0 also where it could not say.
        flagged_mean_dice: Their mean true Dice; None without any.
        other_mean_dice: Mean true Dice of the rest; None without any.
    """

    rank_correlation: float | None
    flagged: int
    flagged_mean_dice: float | None
    other_mean_dice: float | None


def agreement(images: Sequence[ImageScore]) -> Agreement | None:
    """Compare expected with true Dice, image by image.

    Returns:
        The agreement; None where the model expected nothing of any image.

    Source: Spearman 1904; Kofler et al. 2021, arXiv:2109.14448, on guessing a mask's Dice.
    """
    pairs = [
        (each.expected_dice, each.counts.dice, bool(each.needs_review))
        for each in images
        if each.expected_dice is not None
    ]
    if not pairs:
        return None
    expected, true, _ = zip(*pairs, strict=True)
    flagged = [dice for _, dice, check in pairs if check]
    others = [dice for _, dice, check in pairs if not check]
    return Agreement(
        rank_correlation=_spearman(expected, true),
        flagged=len(flagged),
        flagged_mean_dice=fmean(flagged) if flagged else None,
        other_mean_dice=fmean(others) if others else None,
    )


def _spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    if len(set(first)) == 1 or len(set(second)) == 1:
        return None
    from scipy.stats import spearmanr  # late: SciPy's statistics take a second to import

    return float(spearmanr(first, second).statistic)
