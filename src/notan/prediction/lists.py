"""Lists of inputs: a text file, a CSV or a Parquet file that names images by paths or addresses.

Each entry is one file, as if it stood on the command line, and is opened only when its turn comes.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from notan.errors import DataError, explaining_extras
from notan.io import remote
from notan.io.headers import opened
from notan.io.remote import is_remote, require_plain, shown
from notan.io.signatures import find_format

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

COLUMNS = ("image", "path", "url", "address", "image_path", "file_name", "filename")
"""What the column of images may be called; the first that there is counts."""

SUFFIXES = (".txt", ".csv", ".parquet")


def is_list(path: Path) -> bool:
    """Say whether a file that exists is a list: by its name, unless it holds an image."""
    if path.suffix.lower() not in SUFFIXES:
        return False
    if is_remote(path):
        return True
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with opened(path) as file:
            find_format(file, str(path))
    except DataError:
        return True
    return False


def read_list(path: Path) -> list[Path]:
    """Return the files that a list names, in its order; whether they exist is not looked at.

    Args:
        path: A text file with one on each line, or a CSV or Parquet file with a column of them
            (``COLUMNS``); an address too. Relative paths begin in the current folder.

    Raises:
        DataError: It cannot be read, names nothing, or an entry is none.
        MissingExtraError: It is Parquet, and pyarrow is not installed.
    """
    try:
        content = remote.read_whole(path) if is_remote(path) else path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{shown(path)}: this list could not be read ({reason})") from error
    readers = {".csv": _of_csv, ".parquet": _of_parquet}
    entries = readers.get(path.suffix.lower(), _of_text)(shown(path), content)
    files = [_file(shown(path), place, entry) for place, entry in enumerate(entries, 1) if entry]
    if not files:
        raise DataError(f"{shown(path)}: this list names no images; wanted one a line, or a row")
    return files


def _file(where: str, place: int, entry: object) -> Path:
    """Return the path that an entry is."""
    if not isinstance(entry, str) or entry == "-" or "\0" in entry:
        raise DataError(f"{where}: entry {place} is no path or address of a file")
    path = Path(entry)
    try:
        require_plain(path)
    except DataError as error:
        raise DataError(f"{where}: entry {place}: {error}") from error
    return path


def _text(where: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: is neither an image nor a list: it is no UTF-8 text ({error.reason} at byte "
            f"{error.start})"
        ) from error


def _of_text(where: str, content: bytes) -> Iterable[str]:
    return map(str.strip, _text(where, content).splitlines())


def _of_csv(where: str, content: bytes) -> Iterable[object]:
    rows = csv.DictReader(io.StringIO(_text(where, content), newline=""))
    try:
        column = _column(where, rows.fieldnames or ())
        return [row[column] for row in rows]
    except csv.Error as error:
        raise DataError(f"{where}: this is no CSV ({error})") from error


def _of_parquet(where: str, content: bytes) -> Iterable[object]:
    with explaining_extras("a list in Parquet"):
        import pyarrow as pa
        from pyarrow import parquet
    try:
        table = parquet.ParquetFile(io.BytesIO(content))
        column = _column(where, table.schema_arrow.names)
        entries: list[object] = table.read(columns=[column])[column].to_pylist()
    except (pa.ArrowException, OSError) as error:
        words = " ".join(str(error).split())
        raise DataError(f"{where}: this is no Parquet, or only a part of it ({words})") from error
    return entries


def _column(where: str, names: Sequence[str]) -> str:
    for wanted in COLUMNS:
        if wanted in names:
            return wanted
    there = ", ".join(names) or "none"
    raise DataError(
        f"{where}: no column is called {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; there are: "
        f"{there[:200]}"
    )
