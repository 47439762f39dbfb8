"""Sample, one image with its mask, and Source, a sequence of samples."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING

import numpy as np

from notan.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from notan.types import Mask, RGBImage, Size


@dataclass(frozen=True)
class Sample:
    """One image with its mask, in memory.

    Attributes:
        name: Unique within its source; names output files and table rows.
        image: uint8, (height, width, 3), RGB, upright.
        mask: bool, (height, width), True = foreground.
        ignore: bool, (height, width), True = left out of loss and score; None = nothing is.

    Raises:
        ShapeError: Image and mask are not of one size.
    """

    name: str
    image: RGBImage
    mask: Mask
    ignore: Mask | None = None

    def __post_init__(self) -> None:
        size = self.image.shape[:2]
        for part, array in (("mask", self.mask), ("ignored area", self.ignore)):
            if array is not None and array.shape != size:
                raise ShapeError(
                    f"{self.name}: the image is {size[0]}x{size[1]} (height x width) and its "
                    f"{part} has shape {array.shape}; both must be of one size"
                )

    @property
    def size(self) -> Size:
        """(height, width) of the image in pixels."""
        return self.image.shape[0], self.image.shape[1]


def short_hash(content: bytes) -> str:
    """Return 12 hexadecimal digits of SHA-256: two of a million images share them by 1 in 500."""
    return hashlib.sha256(content).hexdigest()[:12]


class Source(ABC):
    """A sequence of samples, read when asked for; the same index always gives the same sample."""

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """The samples' names, in order, without reading any image."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            DataError: A file is missing, unreadable or ambiguous; the message names it.
            IndexError: There is no such sample.
        """

    def hashes(self) -> list[str]:
        """Return a short hash of each image, whatever its name: the same image, the same hash.

        Every image is read for it; a source of files needs less.
        """
        return [short_hash(np.ascontiguousarray(sample.image).tobytes()) for sample in self]

    def sizes(self) -> list[Size]:
        """Return the (height, width) of each image.

        Every image is read for it; a source of files needs less.
        """
        return [sample.size for sample in self]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


class Part(Source):
    """The samples of a source that have certain names, in the source's order."""

    def __init__(self, whole: Source, names: frozenset[str]) -> None:
        self._whole = whole
        self._places = [place for place, name in enumerate(whole.names) if name in names]

    @property
    def names(self) -> Sequence[str]:
        """The samples' names, in order."""
        names = self._whole.names
        return [names[place] for place in self._places]

    def __getitem__(self, index: int) -> Sample:
        """Read one sample; see ``Source`` for the errors."""
        return self._whole[self._places[index]]

    def hashes(self) -> list[str]:
        """Return a short hash of each image, as the whole source makes it."""
        hashes = self._whole.hashes()
        return [hashes[place] for place in self._places]


def median_size(source: Source) -> Size:
    """Return the median height and the median width of a source's images; at least one image.

    Raises:
        DataError: A file cannot be read.
    """
    heights, widths = zip(*source.sizes(), strict=True)
    return median_low(heights), median_low(widths)
