"""What the data doctor finds in files: unreadable, mismatched, copied.

Findings about single files: faults, names that lie, sizes, blank images.

Findings about images that stand in a folder twice: copies, leaks, contradicting masks.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from notan.checking.alignment import Look, alike
from notan.checking.diagnosis import Finding, Severity, number_of
from notan.checking.reading import UNLISTED
from notan.data.samples import Pair, require_same_size
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from notan.checking.reading import Facts, FileFacts, ImageFacts

SUFFIX_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".pgm", ".ppm", ".pbm"),
    "JPEG2000": (".jp2",),
    "AVIF": (".avif",),
}
"""The names that each format goes by."""

SAME_FORMATS = {"MPO": "JPEG", "DIB": "BMP"}
"""Formats that go by the names of another one: cameras write MPO, several JPEGs in one file."""

SMALLEST_SIDE = 16
LARGEST_SIDE = 10_000
LARGEST_PIXELS = 40_000_000
LARGEST_ASPECT = 8.0
BLANK_DEVIATION = 1.5
"""Grey levels of 255; the darkest real images under the microscope have 2.4."""


def check_faults(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report files that cannot be read, are cut short, or hold values of unclear meaning."""
    for facts in samples:
        for what, file in (("image", facts.image), ("mask", facts.mask)):
            if file and file.fault:
                kind = f"{file.fault.kind}-{what}"
                yield Finding(kind, "error", file.fault.message, (file.path,), facts.split)


def check_formats(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report files whose content is of another format than their name says."""
    for facts in samples:
        for file in (facts.image, facts.mask):
            if file and file.format and _name_lies(file):
                message = (
                    f"{file.path}: is a {file.format} file by its content; it is read as that, "
                    "but other programs trust the name; rename or convert it"
                )
                yield Finding("wrong-type-for-name", "warning", message, (file.path,), facts.split)


def _name_lies(file: FileFacts) -> bool:
    kind = SAME_FORMATS.get(file.format or "", file.format or "")
    suffixes = SUFFIX_FORMATS.get(kind)
    return suffixes is not None and file.path.suffix.lower() not in suffixes


def check_pair_sizes(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report images and masks that differ in size."""
    for facts in samples:
        image, mask = facts.image, facts.mask
        if not (image and mask and image.size and mask.size):
            continue
        try:
            pair = Pair(facts.entry.name, image.path, mask.path)
            require_same_size(pair, image.size, mask.size)
        except DataError as error:
            files = (image.path, mask.path)
            yield Finding("size-mismatch", "error", str(error), files, facts.split)


def check_extreme_sizes(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report images too small, too large or too long to be trained on as they are."""
    for facts in samples:
        image = facts.image
        if not (image and image.size):
            continue
        height, width = image.size
        found = f"{image.path}: {height}x{width} pixels (height x width)"
        if min(height, width) < SMALLEST_SIDE:
            yield _about(
                image, facts, "tiny-image",
                f"{found}, a side under {SMALLEST_SIDE}; it shows next to nothing; leave it out",
            )  # fmt: skip
        elif max(height, width) > LARGEST_SIDE or height * width > LARGEST_PIXELS:
            yield _about(
                image, facts, "huge-image",
                f"{found}; details vanish when it is shrunk for the model; cut it into tiles",
            )  # fmt: skip
        if max(height, width) > LARGEST_ASPECT * min(height, width):
            yield _about(
                image, facts, "extreme-aspect",
                f"{found}, over {LARGEST_ASPECT:g} times as long as wide; it is squeezed into the "
                "model's input; cut it into pieces",
            )  # fmt: skip


def check_blank(samples: Sequence[Facts]) -> Iterator[Finding]:
    """Report images of next to one colour."""
    for facts in samples:
        image = facts.image
        if image and image.colour_std and max(image.colour_std) < BLANK_DEVIATION:
            colour = ", ".join(f"{channel:.0f}" for channel in image.colour_mean)
            yield _about(
                image, facts, "blank-image",
                f"{image.path}: next to one colour throughout (red, green, blue {colour}); "
                "probably a failed exposure or export; make it again, or leave it out",
            )  # fmt: skip


def _about(
    image: ImageFacts, facts: Facts, kind: str, message: str, severity: Severity = "warning"
) -> Finding:
    return Finding(kind, severity, message, (image.path,), facts.split)


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
