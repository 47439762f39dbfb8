"""Measurements: the numbers of many images, with the rules that they were taken by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

from notan.errors import DataError
from notan.metrics.calibration import (
    ReliabilityBin,
    average_precision,
    brier,
    expected_calibration_error,
    reliability,
)
from notan.metrics.counts import Counts
from notan.metrics.expected import Agreement, agreement
from notan.metrics.groups import Grouping, by_foreground_size
from notan.metrics.image import MEASURES
from notan.metrics.statistics import Interval, mean_interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from notan.metrics.calibration import ThresholdSweep
    from notan.metrics.histogram import ProbabilityHistogram
    from notan.metrics.image import ImageScore
    from notan.metrics.rules import ScoreRules

NOTHING = Interval(math.nan, math.nan, math.nan, 0)
"""The mean over no image."""


@dataclass(frozen=True)
class Measurements:
    """The scores of many images, with the rules they were taken by; means are worked out once.

    Attributes:
        images: One entry for each image, in the order of the source.
        rules: What the numbers mean.
        histogram: All images' pixels by probability; None: only masks were compared.
        sweep: Mean Dice at each threshold; None likewise.
        groupings: Ways to divide the images, beside the one by the foreground's size; of two with
            one name the later counts.

    Raises:
        DataError: There is no image.
    """

    images: tuple[ImageScore, ...]
    rules: ScoreRules
    histogram: ProbabilityHistogram | None = field(default=None, compare=False)
    sweep: ThresholdSweep | None = None
    groupings: tuple[Grouping, ...] = ()

    def __post_init__(self) -> None:
        if not self.images:
            raise DataError(
                f"nothing to score: split '{self.rules.split}' holds no image; "
                "check the data folder and the split"
            )

    @property
    def mean_dice(self) -> float:
        """Mean of the images' Dice, each image alike whatever its size."""
        return fmean(image.counts.dice for image in self.images)

    @property
    def mean_iou(self) -> float:
        """Mean of the images' IoU, each image alike whatever its size."""
        return fmean(image.counts.iou for image in self.images)

    @cached_property
    def pooled(self) -> Counts:
        """All images' counts, added up."""
        return sum((image.counts for image in self.images), start=Counts(0, 0, 0, 0))

    @property
    def pooled_dice(self) -> float:
        """Dice over the pixels of all images at once, each pixel alike."""
        return self.pooled.dice

    @property
    def pooled_iou(self) -> float:
        """IoU over the pixels of all images at once, each pixel alike."""
        return self.pooled.iou

    @property
    def empty_images(self) -> int:
        """How many images have no foreground in truth."""
        return sum(image.counts.truth_is_empty for image in self.images)

    @cached_property
    def means(self) -> dict[str, Interval]:
        """Mean of each of ``MEASURES`` over the images that define it, with its interval.

        Precision, recall, specificity and accuracy of a single image follow the empty rule; a
        mean over images that all do so would say nothing, so it is NaN, over 0 images.
        """
        rows = [image.numbers() for image in self.images]
        means = {}
        for name in MEASURES:
            values = [value for row in rows if (value := row[name]) is not None]
            by_rule_alone = name in self.by_rule_alone
            means[name] = mean_interval(values) if values and not by_rule_alone else NOTHING
        return means

    @property
    def by_rule_alone(self) -> dict[str, str]:
        """Name the measures that no pixel of any image decides, and say why."""
        pooled = self.pooled
        checks = {
            "precision": (pooled.prediction_is_empty, "every prediction is empty"),
            "recall": (pooled.truth_is_empty, "no image has a foreground"),
            "specificity": (pooled.pixels == pooled.foreground, "no image has background"),
            "accuracy": (pooled.pixels == 0, "every pixel is ignored"),
        }
        return {name: why for name, (alone, why) in checks.items() if alone}

    @cached_property
    def pooled_values(self) -> dict[str, float | None]:
        """Scores over the pixels of all images at once; None where no pixel decides them."""
        counts, histogram = self.pooled, self.histogram
        values: dict[str, float | None] = {
            "dice": counts.dice,
            "iou": counts.iou,
            "precision": counts.precision,
            "recall": counts.recall,
            "specificity": counts.specificity,
            "accuracy": counts.accuracy,
            "average_precision": average_precision(histogram) if histogram else None,
            "brier": brier(histogram) if histogram else None,
            "ece": expected_calibration_error(histogram) if histogram else None,
        }
        return values | dict.fromkeys(self.by_rule_alone)

    @cached_property
    def reliability(self) -> tuple[ReliabilityBin, ...]:
        """The pooled pixels' reliability curve."""
        return reliability(self.histogram) if self.histogram else ()

    @cached_property
    def expected(self) -> Agreement | None:
        """How expected and true Dice agree; None where the model expected nothing."""
        return agreement(self.images)

    @cached_property
    def all_groupings(self) -> dict[str, Grouping]:
        """The grouping by size of the foreground, if any, then the given ones, by name."""
        by_size = by_foreground_size(self.images)
        groupings = (by_size, *self.groupings) if by_size else self.groupings
        return {grouping.name: grouping for grouping in groupings}

    @cached_property
    def groups(self) -> dict[str, dict[str, Interval]]:
        """Mean Dice of each group of each grouping, with its interval."""
        dice = {image.name: image.counts.dice for image in self.images}
        return {
            name: {
                group: mean_interval(values)
                for group, values in _divided(dice, grouping.group_of).items()
            }
            for name, grouping in self.all_groupings.items()
        }


def _divided(dice: Mapping[str, float], group_of: Mapping[str, str]) -> dict[str, list[float]]:
    """Return the images' Dice by group, in the order in which the grouping names them."""
    groups: dict[str, list[float]] = {}
    for name, group in group_of.items():
        if name in dice:
            groups.setdefault(group, []).append(dice[name])
    return groups
