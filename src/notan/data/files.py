"""FileSource: pairs of an image file and a mask file, read when asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notan.data.formats import read_image, read_size
from notan.data.sample import Sample, Source, short_hash
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from notan.types import Mask, Size

HASHED = 65536
"""Bytes of either end of a file that are hashed: a folder of large images is soon done."""


@dataclass(frozen=True)
class Labels:
    """What a mask file says.

    Attributes:
        mask: bool, (height, width), True = foreground.
        ignore: bool, (height, width), True = left out; None = nothing is.
        encoding: How the file's values were read, in words, such as ``"0/255"``.
    """

    mask: Mask
    ignore: Mask | None
    encoding: str


@dataclass(frozen=True)
class Pair:
    """Where one sample's image and mask lie."""

    name: str
    image: Path
    mask: Path


class FileSource(Source):
    """Pairs of files with one rule for reading the masks."""

    def __init__(self, pairs: Sequence[Pair], read_labels: Callable[[Path], Labels]) -> None:
        """Keep the pairs; nothing is read yet.

        Args:
            pairs: One for each sample.
            read_labels: Reads a mask file; picklable, because data workers call it.
        """
        self.pairs = tuple(pairs)
        self.read_labels = read_labels

    @property
    def names(self) -> Sequence[str]:
        """The samples' names, in order."""
        return [pair.name for pair in self.pairs]

    def __getitem__(self, index: int) -> Sample:
        """Read one image with its mask.

        Raises:
            DataError: A file is missing, unreadable or ambiguous, or the two differ in size.
        """
        pair = self.pairs[index]
        image = read_image(pair.image)
        labels = self.read_labels(pair.mask)
        require_same_size(pair, (image.shape[0], image.shape[1]), labels.mask.shape)
        return Sample(pair.name, image, labels.mask, labels.ignore)

    def hashes(self) -> list[str]:
        """Return a short hash of each image's file, from its size and its two ends.

        Raises:
            DataError: A file cannot be read.
        """
        return [hash_file(pair.image) for pair in self.pairs]

    def sizes(self) -> list[Size]:
        """Return the (height, width) of each image, from its file's header.

        Raises:
            DataError: A file cannot be read.
        """
        return [read_size(pair.image) for pair in self.pairs]

    def first(self, count: int | None) -> FileSource:
        """Return the first ``count`` samples as a source; None means all of them."""
        return FileSource(self.pairs[:count], self.read_labels)

    def only(self, names: frozenset[str]) -> FileSource:
        """Return the samples of these names, in this source's order."""
        return FileSource([pair for pair in self.pairs if pair.name in names], self.read_labels)


def hash_file(path: Path) -> str:
    """Return a short hash of an image's file, from its size and its two ends.

    Raises:
        DataError: It cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            ends = file.read(HASHED)
            file.seek(max(0, size - HASHED))
            ends += file.read()
    except OSError as error:
        raise DataError(f"{path}: the image cannot be read ({error})") from error
    return short_hash(f"{size} ".encode() + ends)


def require_same_size(pair: Pair, image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """Refuse a pair whose image and mask differ in size.

    Raises:
        DataError: They differ; the message names both files and sizes.
    """
    if image == mask:
        return
    turned = (
        "; the sizes are each other's turned by 90 degrees: perhaps the image was rotated by "
        "its EXIF tag after the mask was drawn"
        if image == mask[::-1]
        else ""
    )
    raise DataError(
        f"{pair.mask}: the mask is {mask[0]}x{mask[1]} (height x width), its image "
        f"{pair.image.name} is {image[0]}x{image[1]}; both must be of one size{turned}"
    )


def fingerprint(source: Source) -> str:
    """Return a short SHA-256 of a source's names, the same for the same selection of images."""
    return hashlib.sha256("\n".join(source.names).encode()).hexdigest()[:16]
