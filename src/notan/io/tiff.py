"""TIFF files: their pages, and any part of one that is too large for the memory.

A TIFF keeps its pixels in strips or tiles that are compressed each for itself. To read a part, one
of them is put behind a header of its own and decoded as the small image that it then is, by the
reader of all other images: so 16-bit grey, palettes, transparency and every compression mean here
what they mean there, and no broken strip can take more memory than its claimed size, which is
bounded.
"""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import TiffImagePlugin as Tiff

from notan.errors import DataError
from notan.io.foreign import RGB, ForeignTiff
from notan.io.headers import (
    GREY,
    MAX_PIXELS,
    channel_counts,
    count_page_channels,
    find_pages,
    first,
    guarded,
    identify,
    read_header,
    refuse_size,
    seek_page,
)
from notan.io.images import (
    PLAIN,
    RGB_CHANNELS,
    decode,
    decode_current,
    decode_image,
    other_channels,
    to_image,
)
from notan.io.packed import open_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Self

    from notan.io.headers import Header
    from notan.io.images import ImageReading, Raster
    from notan.types import Image8, Size

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION, FAX3, FAX4 = 274, 292, 293
UNCOMPRESSED, SEPARATE, FLOAT = 1, 2, 3
KEPT = (
    Tiff.BITSPERSAMPLE, Tiff.COMPRESSION, Tiff.PHOTOMETRIC_INTERPRETATION, Tiff.FILLORDER,
    Tiff.SAMPLESPERPIXEL, FAX3, FAX4, Tiff.PREDICTOR, Tiff.COLORMAP, Tiff.EXTRASAMPLES,
    Tiff.SAMPLEFORMAT, Tiff.JPEGTABLES, Tiff.YCBCRSUBSAMPLING, Tiff.REFERENCEBLACKWHITE,
)  # fmt: skip
"""What says how a strip or tile is decoded; the rest is about the whole file."""

CUT_PIXELS = 2**20
"""About what is read at once of an image that is stored in one piece, uncompressed."""

PARTS = 2**22
"""More strips or tiles than any sensible file has."""

PART_PIXELS = 2**24
"""The largest strip or tile that is decoded: 50 MB of RGB."""

CACHE_BYTES = 2**28
"""Decoded parts that are kept: a row of tiles across 20,000 pixels takes 30 MB at 512x512."""

ROWS_MIRRORED, COLUMNS_MIRRORED = (3, 4, 6, 7), (2, 3, 7, 8)
"""Orientations; from 5 on, rows and columns change places afterwards."""

ADVICE = "save it as a tiled TIFF, 8 bits a channel, such as: vips tiffsave IN OUT.tif --tile"


class TiffPages:
    """Reads the pages of an open TIFF; going through them in their order is quickest.

    ``find_pages`` says which pages are images of their own.

    Attributes:
        name: What the file is called in messages.
        numbers: Of the pages, within the file, from 0.
        fault: Why no further page was found, where the file is damaged after some good ones.
    """

    def __init__(self, file: BinaryIO, name: str, reading: ImageReading = PLAIN) -> None:
        """Find the pages; no pixel is decoded.

        Pages that are said to be as many channels of one image as are wanted are a single page.

        Args:
            file: Must stay open for as long as pages are read.
            name: What to call it in messages.
            reading: How images become 8 bits a channel.

        Raises:
            DataError: It is no TIFF, its first page is damaged, or it has too many.
        """
        self.name = name
        self._reading = reading
        header = guarded(lambda: identify(file, name), name)
        if isinstance(header, Tiff.TiffImageFile):
            self.numbers, self.fault = find_pages(header, name)
            count = len(self.numbers)
            if 1 < count == reading.channels and _are_channels(header, count, name):
                self.numbers = [0]
        elif isinstance(header, ForeignTiff):
            self.numbers, self.fault = list(range(len(header.pages))), None
        else:
            raise DataError(f"{name}: is a {header.format} image; wanted a TIFF with its pages")
        self._header = header

    def size(self, number: int) -> Size:
        """Return a page's (height, width), from its header.

        Raises:
            DataError: Damaged, or a size that must not be decoded.
        """
        if isinstance(self._header, ForeignTiff):
            width, height = self._header.pages[number][1]
        else:
            seek_page(self._header, number, self.name)
            width, height = self._header.size
        refuse_size((height, width), self._called(number))
        return height, width

    def read(self, number: int) -> Image8:
        """Decode a page as uint8, (height, width, channels), upright.

        Raises:
            DataError: Damaged, too large, or of values out of range.
        """
        self.size(number)
        called = self._called(number)

        def pixels() -> Raster:
            if isinstance(self._header, ForeignTiff):
                return decode(self._header, called, page=number)
            return decode_current(self._header)

        return guarded(lambda: to_image(pixels(), called, self._reading), called)

    def _called(self, number: int) -> str:
        return f"{self.name}, page {number + 1}"


def _are_channels(header: Tiff.TiffImageFile, count: int, name: str) -> bool:
    """Say whether the pages of a TIFF are the channels of one image; of a damaged one, no."""
    with contextlib.suppress(DataError):
        seek_page(header, 0, name)
        return guarded(lambda: count_page_channels(header), name) == count
    return False


def is_large_tiff(file: BinaryIO, name: str) -> bool:
    """Say whether an open file is a TIFF with more pixels than are decoded at once.

    Raises:
        DataError: It is no image, or its header is broken.
    """
    image = guarded(lambda: identify(file, name), name)
    return image.format == "TIFF" and math.prod(image.size) > MAX_PIXELS


@dataclass(frozen=True)
class _Layout:
    """Where a page's pixels lie.

    Attributes:
        size: (height, width) as stored.
        part: (height, width) of a strip or tile.
        planes: Times that the image's parts are stored, one channel each; 1: all in one.
        offsets: The parts' places in the file, plane by plane, row by row.
        counts: Their lengths in bytes.
        tags: What a part's own header says, sizes aside.
        orientation: 1 to 8, as EXIF counts.
        tiled: Whether parts at the edges reach beyond the image.
    """

    size: Size
    part: Size
    planes: int
    offsets: Sequence[int]
    counts: Sequence[int]
    tags: Tiff.ImageFileDirectory_v2
    orientation: int
    tiled: bool

    @property
    def grid(self) -> Size:
        """Parts below each other and side by side, in each plane."""
        return -(-self.size[0] // self.part[0]), -(-self.size[1] // self.part[1])


class TiffParts:
    """The first page of a TIFF, of which any part can be read: 8 bits a channel, upright.

    What it takes is bounded by the parts asked for and by ``CACHE_BYTES``.
    """

    def __init__(self, path: Path, reading: ImageReading = PLAIN) -> None:
        """Read the header and check that all that it points to is in the file.

        Args:
            path: The file.
            reading: How images become 8 bits a channel.

        Raises:
            DataError: The file is missing, is no TIFF, is damaged, or is stored in a way that
                cannot be read part by part; the message says how to store it instead.
        """
        self.path = path
        self._reading = reading
        self._layout = read_header(path, lambda image: _read_layout(image, str(path), reading))
        part_bytes = reading.channels * math.prod(self._layout.part)
        self._part = lru_cache(maxsize=max(1, CACHE_BYTES // part_bytes))(self._decode)
        self._file = open_file(path)
        try:
            self._refuse_missing_parts()
        except DataError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._part.cache_clear()

    @property
    def size(self) -> Size:
        """(height, width) in pixels, upright."""
        height, width = self._layout.size
        return (width, height) if self._layout.orientation >= 5 else (height, width)

    def read(self, top: int, left: int, height: int, width: int) -> Image8:
        """Read a part that lies inside the image.

        Returns:
            uint8, (height, width, channels).

        Raises:
            DataError: The file is damaged there.
        """
        orientation = self._layout.orientation
        sides = [(top, top + height), (left, left + width)]
        if orientation >= 5:
            sides.reverse()
        mirrored = [orientation in kinds for kinds in (ROWS_MIRRORED, COLUMNS_MIRRORED)]
        # from upright to stored: a side that the turn mirrors is counted from its other end
        rows, columns = (
            (whole - last, whole - first) if mirror else (first, last)
            for (first, last), whole, mirror in zip(sides, self._layout.size, mirrored, strict=True)
        )
        stored = self._stored(rows, columns)
        stored = stored[:: -1 if mirrored[0] else 1, :: -1 if mirrored[1] else 1]
        return stored.transpose(1, 0, 2) if orientation >= 5 else stored

    def _stored(self, rows: tuple[int, int], columns: tuple[int, int]) -> Image8:
        """Put a part together from the strips or tiles that it touches."""
        high, wide = self._layout.part
        result = np.empty(
            (rows[1] - rows[0], columns[1] - columns[0], self._reading.channels), np.uint8
        )
        for row in range(rows[0] // high, -(-rows[1] // high)):
            for column in range(columns[0] // wide, -(-columns[1] // wide)):
                part = self._part(row * self._layout.grid[1] + column)
                top, left = row * high - rows[0], column * wide - columns[0]
                place = result[max(top, 0) : top + high, max(left, 0) : left + wide]
                part = part[max(-top, 0) :, max(-left, 0) :]
                place[:] = part[: place.shape[0], : place.shape[1]]
        return result

    def _decode(self, number: int) -> Image8:
        """Decode a strip or tile; of planes that lie apart, those that are wanted together."""
        layout, reading = self._layout, self._reading
        height, width = layout.part
        if not layout.tiled:
            height = min(height, layout.size[0] - number * height)
        each = math.prod(layout.grid)
        if layout.planes == 1:
            return self._decode_one(number, height, width, reading)
        readings = [
            reading
            if reading.channels == RGB_CHANNELS
            else replace(reading, channels=1, ranges=reading.ranges[plane : plane + 1])
            for plane in range(min(layout.planes, reading.channels))
        ]
        planes = [
            self._decode_one(number + plane * each, height, width, one)
            for plane, one in enumerate(readings)
        ]
        if reading.channels == RGB_CHANNELS and len(planes) < RGB_CHANNELS:
            return planes[0]
        return np.stack([plane[..., 0] for plane in planes], axis=2)

    def _decode_one(self, index: int, height: int, width: int, reading: ImageReading) -> Image8:
        """Decode one strip or tile as the small TIFF that it would be alone."""
        self._file.seek(self._layout.offsets[index])
        content = self._file.read(self._layout.counts[index])
        tags = _copy(self._layout.tags, self._layout.tags)
        tags[Tiff.IMAGEWIDTH] = width
        tags[Tiff.IMAGELENGTH] = tags[Tiff.ROWSPERSTRIP] = height
        tags[Tiff.STRIPBYTECOUNTS] = len(content)
        tags[Tiff.STRIPOFFSETS] = 0  # Pillow counts from the header's end
        file = io.BytesIO()
        tags.save(file)
        file.write(content)
        image = decode_image(file.getvalue(), f"{self.path} (part {index + 1})", reading)
        if image.shape[:2] != (height, width):
            raise DataError(
                f"{self.path}: part {index + 1} holds {image.shape[0]}x{image.shape[1]} pixels "
                f"instead of {height}x{width}; the file is damaged: copy it again from its source"
            )
        return image

    def _refuse_missing_parts(self) -> None:
        """Refuse a file that is shorter than it says, before hours of work on it."""
        length = self._file.seek(0, io.SEEK_END)
        for number, (offset, count) in enumerate(
            zip(self._layout.offsets, self._layout.counts, strict=True), 1
        ):
            if count < 1 or offset + count > length:
                where = "nowhere" if count < 1 else f"to byte {offset + count:,}"
                raise DataError(
                    f"{self.path}: is damaged or cut short (part {number} of "
                    f"{len(self._layout.offsets):,} reaches {where}, the file has {length:,} "
                    "bytes); wanted a whole image file; copy it again from its source"
                )


def _read_layout(image: Header, name: str, reading: ImageReading) -> _Layout:
    """Take the layout of the first page from its header."""
    if not isinstance(image, Tiff.TiffImageFile):
        raise DataError(
            f"{name}: a {image.format} file of {image.size[1]}x{image.size[0]} pixels (height x "
            f"width) cannot be read part by part; {ADVICE}"
        )
    if reading.channels != RGB_CHANNELS and reading.channels not in channel_counts(image):
        raise other_channels(name, channel_counts(image)[0], reading.channels)
    tags = image.tag_v2
    size = (int(tags[Tiff.IMAGELENGTH]), int(tags[Tiff.IMAGEWIDTH]))
    own = _own_tags(tags, name, reading)
    tiled = Tiff.TILEWIDTH in tags
    if tiled:
        part = (int(tags[Tiff.TILELENGTH]), int(tags[Tiff.TILEWIDTH]))
        offsets, counts = tags[Tiff.TILEOFFSETS], tags[Tiff.TILEBYTECOUNTS]
    else:
        part = (min(int(tags.get(Tiff.ROWSPERSTRIP, size[0])), size[0]), size[1])
        offsets, counts = tags[Tiff.STRIPOFFSETS], tags[Tiff.STRIPBYTECOUNTS]
    planes = int(tags.get(Tiff.SAMPLESPERPIXEL, 1)) if _is_separate(tags) else 1
    if not tiled and own[Tiff.COMPRESSION] == UNCOMPRESSED and len(offsets) == planes:
        part, offsets, counts = _cut_strips(size, offsets, counts)
    orientation = tags.get(ORIENTATION, 1)
    layout = _Layout(
        size,
        part,
        planes,
        tuple(offsets),
        tuple(counts),
        own,
        orientation=orientation if orientation in range(1, 9) else 1,
        tiled=tiled,
    )
    _refuse_unbounded(layout, name)
    return layout


def _own_tags(
    tags: Tiff.ImageFileDirectory_v2, name: str, reading: ImageReading
) -> Tiff.ImageFileDirectory_v2:
    """Return what a part's own header says, or refuse what cannot be decoded part by part."""
    own = _copy(tags, KEPT)
    own[Tiff.COMPRESSION] = tags.get(Tiff.COMPRESSION, UNCOMPRESSED)
    own[Tiff.PLANAR_CONFIGURATION] = 1
    if first(tags.get(Tiff.SAMPLEFORMAT, 1)) == FLOAT and not reading.ranges:
        raise DataError(
            f"{name}: its values are floats, and a part does not tell the range of all; {ADVICE}"
        )
    if _is_separate(tags):
        colours = tags.get(Tiff.PHOTOMETRIC_INTERPRETATION)
        if colours not in (GREY, RGB):
            raise DataError(f"{name}: its channels lie apart and are not RGB or grey; {ADVICE}")
        own[Tiff.PHOTOMETRIC_INTERPRETATION], own[Tiff.SAMPLESPERPIXEL] = GREY, 1
        for tag in (Tiff.BITSPERSAMPLE, Tiff.SAMPLEFORMAT):
            if tag in own:
                own[tag] = first(own[tag])
        own.pop(Tiff.EXTRASAMPLES, None)
    return own


def _cut_strips(
    size: Size, offsets: Sequence[int], counts: Sequence[int]
) -> tuple[Size, list[int], list[int]]:
    """Cut strips that hold a whole plane each, uncompressed, into strips of some rows."""
    height, width = size
    rows = max(1, min(height, CUT_PIXELS // width))
    places, lengths = [], []
    for offset, count in zip(offsets, counts, strict=True):
        row_bytes = count // height
        for start in range(0, height, rows):
            places.append(offset + start * row_bytes)
            lengths.append(row_bytes * min(rows, height - start))
    return (rows, width), places, lengths


def _refuse_unbounded(layout: _Layout, name: str) -> None:
    """Refuse parts that are no parts, too many or too large."""
    height, width = layout.part
    if min(height, width, *layout.size) < 1:
        raise DataError(f"{name}: its header claims parts of {height}x{width} pixels; {ADVICE}")
    if height * width > PART_PIXELS:
        kind = "tile" if layout.tiled else "strip"
        raise DataError(
            f"{name}: one {kind} holds {height}x{width} pixels; at most {PART_PIXELS:,} are "
            f"decoded at once; {ADVICE}"
        )
    wanted = math.prod(layout.grid) * layout.planes
    if wanted > PARTS or not wanted == len(layout.offsets) == len(layout.counts):
        raise DataError(
            f"{name}: {layout.size[0]}x{layout.size[1]} pixels in parts of {height}x{width} make "
            f"{wanted:,} parts, and the header names {len(layout.offsets):,} (at most {PARTS:,} "
            f"are read); the file is damaged, or {ADVICE}"
        )


def _copy(tags: Tiff.ImageFileDirectory_v2, wanted: Iterable[int]) -> Tiff.ImageFileDirectory_v2:
    """Return the wanted ones among tags, of the types that they have in the file."""
    copy = Tiff.ImageFileDirectory_v2(prefix=tags.prefix)
    for tag in wanted:
        if tag in tags:
            copy.tagtype[tag] = tags.tagtype[tag]
            copy[tag] = tags[tag]
    return copy


def _is_separate(tags: Tiff.ImageFileDirectory_v2) -> bool:
    separate = tags.get(Tiff.PLANAR_CONFIGURATION, 1) == SEPARATE
    return bool(separate and tags.get(Tiff.SAMPLESPERPIXEL, 1) > 1)
