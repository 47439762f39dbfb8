"""Scores of masks against masks, and what they are worth. No torch.

One rule holds for every score here: where truth and prediction are both empty the score is 1,
and a false alarm on an empty picture scores 0.
"""

from notan.metrics.counts import Counts
from notan.metrics.score import EMPTY_RULE, PictureScore, Score, ScoreRules
from notan.metrics.surface import BoundaryScore, Tolerance

__all__ = [
    "EMPTY_RULE",
    "BoundaryScore",
    "Counts",
    "PictureScore",
    "Score",
    "ScoreRules",
    "Tolerance",
]
