"""NPY files, as ``numpy.save`` writes them: their header, and their values with channels last."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from notan.errors import DataError, UnsupportedError

if TYPE_CHECKING:
    import numpy.typing as npt

MOST_CHANNELS_FIRST = 32
"""A longer first axis is rather a stack of slices than the channels of one image."""

_WANTED = "(height, width) or (height, width, channels)"


class NpyArray(NamedTuple):
    """The header of an NPY file that holds one image.

    Attributes:
        file: It, open.
        start: Where the values begin, in bytes.
        dtype: Their type: a number, or bool.
        shape: As they are stored, first axis slowest.
        order: From those axes to height, width and, where there is one, channels.
    """

    file: BinaryIO
    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow's images have it."""
        return self.shape[self.order[1]], self.shape[self.order[0]]

    @property
    def channels(self) -> int:
        """How many there are; 1 where there is no such axis."""
        return self.shape[self.order[2]] if len(self.order) > 2 else 1

    @property
    def format(self) -> str:
        """As Pillow's images have it."""
        return "NPY"

    @property
    def info(self) -> dict[str, str]:
        """As Pillow's images have it."""
        return {}

    def read(self) -> npt.NDArray[Any]:
        """Return the values: (height, width) of one channel, else (height, width, channels)."""
        self.file.seek(self.start)
        content = self.file.read(math.prod(self.shape) * self.dtype.itemsize)
        values = np.frombuffer(content, self.dtype).reshape(self.shape).transpose(self.order)
        return values[..., 0] if self.channels == 1 and values.ndim == 3 else values


def read_npy(file: BinaryIO, name: str) -> NpyArray:
    """Read the header of an NPY file, and tell height, width and channels apart.

    Channels are last, as in ``(512, 512, 4)``, where the last axis is at most half as long as the
    others; first, as in ``(4, 512, 512)``, where the first one is, and is no longer than 32.

    Args:
        file: Wherever it stands.
        name: What to call it in messages.

    Raises:
        DataError: It is cut short.
        UnsupportedError: It holds no numbers, or no image, or could hold several.
    """
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise UnsupportedError(
            f"{name}: is NPY of version {version[0]}.{version[1]}, whose values have names; "
            "save the plain numbers with numpy.save"
        )
    shape, by_columns, dtype = read(file)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise UnsupportedError(
            f"{name}: holds values of type {dtype}; wanted numbers or bool; convert them with "
            "array.astype before numpy.save"
        )
    start, length = file.tell(), file.seek(0, 2)
    wanted = math.prod(shape) * dtype.itemsize
    if length - start < wanted:
        raise DataError(
            f"{name}: is cut short ({length - start:,} of {wanted:,} bytes of values are there); "
            "copy it again from its source, or leave it out"
        )
    order = _order(shape, name)
    if by_columns:  # the same bytes, read as rows, have the axes the other way round
        shape, order = shape[::-1], tuple(len(shape) - 1 - axis for axis in order)
    return NpyArray(file, start, dtype, shape, order)


def _order(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Return which axes are height, width and channels, or refuse what could be either."""
    if len(shape) == 2:
        return 0, 1
    if len(shape) == 3:
        first, middle, last = shape
        if 2 * last <= min(first, middle):
            return 0, 1, 2
        if 2 * first <= min(middle, last) and first <= MOST_CHANNELS_FIRST:
            return 1, 2, 0
    raise UnsupportedError(
        f"{name}: holds an array of shape {shape}, of which it is unclear which axes are height, "
        f"width and channels; wanted one image, {_WANTED}; save each image in a file of its own, "
        "or channels as a TIFF: tifffile.imwrite(path, array, photometric='minisblack', "
        "planarconfig='contig')"
    )
