"""The data doctor: every file of a folder is read once, and what is wrong is said.

The numbers of each split, and findings about splits that differ strongly.

examine: read a data folder once, judge what was read, and return the diagnosis.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import TYPE_CHECKING, get_args

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from notan.checking.diagnosis import SEVERITIES, Diagnosis, Finding, SplitStatistics, milder
from notan.checking.files import (
    check_blank,
    check_contradictions,
    check_copies,
    check_extreme_sizes,
    check_faults,
    check_formats,
    check_near_copies,
    check_pair_sizes,
)
from notan.checking.masks import (
    check_empty,
    check_encodings,
    check_full,
    check_polarity,
    check_ragged,
    check_repeated,
    check_shifted,
)
from notan.checking.reading import UNLISTED, collect, mask_reader, read_sample
from notan.config import Data, TrimapBorder
from notan.data.folders import find_layout
from notan.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Literal

    from notan.checking.reading import Entry, Facts, ImageFacts, MaskFacts

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


MOST_THREADS = 8
"""Decoders let go of the interpreter's lock; numpy's small steps between them do not."""

CHECKS = (
    check_faults,
    check_pair_sizes,
    check_copies,
    check_contradictions,
    check_near_copies,
    check_formats,
    check_encodings,
    check_polarity,
    check_empty,
    check_full,
    check_ragged,
    check_repeated,
    check_shifted,
    check_extreme_sizes,
    check_blank,
    check_drift,
)
"""Every check reads the facts of all samples and yields findings."""


def examine(
    folder: Path,
    *,
    trimap_border: TrimapBorder = "foreground",
    layout: Literal["auto", "pets", "folder"] = "auto",
    progress: bool = True,
) -> Diagnosis:
    """Look at every image and mask of a data folder once, and say what is wrong with it.

    Nothing that is wrong with a file raises: it becomes a finding.

    Args:
        folder: A data folder of either layout.
        trimap_border: What the border of trimaps counts as.
        layout: ``"pets"``, ``"folder"``, or ``"auto"`` to look.
        progress: Show a bar on a terminal once it takes longer than a second.

    Raises:
        ConfigError: There is no such border rule or layout.
        DataError: The folder is missing, of neither layout, or holds no image at all.
    """
    _require_known("trimap_border", trimap_border, get_args(TrimapBorder))
    _require_known("layout", layout, ("auto", "pets", "folder"))
    layout_found = find_layout(Data(path=folder, layout=layout))
    collection = collect(folder, layout_found)
    samples = _read_all(collection.entries, layout_found, trimap_border, progress=progress)
    findings = [*collection.findings]
    for check in CHECKS:
        findings += check(samples)
    return Diagnosis(
        folder=folder,
        layout=layout_found,
        trimap_border=trimap_border,
        findings=_worst_first(findings),
        statistics=split_statistics(samples),
        pairs=_pairs_named(findings, collection.entries),
    )


def _require_known(what: str, word: str, options: Sequence[str]) -> None:
    if word not in options:
        raise ConfigError(f"{what} = '{word}': there is no such {what}{nearest(word, options)}")


def _read_all(
    entries: Sequence[Entry], layout: str, trimap_border: TrimapBorder, *, progress: bool
) -> list[Facts]:
    read = mask_reader(layout, trimap_border)
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        work = pool.map(lambda entry: read_sample(entry, read), entries)
        bar = tqdm(
            work,
            total=len(entries),
            desc="examining",
            unit="image",
            leave=False,
            delay=1,
            disable=None if progress else True,
        )
        return list(bar)


def _worst_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Drop repetitions, be mild on files that no split reads, and sort by severity."""
    judged = [milder(each) if each.split == UNLISTED else each for each in findings]
    unique = {(each.kind, each.message): each for each in judged}
    return tuple(sorted(unique.values(), key=lambda each: SEVERITIES.index(each.severity)))


def _pairs_named(
    findings: Sequence[Finding], entries: Sequence[Entry]
) -> tuple[tuple[Path, Path], ...]:
    named = {path for finding in findings for path in finding.files}
    return tuple(
        (entry.image, entry.mask)
        for entry in entries
        if entry.image and entry.mask and (entry.image in named or entry.mask in named)
    )
