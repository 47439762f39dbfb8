"""Findings about images that stand in a folder twice: copies, leaks, contradicting masks."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from notan.data.doctor.check_files import BLANK_DEVIATION
from notan.data.doctor.collect import UNLISTED
from notan.data.doctor.diagnosis import Finding, Severity, number_of
from notan.data.doctor.likeness import Look, alike

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from notan.data.doctor.reading import Facts


def check_copies(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report images of the very same pixels, within a split and across splits."""
    for group in _same_pixels(samples):
        yield _about_group(group, near=False)


def check_contradictions(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report images of the very same pixels whose masks differ."""
    for group in _same_pixels(samples):
        there = [facts.mask for facts in group if facts.mask and not facts.mask.fault]
        masks = {mask.digest: mask.path for mask in there}
        if len(masks) < 2:
            continue
        files = _images(group)
        first, second, *_ = masks.values()
        message = (
            f"{files[0]}: the same image as {_places(group[1:])}, but their masks differ "
            f"({first.name} and {second.name} hold different foregrounds); keep the right one"
        )
        yield Finding("copies-with-different-masks", "error", message, files, _one_split(group))


def check_near_copies(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report resized or recompressed copies, within a split and across splits."""
    by_pixels: dict[str, Facts] = {}
    looks: dict[str, Look] = {}
    for facts in samples:
        image = facts.image
        if image and image.look and max(image.colour_std) >= BLANK_DEVIATION:
            by_pixels.setdefault(image.digest, facts)  # exact copies are reported elsewhere
            looks.setdefault(image.digest, image.look)
    distinct = list(by_pixels.values())
    for group in _connected(len(distinct), alike(list(looks.values()))):
        yield _about_group([distinct[place] for place in group], near=True)


def _same_pixels(samples: Sequence[Facts]) -> list[list[Facts]]:
    groups: dict[str, list[Facts]] = defaultdict(list)
    for facts in samples:
        if facts.image and facts.image.digest:
            groups[facts.image.digest].append(facts)
    return [group for group in groups.values() if len(group) > 1]


def _connected(count: int, links: Iterator[tuple[int, int]]) -> list[list[int]]:
    """Gather linked places into groups of two and more."""
    leader = list(range(count))

    def lead(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    for one, other in links:
        leader[lead(other)] = lead(one)
    groups: dict[int, list[int]] = defaultdict(list)
    for place in range(count):
        groups[lead(place)].append(place)
    return [group for group in groups.values() if len(group) > 1]


def _about_group(group: Sequence[Facts], *, near: bool) -> Finding:
    """Describe copies; only those that stand in two splits, both read, are a leak."""
    splits = {facts.split for facts in group} - {UNLISTED}
    listed = sum(facts.split != UNLISTED for facts in group)
    files = _images(group)
    what = "almost the same image as" if near else "the very same image as"
    found = f"{files[0]} ({group[0].split}): {what} {_places(group[1:])}"
    kind = "near-duplicate" if near else "duplicate"
    if len(splits) > 1:
        severity: Severity = "warning" if near else "error"
        message = f"{found}; scores on images seen in training are too good; keep it in one split"
        return Finding(f"{kind}-across-splits", severity, message, files)
    if listed < 2:
        message = f"{found}; only one of them is in a list, so nothing needs to be done"
        return Finding(kind, "note", message, files, _one_split(group))
    message = f"{found}; it counts twice, and a later split may part them; keep one"
    return Finding(kind, "warning", message, files, _one_split(group))


def _one_split(group: Sequence[Facts]) -> str | None:
    splits = {facts.split for facts in group}
    return splits.pop() if len(splits) == 1 else None


def _images(group: Sequence[Facts]) -> tuple[Path, ...]:
    return tuple(facts.image.path for facts in group if facts.image)


def _places(group: Sequence[Facts]) -> str:
    first = group[0]
    name = first.image.path.name if first.image else first.entry.name
    more = f" and {number_of(len(group) - 1, 'other')}" if len(group) > 1 else ""
    return f"{name} ({first.split}){more}"
