"""Scores of single images, and groups of images: by a table of the user, or by foreground size.

ImageScore: everything that is measured of one image.

Grouping: images put into groups, so that a mean cannot hide who is served badly.

Groups that the owner of the images knows: a CSV with a row for each image.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from notan.metrics.boundary import BoundaryScore
    from notan.metrics.counts import Counts

MEASURES = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "accuracy": "accuracy",
    "boundary_f": "boundary F",
    "surface_dice": "surface Dice",
    "hausdorff95": "Hausdorff 95, pixels",
    "average_precision": "average precision",
    "brier": "Brier",
}
"""What is measured of each image, and how a person reads it."""


@dataclass(frozen=True)
class ImageScore:
    """The scores of one image, at the size that was scored.

    Attributes:
        name: The sample's name.
        counts: Its pixels.
        height: Of the scored masks, in pixels.
        width: Of the scored masks, in pixels.
        boundary: How far the boundaries lie apart; None: not measured.
        average_precision: Of the probabilities, 0..1; None: not measured, or there is no
            foreground.
        brier: Mean squared error of the probabilities, 0..1; None: not measured, or every pixel
            is ignored.
        expected_dice: The Dice that the model itself expected, 0..1; None: it did not say.
        needs_review: Whether the model asked for a second look; None: it did not say.
    """

    name: str
    counts: Counts
    height: int
    width: int
    boundary: BoundaryScore | None = None
    average_precision: float | None = None
    brier: float | None = None
    expected_dice: float | None = None
    needs_review: bool | None = None

    @property
    def foreground_share(self) -> float | None:
        """The foreground's share of the counted pixels, 0..1; None where all are ignored."""
        counts = self.counts
        return counts.foreground / counts.pixels if counts.pixels else None

    def numbers(self) -> dict[str, float | None]:
        """Return each of ``MEASURES``; None where it is undefined or was not taken."""
        counts, boundary = self.counts, self.boundary
        return {
            "dice": counts.dice,
            "iou": counts.iou,
            "precision": counts.precision,
            "recall": counts.recall,
            "specificity": counts.specificity,
            "accuracy": counts.accuracy,
            "boundary_f": boundary.boundary_f if boundary else None,
            "surface_dice": boundary.surface_dice if boundary else None,
            "hausdorff95": boundary.hausdorff95 if boundary else None,
            "average_precision": self.average_precision,
            "brier": self.brier,
        }


FOREGROUND_SIZE = "foreground size"
FEWEST_FOREGROUNDS = 3
"""Images with a foreground without which there are no thirds."""

OXFORD_NAME = re.compile(r"(?P<breed>.+)_\d+")


@dataclass(frozen=True)
class Grouping:
    """One way to divide the images.

    Attributes:
        name: What the groups differ in, for example ``breed``.
        group_of: Each image's group, by the image's name, in the order to show them.
        rule: How the groups were made, in words.
    """

    name: str
    group_of: Mapping[str, str]
    rule: str


def by_breed(names: Iterable[str]) -> Grouping:
    """Group images of the Oxford pets by breed: ``great_pyrenees_12`` is a great_pyrenees.

    Args:
        names: The images' names; one that is no such name goes to the group ``other``.
    """
    found = ((name, OXFORD_NAME.fullmatch(name)) for name in sorted(names))
    groups = {name: match["breed"] if match else "other" for name, match in found}
    return Grouping("breed", groups, "the image's name without its number")


def by_foreground_size(images: Sequence[ImageScore]) -> Grouping | None:
    """Group images into thirds by the foreground's share of their counted pixels.

    Images of equal share are never parted, so that the thirds may differ in number. Images
    without foreground are a group of their own, ``no foreground``.

    Returns:
        The grouping; None where too few images have a foreground, or all shares are one.
    """
    shares = {each.name: each.foreground_share or 0.0 for each in images}
    present = [share for share in shares.values() if share]
    if len(present) < FEWEST_FOREGROUNDS or min(present) == max(present):
        return None
    first, second = (float(end) for end in np.quantile(present, [1 / 3, 2 / 3]))
    groups: dict[str, list[str]] = {"small": [], "medium": [], "large": [], "no foreground": []}
    for name, share in shares.items():
        size = "small" if share <= first else "medium" if share <= second else "large"
        groups[size if share else "no foreground"].append(name)
    rule = (
        "thirds of the images by the foreground's share of the counted pixels: "
        f"small up to {first:.3g}, medium up to {second:.3g}, large above"
    )
    ordered = {name: group for group, names in groups.items() for name in names}
    return Grouping(FOREGROUND_SIZE, ordered, rule)


NAME_COLUMN = "name"
BLANK = "not given"
"""The group of images whose cell is empty."""

WANTED = "a CSV was wanted: a line of column names, then a line for each image, with commas"


def read_groupings(path: Path, names: Sequence[str]) -> tuple[Grouping, ...]:
    """Read one grouping from each column of a CSV.

    The column ``name``, or else the first, holds the images' names, with or without the file's
    ending. Rows of images that are not among ``names`` are passed over: one file serves every
    split. Images whose cell is empty are the group ``not given``.

    Args:
        path: A UTF-8 file, with or without a byte order mark.
        names: The images that are scored; each must have a row.

    Raises:
        DataError: The file is missing, unreadable, empty, ragged, without a column to group by,
            lacks an image or names one twice.
    """
    header, rows = _read(path)
    columns = _columns(path, header)
    place = header.index(NAME_COLUMN) if NAME_COLUMN in header else 0
    row_of = _rows_by_image(path, rows, place, frozenset(names))
    missing = [name for name in names if name not in row_of]
    if missing:
        others = f", nor do {len(missing) - 1} others" if len(missing) > 1 else ""
        raise DataError(
            f"{path}: the image {missing[0]} has no row{others}; every image of the split "
            f"needs one, with its name in the column '{header[place]}'"
        )
    return tuple(
        Grouping(
            column,
            dict(sorted(((n, row_of[n][index] or BLANK) for n in names), key=lambda pair: pair[1])),
            f"column of {path.name}",
        )
        for index, column in enumerate(columns)
        if index != place
    )


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header, and each row that is not blank with its line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_numbered(file))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check --groups") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); {WANTED}") from error
    if not rows:
        raise DataError(f"{path}: the file is empty; {WANTED}")
    (_, header), *body = rows
    for line, row in body:
        if len(row) != len(header):
            raise DataError(f"{path}: line {line} has {len(row)} of {len(header)} cells; {WANTED}")
    return header, body


def _numbered(file: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file, strict=True)
    for row in reader:
        cells = [cell.strip() for cell in row]
        if any(cells):
            yield reader.line_num, cells


def _columns(path: Path, header: list[str]) -> list[str]:
    """Return the header if its names are clear and there is one to group by."""
    if len(header) < 2:
        raise DataError(
            f"{path}: the only column is '{header[0]}'; {WANTED}, and at least one column beside "
            "the images' names"
        )
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice or "" in header:
        fault = f"two columns are called '{twice[0]}'" if twice else "a column has no name"
        raise DataError(f"{path}: {fault}; {WANTED}")
    return header


def _rows_by_image(
    path: Path, rows: list[tuple[int, list[str]]], place: int, names: frozenset[str]
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    line_of: dict[str, int] = {}
    for line, row in rows:
        written = row[place]
        name = written if written in names else PurePath(written).stem
        if name not in names:
            continue
        if name in found:
            raise DataError(
                f"{path}: line {line} names the image {name} again, after line {line_of[name]}; "
                "one row for each image was wanted"
            )
        found[name], line_of[name] = row, line
    return found
