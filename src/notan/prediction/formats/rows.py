"""Masks as rows of shared files: run lengths, and the tables that hold them.

Run lengths are Kaggle's pairs or COCO's counts. Both walk a mask column by column from the top
left. Kaggle's text holds ``start length`` pairs, starts counted from 1; COCO's counts are the
lengths of background and foreground in turn, background first.

Rows of a shared file are kept beside it as they come, and put together at the end.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from notan.errors import DataError
from notan.io.write import replacing, storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from notan.types import Mask, Size


def kaggle_rle(mask: Mask) -> str:
    """Return ``start length start length ...``, column by column, starts counted from 1.

    An empty mask is an empty text.

    Source: the encoding of Kaggle's segmentation competitions; what ``decode_rle`` reads.
    """
    edges = _edges(mask)
    starts, lengths = edges[::2] + 1, edges[1::2] - edges[::2]
    return " ".join(map(str, np.column_stack([starts, lengths]).ravel().tolist()))


def read_runs(text: str) -> list[tuple[int, int]]:
    """Read Kaggle's pairs: (start, length), starts counted from 1.

    Raises:
        DataError: Not whole numbers in pairs, from 1 on, sorted and without overlap.
    """
    words = text.split()
    strange = next((word for word in words if not (word.isascii() and word.isdigit())), None)
    if strange is not None:
        raise DataError(f"'{strange[:20]}' is no whole number; 'start length' pairs are wanted")
    if len(words) % 2:
        raise DataError(f"{len(words)} numbers; an even count is wanted, as 'start length' pairs")
    longest = max(map(len, words), default=0)
    if longest > 18:  # no image is so large, and Python refuses to read very long numbers
        raise DataError(f"a number of {longest} digits; no image has so many pixels")
    numbers = list(map(int, words))
    runs = list(zip(numbers[::2], numbers[1::2], strict=True))
    end = 0
    for start, length in runs:
        if start < 1:
            raise DataError(f"a run starts at {start}; the first pixel is number 1")
        if length < 1:
            raise DataError(f"the run at {start} is of length {length}; 1 or more is wanted")
        if start <= end:
            raise DataError(
                f"the run at {start} begins before the one before it ends, at {end}; runs must be "
                "sorted and must not overlap"
            )
        end = start + length - 1
    return runs


def decode_rle(text: str, size: Size) -> Mask:
    """Return the mask that Kaggle's pairs describe.

    Args:
        text: As ``kaggle_rle`` writes it; empty or spaces: an empty mask.
        size: (height, width) of the image.

    Returns:
        bool, (height, width).

    Raises:
        DataError: Not such pairs, or one reaches beyond the image.
    """
    runs = read_runs(text)
    pixels = size[0] * size[1]
    if runs and sum(runs[-1]) - 1 > pixels:
        raise DataError(
            f"the run at {runs[-1][0]} reaches pixel {sum(runs[-1]) - 1}, but the image has "
            f"{pixels} ({size[0]}x{size[1]}, height x width)"
        )
    flat = np.zeros(pixels, np.bool_)
    for start, length in runs:
        flat[start - 1 : start - 1 + length] = True
    return flat.reshape(size, order="F")


def coco_rle(mask: Mask) -> dict[str, Any]:
    """Return ``{"size": [height, width], "counts": "..."}``, COCO's compressed form.

    Source: Lin et al. 2014, arXiv:1405.0312; the text is that of ``rleToString`` in the COCO API's
        maskApi.c, written here so that predicting needs no compiled extension.
    """
    counts = np.diff(np.concatenate([[0], _edges(mask), [mask.size]]))
    if counts.size > 1 and counts[-1] == 0:  # the last run of foreground reaches the last pixel
        counts = counts[:-1]
    height, width = mask.shape
    return {"size": [height, width], "counts": compress_counts(counts.tolist())}


def compress_counts(counts: Sequence[int]) -> str:
    """Return counts in COCO's text: from the fourth on, each less the one two before it.

    Five bits to a character, the lowest first; the sixth says that more follow.
    """
    characters = []
    for index, count in enumerate(counts):
        rest = count - (counts[index - 2] if index > 2 else 0)
        more = True
        while more:
            bits = rest & 31
            rest >>= 5
            more = rest != (-1 if bits & 16 else 0)  # the fifth bit is the sign
            characters.append(chr((bits | more << 5) + 48))
    return "".join(characters)


def _edges(mask: Mask) -> npt.NDArray[np.int64]:
    """Return where runs of foreground begin and end, in turn, down the columns, counted from 0."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    return np.flatnonzero(flat[1:] != flat[:-1])


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
