"""Tally: adds images up to a Score, one after the other, keeping only their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from notan.metrics.calibration import ThresholdSweep, brier, dice_at_thresholds
from notan.metrics.counts import Counts
from notan.metrics.histogram import THRESHOLDS, ProbabilityHistogram
from notan.metrics.image import ImageScore
from notan.metrics.ranking import Ranking
from notan.metrics.score import Score
from notan.metrics.surface import BoundaryScore

if TYPE_CHECKING:
    from notan.metrics.groups import Grouping
    from notan.metrics.rules import ScoreRules
    from notan.types import Mask, Probability


class Tally:
    """The scores so far."""

    def __init__(self, rules: ScoreRules) -> None:
        """Begin with no image.

        Args:
            rules: What the numbers mean; its tolerance is the one of the boundaries.
        """
        self._rules = rules
        self._images: list[ImageScore] = []
        self._histogram = ProbabilityHistogram.empty()
        self._dice = np.zeros(len(THRESHOLDS))

    def add(
        self,
        name: str,
        prediction: Mask,
        probability: Probability,
        truth: Mask,
        ignore: Mask | None = None,
        *,
        expected_dice: float | None = None,
        needs_review: bool | None = None,
    ) -> None:
        """Measure one image.

        Args:
            name: The sample's name.
            prediction: bool, (height, width), True = foreground.
            probability: float32, of the same shape, the chance of foreground, 0..1.
            truth: bool, of the same shape.
            ignore: bool, of the same shape, True = not counted; None = every pixel counts.
            expected_dice: The Dice that the model itself expects, 0..1.
            needs_review: Whether the model asks for a second look.

        Raises:
            ShapeError: The arrays are not of one shape and the types above.
        """
        counts = Counts.of(prediction, truth, ignore)
        ranking = Ranking.of(probability, truth, ignore)
        histogram = ProbabilityHistogram.of(ranking)
        self._images.append(
            ImageScore(
                name,
                counts,
                height=truth.shape[0],
                width=truth.shape[1],
                boundary=BoundaryScore.of(
                    prediction, truth, ignore, tolerance=self._rules.tolerance
                ),
                average_precision=ranking.average_precision(),
                brier=brier(histogram),
                expected_dice=expected_dice,
                needs_review=needs_review,
            )
        )
        self._histogram += histogram
        self._dice += dice_at_thresholds(histogram)

    def score(self, groupings: tuple[Grouping, ...] = ()) -> Score:
        """Return the score of the images so far.

        Raises:
            DataError: There is no image.
        """
        mean_dice = self._dice / max(1, len(self._images))
        return Score(
            tuple(self._images),
            self._rules,
            histogram=self._histogram,
            sweep=ThresholdSweep(tuple(mean_dice.tolist())),
            groupings=groupings,
        )
