"""Diagnosis: what the doctor found in a data folder, as values, as JSON and as text."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Severity: TypeAlias = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From the worst to the mildest."""

CLEAN, WARNED, BROKEN = 0, 1, 2
"""The exit codes of ``notan check``."""

SHOWN = 5
"""Findings of one kind that the summary shows in full."""


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor noticed.

    Attributes:
        kind: A stable name such as ``"unreadable-image"``.
        severity: ``"error"``: training would stop or its scores would be wrong; ``"warning"``:
            probably a mistake; ``"note"``: good to know.
        message: One line: what was found, what was wanted, what to do.
        files: The files it is about; of a whole folder or split, examples or none.
        split: Where they belong, or None when it concerns several splits or the whole folder.
    """

    kind: str
    severity: Severity
    message: str
    files: tuple[Path, ...] = ()
    split: str | None = None


@dataclass(frozen=True)
class SplitStatistics:
    """What a split holds, in numbers.

    Attributes:
        split: Its name.
        images: How many images could be read.
        masks: How many masks could be read.
        height: Least, middle and largest height of the images, in pixels.
        width: The same of the width.
        colour_mean: Mean of red, green and blue, 0..1; every image counts alike.
        colour_std: Standard deviation of red, green and blue over all pixels, 0..1.
        coverage: Least, middle and largest share of foreground in a mask, 0..1.
        encodings: How many masks were read by each encoding.
    """

    split: str
    images: int
    masks: int
    height: tuple[int, int, int]
    width: tuple[int, int, int]
    colour_mean: tuple[float, float, float]
    colour_std: tuple[float, float, float]
    coverage: tuple[float, float, float]
    encodings: Mapping[str, int]


@dataclass(frozen=True)
class Diagnosis:
    """Everything the doctor has to say about a data folder.

    Attributes:
        folder: The folder.
        layout: ``"pets"`` or ``"folder"``.
        trimap_border: What the border of trimaps was counted as.
        findings: The worst first.
        statistics: One for each split that has a readable image.
        pairs: Image and mask of every sample that a finding names, to show them together.
    """

    folder: Path
    layout: str
    trimap_border: str
    findings: tuple[Finding, ...]
    statistics: tuple[SplitStatistics, ...]
    pairs: tuple[tuple[Path, Path], ...] = ()

    def count(self, severity: Severity) -> int:
        """Return how many findings are of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def exit_code(self, strict: bool = False) -> int:
        """Return 2 with errors, 1 with warnings when ``strict``, else 0."""
        if self.count("error"):
            return BROKEN
        return WARNED if strict and self.count("warning") else CLEAN

    def grouped(self) -> Mapping[tuple[Severity, str], Sequence[Finding]]:
        """Return the findings by severity and kind, the worst first."""
        groups: dict[tuple[Severity, str], list[Finding]] = defaultdict(list)
        for finding in sorted(self.findings, key=lambda each: SEVERITIES.index(each.severity)):
            groups[finding.severity, finding.kind].append(finding)
        return groups

    def verdict(self) -> str:
        """Return one line for the whole folder."""
        errors, warnings, notes = (self.count(severity) for severity in SEVERITIES)
        images = sum(split.images for split in self.statistics)
        if not errors and not warnings:
            return f"Nothing wrong found in {number_of(images, 'image')}."
        found = ", ".join(
            number_of(count, word)
            for count, word in ((errors, "error"), (warnings, "warning"), (notes, "note"))
            if count
        )
        todo = "mend the errors before training" if errors else "look at them before training"
        return f"{found} in {number_of(images, 'image')}: {todo}."

    def to_json(self) -> str:
        """Return everything as JSON, indented, with paths as text."""
        everything = {
            "exit_code": self.exit_code(),
            "exit_code_strict": self.exit_code(strict=True),
            "verdict": self.verdict(),
            **asdict(self),
        }
        return json.dumps(everything, indent=2, default=str, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Diagnosis:
        """Return the diagnosis that ``to_json`` wrote."""
        everything: dict[str, Any] = json.loads(text)
        return cls(
            folder=Path(everything["folder"]),
            layout=everything["layout"],
            trimap_border=everything["trimap_border"],
            findings=tuple(_finding(each) for each in everything["findings"]),
            statistics=tuple(_statistics(each) for each in everything["statistics"]),
            pairs=tuple((Path(image), Path(mask)) for image, mask in everything["pairs"]),
        )

    def brief(self, message: str) -> str:
        """Return a message with the paths in it as seen from the folder."""
        start = str(self.folder)
        if start == ".":
            return message  # paths are brief already
        return message.replace(f"{start}/", "").replace(f"{start}\\", "")

    def summary(self) -> str:
        """Return the findings by kind, the statistics and a closing line, for a person to read."""
        lines: list[str] = []
        for (severity, kind), findings in self.grouped().items():
            lines.append(f"{severity}: {kind} ({len(findings)})")
            lines += [f"    {self.brief(finding.message)}" for finding in findings[:SHOWN]]
            if len(findings) > SHOWN:
                lines.append(f"    ... and {len(findings) - SHOWN} more")
        if lines:
            lines.append("")
        for split in self.statistics:
            lines += describe_split(split)
        return "\n".join([*lines, "", self.verdict()])


def describe_split(split: SplitStatistics) -> list[str]:
    """Return a split's statistics as lines of text."""
    sizes = " to ".join(dict.fromkeys(f"{split.height[i]}x{split.width[i]}" for i in (0, 2)))
    least, middle, most = split.coverage
    lines = [
        f"{split.split}: {number_of(split.images, 'image')}, "
        f"{number_of(split.masks, 'mask')}, {sizes} pixels (height x width)"
    ]
    if split.masks:
        lines.append(
            f"    foreground covers {least:.1%} to {most:.1%}, half of them under {middle:.1%}"
        )
    colours = zip(split.colour_mean, split.colour_std, strict=True)
    text = ", ".join(f"{mean:.3f} ± {std:.3f}" for mean, std in colours)
    return [*lines, f"    red, green, blue (0..1): {text}"]


def number_of(count: int, word: str) -> str:
    """Return ``"1 mask"`` or ``"3 masks"``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def milder(finding: Finding) -> Finding:
    """Return an error as a warning, for files that training never reads."""
    return replace(finding, severity="warning") if finding.severity == "error" else finding


def _finding(fields: dict[str, Any]) -> Finding:
    return Finding(**{**fields, "files": tuple(Path(path) for path in fields["files"])})


def _statistics(fields: dict[str, Any]) -> SplitStatistics:
    tuples = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return SplitStatistics(**{**fields, **tuples})
