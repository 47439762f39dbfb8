"""What a score could not compute, and why: said in words, so that no blank looks like a fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.metrics.groups import FEWEST_FIGURES, FIGURE_SIZE
from notan.metrics.picture import MEASURES
from notan.metrics.statistics import FEWEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.metrics.measurements import Measurements


def find_undefined(score: Measurements) -> tuple[str, ...]:
    """Return a line for everything that could not be computed, the gravest first."""
    return tuple(
        line
        for part in (_pixels, _rule_alone, _pictures, _intervals, _groups, _expected)
        for line in part(score)
    )


def _pixels(score: Measurements) -> Iterator[str]:
    """Tell of pictures of which no pixel counts: their scores are 1 by the empty rule."""
    number = len(score.pictures)
    ignored = sum(picture.counts.pixels == 0 for picture in score.pictures)
    if ignored == number:
        yield "every score: all pixels are ignored, so that each 1 is the empty rule's alone"
    elif ignored:
        yield (
            f"scores of {ignored} of {number} pictures: all their pixels are ignored, "
            "so that each 1 is the empty rule's alone"
        )


def _rule_alone(score: Measurements) -> Iterator[str]:
    for name, why in score.by_rule_alone.items():
        yield f"{MEASURES[name]}: {why}"
    if score.histogram is None:
        yield "ECE, reliability and threshold sweep: no probabilities were given"


def _pictures(score: Measurements) -> Iterator[str]:
    """Tell of measures that some pictures, or all, do not define."""
    boundaries = any(picture.boundary for picture in score.pictures)
    reasons = {
        "boundary_f": "boundaries were not measured",
        "surface_dice": "boundaries were not measured",
        "hausdorff95": "one of truth and prediction is empty, the other is not"
        if boundaries
        else "boundaries were not measured",
        "average_precision": "there is no figure"
        if score.histogram
        else "no probabilities were given",
        "brier": "all pixels are ignored" if score.histogram else "no probabilities were given",
    }
    rows = [picture.numbers() for picture in score.pictures]
    for name, why in reasons.items():
        lacking = sum(row[name] is None for row in rows)
        if lacking == len(rows):
            yield f"{MEASURES[name]}: {why}"
        elif lacking:
            yield f"{MEASURES[name]} of {lacking} of {len(rows)} pictures: {why}"


def _intervals(score: Measurements) -> Iterator[str]:
    if len(score.pictures) < FEWEST:
        yield f"intervals: one picture has no spread, at least {FEWEST} are needed"
        return
    single = [MEASURES[name] for name, mean in score.means.items() if 0 < mean.number < FEWEST]
    if single:
        yield f"intervals of {', '.join(single)}: only one picture defines them"


def _groups(score: Measurements) -> Iterator[str]:
    if FIGURE_SIZE not in score.groups:
        yield (
            f"groups by {FIGURE_SIZE}: fewer than {FEWEST_FIGURES} pictures have a figure, "
            "or all figures have the same share of their picture"
        )
    for name, groups in score.groups.items():
        single = sum(mean.number < FEWEST for mean in groups.values())
        if single:
            yield f"intervals of {single} of {len(groups)} groups by {name}: one picture in each"


def _expected(score: Measurements) -> Iterator[str]:
    expected = score.expected
    if expected is None:
        return
    if expected.rank_correlation is None:
        yield "rank correlation of expected and true Dice: one of them is the same throughout"
    if all(picture.please_check is None for picture in score.pictures):
        yield "pictures to check: the model was never told how sure is usual"
    elif expected.flagged_mean_dice is None:
        yield "mean Dice of pictures to check: the model asked for none"
    if expected.other_mean_dice is None:
        yield "mean Dice of the other pictures: the model asked to check all"
