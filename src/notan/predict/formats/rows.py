"""One file of all images: rows are kept beside it as they come, and put together at the end."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

from notan.errors import DataError
from notan.files import replacing, storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class RowFile:
    """An append-only file of rows, and the file that is made of them.

    ``rle.csv`` is made of ``rle.rows.jsonl``, one line for each image, written as soon as the
    image is done. A run that was killed leaves whole lines and perhaps a torn one; a resumed run
    goes on behind the last whole line. Thread-safe.
    """

    def __init__(
        self, path: Path, finish: Callable[[BinaryIO, Iterator[Any]], None], *, resume: bool
    ) -> None:
        """Open rows.

        Args:
            path: The file to make in the end.
            finish: Writes it from the rows, which come in the order of their names.
            resume: Keep the rows that an earlier run left; otherwise they go when the first new
                row comes.

        Raises:
            DataError: The rows of the earlier run cannot be read.
        """
        self.path = path
        self.rows = path.with_suffix(".rows.jsonl")
        self._finish = finish
        self._places: dict[str, int] = {}
        self._end = 0
        self._lock = threading.Lock()
        if resume and self.rows.exists():
            self._find_rows()

    def has(self, name: str) -> bool:
        """Say whether there is a row of this name."""
        with self._lock:
            return name in self._places

    def add(self, name: str, row: object) -> None:
        """Keep a row; it takes the place of an earlier one of its name.

        Raises:
            StorageError: The row could not be written.
        """
        line = (json.dumps([name, row], separators=(",", ":")) + "\n").encode()
        with self._lock, storage_errors(self.rows):
            self.rows.parent.mkdir(parents=True, exist_ok=True)
            with self.rows.open("r+b" if self._end else "wb") as file:
                file.seek(self._end)
                file.write(line)
                file.truncate()  # what was torn
            self._places[name] = self._end
            self._end += len(line)

    def close(self) -> None:
        """Make the file of the rows, if there are any.

        Raises:
            StorageError: The file could not be written.
        """
        with self._lock:
            if self._places:
                with self.rows.open("rb") as rows, replacing(self.path) as file:
                    self._finish(file, self._in_order(rows))

    def _in_order(self, rows: BinaryIO) -> Iterator[Any]:
        for name in sorted(self._places):
            rows.seek(self._places[name])
            yield json.loads(rows.readline())[1]

    def _find_rows(self) -> None:
        """Note where the whole rows stand, up to the first that is torn."""
        try:
            with self.rows.open("rb") as file:
                for line in file:
                    name = _name_of(line)
                    if name is None:
                        break
                    self._places[name] = self._end
                    self._end += len(line)
        except OSError as error:
            raise DataError(
                f"{self.rows}: the rows of the earlier run cannot be read ({error}); mend that, "
                "or leave out --resume"
            ) from error


def _name_of(line: bytes) -> str | None:
    if not line.endswith(b"\n"):
        return None
    try:
        name, _ = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None
