"""How a chart becomes part of a page: SVG in the page's own ink, and PNG on white."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from typing import Any

    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

INK, QUIET, LINE, CARD = "#22242a", "#666b75", "#e3e0d8", "#fffffe"
"""Text, lesser text, grid and background: colours of the page, which the SVG takes from it."""

BLUE, ORANGE, GREEN, RED, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9"
"""Okabe and Ito's palette, told apart by colour-blind readers."""

SIZE = (4.6, 3.0)
"""(width, height) in inches: about a phone's width in points, so that text is readable there."""

DOTS_PER_INCH = 200
OF_PAGE = {
    INK: "currentColor",
    QUIET: "var(--quiet)",
    LINE: "var(--line)",
    CARD: "var(--card)",
    BLUE: "var(--blue)",
    RED: "var(--red)",
}
"""What stands in an SVG for a colour that is another in the dark."""

STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "font.size": 9,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.facecolor": CARD,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "legend.fontsize": 8,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.8,
}


def new_chart(across: str, up: str) -> tuple[Figure, Axes]:
    """Start a chart with the names of its axes; pyplot, which holds global state, is not used."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
    axes.set(xlabel=across, ylabel=up)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure, axes


def to_svg(figure: Figure, name: str) -> str:
    """Return a chart as an ``<svg>`` element whose ink follows the page's.

    Args:
        figure: What ``new_chart`` started.
        name: Kept in front of every id, since ids must be unique in a page.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    _keep_layout(figure)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r' id="', f' id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, of_page in OF_PAGE.items():
        text = text.replace(colour, of_page)
    return text


def to_png(figure: Figure) -> bytes:
    """Return a chart as a PNG file, dark on white."""
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH, facecolor="white")
    _keep_layout(figure)
    return file.getvalue()


def _keep_layout(figure: Figure) -> None:
    """Arrange a chart once, not for each format: that is half of what drawing it costs."""
    figure.set_layout_engine("none")


def put_legend(axes: Axes) -> None:
    """Explain the colours where there is room."""
    with mpl.rc_context(STYLE):
        axes.legend()
