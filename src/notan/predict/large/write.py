"""Tiled TIFF files of any size, written band by band."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from notan.files import replacing
from notan.predict.large.bands import ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from notan.types import Size

CLASSIC_BYTES = 2**32 - 2**26
"""What a TIFF of the classic kind holds at most; pixels that will not compress need BigTIFF."""


def write_tiff(
    path: Path, size: Size, dtype: npt.DTypeLike, bands: Iterable[npt.NDArray[Any]]
) -> None:
    """Write grey values as a tiled TIFF, compressed by Deflate; whole or not at all.

    Args:
        path: The file.
        size: (height, width) of the image.
        dtype: uint8, uint16 or float32.
        bands: The image from the top in bands of ``ROWS`` rows, each (rows, width).

    Raises:
        StorageError: The file could not be written.
    """
    from tifffile import FileHandle, TiffWriter

    large = size[0] * size[1] * np.dtype(dtype).itemsize > CLASSIC_BYTES
    with (
        replacing(path) as file,
        TiffWriter(FileHandle(file, name=path.name), bigtiff=large) as tiff,  # it wants a name
    ):
        tiff.write(
            _tiles(bands),
            shape=size,
            dtype=np.dtype(dtype),
            tile=(ROWS, ROWS),
            photometric="minisblack",
            compression="zlib",
            metadata=None,
            maxworkers=1,  # more would compress many tiles ahead, and hold them
        )


def _tiles(bands: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Cut bands into tiles, filled up with zeros at the right and below."""
    for band in bands:
        below, right = -len(band) % ROWS, -band.shape[1] % ROWS
        full = np.pad(band, ((0, below), (0, right)))
        for left in range(0, full.shape[1], ROWS):
            yield np.ascontiguousarray(full[:, left : left + ROWS])
