"""Small scores that several tests of the metrics make."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from notan.metrics import Counts, Grouping, Score, ScoreRules, Tally

if TYPE_CHECKING:
    from notan.types import Mask, Probability

RULES = ScoreRules(trimap_border="foreground", threshold=0.5, split="val")
NONE = np.zeros((6, 8), np.bool_)
ALL = np.ones((6, 8), np.bool_)


def random_mask(seed: int, fraction: float = 0.4) -> Mask:
    return np.asarray(np.random.default_rng(seed).random((6, 8)) < fraction)


def random_probability(seed: int) -> Probability:
    return np.random.default_rng(seed).random((6, 8)).astype(np.float32)


def score_of(*counts: Counts, rules: ScoreRules = RULES) -> Score:
    """The score of images in one row whose pixels are counted so."""
    tally = Tally(rules)
    for index, each in enumerate(counts):
        numbers = list(asdict(each).values())
        prediction, truth = (
            np.repeat(kinds, numbers)[None]
            for kinds in ((True, True, False, False), (True, False, True, False))
        )
        probability = prediction.astype(np.float32)
        tally.add(tally.measure(f"image {index}", prediction, probability, truth))
    return tally.score()


def tallied(
    *pairs: tuple[Probability, Mask],
    ignore: Mask | None = None,
    expected: tuple[float, ...] = (),
    review_below: float | None = 0.5,
    groupings: tuple[Grouping, ...] = (),
) -> Score:
    """The score of probabilities against truths, at a threshold of 0.5."""
    tally = Tally(RULES)
    for index, (probability, truth) in enumerate(pairs):
        expects = expected[index] if expected else None
        measured = tally.measure(
            f"image {index}",
            np.asarray(probability >= 0.5),
            probability,
            truth,
            ignore,
            expected_dice=expects,
            needs_review=None
            if expects is None or review_below is None
            else expects < review_below,
        )
        tally.add(measured)
    return tally.score(groupings)


def random_pairs(number: int) -> list[tuple[Probability, Mask]]:
    return [(random_probability(seed), random_mask(100 + seed)) for seed in range(number)]
