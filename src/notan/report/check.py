"""The data doctor's page: findings with thumbnails and each split's numbers, in one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from notan.data.doctor.diagnosis import SEVERITIES, number_of
from notan.labels.explanations import KINDS
from notan.report.check_labels import label_rows
from notan.report.check_thumbnails import Thumbnails
from notan.report.check_words import reason_of, title_of
from notan.report.page import TIMES, fill

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from notan.data.doctor import Diagnosis, Finding, SplitStatistics
    from notan.labels.search import LabelSearch

MOST_MESSAGES = 100
"""Findings of one kind that the page puts into words; the JSON beside it has all."""

MOST_THUMBNAILS = 12
MOST_OPEN = 3
"""More findings of one kind than this are folded away."""

WITHOUT_THUMBNAILS = frozenset(
    {"mask-encoding", "ignored-file", "label-unjudged", "label-disagreement"}
    | {f"label-{kind}" for kind in KINDS}  # the section about labels shows them
)
MARKS = {"error": "✕", "warning": "!", "clean": "✓"}


@dataclass(frozen=True)
class Group:
    """The findings of one kind, as the page shows them.

    Attributes:
        severity: error, warning or note.
        title: What the kind is called.
        reason: Why it matters; may be empty.
        messages: One for each finding.
        frames: For each finding the caption and JPEG of its files; None cannot be shown.
        shortened: Whether there are more files than frames show.
    """

    severity: str
    title: str
    reason: str
    messages: tuple[str, ...]
    frames: tuple[tuple[tuple[str, str | None], ...], ...]
    shortened: bool


def check_page(diagnosis: Diagnosis, search: LabelSearch | None = None) -> str:
    """Return the page: one HTML text with its images and its style inside.

    Args:
        diagnosis: What the doctor found. Of the files that findings name, up to 12 of each kind
            are read again to be shown.
        search: The ranking of the masks, where there is one; the first 12 are shown.

    Returns:
        HTML that refers to nothing outside itself.
    """
    state = next((each for each in ("error", "warning") if diagnosis.count(each)), "clean")
    counts = [(each, diagnosis.count(each)) for each in SEVERITIES]
    return fill(
        "check.html",
        diagnosis=diagnosis,
        state=state,
        mark=MARKS[state],
        counts=[(severity, count, number_of(count, severity)) for severity, count in counts],
        groups=list(_groups(diagnosis)),
        sizes=_sizes,
        most_messages=MOST_MESSAGES,
        most_open=MOST_OPEN,
        most_thumbnails=MOST_THUMBNAILS,
        search=search,
        rows=label_rows(search) if search else [],
    )


def _groups(diagnosis: Diagnosis) -> Iterator[Group]:
    thumbnails = Thumbnails(diagnosis)
    for (severity, kind), findings in diagnosis.grouped().items():
        shown = () if kind in WITHOUT_THUMBNAILS else findings
        frames = tuple(_frames(diagnosis, thumbnails, shown))
        full = sum(len(frame) for frame in frames) == MOST_THUMBNAILS
        yield Group(
            severity=severity,
            title=title_of(kind),
            reason=reason_of(kind),
            messages=tuple(diagnosis.brief(each.message) for each in findings),
            frames=frames,
            shortened=full and sum(len(each.files) for each in findings) > MOST_THUMBNAILS,
        )


def _frames(
    diagnosis: Diagnosis, thumbnails: Thumbnails, findings: Sequence[Finding]
) -> Iterator[tuple[tuple[str, str | None], ...]]:
    """Read the files of each finding, until there are enough."""
    image_of = {mask: image for image, mask in diagnosis.pairs}
    left = MOST_THUMBNAILS
    for finding in findings:
        # a sample is shown once, by its image, whichever of its two files is meant
        paths = list(dict.fromkeys(image_of.get(path, path) for path in finding.files))[:left]
        left -= len(paths)
        if paths:
            yield tuple((_caption(diagnosis, path), thumbnails.of(path)) for path in paths)


def _caption(diagnosis: Diagnosis, path: Path) -> str:
    inside = path.is_relative_to(diagnosis.folder)
    return (path.relative_to(diagnosis.folder) if inside else path).as_posix()


def _sizes(split: SplitStatistics) -> list[str]:
    """Return the least, middle and largest size, each once."""
    sizes = (f"{split.height[i]} {TIMES} {split.width[i]}" for i in range(3))
    return list(dict.fromkeys(sizes))
