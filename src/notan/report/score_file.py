"""What a score.json says, read with care: every part that a report shows may be absent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from notan.config import TrimapBorder, first_problem
from notan.data.folders import SPLITS
from notan.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

SUMMARY = "score.json"
FOLDERS = ("evaluate-*", "inference-*")
Number = float | None


class Part(BaseModel):
    """A part of the file; what a newer notan adds to it is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Mean(Part):
    """A mean over images with its interval; None where it is not defined."""

    mean: Number = None
    low: Number = None
    high: Number = None
    images: int = 0


class Bin(Part):
    """The pixels of one range of probabilities."""

    start: float = Field(alias="from")
    end: float = Field(alias="to")
    pixels: int
    mean_probability: Number = None
    foreground_fraction: Number = None


class Sweep(Part):
    """Mean Dice at each of many thresholds."""

    thresholds: tuple[float, ...]
    mean_dice: tuple[Number, ...]


class Group(Part):
    """The images of one kind."""

    images: int
    mean_dice: Number = None
    low: Number = None
    high: Number = None


class Expected(Part):
    """How well the model knows which of its masks are good."""

    rank_correlation: Number = None
    flagged: int | None = None
    flagged_mean_dice: Number = None
    other_mean_dice: Number = None


class Image(Part):
    """One image's row, as far as the page draws it."""

    name: str
    dice: float = Field(ge=0, le=1)
    iou: Number = None
    expected_dice: Number = None
    needs_review: bool | None = None


class ScoreFile(Part):
    """A whole score.json.

    Attributes:
        rules: By name, what the numbers mean; ``split`` is among them.
        images: A row for each.
    """

    mean_dice: float
    mean_iou: float
    pooled_dice: Number = None
    pooled_iou: Number = None
    empty_images: int = 0
    means: dict[str, Mean] = {}
    pooled: dict[str, Number] = {}
    reliability: tuple[Bin, ...] = ()
    threshold_sweep: Sweep | None = None
    groups: dict[str, dict[str, Group]] = {}
    expected: Expected | None = None
    undefined: tuple[str, ...] = ()
    rules: dict[str, Any]
    images: tuple[Image, ...] = Field(min_length=1)


@dataclass(frozen=True)
class StoredScore:
    """A score with the file it is from.

    Attributes:
        path: The file; None where the score was taken just now.
        content: As in the file, for those who want all of it.
        score: The same, checked.
    """

    path: Path | None
    content: dict[str, Any]
    score: ScoreFile

    @property
    def split(self) -> str:
        """The split that was scored."""
        name = str(self.score.rules.get("split", ""))
        return SPLITS.get(name, name)

    @property
    def trimap_border(self) -> TrimapBorder | None:
        """What the trimap's border counted as; None where there was none."""
        named = self.score.rules.get("trimap_border")
        return named if named in get_args(TrimapBorder) else None


def parse_score(content: object, path: Path | None = None) -> StoredScore:
    """Check what a score.json holds.

    Raises:
        DataError: It is no score.
    """
    try:
        score = ScoreFile.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{path}: this is no score: {first_problem(error, ScoreFile)}") from error
    return StoredScore(path, content if isinstance(content, dict) else {}, score)


def read_score(path: Path) -> StoredScore:
    """Read a score.json.

    Raises:
        DataError: It cannot be read, or is no score.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); evaluate again") from error
    return parse_score(content, path)


def score_files(run: Path) -> list[Path]:
    """Name the score files that evaluate and inference left in a run folder, the newest first."""
    found = [path for folder in FOLDERS for path in run.glob(f"{folder}/{SUMMARY}")]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path), reverse=True)
