"""What a score could not compute, and why: said in words, so that no blank looks like a fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.metrics.groups import FEWEST_FOREGROUNDS, FOREGROUND_SIZE
from notan.metrics.image import MEASURES
from notan.metrics.statistics import FEWEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.metrics.measurements import Measurements


def find_undefined(score: Measurements) -> tuple[str, ...]:
    """Return a line for everything that could not be computed, the gravest first."""
    return tuple(
        line
        for part in (_pixels, _rule_alone, _images, _intervals, _groups, _expected)
        for line in part(score)
    )


def _pixels(score: Measurements) -> Iterator[str]:
    """Tell of images of which no pixel counts: their scores are 1 by the empty rule."""
    number = len(score.images)
    ignored = sum(image.counts.pixels == 0 for image in score.images)
    if ignored == number:
        yield "every score: all pixels are ignored, so that each 1 is the empty rule's alone"
    elif ignored:
        yield (
            f"scores of {ignored} of {number} images: all their pixels are ignored, "
            "so that each 1 is the empty rule's alone"
        )


def _rule_alone(score: Measurements) -> Iterator[str]:
    for name, why in score.by_rule_alone.items():
        yield f"{MEASURES[name]}: {why}"
    if score.histogram is None:
        yield "ECE, reliability and threshold sweep: no probabilities were given"


def _images(score: Measurements) -> Iterator[str]:
    """Tell of measures that some images, or all, do not define."""
    boundaries = any(image.boundary for image in score.images)
    reasons = {
        "boundary_f": "boundaries were not measured",
        "surface_dice": "boundaries were not measured",
        "hausdorff95": "one of truth and prediction is empty, the other is not"
        if boundaries
        else "boundaries were not measured",
        "average_precision": "there is no foreground"
        if score.histogram
        else "no probabilities were given",
        "brier": "all pixels are ignored" if score.histogram else "no probabilities were given",
    }
    rows = [image.numbers() for image in score.images]
    for name, why in reasons.items():
        lacking = sum(row[name] is None for row in rows)
        if lacking == len(rows):
            yield f"{MEASURES[name]}: {why}"
        elif lacking:
            yield f"{MEASURES[name]} of {lacking} of {len(rows)} images: {why}"


def _intervals(score: Measurements) -> Iterator[str]:
    if len(score.images) < FEWEST:
        yield f"intervals: one image has no spread, at least {FEWEST} are needed"
        return
    single = [MEASURES[name] for name, mean in score.means.items() if 0 < mean.number < FEWEST]
    if single:
        yield f"intervals of {', '.join(single)}: only one image defines them"


def _groups(score: Measurements) -> Iterator[str]:
    if FOREGROUND_SIZE not in score.groups:
        yield (
            f"groups by {FOREGROUND_SIZE}: fewer than {FEWEST_FOREGROUNDS} images have a "
            "foreground, "
            "or all foregrounds have the same share of their image"
        )
    for name, groups in score.groups.items():
        single = sum(mean.number < FEWEST for mean in groups.values())
        if single:
            yield f"intervals of {single} of {len(groups)} groups by {name}: one image in each"


def _expected(score: Measurements) -> Iterator[str]:
    expected = score.expected
    if expected is None:
        return
    if expected.rank_correlation is None:
        yield "rank correlation of expected and true Dice: one of them is the same throughout"
    if all(image.needs_review is None for image in score.images):
        yield "images to check: the model was never told how sure is usual"
    elif expected.flagged_mean_dice is None:
        yield "mean Dice of images to check: the model asked for none"
    if expected.other_mean_dice is None:
        yield "mean Dice of the other images: the model asked to check all"
