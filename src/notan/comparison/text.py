"""A comparison as text: a table of the models, then a paragraph for each pair."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from notan.metrics.rules import BORDER_WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from notan.comparison.comparison import Comparison, Contender, Pair
    from notan.metrics.statistics import Interval

SMALLEST_P = 1e-4
HEADINGS = ("model", "Dice [95 % interval]", "over seeds", "IoU", "images/s", "weights", "MB")
SPEED = "one image at a time, the fastest of three tries, reading not counted"


def text_of(comparison: Comparison) -> str:
    """Return the lines that a person reads."""
    return "\n".join(
        (
            headline(comparison),
            "",
            *_lined_up(table(comparison)),
            f"speed: {comparison.hardware}; {SPEED}",
            *(line for pair in comparison.pairs for line in _paragraph(pair, comparison.names)),
            "",
            method(comparison),
            *comparison.notes,
        )
    )


def headline(comparison: Comparison) -> str:
    """Say what was compared on what, by which rules."""
    rules, number = comparison.contenders[0].results[0].score.rules, len(comparison.names)
    return (
        f"{len(comparison.contenders)} models on {number} image{'' if number == 1 else 's'} of "
        f"split {rules.split}, at {rules.size}, {BORDER_WORDS[rules.trimap_border]}, "
        "each by its own threshold and tidying"
    )


def method(comparison: Comparison) -> str:
    """Say how intervals and p-values came about."""
    pairs = len(comparison.pairs)
    seeds = (
        " Several seeds count as their mean on each image; how far they lie apart is not in the "
        "test, it stands beside the mean."
        if comparison.over_seeds
        else ""
    )
    correction = f", corrected by Holm for {pairs} pairs" if pairs > 1 else ""
    return (
        "Intervals: 95 % bootstrap over images; p: Wilcoxon's signed-rank test on the paired "
        f"images{correction}.{seeds}"
    )


def table(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return the rows of the models, headings first, without columns in which nothing stands."""
    rows = [HEADINGS, *(_row(each) for each in comparison.contenders)]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    return list(zip(*columns, strict=True))


def _row(contender: Contender) -> tuple[str, ...]:
    spread, result = contender.seed_spread, contender.results[0]
    return (
        contender.title,
        f"{contender.mean.mean:.4f}{ends_of(contender.mean)}",
        "" if spread is None else f"± {spread:.4f}",
        f"{contender.iou:.4f}",
        f"{contender.images_per_second:.1f}",
        f"{result.parameters:,}",
        f"{result.file_bytes / 1e6:.1f}",
    )


def ends_of(interval: Interval) -> str:
    """Return an interval in brackets, nothing where there were too few images for one."""
    return "" if math.isnan(interval.low) else f" [{interval.low:.4f}, {interval.high:.4f}]"


def p_in_words(p_value: float) -> str:
    """Return a p-value as it is written: tiny ones as a bound."""
    return f"p < {SMALLEST_P:g}" if p_value < SMALLEST_P else f"p = {p_value:.2g}"


def foregrounds_of(pair: Pair) -> str:
    """Return a pair's statistics in a line."""
    compared, effect = pair.compared, pair.compared.effect_size
    size = f", effect size {effect:.2f}" if math.isfinite(effect) else ""
    return (
        f"difference {compared.difference.mean:+.4f}{ends_of(compared.difference)}, "
        f"{p_in_words(pair.p_value)}{size}; {pair.second.name} "
        f"wins {compared.wins}, ties {compared.ties}, loses {compared.losses}; "
        f"the masks agree to Dice {pair.agreement:.4f}"
    )


def _paragraph(pair: Pair, names: Sequence[str]) -> Iterator[str]:
    yield ""
    yield f"{pair.first.title} -> {pair.second.title}: {pair.verdict}"
    yield f"  {foregrounds_of(pair)}"
    if pair.most_different:
        worst = ", ".join(
            f"{names[each]} ({pair.first.dice[each]:.2f} -> {pair.second.dice[each]:.2f})"
            for each in pair.most_different
        )
        yield f"  differ most on {worst}"


def _lined_up(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        first, *others = (
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        yield "  ".join((first, *others))
