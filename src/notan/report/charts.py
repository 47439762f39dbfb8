"""Charts, drawn by matplotlib and put into a page as SVG.

How a chart becomes part of a page: SVG in the page's own ink, and PNG on white.

The charts of a report, each from plain numbers.

The Figure objects are matplotlib's; ``notan.report.charts`` puts them into a page.

The chart of a comparison: every model's mean and every pair's difference, with intervals.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

    from notan.comparison import Comparison
    from notan.metrics.statistics import Interval
    from notan.report.score_file import Bin, Group, Image, ScoreFile, Sweep

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


CAPTIONS = {
    "loss": ("Loss", "What training makes small, on the images it learns from and on others."),
    "dice": ("Validation score", "Means over the validation images at their own size."),
    "learning-rate": ("Learning rate", "At the start of each epoch."),
    "dice-histogram": ("Dice of the images", "How many images score how much."),
    "dice-sorted": ("Every image, sorted", "A steep left end means a few bad failures."),
    "reliability": (
        "Reliability",
        "Where the model says 0.8, is 0.8 of the pixels figure? On the dashed line it is.",
    ),
    "threshold": ("Threshold", "Mean Dice if pixels were figure from another probability on."),
    "expected-dice": (
        "Does it know?",
        "What the model expects of its own mask, against what it scores.",
    ),
    "groups": ("By group", "Mean Dice of each kind of image, with its interval and number."),
}
"""Each chart's title and what to see in it."""

HISTOGRAM_BINS = np.linspace(0, 1, 21)
MOST_GROUPS = 40
"""Groups of one kind that a chart can show; report.json has all."""


def caption_of(name: str) -> tuple[str, str]:
    """Return a chart's title and what to see in it."""
    return CAPTIONS[name if name in CAPTIONS else name.rpartition("-")[0]]


def training_charts(
    history: Sequence[Mapping[str, float]], best_epoch: int | None
) -> Iterator[tuple[str, Figure]]:
    """Draw losses, scores and learning rate over the epochs, with the best epoch marked.

    Args:
        history: An epoch's values by name; values may be missing or NaN.
        best_epoch: Counted from 1; None where there is none yet.

    Yields:
        Name and chart.
    """
    if not history:
        return
    yield (
        "loss",
        _curves(
            history,
            best_epoch,
            "loss",
            {
                "train/loss": ("training", BLUE, "-"),
                "validation/loss": ("validation", RED, "-"),
            },
        ),
    )
    yield (
        "dice",
        _curves(
            history,
            best_epoch,
            "validation score",
            {
                "validation/dice": ("Dice", RED, "-"),
                "validation/iou": ("IoU", ORANGE, "-"),
                "validation/average_dice": ("Dice, averaged weights", RED, ":"),
                "validation/average_iou": ("IoU, averaged weights", ORANGE, ":"),
            },
        ),
    )
    yield (
        "learning-rate",
        _curves(history, best_epoch, "learning rate", {"learning_rate": ("", GREEN, "-")}),
    )


def _curves(
    history: Sequence[Mapping[str, float]],
    best_epoch: int | None,
    what: str,
    styles: Mapping[str, tuple[str, str, str]],
) -> Figure:
    figure, axes = new_chart("epoch", what)
    epochs = [epoch["epoch"] for epoch in history]
    marker = "o" if len(epochs) == 1 else None
    for name, (label, colour, line) in styles.items():
        values = [epoch.get(name, np.nan) for epoch in history]
        if np.isfinite(values).any():
            axes.plot(epochs, values, line, color=colour, label=label, marker=marker)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if best_epoch is not None:
        axes.axvline(best_epoch, color=QUIET, linewidth=1, linestyle="--", zorder=0.9)
        axes.annotate(
            f" best: {best_epoch} ",
            (best_epoch, 1.0),
            xycoords=("data", "axes fraction"),
            ha="right" if best_epoch > (epochs[0] + epochs[-1]) / 2 else "left",
            va="bottom",
            fontsize=8,
            color=INK,
        )
    if axes.get_legend_handles_labels()[1]:
        put_legend(axes)
    return figure


def score_charts(score: ScoreFile, threshold: object = None) -> Iterator[tuple[str, Figure]]:
    """Draw what a score says: each chart only where its numbers are there.

    Args:
        score: The score.
        threshold: The one that was used, to be marked; None where each image has its own.

    Yields:
        Name and chart.
    """
    dice = [image.dice for image in score.images]
    yield "dice-histogram", _histogram(dice)
    yield "dice-sorted", _sorted_strip(dice)
    if any(_is_point(each) for each in score.reliability):
        yield "reliability", _reliability(score.reliability)
    if score.threshold_sweep:
        yield "threshold", _sweep(score.threshold_sweep, threshold)
    known = [image for image in score.images if image.expected_dice is not None]
    if known:
        yield "expected-dice", _expected(known)
    for number, (grouping, groups) in enumerate(score.groups.items(), start=1):
        if any(group.mean_dice is not None for group in groups.values()):
            yield f"groups-{number}", _groups(grouping, groups)


def _histogram(dice: Sequence[float]) -> Figure:
    figure, axes = new_chart("Dice of an image", "images")
    axes.hist(dice, bins=HISTOGRAM_BINS.tolist(), color=SKY, edgecolor="none", rwidth=0.92)
    mean, median = float(np.mean(dice)), float(np.median(dice))
    axes.axvline(mean, color=INK, linewidth=1.4, label=f"mean {mean:.3f}")
    axes.axvline(median, color=INK, linewidth=1.4, linestyle=":", label=f"median {median:.3f}")
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    put_legend(axes)
    return figure


def _sorted_strip(dice: Sequence[float]) -> Figure:
    figure, axes = new_chart("images, from worst to best", "Dice")
    ranks = np.arange(1, len(dice) + 1)
    axes.vlines(ranks, 0, sorted(dice), color=SKY, linewidth=min(6.0, 220 / len(dice)))
    axes.set(ylim=(0, 1.03), xlim=(0.3, len(dice) + 0.7))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    return figure


def _is_point(each: Bin) -> bool:
    return each.pixels > 0 and None not in (each.mean_probability, each.foreground_fraction)


def _reliability(bins: Sequence[Bin]) -> Figure:
    figure, axes = new_chart("probability that the model gives", "share that is figure")
    points = [
        (each.mean_probability or 0.0, each.foreground_fraction or 0.0)
        for each in bins
        if _is_point(each)
    ]
    share = np.array([each.pixels for each in bins]) / sum(each.pixels for each in bins)
    axes.plot([0, 1], [0, 1], "--", color=QUIET, linewidth=1, label="perfect")
    starts, widths = [each.start for each in bins], [each.end - each.start for each in bins]
    axes.bar(
        starts, share, widths, align="edge", color=SKY, alpha=0.45, label="share of the pixels"
    )
    axes.plot(
        *np.transpose(points),
        "o-",
        color=BLUE,
        markersize=4,
        label="this model",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1))
    put_legend(axes)
    return figure


def _sweep(sweep: Sweep, threshold: object) -> Figure:
    figure, axes = new_chart("threshold", "mean Dice")
    values = [np.nan if value is None else value for value in sweep.mean_dice]
    number = min(len(sweep.thresholds), len(values))
    axes.plot(sweep.thresholds[:number], values[:number], color=BLUE)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    if isinstance(threshold, int | float):
        label = f"used: {threshold:g}"
        axes.axvline(threshold, color=RED, linewidth=1.4, linestyle="--", label=label)
        put_legend(axes)
    return figure


def _expected(images: Sequence[Image]) -> Figure:
    figure, axes = new_chart("Dice that the model expects", "true Dice")
    axes.plot([0, 1], [0, 1], "--", color=QUIET, linewidth=1)
    for flagged, colour, marker, label in (
        (False, BLUE, "o", "trusted"),
        (True, RED, "^", "please check"),
    ):
        points = [each for each in images if bool(each.needs_review) is flagged]
        axes.scatter(
            [each.expected_dice or 0.0 for each in points],
            [each.dice for each in points],
            s=20,
            color=colour,
            marker=marker,
            alpha=0.75,
            linewidths=0,
            label=f"{label} ({len(points)})",
        )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    put_legend(axes)
    return figure


def _groups(grouping: str, groups: Mapping[str, Group]) -> Figure:
    figure, axes = new_chart("mean Dice", _plain(grouping))
    shown = [(name, group) for name, group in groups.items() if group.mean_dice is not None]
    shown = shown[:MOST_GROUPS]
    for place, (_, group) in enumerate(shown):
        if group.low is not None and group.high is not None:
            axes.plot([group.low, group.high], [place, place], color=SKY, linewidth=5, alpha=0.7)
        axes.plot([group.mean_dice or 0.0], [place], "o", color=BLUE, markersize=6)
    names = [f"{_plain(name)} ({group.images})" for name, group in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.set(xlim=(0, 1.02), ylim=(len(shown) - 0.5, -0.5))
    figure.set_figheight(max(1.6, 0.8 + 0.3 * len(shown)))
    return figure


def _plain(text: str) -> str:
    """Keep matplotlib from taking what stands between two dollars for a formula."""
    return text.replace("$", r"\$")


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
