"""Findings about single files: faults, names that lie, sizes, blank images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.data.doctor.diagnosis import Finding, Severity
from notan.data.files import Pair, require_same_size
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from notan.data.doctor.reading import Facts, FileFacts, ImageFacts

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
