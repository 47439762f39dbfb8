"""Samples and their sources: one image with its mask, where they come from, how they are split."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from statistics import median_low
from typing import TYPE_CHECKING

import numpy as np

from notan.data.splits import choose_folds as choose_folds
from notan.data.splits import choose_validation as choose_validation
from notan.errors import DataError, ShapeError
from notan.io.digest import hash_content, sha256
from notan.io.headers import read_format, read_size
from notan.io.images import PLAIN, read_channels
from notan.io.images import ImageReading as ImageReading
from notan.io.packed import is_member, open_file, stamp_of
from notan.io.write import as_written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from notan.types import Image8, Mask, Size


@dataclass(frozen=True)
class Sample:
    """One image with its mask, in memory.

    Attributes:
        name: Unique within its source; names output files and table rows.
        image: uint8, (height, width, channels), RGB where there are three, upright.
        mask: bool, (height, width), True = foreground.
        ignore: bool, (height, width), True = left out of loss and score; None = nothing is.

    Raises:
        ShapeError: Image and mask are not of one size.
    """

    name: str
    image: Image8
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
    return sha256(content)[:12]


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

    def content_hashes(self) -> list[str]:
        """Return a short hash of each image with its mask: what changes when either does.

        Every sample is read for it; a source of files needs less.
        """
        return [
            short_hash(b"".join(_bytes_of(sample.image, sample.mask, sample.ignore)))
            for sample in self
        ]

    def sizes(self) -> list[Size]:
        """Return the (height, width) of each image.

        Every image is read for it; a source of files needs less.
        """
        return [sample.size for sample in self]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


class Subset(Source):
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

    def content_hashes(self) -> list[str]:
        """Return a short hash of each image with its mask, as the whole source makes it."""
        hashes = self._whole.content_hashes()
        return [hashes[place] for place in self._places]


class Joined(Source):
    """The samples of several sources, one source after the other."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self._parts = tuple(parts)
        self._places = [(part, place) for part in parts for place in range(len(part))]

    @property
    def names(self) -> Sequence[str]:
        """The samples' names, in order."""
        return [name for part in self._parts for name in part.names]

    def __getitem__(self, index: int) -> Sample:
        """Read one sample; see ``Source`` for the errors."""
        part, place = self._places[index]
        return part[place]

    def hashes(self) -> list[str]:
        """Return a short hash of each image, as its own source makes it."""
        return [each for part in self._parts for each in part.hashes()]


def _bytes_of(*arrays: npt.NDArray[np.generic] | None) -> Iterator[bytes]:
    return (np.ascontiguousarray(each).tobytes() for each in arrays if each is not None)


def median_size(source: Source) -> Size:
    """Return the median height and the median width of a source's images; at least one image.

    Raises:
        DataError: A file cannot be read.
    """
    heights, widths = zip(*source.sizes(), strict=True)
    return median_low(heights), median_low(widths)


HASHED = 65536
"""Bytes of either end of a file that are hashed: a folder of large images is soon done."""

PLAINLY_STORED = frozenset({"TIFF", "BMP", "DIB", "PPM"})
"""Formats whose pixels may change and leave size and both ends of the file as they were. In others
every pixel moves what follows it, or counts in a sum at the end."""


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
class PairFacts:
    """What is known of a pair's files, whether or not they are read.

    Attributes:
        image_hash: As ``FileSource.hashes`` takes it of the files.
        content_hash: As ``FileSource.content_hashes`` does.
        size: (height, width) of the image, upright.
        sideways: Whether EXIF turns it by a quarter.
    """

    image_hash: str
    content_hash: str
    size: Size
    sideways: bool


@dataclass(frozen=True)
class Pair:
    """Where one sample's image and mask lie.

    Attributes:
        name: The sample's.
        image: The image's file.
        mask: The mask's file; or the path of a file of annotations, with the image's name behind
            it where the file is about several images.
        channels: Files of the image's further channels, if it lies in several.
        facts: What is known of them, if the files need not be asked.
    """

    name: str
    image: Path
    mask: Path
    channels: tuple[Path, ...] = ()
    facts: PairFacts | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the image, one for each channel if it lies in several."""
        return (self.image, *self.channels)

    def __post_init__(self) -> None:
        # A file's name need not be text; a sample's name goes into tables, cards and pages
        object.__setattr__(self, "name", as_written(self.name))


def stored_in(mask: Path) -> Path:
    """Return the file that a mask stands in: itself, or the annotations of several images."""
    if is_member(mask):
        return mask
    return next((path for path in (mask, *mask.parents) if path.is_file()), mask)


class FileSource(Source):
    """Pairs of files with one rule for reading the masks."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        read_labels: Callable[[Path], Labels],
        images: ImageReading = PLAIN,
    ) -> None:
        """Keep the pairs; nothing is read yet.

        Args:
            pairs: One for each sample.
            read_labels: Reads a mask file; picklable, because data workers call it.
            images: How image files are read.
        """
        self.pairs = tuple(pairs)
        self.read_labels = read_labels
        self.images = images

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
        image = read_channels(pair.files, self.images)
        labels = self.read_labels(pair.mask)
        require_same_size(pair, (image.shape[0], image.shape[1]), labels.mask.shape)
        return Sample(pair.name, image, labels.mask, labels.ignore)

    def hashes(self) -> list[str]:
        """Return a short hash of each image's file, from its size and its two ends.

        Raises:
            DataError: A file cannot be read.
        """
        return [pair.facts.image_hash if pair.facts else hash_image(pair) for pair in self.pairs]

    def content_hashes(self) -> list[str]:
        """Return a short hash of each image's file with its mask's, whatever their names.

        Of a mask every byte counts, of an image as many as tell whether its pixels have changed.

        Raises:
            DataError: A file cannot be read.
        """
        # one file of annotations may be about all images
        asked = [pair for pair in self.pairs if not pair.facts]
        files = {pair.mask: stored_in(pair.mask) for pair in asked}
        images = {pair.image for pair in asked}
        # YOLO writes no file for an image without objects
        kept = (path for path in {*files.values()} - images if stamp_of(path))
        masks = {path: hash_content(path) for path in kept}

        def hash_of(pair: Pair) -> str:
            pixels = " ".join(map(_hash_pixels, pair.files))
            return short_hash(f"{pixels} {masks.get(files[pair.mask])}".encode())

        return [pair.facts.content_hash if pair.facts else hash_of(pair) for pair in self.pairs]

    def sizes(self) -> list[Size]:
        """Return the (height, width) of each image, from its file's header.

        Raises:
            DataError: A file cannot be read.
        """
        return [
            _size_known(pair.facts, upright=self.images.upright)
            if pair.facts
            else read_size(pair.image, upright=self.images.upright)
            for pair in self.pairs
        ]

    def first(self, count: int | None) -> FileSource:
        """Return the first ``count`` samples as a source; None means all of them."""
        return FileSource(self.pairs[:count], self.read_labels, self.images)

    def only(self, names: frozenset[str]) -> FileSource:
        """Return the samples of these names, in this source's order."""
        pairs = [pair for pair in self.pairs if pair.name in names]
        return FileSource(pairs, self.read_labels, self.images)

    def with_images(self, images: ImageReading) -> FileSource:
        """Return the same pairs, whose image files are read in another way."""
        return FileSource(self.pairs, self.read_labels, images)


def _size_known(facts: PairFacts, *, upright: bool) -> Size:
    height, width = facts.size
    return (width, height) if facts.sideways and not upright else (height, width)


def without_masks(paths: Sequence[Path], images: ImageReading = PLAIN) -> FileSource:
    """Return images without masks as a source: all of it is background."""
    pairs = [Pair(path.name, path, path) for path in paths]
    return FileSource(pairs, partial(_all_background, upright=images.upright), images)


def _all_background(path: Path, *, upright: bool) -> Labels:
    return Labels(np.zeros(read_size(path, upright=upright), bool), None, "no mask")


def hash_image(pair: Pair) -> str:
    """Return a short hash of an image's files.

    Raises:
        DataError: One cannot be read.
    """
    hashes = [hash_ends(path) for path in pair.files]
    return hashes[0] if len(hashes) == 1 else short_hash(" ".join(hashes).encode())


def _hash_pixels(path: Path) -> str:
    try:
        plainly = read_format(path) in PLAINLY_STORED
    except DataError:  # it is no image any more, and reading it will say so
        plainly = True
    return hash_content(path) if plainly else hash_ends(path)


def hash_ends(path: Path) -> str:
    """Return a short hash of an image's file, from its size and its two ends.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with open_file(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
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
        "; the sizes are each other's turned by 90 degrees: if the mask was drawn on the image "
        "before its EXIF orientation was applied, add --exif-orientation ignore"
        if image == mask[::-1]
        else ""
    )
    raise DataError(
        f"{pair.mask}: the mask is {mask[0]}x{mask[1]} (height x width), its image "
        f"{pair.image.name} is {image[0]}x{image[1]}; both must be of one size{turned}"
    )


def fingerprint(source: Source) -> str:
    """Return a short SHA-256 of a source's names, the same for the same selection of images."""
    return sha256("\n".join(source.names))[:16]
