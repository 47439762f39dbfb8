"""The chart of a comparison: every model's mean and every pair's difference, with intervals."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from notan.report.svg import INK, ORANGE, STYLE, to_svg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from notan.comparison import Comparison
    from notan.metrics.statistics import Interval

WIDTH, ROW, FRAME = 7.0, 0.32, 0.7
"""Inches: of the chart, of a row, and of what surrounds the rows of one panel."""


def compare_chart(comparison: Comparison) -> str:
    """Return an SVG that stands inside a page and takes its ink from there."""
    means = [(each.title, each.mean) for each in comparison.contenders]
    differences = [
        (f"{pair.second.name} − {pair.first.name}", pair.compared.difference)  # noqa: RUF001
        for pair in comparison.pairs
    ]
    heights = [len(rows) * ROW + FRAME for rows in (means, differences)]
    with mpl.rc_context({**STYLE, "text.parse_math": False}):  # a dollar in a name is a dollar
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        upper, lower = figure.subplots(2, gridspec_kw={"height_ratios": heights})
        _draw(upper, means, "mean Dice")
        _draw(lower, differences, "difference in Dice")
        lower.axvline(0, color=INK, linewidth=1, linestyle=":")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has it
        return to_svg(figure, "compare")


def _draw(axes: Axes, rows: Sequence[tuple[str, Interval]], title: str) -> None:
    """Draw a dot with its interval in each row, the first on top."""
    for place, (_, interval) in enumerate(rows):
        if not math.isnan(interval.low):
            axes.plot([interval.low, interval.high], [place, place], color=INK, linewidth=1.5)
        axes.plot([interval.mean], [place], "o", color=ORANGE, markersize=6)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(title)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
