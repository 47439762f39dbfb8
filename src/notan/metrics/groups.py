"""Images put into groups, so that a mean cannot hide a kind of image that is segmented badly.

The groups are by the foreground's size, by the breed of Oxford's pets, or by a CSV of the user.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from notan.metrics.counts import Counts

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


def by_foreground_size(counts: Mapping[str, Counts]) -> Grouping | None:
    """Group images into thirds by the foreground's share of their counted pixels.

    Images of equal share are never parted, so that the thirds may differ in number. Images
    without foreground are a group of their own, ``no foreground``.

    Returns:
        The grouping; None where too few images have a foreground, or all shares are one.
    """
    # of an image of which every pixel is ignored the share is 0
    shares = {name: each.foreground / max(1, each.pixels) for name, each in counts.items()}
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
    _check_columns(path, header)
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
        for index, column in enumerate(header)
        if index != place
    )


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header, and each row that is not blank with its line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check --groups") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); {WANTED}") from error
    rows = [(line, cells) for line, cells in rows if any(cells)]
    if not rows:
        raise DataError(f"{path}: the file is empty; {WANTED}")
    (_, header), *body = rows
    for line, row in body:
        if len(row) != len(header):
            raise DataError(f"{path}: line {line} has {len(row)} of {len(header)} cells; {WANTED}")
    return header, body


def _check_columns(path: Path, header: list[str]) -> None:
    """Raise DataError unless the columns' names are clear and there is one to group by."""
    if len(header) < 2:
        raise DataError(
            f"{path}: the only column is '{header[0]}'; {WANTED}, and at least one column beside "
            "the images' names"
        )
    twice = [name for name in header if header.count(name) > 1]
    if twice or "" in header:
        fault = f"two columns are called '{twice[0]}'" if twice else "a column has no name"
        raise DataError(f"{path}: {fault}; {WANTED}")


def _rows_by_image(
    path: Path, rows: list[tuple[int, list[str]]], place: int, names: frozenset[str]
) -> dict[str, list[str]]:
    """Return the row of each of the images that has one; no image may have two."""
    found: dict[str, tuple[int, list[str]]] = {}
    for line, row in rows:
        name = row[place] if row[place] in names else PurePath(row[place]).stem
        if name in found:
            raise DataError(
                f"{path}: line {line} names the image {name} again, after line {found[name][0]}; "
                "one row for each image was wanted"
            )
        if name in names:
            found[name] = line, row
    return {name: row for name, (_, row) in found.items()}
