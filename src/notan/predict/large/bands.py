"""Bands: whole rows of an image, from the top, all of one height but the last."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

from notan.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import Self

    import numpy.typing as npt

ROWS = 256
"""Rows of a band. Even, so that OpenCV, which labels in blocks of 2x2 pixels, meets the components
of bands in the order in which it would meet those of the whole image."""


def even_bands(parts: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Cut parts of any height, (rows, width), into bands of ``ROWS`` rows; the last is shorter."""
    waiting: list[npt.NDArray[Any]] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count < ROWS:
            continue
        joined = np.concatenate(waiting)
        whole = count // ROWS * ROWS
        for start in range(0, whole, ROWS):
            yield joined[start : start + ROWS]
        waiting, count = [joined[whole:].copy()], count - whole
    if count:
        yield np.concatenate(waiting)


class BandFile:
    """Bands of one image on the disk, without a name, gone with the process.

    Read and written as files are, not mapped into memory, so that the system need not count them
    as the program's own.
    """

    def __init__(self, folder: Path, width: int, dtype: npt.DTypeLike) -> None:
        """Make an empty file in a folder that has space for the whole image.

        Raises:
            StorageError: It could not be made.
        """
        self._place, self._width, self._dtype = folder / "temporary file", width, np.dtype(dtype)
        self._rows: list[int] = []
        with storage_errors(self._place):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, band: npt.NDArray[Any]) -> None:
        """Write the next band; a mask takes a bit for each pixel.

        Raises:
            StorageError: The disk is full.
        """
        stored = np.packbits(band, axis=1) if self._dtype == np.bool_ else band
        with storage_errors(self._place):
            self._file.write(np.ascontiguousarray(stored, self._stored_type).data)
        self._rows.append(len(band))

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """Read all bands from the top; several may do so in turns, each at a place of its own."""
        place = 0
        is_mask = self._dtype == np.bool_
        columns = -(-self._width // 8) if is_mask else self._width
        for rows in self._rows:
            size = rows * columns * self._stored_type.itemsize
            self._file.seek(place)
            place += size
            stored = np.frombuffer(self._file.read(size), self._stored_type).reshape(rows, columns)
            yield (
                np.unpackbits(stored, axis=1, count=self._width).astype(np.bool_)
                if is_mask
                else stored
            )

    @property
    def _stored_type(self) -> np.dtype[Any]:
        return np.dtype(np.uint8) if self._dtype == np.bool_ else self._dtype
