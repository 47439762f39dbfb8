"""Groups that the owner of the images knows: a CSV with a row for each image."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING

from notan.errors import DataError
from notan.metrics.groups import Grouping

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

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
