"""What the data doctor says of images: sizes, blank ones, copies and splits that differ."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from notan.checking.diagnosis import Finding, Severity, number_of
from notan.checking.reading import UNLISTED
from notan.data.copies import BLANK_DEVIATION, near_copies
from notan.data.samples import Pair, require_same_size
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from notan.checking.reading import Facts, ImageFacts

SMALLEST_SIDE = 16
LARGEST_SIDE = 10_000
LARGEST_PIXELS = 40_000_000
LARGEST_ASPECT = 8.0


class ImageCheck(NamedTuple):
    """A check that looks at one image alone.

    Attributes:
        kind: Of its findings.
        applies: Says whether an image is concerned.
        message: With ``height``, ``width`` and ``colour`` to be filled in.
    """

    kind: str
    applies: Callable[[ImageFacts], bool]
    message: str


_SIZE = "{height}x{width} pixels (height x width)"

IMAGE_CHECKS = (
    ImageCheck(
        "tiny-image",
        lambda image: min(image.size) < SMALLEST_SIDE,
        f"{_SIZE}, a side under {SMALLEST_SIDE}; it shows next to nothing; leave it out",
    ),
    ImageCheck(
        "huge-image",
        lambda image: (
            min(image.size) >= SMALLEST_SIDE
            and (max(image.size) > LARGEST_SIDE or image.size[0] * image.size[1] > LARGEST_PIXELS)
        ),
        f"{_SIZE}; details vanish when it is shrunk for the model; cut it into tiles",
    ),
    ImageCheck(
        "extreme-aspect",
        lambda image: max(image.size) > LARGEST_ASPECT * min(image.size),
        f"{_SIZE}, over {LARGEST_ASPECT:g} times as long as wide; it is squeezed into the "
        "model's input; cut it into pieces",
    ),
    ImageCheck(
        "blank-image",
        lambda image: max(image.colour_std) < BLANK_DEVIATION,
        "next to one colour throughout ({colour}); "
        "probably a failed exposure or export; make it again, or leave it out",
    ),
)


def check_images(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report images too small, too large or too long to be trained on as they are, or blank."""
    for kind, applies, message in IMAGE_CHECKS:
        for image in (facts.image for facts in samples if facts.image):
            if applies(image):
                height, width = image.size
                colour = ", ".join(f"{channel:.0f}" for channel in image.colour_mean)
                yield image.finding(kind, message.format(height=height, width=width, colour=colour))


def check_pair_sizes(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report images and masks that differ in size."""
    for facts in samples:
        image, mask = facts.image, facts.mask
        if image and mask:
            try:
                pair = Pair(facts.entry.name, image.path, mask.path)
                require_same_size(pair, image.size, mask.size)
            except DataError as error:
                files = (image.path, mask.path)
                yield Finding("size-mismatch", "error", str(error), files, image.split)


def check_copies(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report images of the very same pixels, in one split or two, and masks of them that differ."""
    groups: dict[str, list[Facts]] = defaultdict(list)
    for facts in samples:
        if facts.image:
            groups[facts.image.digest].append(facts)
    for group in groups.values():
        if len(group) < 2:
            continue
        yield _about_copies(group, near=False)
        masks = {facts.mask.digest: facts.mask.path for facts in group if facts.mask}
        if len(masks) > 1:
            files = _paths(group)
            first, second, *_ = masks.values()
            message = (
                f"{files[0]}: the same image as {_places(group[1:])}, but their masks differ "
                f"({first.name} and {second.name} hold different foregrounds); keep the right one"
            )
            split = _one_split(group)
            yield Finding("copies-with-different-masks", "error", message, files, split)


def check_near_copies(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report resized or recompressed copies, within a split and across splits."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    distinct: dict[str, tuple[Facts, ImageFacts]] = {}
    for facts in samples:
        if facts.image and max(facts.image.colour_std) >= BLANK_DEVIATION:
            # exact copies are reported elsewhere
            distinct.setdefault(facts.image.digest, (facts, facts.image))
    pairs = list(near_copies([image for _, image in distinct.values()]))
    if not pairs:
        return
    links = coo_array((np.ones(len(pairs)), np.transpose(pairs)), shape=(len(distinct),) * 2)
    groups: dict[int, list[Facts]] = defaultdict(list)
    _, labels = connected_components(links, directed=False)
    for label, (facts, _) in zip(labels.tolist(), distinct.values(), strict=True):
        groups[label].append(facts)
    for group in groups.values():
        if len(group) > 1:
            yield _about_copies(group, near=True)


def _about_copies(group: Sequence[Facts], *, near: bool) -> Finding:
    """Describe copies; only those that stand in two splits, both read, are a leak."""
    listed = [facts.entry.split for facts in group if facts.entry.split != UNLISTED]
    files = _paths(group)
    what = "almost the same image as" if near else "the very same image as"
    kind = "near-duplicate" if near else "duplicate"
    severity: Severity = "warning"
    if len(set(listed)) > 1:
        kind += "-across-splits"
        severity = "warning" if near else "error"
        advice = "scores on images seen in training are too good; keep it in one split"
    elif len(listed) < 2:
        severity = "note"
        advice = "only one of them is in a list, so nothing needs to be done"
    else:
        advice = "it counts twice, and a later split may part them; keep one"
    message = f"{files[0]} ({group[0].entry.split}): {what} {_places(group[1:])}; {advice}"
    split = None if len(set(listed)) > 1 else _one_split(group)
    return Finding(kind, severity, message, files, split)


def _one_split(group: Sequence[Facts]) -> str | None:
    splits = {facts.entry.split for facts in group}
    return splits.pop() if len(splits) == 1 else None


def _paths(group: Sequence[Facts]) -> tuple[Path, ...]:
    return tuple(facts.image.path for facts in group if facts.image)


def _places(group: Sequence[Facts]) -> str:
    more = f" and {number_of(len(group) - 1, 'other')}" if len(group) > 1 else ""
    return f"{_paths(group)[0].name} ({group[0].entry.split}){more}"


FAR_APART = 0.6
"""Distance of two distributions, 0..1, from which on two splits differ strongly."""

CHANCE = 1.95
"""Kolmogorov and Smirnov's factor for one false alarm in a thousand."""


def check_drift(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report splits whose coverage or colours come from clearly different distributions."""
    splits = dict.fromkeys(facts.entry.split for facts in samples)
    values = {split: _measures(samples, split) for split in splits if split != UNLISTED}
    for one, other in combinations(values, 2):
        for kind in (kind for kind in values[one] if kind in values[other]):
            words = values[one][kind]
            far = {word: _distance(words[word], values[other][kind][word]) for word in words}
            word = max(far, key=lambda each: far[each])
            first, second = words[word], values[other][kind][word]
            if far[word] > _limit(len(first), len(second)):
                message = (
                    f"{one} and {other} differ strongly: the {word} is {np.median(first):.2f} in "
                    f"the middle of {one} and {np.median(second):.2f} in {other} (0..1); scores on "
                    "one say little about the other; split the images anew, or know why"
                )
                yield Finding(kind, "warning", message)


COLOURS = ("mean red", "mean green", "mean blue")


def _measures(
    samples: Sequence[Facts], split: str
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Return what is compared between splits, by the finding that it leads to."""
    inside = [facts for facts in samples if facts.entry.split == split]
    coverage = [facts.mask.coverage for facts in inside if facts.mask]
    measures = {"different-coverage": {"share of foreground": np.array(coverage, np.float64)}}
    columns = np.array([facts.image.colour_mean for facts in inside if facts.image]).T / 255
    names: tuple[str, ...] = COLOURS
    if len(columns) != len(COLOURS):
        names = tuple(f"mean of channel {number}" for number in range(len(columns)))
    if len(columns):
        measures["different-colour"] = dict(zip(names, columns, strict=True))
    return measures


def _distance(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Return the largest gap between two cumulative distributions (Kolmogorov, Smirnov)."""
    if not (one.size and other.size):
        return 0.0
    places = np.concatenate([one, other])
    # four lines instead of scipy.stats, whose import takes longer than a small folder's check
    below = np.searchsorted(np.sort(one), places, side="right") / one.size
    below_other = np.searchsorted(np.sort(other), places, side="right") / other.size
    return float(np.abs(below - below_other).max())


def _limit(one: int, other: int) -> float:
    """Return the distance that is both large and no chance of small splits."""
    if not (one and other):
        return 1.0
    return max(FAR_APART, CHANCE * float(np.sqrt((one + other) / (one * other))))
