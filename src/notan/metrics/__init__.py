"""Scores of masks against masks, and what they are worth. No torch.

One rule holds for every score here: where truth and prediction are both empty the score is 1,
and a false alarm on an empty image scores 0.
"""

from notan.metrics.boundary import BoundaryScore, Tolerance
from notan.metrics.counts import Counts, ImageScore
from notan.metrics.groups import Grouping
from notan.metrics.score import EMPTY_RULE, Measured, Score, ScoreRules, Tally

__all__ = [
    "EMPTY_RULE",
    "BoundaryScore",
    "Counts",
    "Grouping",
    "ImageScore",
    "Measured",
    "Score",
    "ScoreRules",
    "Tally",
    "Tolerance",
]
