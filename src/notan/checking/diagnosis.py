"""Diagnosis: what the doctor found in a data folder, as values, as JSON and as text."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict
from pydantic.dataclasses import dataclass

from notan.config import Data, TrimapBorder
from notan.io.images import PLAIN, RGB_CHANNELS, ImageReading

Severity: TypeAlias = Literal["error", "warning", "note"]
Three: TypeAlias = tuple[float, float, float]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From the worst to the mildest."""

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


class SplitStatistics(BaseModel):
    """What a split holds, in numbers.

    Attributes:
        split: Its name.
        images: How many images could be read.
        masks: How many masks could be read.
        height: Minimum, median and maximum height of the images, in pixels.
        width: The same of the width.
        colour_mean: Mean of each channel, 0..1, of three of red, green and blue; every image
            counts alike.
        colour_std: Standard deviation of each channel over all pixels, 0..1.
        coverage: Minimum, median and maximum share of foreground in a mask, 0..1.
        encodings: How many masks were read by each encoding.
    """

    model_config = ConfigDict(frozen=True)

    split: str
    images: int
    masks: int
    height: tuple[int, int, int]
    width: tuple[int, int, int]
    colour_mean: tuple[float, ...]
    colour_std: tuple[float, ...]
    coverage: Three
    encodings: Mapping[str, int]

    def describe(self) -> list[str]:
        """Return the numbers as lines of text."""
        sizes = " to ".join(dict.fromkeys(f"{self.height[i]}x{self.width[i]}" for i in (0, 2)))
        lines = [
            f"{self.split}: {number_of(self.images, 'image')}, "
            f"{number_of(self.masks, 'mask')}, {sizes} pixels (height x width)"
        ]
        if self.masks:
            low, middle, high = self.coverage
            lines.append(
                f"    foreground covers {low:.1%} to {high:.1%}, half of them under {middle:.1%}"
            )
        colours = zip(self.colour_mean, self.colour_std, strict=True)
        text = ", ".join(f"{mean:.3f} ± {std:.3f}" for mean, std in colours)
        names = "red, green, blue" if len(self.colour_mean) == RGB_CHANNELS else "channels"
        return [*lines, f"    {names} (0..1): {text}"]


class Diagnosis(BaseModel):
    """Everything the doctor has to say about a data folder.

    Attributes:
        folder: The folder.
        layout: As ``find_layout`` names it.
        trimap_border: What the border of trimaps was counted as.
        data: What the owner said of the files, and the white of 16-bit images.
        reading: How the images were read.
        findings: The worst first.
        statistics: One for each split that has a readable image.
        pairs: Image and mask of every sample that a finding names, to show them together.
        is_final: Whether no network is still to judge the masks.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    layout: str
    trimap_border: TrimapBorder
    data: Data = Data()
    reading: ImageReading = PLAIN
    findings: tuple[Finding, ...] = ()
    statistics: tuple[SplitStatistics, ...] = ()
    pairs: tuple[tuple[Path, Path], ...] = ()
    is_final: bool = True

    def count(self, severity: Severity) -> int:
        """Return how many findings are of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def exit_code(self, strict: bool = False) -> int:
        """Return 2 with errors, 1 with warnings when ``strict``, else 0."""
        if self.count("error"):
            return 2
        return 1 if strict and self.count("warning") else 0

    def grouped(self) -> Mapping[tuple[Severity, str], Sequence[Finding]]:
        """Return the findings by severity and kind, the worst first."""
        groups: dict[tuple[Severity, str], list[Finding]] = defaultdict(list)
        for finding in worst_first(self.findings):
            groups[finding.severity, finding.kind].append(finding)
        return groups

    def verdict(self) -> str:
        """Return one line for the whole folder."""
        errors, warnings, _ = counts = [self.count(severity) for severity in SEVERITIES]
        images = number_of(sum(split.images for split in self.statistics), "image")
        end = "." if self.is_final else "; networks are still to judge the masks."
        if not errors and not warnings:
            if not self.is_final:
                return f"{images} without a warning so far{end}"
            return f"Nothing wrong found in {images}."
        found = ", ".join(
            number_of(count, word) for count, word in zip(counts, SEVERITIES, strict=True) if count
        )
        todo = "mend the errors before training" if errors else "look at them before training"
        return f"{found} in {images}: {todo}{end}"

    def to_json(self, labels: Mapping[str, object] | None = None) -> str:
        """Return everything as indented JSON, paths as text; a ranking of masks comes last."""
        everything = {
            "exit_code": self.exit_code(),
            "exit_code_strict": self.exit_code(strict=True),
            "verdict": self.verdict(),
            **self.model_dump(mode="json"),
        }
        if labels is not None:
            everything["labels"] = labels
        return json.dumps(everything, indent=2, ensure_ascii=False)

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
            lines += split.describe()
        return "\n".join([*lines, "", self.verdict()])


def worst_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Sort findings by severity; those of one severity keep their order."""
    return tuple(sorted(findings, key=lambda each: SEVERITIES.index(each.severity)))


def number_of(count: int, word: str) -> str:
    """Return ``"1 mask"`` or ``"3 masks"``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
