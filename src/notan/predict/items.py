"""From a file to the images in it: itself, the frames of a video, the pages of a TIFF."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from notan.data.decode import opened
from notan.data.formats import decode_image, read_image, read_size
from notan.data.pages import TIFF_SIGNATURES, TiffPages
from notan.data.video import VIDEO_SUFFIXES, Video, is_video
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from notan.predict.inputs import Found
    from notan.types import RGBImage, Size


@dataclass(frozen=True)
class Item:
    """One image to predict.

    Attributes:
        name: Of its outputs.
        path: The file that it is in.
        size: (height, width); None where even that cannot be read, and then ``read`` says why.
        read: Decodes it, as uint8 (height, width, 3) RGB, or raises DataError.
        in_order: Whether it must be read, or left out, before the next item is asked for.
        siblings: How many images the file holds as far as is known.
    """

    name: str
    path: Path
    size: Size | None
    read: Callable[[], RGBImage]
    in_order: bool = False
    siblings: int = 1


def items_of(found: Found, *, frame_step: int = 1) -> Iterator[Item]:
    """Yield the images of a file; a damaged one yields an item whose ``read`` says so.

    Args:
        found: The file.
        frame_step: Of a video, take the first frame and every so-many-th after it.
    """
    try:
        start = _start(found)
        if is_video(start):
            yield from _frames(found, frame_step)
        elif start[:4] in TIFF_SIGNATURES:
            yield from _pages(found)
        else:
            yield _image(found)
    except DataError as error:
        yield _failed(found, error)


def _start(found: Found) -> bytes:
    """Return the first 16 bytes, if they can be those of an image or a video."""
    if found.content is not None:
        start = found.content[:16]
        if is_video(start):
            raise DataError("-: a video on standard input; name the file instead")
        return start
    with opened(found.path) as file:
        start = file.read(16)
    if found.path.suffix.lower() in VIDEO_SUFFIXES and not (is_video(start) or _is_still(start)):
        what = f"begins with {start!r}" if start else "is empty (0 bytes)"
        raise DataError(
            f"{found.path}: {what}; wanted a video as MP4, MOV, AVI, MKV, WebM, WMV or MPEG; copy "
            "it again from its source, or leave it out"
        )
    return start


def _is_still(start: bytes) -> bool:
    """Say whether a file that is called a video may be an image all the same."""
    return start.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF")) or start[4:8] == b"ftyp"


def _image(found: Found) -> Item:
    content, path = found.content, found.path
    if content is None:
        return Item(found.name, path, read_size(path), lambda: read_image(path))
    image = decode_image(content, str(path))
    return Item(found.name, path, image.shape[:2], lambda: image)


def _frames(found: Found, frame_step: int) -> Iterator[Item]:
    with Video(found.path) as video:
        while video.advance():
            if (video.number - 1) % frame_step == 0:
                name = f"{found.name}-{video.number:06d}"
                count = -(-video.claimed // frame_step)
                yield Item(name, found.path, video.size, video.read, True, count)


def _pages(found: Found) -> Iterator[Item]:
    with _reopened(found) as file:
        pages = TiffPages(file, str(found.path))
        if pages.numbers == [0]:
            yield _image(found)
            return
        for number in pages.numbers:
            yield _page(found, pages, number)
        if pages.fault is not None:
            raise pages.fault


def _page(found: Found, pages: TiffPages, number: int) -> Item:
    count = len(pages.numbers)
    name = found.name if count == 1 else f"{found.name}-p{number + 1:04d}"
    try:
        size = pages.size(number)
    except DataError as error:
        return _failed(found, error, name)
    return Item(name, found.path, size, lambda: pages.read(number), True, count)


def _reopened(found: Found) -> contextlib.AbstractContextManager[BinaryIO]:
    if found.content is None:
        return opened(found.path)
    return contextlib.nullcontext(io.BytesIO(found.content))


def _failed(found: Found, error: DataError, name: str | None = None) -> Item:
    def read() -> RGBImage:
        raise error

    return Item(name or found.name, found.path, None, read)
