"""The chart of a comparison: every model's mean and every pair's difference, with intervals."""

from __future__ import annotations

import io
import math
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from notan.comparison import Comparison
    from notan.metrics.statistics import Interval

INK, DOT = "#010203", "#e69f00"
"""Ink is replaced by the page's own colour, dark or light; the dots are Okabe and Ito's orange."""

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "notan",  # the same comparison gives the same file
    "text.parse_math": False,  # a dollar in a name is a dollar
}
WIDTH, ROW, FRAME = 8.0, 0.34, 0.8
"""Inches: of the chart, of a row, and of what surrounds the rows of one panel."""


def compare_chart(comparison: Comparison) -> str:
    """Return an SVG that stands inside a page and takes its ink from there."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    means = [(each.title, each.mean) for each in comparison.contenders]
    differences = [
        (f"{pair.second.name} − {pair.first.name}", pair.compared.difference)  # noqa: RUF001
        for pair in comparison.pairs
    ]
    heights = [len(rows) * ROW + FRAME for rows in (means, differences)]
    with rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has it
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        upper, lower = figure.subplots(2, gridspec_kw={"height_ratios": heights})
        _draw(upper, means, "mean Dice")
        _draw(lower, differences, "difference in Dice")
        lower.axvline(0, color=INK, linewidth=1, linestyle=":")
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def _draw(axes: Axes, rows: Sequence[tuple[str, Interval]], title: str) -> None:
    """Draw a dot with its interval in each row, the first on top."""
    for place, (_, interval) in enumerate(rows):
        if not math.isnan(interval.low):
            axes.plot([interval.low, interval.high], [place, place], color=INK, linewidth=1.5)
        axes.plot([interval.mean], [place], "o", color=DOT, markersize=7)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(title, color=INK)
    axes.tick_params(colors=INK)
    axes.grid(axis="x", color=INK, alpha=0.15)
    for side in axes.spines.values():
        side.set_visible(False)
