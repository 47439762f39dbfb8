"""The weights of an ensemble's members, from what each says of validation pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from notan.metrics.statistics import compare_paired

if TYPE_CHECKING:
    from collections.abc import Sequence

Chances: TypeAlias = npt.NDArray[np.float64]
"""(members, pixels) of one image: the probability that each gave to what is true."""

FEWEST = 10
"""Validation images without which the members keep equal weights."""

FOLDS, ROUNDS = 5, 200
SMALLEST_CHANCE = 1e-6
NEGLIGIBLE = 0.01
"""A member of less weight is left out: it would cost its time for nothing."""


def choose_weights(images: Sequence[Chances]) -> tuple[tuple[float, ...], str]:
    """Choose the members' weights, equal ones unless others are better beyond noise.

    Args:
        images: What the members gave to the truth of the same pixels, as many in each.

    Returns:
        One weight for each member, summing to 1, 0 for one that is not worth its time; and what
        was done and why.

    Source: Smyth and Wolpert 1999, "Linearly combining density estimators via stacking": the convex
        weights under which the truth is likeliest, found by expectation maximisation. Whether they
        are better is judged on images that were left out of the fit, five parts in turn, by the
        bootstrap interval of the gain.
    """
    members = len(images[0])
    equal = (1 / members,) * members
    if len(images) < FEWEST:
        return equal, f"{len(images)} validation images are too few to weigh members: all alike"
    now, then = [], []
    for number, image in enumerate(images):
        others = [each for place, each in enumerate(images) if place % FOLDS != number % FOLDS]
        now.append(_surprise(image, np.asarray(equal)))
        then.append(_surprise(image, _likeliest(others)))
    gain = compare_paired(then, now).difference
    interval = f"[{-gain.high:+.4f}, {-gain.low:+.4f}]"
    text = f"mean cross-entropy of a pixel {-gain.mean:+.4f} {interval} nats"
    if not gain.low > 0:
        return equal, f"weights: all alike; fitted ones give {text} on images left out"
    fitted = _likeliest(images)
    kept = np.where(fitted < NEGLIGIBLE, 0, fitted)
    weights = tuple(round(float(weight), 3) for weight in kept / kept.sum())
    return weights, f"weights: fitted, {text} on images left out"


def _likeliest(images: Sequence[Chances]) -> npt.NDArray[np.float64]:
    """Return the convex weights under which the truth of all pixels is likeliest."""
    chances = np.maximum(np.concatenate(images, axis=1), SMALLEST_CHANCE)
    weights = np.full(len(chances), 1 / len(chances))
    for _ in range(ROUNDS):
        share = weights[:, None] * chances
        weights = (share / share.sum(axis=0)).mean(axis=1)
    return weights


def _surprise(image: Chances, weights: npt.NDArray[np.float64]) -> float:
    """Return the mean cross-entropy of an image's pixels, in nats."""
    return float(-np.log(np.maximum(weights @ image, SMALLEST_CHANCE)).mean())
