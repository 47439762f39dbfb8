"""What is wrong with a leaderboard's file, before the leaderboard says so."""

from __future__ import annotations

import contextlib
import csv
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from notan.errors import DataError
from notan.predict.formats.runs import decode_rle, read_runs
from notan.predict.formats.writers import RLE_HEADER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from notan.predict.submission import NameList
    from notan.types import Size

MOST_LISTED = 20
_LONGEST_FIELD = 2**31 - 1
"""In characters: the most that the csv module takes on every system."""


@dataclass
class Findings:
    """What a check found.

    Attributes:
        images: Names in the file, each counted once.
        count: How many problems there are.
        problems: The first ``MOST_LISTED`` of them, in words, with their lines.
    """

    images: int = 0
    count: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        """Note a problem; a file may have a million, so that only the first are kept in words."""
        self.count += 1
        if len(self.problems) < MOST_LISTED:
            self.problems.append(problem)

    def in_words(self) -> str:
        """Return the problems, one a line; then how many more there are."""
        more = self.count - len(self.problems)
        return "\n".join([*self.problems, *([f"... and {more} more"] if more else [])])


def check_submission(
    path: Path, names: NameList | None = None, sizes: Mapping[str, Size] | None = None
) -> Findings:
    """Look for everything that a leaderboard would refuse, or would score as another mask.

    The header, two cells a row, each name once, and run lengths as ``decode_rle`` reads them. The
    order of the rows is free. Runs that touch are one run in two words, and no problem.

    Args:
        path: The CSV file.
        names: The names that it must hold, these and no others; None: any.
        sizes: (height, width) in pixels of each name's image, which its runs must lie in; None:
            not known.

    Raises:
        DataError: The file is missing, or is no text.
    """
    findings = Findings()
    seen: dict[str, int] = {}
    with _rows(path, findings) as rows:
        for number, row in rows:
            if number == 1 and not _is_data(row, findings):
                continue
            _check_row(number, row, seen, findings, names, sizes or {})
    if names:
        for name in names.lines:
            if name not in seen:
                findings.add(f"no row for '{name}', line {names.lines[name]} of {names.path}")
    if not seen and not findings.count:
        findings.add("there are no rows below the header")
    findings.images = len(seen)
    return findings


@contextlib.contextmanager
def _rows(path: Path, findings: Findings) -> Iterator[Iterator[tuple[int, Sequence[str]]]]:
    """Open the table, of whatever length its cells are: those of a large mask pass csv's limit."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            yield _numbered(csv.reader(file, strict=True), findings)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); wanted UTF-8 text, as notan submit writes it"
        ) from error
    finally:
        csv.field_size_limit(before)


def _numbered(
    reader: Iterator[list[str]], findings: Findings
) -> Iterator[tuple[int, Sequence[str]]]:
    """Number the rows from 1; behind one that is no CSV nothing can be told apart."""
    number = 0
    try:
        for number, row in enumerate(reader, start=1):
            yield number, row
    except csv.Error as error:
        findings.add(f"row {number + 1} is no CSV ({error}); nothing behind it was read")
    if not number:
        findings.add(f"the file is empty; wanted the header {','.join(RLE_HEADER)}")


def _is_data(first: Sequence[str], findings: Findings) -> bool:
    """Say whether the first row is data, because the header was left out."""
    if tuple(first) == RLE_HEADER:
        return False
    wanted = ",".join(RLE_HEADER)
    if first and first[0].startswith("\ufeff"):
        findings.add(f"the file begins with a byte order mark; wanted the plain header {wanted}")
        return False
    findings.add(f"the header is '{_short(','.join(first))}'; wanted {wanted}")
    return len(first) == len(RLE_HEADER) and first[1].replace(" ", "").isdigit()


def _check_row(
    number: int,
    row: Sequence[str],
    seen: dict[str, int],
    findings: Findings,
    names: NameList | None,
    sizes: Mapping[str, Size],
) -> None:
    if len(row) != len(RLE_HEADER):
        what = f"has {len(row)} cells ('{_short(','.join(row))}')" if row else "is empty"
        findings.add(f"row {number} {what}; wanted a name and its run lengths")
        return
    name, text = row
    where = f"row {number}, '{_short(name)}'"
    if not name:
        findings.add(f"row {number} has no name")
    elif name in seen:
        findings.add(f"{where}: stands in row {seen[name]} already")
    elif names and name not in names.lines:
        findings.add(f"{where}: is not in {names.path}")
    seen.setdefault(name, number)
    try:
        if name in sizes:
            decode_rle(text, sizes[name])
        else:
            read_runs(text)
    except DataError as error:
        findings.add(f"{where}: {error}")


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
