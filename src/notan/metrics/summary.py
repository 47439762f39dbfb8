"""The card: a score in the few lines that a person reads, with every rule behind it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from notan.metrics.image import MEASURES
from notan.metrics.rules import EMPTY_RULE
from notan.metrics.undefined import find_undefined

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from notan.metrics.measurements import Measurements
    from notan.metrics.statistics import Interval

ROW = "{:<21} {:>8}  {:<16}  {:>8}"
MOST_GROUPS = 4
"""More groups than this are told by their worst and their best."""

MOST_GROUPINGS = 2
MOST_UNDEFINED = 2
"""The files beside the card hold all of them."""


def score_summary(score: Measurements) -> str:
    """Return the card, at most 27 lines."""
    number = len(score.images)
    heading = f"{number} image{'' if number == 1 else 's'}"
    lines = (
        ROW.format(heading, "mean", "95 % interval", "pooled"),
        *_measures(score),
        *_sweep(score),
        *_groups(score.groups),
        *_expected(score),
        *_rules(score),
        *_undefined(score),
    )
    return "\n".join(line.rstrip() for line in lines)


def _measures(score: Measurements) -> Iterator[str]:
    for name, words in MEASURES.items():
        mean, pooled = score.means[name], score.pooled_values.get(name)
        if mean.number or pooled is not None:
            digits = 2 if name == "hausdorff95" else 4
            yield ROW.format(
                words, _number(mean.mean, digits), _ends(mean, digits), _number(pooled, digits)
            )
    if (ece := score.pooled_values["ece"]) is not None:
        yield ROW.format("ECE", "", "", _number(ece, 4))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _ends(interval: Interval, digits: int) -> str:
    low, high = _number(interval.low, digits), _number(interval.high, digits)
    return f"{low} - {high}" if low and high else ""


def _sweep(score: Measurements) -> Iterator[str]:
    if score.sweep:
        curve = score.sweep.mean_dice
        yield (
            f"thresholds 0.01..0.99: mean Dice {min(curve):.4f} to {max(curve):.4f}, "
            f"area {score.sweep.area:.4f}"
        )


def _groups(groupings: Mapping[str, Mapping[str, Interval]]) -> Iterator[str]:
    for name, groups in list(groupings.items())[:MOST_GROUPINGS]:
        words = [f"{group} {mean.mean:.4f} ({mean.number})" for group, mean in groups.items()]
        if len(words) > MOST_GROUPS:
            by_dice = sorted(groups, key=lambda group: groups[group].mean)
            told = [
                f"{group} {groups[group].mean:.4f} ({groups[group].number})"
                for group in (by_dice[0], by_dice[1], by_dice[-1])
            ]
            words = [f"worst {told[0]}", told[1], f"best of {len(groups)} {told[2]}"]
        yield f"by {name}: {', '.join(words)}"
    more = len(groupings) - MOST_GROUPINGS
    if more > 0:
        yield f"and by {more} more, in score.json"


def _expected(score: Measurements) -> Iterator[str]:
    expected = score.expected
    if expected is None:
        return
    correlation = _number(expected.rank_correlation, 2) or "undefined"
    flagged = _number(expected.flagged_mean_dice, 4) or "none"
    others = _number(expected.other_mean_dice, 4) or "none"
    yield (
        f"expected Dice: rank correlation with the true one {correlation}; "
        f"{expected.flagged} to check (mean Dice {flagged}), others {others}"
    )


def _rules(score: Measurements) -> Iterator[str]:
    rules = score.rules
    postprocessing = rules.postprocessing or f"threshold {rules.threshold:g}"
    yield f"split {rules.split}, {postprocessing}, weights {rules.weights}"
    if rules.augment:
        yield f"test-time augmentation: {rules.augment}"
    yield rules.seen
    tolerance = rules.tolerance.in_words()
    border = rules.trimap_border_in_words()
    yield f"scored at {rules.size}, {border}, boundary tolerance {tolerance}"
    yield "mean: each image alike; pooled: each pixel alike; intervals: bootstrap over images"
    yield f"empty images: {score.empty_images} of {len(score.images)}; {EMPTY_RULE}"


def _undefined(score: Measurements) -> Iterator[str]:
    lines = find_undefined(score)
    yield from (f"undefined: {line}" for line in lines[:MOST_UNDEFINED])
    more = len(lines) - MOST_UNDEFINED
    if more > 0:
        yield f"undefined: {more} more, in score.json"
