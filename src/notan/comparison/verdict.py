"""Verdict: what a paired comparison lets one say, in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from notan.metrics.statistics import PairedComparison

SIGNIFICANCE = 0.05
"""How often two models that are alike are called different."""

FEWEST = 6
"""Images without which the rank test cannot be significant: with 5 it gives 2 / 32 at best."""

Outcome = Literal["first", "second", "none", "unclear"]


def decide(compared: PairedComparison, p_value: float) -> Outcome:
    """Say which of two is better.

    A model is better where the rank test says that chance alone would not do this, and the interval
    of the mean difference leaves out zero. Where only the test does, the two differ, but which is
    better depends on what counts: many images a little, or few a lot.

    Args:
        compared: Second against first.
        p_value: Of the rank test, corrected where several pairs are compared.
    """
    if p_value >= SIGNIFICANCE:
        return "none"
    if compared.difference.low > 0:
        return "second"
    return "first" if compared.difference.high < 0 else "unclear"


def in_words(compared: PairedComparison, p_value: float, first: str, second: str) -> str:
    """Say in a sentence which of two is better and by how much.

    Args:
        compared: Second against first.
        p_value: Of the rank test, corrected where several pairs are compared.
        first: What to call the first.
        second: What to call the second.
    """
    difference, number = compared.difference, compared.difference.number
    if compared.ties == number:
        images = "the one image" if number == 1 else f"each of these {number} images"
        return f"no difference: {first} and {second} score the same on {images}"
    if number < FEWEST:
        return f"too few images to tell: {number}, where {FEWEST} are the least"
    outcome = decide(compared, p_value)
    if outcome == "none":
        return f"no difference beyond noise on these {number} images"
    mean, low, high = difference.mean, difference.low, difference.high
    if outcome == "second":
        return f"{second} is better by {mean:.3f} [{low:.3f}, {high:.3f}]"
    if outcome == "first":
        return f"{first} is better by {-mean:.3f} [{-high:.3f}, {-low:.3f}]"
    return (
        f"{first} and {second} differ, but neither is better in the mean: {second} scores higher "
        f"on {compared.wins} and lower on {compared.losses} of these {number} images, on average "
        f"{mean:+.3f} [{low:.3f}, {high:.3f}]"
    )
