"""The numbers of each split, and findings about splits that differ strongly."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from notan.data.doctor.collect import UNLISTED
from notan.data.doctor.diagnosis import Finding, SplitStatistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from notan.data.doctor.reading import Facts, ImageFacts, MaskFacts

FAR_APART = 0.6
CHANCE = 1.95
"""Kolmogorov and Smirnov's factor for one false alarm in a thousand."""

CHANNELS = ("red", "green", "blue")

Numbers = npt.NDArray[np.float64]


def split_statistics(samples: Sequence[Facts]) -> tuple[SplitStatistics, ...]:
    """Return the numbers of each split that has a readable image, in the order of the splits."""
    statistics = []
    for split in dict.fromkeys(facts.split for facts in samples):
        images = _images(samples, split)
        if images:
            statistics.append(_of_split(split, images, _masks(samples, split)))
    return tuple(statistics)


def check_drift(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report splits whose coverage or colours come from clearly different distributions."""
    splits = [split for split in dict.fromkeys(f.split for f in samples) if split != UNLISTED]
    values = {split: _measures(samples, split) for split in splits}
    for one, other in combinations(splits, 2):
        for measure in ("coverage", "colour"):
            names = [
                name for name in values[one] if (name == "coverage") == (measure == "coverage")
            ]
            far = {name: _distance(values[one][name], values[other][name]) for name in names}
            name = max(names, key=lambda each: far[each])
            first, second = values[one][name], values[other][name]
            if far[name] <= _limit(len(first), len(second)):
                continue
            word = "share of foreground" if measure == "coverage" else f"mean {name}"
            message = (
                f"{one} and {other} differ strongly: the {word} is {np.median(first):.2f} in the "
                f"middle of {one} and {np.median(second):.2f} in {other} (0..1); scores on one say "
                "little about the other; split the images anew, or know why"
            )
            yield Finding(f"different-{measure}", "warning", message)


def _measures(samples: Sequence[Facts], split: str) -> Mapping[str, Numbers]:
    measures: dict[str, list[float]] = defaultdict(list)
    for image in _images(samples, split):
        for channel, mean in zip(CHANNELS, image.colour_mean, strict=True):
            measures[channel].append(mean / 255)
    coverage = [mask.coverage for mask in _masks(samples, split)]
    every = {"coverage": coverage, **{channel: measures[channel] for channel in CHANNELS}}
    return {name: np.array(numbers, dtype=np.float64) for name, numbers in every.items()}


def _distance(one: Numbers, other: Numbers) -> float:
    """Return the largest gap between two cumulative distributions (Kolmogorov, Smirnov)."""
    if not (one.size and other.size):
        return 0.0
    places = np.concatenate([one, other])
    below = np.searchsorted(np.sort(one), places, side="right") / one.size
    below_other = np.searchsorted(np.sort(other), places, side="right") / other.size
    return float(np.abs(below - below_other).max())


def _limit(one: int, other: int) -> float:
    """Return the distance that is both large and no chance of small splits."""
    if not (one and other):
        return 1.0
    return max(FAR_APART, CHANCE * float(np.sqrt((one + other) / (one * other))))


def _images(samples: Sequence[Facts], split: str) -> list[ImageFacts]:
    images = (facts.image for facts in samples if facts.split == split)
    return [image for image in images if image and image.size]


def _masks(samples: Sequence[Facts], split: str) -> list[MaskFacts]:
    masks = (facts.mask for facts in samples if facts.split == split)
    return [mask for mask in masks if mask and mask.size]


def _of_split(
    split: str, images: Sequence[ImageFacts], masks: Sequence[MaskFacts]
) -> SplitStatistics:
    means = np.array([image.colour_mean for image in images]) / 255
    deviations = np.array([image.colour_std for image in images]) / 255
    mean = means.mean(axis=0)
    # all pixels' variance: within the images, and between them
    deviation = np.sqrt((deviations**2 + means**2).mean(axis=0) - mean**2)
    sizes = np.array([image.size for image in images])
    return SplitStatistics(
        split=split,
        images=len(images),
        masks=len(masks),
        height=_three_whole(sizes[:, 0]),
        width=_three_whole(sizes[:, 1]),
        colour_mean=_three(mean),
        colour_std=_three(deviation),
        coverage=_range(np.array([mask.coverage for mask in masks])),
        encodings=dict(Counter(mask.encoding for mask in masks).most_common()),
    )


def _range(values: Numbers) -> tuple[float, float, float]:
    """Return the least, the middle and the largest value."""
    if not values.size:
        return (0.0, 0.0, 0.0)
    return _three(np.array([values.min(), np.median(values), values.max()]))


def _three(values: Numbers) -> tuple[float, float, float]:
    first, second, third = (round(float(value), 6) for value in values)
    return first, second, third


def _three_whole(values: npt.NDArray[np.int64]) -> tuple[int, int, int]:
    return int(values.min()), round(float(np.median(values))), int(values.max())
