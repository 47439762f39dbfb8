"""Charts, drawn by matplotlib: SVG in the page's own ink, and PNG on white.

Those of a training and of a score, and the one of a comparison.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from typing import TYPE_CHECKING, TypeAlias

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
    from notan.metrics import ImageScore, Score
    from notan.metrics.probabilities import ReliabilityBin, ThresholdSweep
    from notan.metrics.statistics import Interval

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
        # arranged once, not for each format: that is half of what drawing a chart costs
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    figure.set_layout_engine("none")
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
    figure.set_layout_engine("none")
    return file.getvalue()


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
        "Where the model says 0.8, is 0.8 of the pixels foreground? On the dashed line it is.",
    ),
    "threshold": ("Threshold", "Mean Dice if pixels were foreground from another probability on."),
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


TRAINING: dict[str, tuple[str, dict[str, tuple[str, str, str]]]] = {
    "loss": (
        "loss",
        {"train/loss": ("training", BLUE, "-"), "validation/loss": ("validation", RED, "-")},
    ),
    "dice": (
        "validation score",
        {
            "validation/dice": ("Dice", RED, "-"),
            "validation/iou": ("IoU", ORANGE, "-"),
            "validation/steady_dice": ("steady Dice, which chooses", BLUE, "-"),
            "validation/ema_dice": ("Dice, EMA of the weights", RED, ":"),
            "validation/ema_steady_dice": ("steady Dice, EMA", BLUE, ":"),
            "validation/ema_iou": ("IoU, EMA of the weights", ORANGE, ":"),
        },
    ),
    "learning-rate": ("learning rate", {"learning_rate": ("", GREEN, "-")}),
}
"""Of each chart its axis, and of each value in it the label, colour and line."""


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
    epochs = [epoch["epoch"] for epoch in history]
    for chart, (what, styles) in TRAINING.items() if epochs else ():
        figure, axes = new_chart("epoch", what)
        for name, (label, colour, line) in styles.items():
            # an epoch without validation breaks no line, NaN does
            known = {epoch["epoch"]: epoch[name] for epoch in history if name in epoch}
            if np.isfinite([*known.values()]).any():
                marker = "o" if len(known) == 1 else None
                axes.plot(
                    [*known], [*known.values()], line, color=colour, label=label, marker=marker
                )
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
        yield chart, figure


def score_charts(score: Score, threshold: float | None = None) -> Iterator[tuple[str, Figure]]:
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
    if score.reliability:
        yield "reliability", _reliability(score.reliability)
    yield "threshold", _sweep(score.threshold_sweep, threshold)
    if score.expected:
        yield "expected-dice", _expected(score.images)
    for number, (grouping, groups) in enumerate(score.groups.items(), start=1):
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


def _reliability(bins: Sequence[ReliabilityBin]) -> Figure:
    figure, axes = new_chart("probability that the model gives", "share that is foreground")
    share = np.array([each.pixels for each in bins]) / sum(each.pixels for each in bins)
    axes.plot([0, 1], [0, 1], "--", color=QUIET, linewidth=1, label="perfect")
    starts, widths = [each.low for each in bins], [each.high - each.low for each in bins]
    axes.bar(
        starts, share, widths, align="edge", color=SKY, alpha=0.45, label="share of the pixels"
    )
    axes.plot(
        [each.mean_probability for each in bins],
        [each.foreground_fraction for each in bins],
        "o-",
        color=BLUE,
        markersize=4,
        label="this model",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1))
    put_legend(axes)
    return figure


def _sweep(sweep: ThresholdSweep, threshold: float | None) -> Figure:
    figure, axes = new_chart("threshold", "mean Dice")
    axes.plot(sweep.thresholds, sweep.mean_dice, color=BLUE)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    if threshold is not None:
        label = f"used: {threshold:g}"
        axes.axvline(threshold, color=RED, linewidth=1.4, linestyle="--", label=label)
        put_legend(axes)
    return figure


def _expected(images: Sequence[ImageScore]) -> Figure:
    figure, axes = new_chart("Dice that the model expects", "true Dice")
    axes.plot([0, 1], [0, 1], "--", color=QUIET, linewidth=1)
    for flagged, colour, marker, label in (
        (False, BLUE, "o", "trusted"),
        (True, RED, "^", "please check"),
    ):
        points = [
            (each.expected_dice, each.dice)
            for each in images
            if each.expected_dice is not None and bool(each.needs_review) is flagged
        ]
        axes.scatter(
            [expected for expected, _ in points],
            [dice for _, dice in points],
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


def _groups(grouping: str, groups: Mapping[str, Interval]) -> Figure:
    figure, axes = new_chart("mean Dice", _plain(grouping))
    shown = list(groups.items())[:MOST_GROUPS]
    rows = [
        (f"{_plain(name)} ({group.images})", group.mean, group.low, group.high)
        for name, group in shown
    ]
    _draw_intervals(axes, rows, SKY, BLUE, linewidth=5)
    axes.set_xlim(0, 1.02)
    figure.set_figheight(max(1.6, 0.8 + 0.3 * len(shown)))
    return figure


def _draw_intervals(
    axes: Axes, rows: Sequence[IntervalRow], line: str, dot: str, *, linewidth: float
) -> None:
    """Draw a dot with its interval in each row, the first on top."""
    for place, (_, mean, low, high) in enumerate(rows):
        if low is not None and high is not None and not math.isnan(low):
            alpha = 0.7 if linewidth > 2 else 1.0  # of a broad line, so that the dot stands out
            axes.plot([low, high], [place, place], color=line, linewidth=linewidth, alpha=alpha)
        axes.plot([mean], [place], "o", color=dot, markersize=6)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _plain(text: str) -> str:
    """Keep matplotlib from taking what stands between two dollars for a formula."""
    return text.replace("$", r"\$")


IntervalRow: TypeAlias = tuple[str, float, float | None, float | None]
"""What a dot is called, its mean, and the ends of its interval; None or NaN where there is none."""

WIDTH, ROW, FRAME = 7.0, 0.32, 0.7
"""Inches: of the chart, of a row, and of what surrounds the rows of one panel."""


def compare_chart(comparison: Comparison) -> str:
    """Return an SVG that stands inside a page and takes its ink from there."""
    means = [(each.title, each.mean_dice, each.low, each.high) for each in comparison.models]
    differences = [
        (f"{pair.second} − {pair.first}", pair.difference, pair.low, pair.high)  # noqa: RUF001
        for pair in comparison.pairs
    ]
    heights = [len(rows) * ROW + FRAME for rows in (means, differences)]
    with mpl.rc_context({**STYLE, "text.parse_math": False}):  # a dollar in a name is a dollar
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        upper, lower = figure.subplots(2, gridspec_kw={"height_ratios": heights})
        for axes, rows, title in (
            (upper, means, "mean Dice"),
            (lower, differences, "difference in Dice"),
        ):
            _draw_intervals(axes, rows, INK, ORANGE, linewidth=1.5)
            axes.set_xlabel(title)
            axes.grid(visible=False, axis="y")
            axes.spines["left"].set_visible(False)
        lower.axvline(0, color=INK, linewidth=1, linestyle=":")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has it
        return to_svg(figure, "compare")
