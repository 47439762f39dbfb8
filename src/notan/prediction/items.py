"""The images in the files that a command names: itself, a video's frames, a TIFF's pages.

What a file holds is decided here, by its first bytes and its header. A file in a store is fetched,
and then is read as any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from notan.errors import DataError
from notan.io.digest import hash_content, hash_file, sha256
from notan.io.headers import decode_contents, opened
from notan.io.images import PLAIN, RGB_CHANNELS, decode_image, other_channels, read_image
from notan.io.remote import shown
from notan.io.tiff import TIFF_SIGNATURES, TiffPages, TiffParts, is_large_tiff
from notan.io.video import VIDEO_SUFFIXES, Video, is_video
from notan.prediction.fetching import ahead, fetch, is_fetched, local_copy, naming
from notan.prediction.inputs import STANDARD_INPUT, Found

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from notan.io.headers import Contents
    from notan.io.images import ImageReading
    from notan.types import Image8, Size


@dataclass(frozen=True)
class Item:
    """One image to predict.

    Attributes:
        name: Of its outputs.
        path: The file that it is in.
        size: (height, width); None where it is not decoded at once, or where even its size cannot
            be read, and then ``read`` says why.
        read: Decodes it, as uint8 (height, width, channels), or raises DataError.
        open_parts: Of an image that is too large for that, opens it to be read part by part.
        in_order: Whether it must be read, or left out, before the next item is asked for.
        siblings: How many images the file holds as far as is known.
        close: Closes its file, which ``read`` does too; to be called where it is left out.
        digest: Of the file's content, whatever its name; empty where it could not be read.
        choices: What reading it chooses among several readings, in words.
    """

    name: str
    path: Path
    size: Size | None
    read: Callable[[], Image8]
    open_parts: Callable[[], AbstractContextManager[TiffParts]] | None = None
    in_order: bool = False
    siblings: int = 1
    close: Callable[[], None] = lambda: None
    digest: str = ""
    choices: tuple[str, ...] = ()


def items_of(found: Found, *, frame_step: int = 1, reading: ImageReading = PLAIN) -> Iterator[Item]:
    """Yield the images of a file; a damaged one yields an item whose ``read`` says so.

    What it holds is decided here, by its first bytes and its header.

    Args:
        found: The file.
        frame_step: Of a video, take the first frame and every so-many-th after it.
        reading: How image files are read.
    """
    if is_fetched(found.path):
        found = _fetched(found)
        if found.fault is not None:
            yield _failed(found.name, found.path, found.fault)
            return
        if found.content is None or _opens_as_file(found.content, shown(found.path)):
            yield from _copied_items_of(found, frame_step, reading)
            return
    digest = ""
    with contextlib.suppress(DataError):  # which is said where it is opened
        content = found.content
        digest = hash_content(found.path) if content is None else sha256(content)[:16]
    for item in _items_of(found, frame_step, reading):
        yield dataclasses.replace(item, digest=digest)


def items_of_all(
    found: Sequence[Found], *, frame_step: int = 1, reading: ImageReading = PLAIN
) -> Iterator[Item]:
    """Yield the images of files in their order; of those in stores a few are fetched ahead."""
    is_far = any(is_fetched(file.path) for file in found)
    for file in ahead(found, _fetched) if is_far else found:
        yield from items_of(file, frame_step=frame_step, reading=reading)


def _fetched(found: Found) -> Found:
    """Return a file with its content, where it must be fetched and is not too large for that."""
    if not is_fetched(found.path) or found.content is not None:
        return found
    try:
        return dataclasses.replace(found, content=fetch(found.path))
    except DataError as error:
        return dataclasses.replace(found, fault=error)


def _copied_items_of(found: Found, frame_step: int, reading: ImageReading) -> Iterator[Item]:
    """Yield the images of a file in a store that only opens as a file on the disk."""
    try:
        with local_copy(found.path, found.content) as local:
            digest = hash_file(local)[:16]  # all of it is here; its time would be the copy's
            copy = Found(found.name, local)
            for item in _items_of(copy, frame_step, reading):
                read = naming(found.path, local)(item.read)
                parts = item.open_parts and functools.partial(_parts, found.path, reading)
                yield dataclasses.replace(
                    item, path=found.path, read=read, open_parts=parts, digest=digest
                )
    except DataError as error:
        yield _failed(found.name, found.path, error)


@contextlib.contextmanager
def _parts(path: Path, reading: ImageReading) -> Iterator[TiffParts]:
    """Open a large TIFF of a store; it is fetched anew, for its turn may come hours later."""
    with local_copy(path) as local, TiffParts(local, reading) as parts:
        yield parts


def _opens_as_file(content: bytes, name: str) -> bool:
    """Say whether what was fetched is read from the disk only: a video, or a very large TIFF."""
    if is_video(content[:16]):
        return True
    try:
        return content[:4] in TIFF_SIGNATURES and is_large_tiff(io.BytesIO(content), name)
    except DataError:
        return False  # which is said where it is read


def _items_of(found: Found, frame_step: int, reading: ImageReading) -> Iterator[Item]:
    """Yield the images of a file, which is opened once."""
    path, name = found.path, shown(found.path)
    try:
        with contextlib.ExitStack() as stack:
            file: BinaryIO = (
                stack.enter_context(opened(path))
                if found.content is None
                else io.BytesIO(found.content)
            )
            start = file.read(16)
            if is_video(start):
                stack.close()  # FFmpeg opens the file itself
                if reading.channels != RGB_CHANNELS:
                    raise other_channels(name, RGB_CHANNELS, reading.channels)
                yield from _frames(found, frame_step)
                return
            _refuse_no_video(path, name, start)
            if start[:4] in TIFF_SIGNATURES:
                if found.content is None and is_large_tiff(file, name):
                    # it is opened anew when its turn comes, which may be hours away
                    read = functools.partial(read_image, path, reading)
                    parts = functools.partial(TiffParts, path, reading)
                    yield Item(found.name, path, None, read, parts)
                    return
                pages = TiffPages(file, name, reading)
                if pages.numbers != [0]:
                    yield from _pages(found, pages)
                    return
            contents = decode_contents(file, name)
            handle = stack.pop_all()  # open until the image is decoded, in whichever thread
            decoded = _decode(file, name, handle, reading)
            yield Item(
                found.name,
                path,
                contents.size,
                decoded,
                close=handle.close,
                choices=_choices_of(contents, reading),
            )
    except DataError as error:
        yield _failed(found.name, path, error)


def _choices_of(contents: Contents, reading: ImageReading) -> tuple[str, ...]:
    """Say what is chosen for an image, as training says it of its data set."""
    choices = [*contents.choices_for(reading.channels)]
    if contents.orientation > 1:
        choices.append("turned upright by their EXIF orientation")
    if contents.deep and reading.ranges:
        ranges = dict.fromkeys(f"{low:g}..{high:g}" for low, high in reading.ranges)
        choices.append(f"values of more than 8 bits, on the model's scale ({', '.join(ranges)})")
    elif contents.deep:
        choices.append(
            f"more than 8 bits: integers within 0..{reading.white}, floats within 0..1 or 0..255"
        )
    return tuple(choices)


def _decode(
    file: BinaryIO, name: str, handle: contextlib.ExitStack, reading: ImageReading
) -> Callable[[], Image8]:
    def read() -> Image8:
        with handle:
            return decode_image(file, name, reading)

    return read


def _refuse_no_video(path: Path, name: str, start: bytes) -> None:
    """Refuse what is called a video and is none; an image may be called so all the same."""
    is_still = (
        start.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF")) or start[4:8] == b"ftyp"
    )
    if path.suffix.lower() in VIDEO_SUFFIXES and not is_still:
        what = f"begins with {start!r}" if start else "is empty (0 bytes)"
        raise DataError(
            f"{name}: {what}; wanted a video as MP4, MOV, AVI, MKV, WebM, WMV or MPEG; copy it "
            "again from its source, or leave it out"
        )


def _frames(found: Found, frame_step: int) -> Iterator[Item]:
    if found.content is not None:
        where = "on standard input" if found.path == STANDARD_INPUT else "through a pipe"
        raise DataError(f"{found.path}: a video {where}; name the file instead")
    with Video(found.path) as video:
        count = -(-video.claimed // frame_step)
        while video.advance():
            if (video.number - 1) % frame_step == 0:
                name = f"{found.name}-{video.number:06d}"
                yield Item(name, found.path, video.size, video.read, in_order=True, siblings=count)


EACH_PAGE = "pages of a TIFF, each an image of its own"


def _pages(found: Found, pages: TiffPages) -> Iterator[Item]:
    count = len(pages.numbers)
    for number in pages.numbers:
        name = found.name if count == 1 else f"{found.name}-p{number + 1:04d}"
        try:
            size = pages.size(number)
        except DataError as error:
            yield _failed(name, found.path, error)
            continue
        read = functools.partial(pages.read, number)
        choices = (EACH_PAGE,) if count > 1 else ()
        yield Item(name, found.path, size, read, in_order=True, siblings=count, choices=choices)
    if pages.fault is not None:
        raise pages.fault


def _failed(name: str, path: Path, error: DataError) -> Item:
    def read() -> Image8:
        raise error

    return Item(name, path, None, read)
