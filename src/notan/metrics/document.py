"""score.json: a score as plain dicts, lists, numbers and None."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from notan.metrics.histogram import THRESHOLDS
from notan.metrics.rules import EMPTY_RULE
from notan.metrics.undefined import find_undefined

if TYPE_CHECKING:
    from notan.metrics.image import ImageScore
    from notan.metrics.measurements import Measurements
    from notan.metrics.statistics import Interval


def score_document(score: Measurements) -> dict[str, object]:
    """Return everything that a score says; what is undefined is None, never NaN."""
    return {
        "mean_dice": score.mean_dice,
        "mean_iou": score.mean_iou,
        "pooled_dice": score.pooled_dice,
        "pooled_iou": score.pooled_iou,
        "empty_images": score.empty_images,
        "means": {name: _interval(mean, "mean") for name, mean in score.means.items()},
        "pooled": score.pooled_values,
        "reliability": [
            {
                "from": each.low,
                "to": each.high,
                "pixels": each.pixels,
                "mean_probability": each.mean_probability,
                "foreground_fraction": each.foreground_fraction,
            }
            for each in score.reliability
        ],
        "threshold_sweep": score.sweep
        and {
            "thresholds": list(THRESHOLDS),
            "mean_dice": list(score.sweep.mean_dice),
            "area": score.sweep.area,
        },
        "groups": {
            name: {group: _interval(mean, "mean_dice") for group, mean in groups.items()}
            for name, groups in score.groups.items()
        },
        "expected": score.expected and asdict(score.expected),
        "undefined": list(find_undefined(score)),
        "rules": _rules(score),
        "images": [_image(image) for image in score.images],
    }


def _rules(score: Measurements) -> dict[str, object]:
    return {
        **asdict(score.rules),
        "tolerance": str(score.rules.tolerance),
        "empty": EMPTY_RULE,
        "groups": {name: grouping.rule for name, grouping in score.all_groupings.items()},
    }


def _interval(interval: Interval, mean: str) -> dict[str, float | None]:
    return {
        "images": interval.number,
        mean: _finite(interval.mean),
        "low": _finite(interval.low),
        "high": _finite(interval.high),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _image(image: ImageScore) -> dict[str, object]:
    """Return one image's row: its name and size, its scores, its counts."""
    return {
        "name": image.name,
        "height": image.height,
        "width": image.width,
        **image.numbers(),
        "expected_dice": image.expected_dice,
        "needs_review": image.needs_review,
        **asdict(image.counts),
    }
