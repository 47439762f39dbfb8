"""The charts of a report, each from plain numbers.

The Figure objects are matplotlib's; ``notan.report.svg`` puts them into a page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from notan.report.svg import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    QUIET,
    RED,
    SKY,
    new_chart,
    put_legend,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.figure import Figure

    from notan.report.score_file import Bin, Group, Image, ScoreFile, Sweep

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
