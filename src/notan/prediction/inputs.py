"""What is to be predicted: files, folders, patterns, videos, and the images in them.

Which files the words on a command line mean, and what their masks are called.

From a file to the images in it: itself, the frames of a video, the pages of a TIFF.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from notan.data.folders import SUFFIXES
from notan.errors import ConfigError, DataError
from notan.io.images import decode_image, opened, read_image, read_size
from notan.io.tiff import TIFF_SIGNATURES, TiffPages
from notan.io.video import VIDEO_SUFFIXES, Video, is_video

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from notan.types import RGBImage, Size

STANDARD_INPUT = Path("-")
MOST_BYTES = 2**30
"""Of standard input: more than any image that is decoded."""

_SEQUENCES = VIDEO_SUFFIXES | {".tif", ".tiff"}
_PART = re.compile(r"-(\d{6,}|p\d{4,})$")
"""How the names of a video's frames and of a TIFF's pages end."""


@dataclass(frozen=True)
class Found:
    """A file to predict, and what its outputs are called.

    Attributes:
        name: Of its outputs, without a suffix; ``/`` where a folder tells it from another.
        path: The file; ``-`` for standard input.
        content: The file's bytes, of standard input only.
    """

    name: str
    path: Path
    content: bytes | None = None


def find_inputs(words: Iterable[Path], *, standard_input: BinaryIO | None = None) -> list[Found]:
    """Return the files to predict in the order of the words, each with a name of its own.

    An output has its file's stem: ``cat`` for ``cat.jpg``. Where that would name two things alike,
    these keep their whole file names (``cat.jpg``, ``cat.png``), and where that is not enough their
    folders too (``monday/cat``, ``tuesday/cat``). Names differ in more than upper and lower case,
    which some disks do not tell apart, and they depend on the files alone.

    Args:
        words: Files, whatever they are called; folders, of which every image and video is taken;
            patterns with ``*``, ``?`` or ``[a-z]``, and ``**`` for folders in folders; ``-`` for
            the bytes of one image on standard input.
        standard_input: Where ``-`` reads; None: the process's own.

    Raises:
        DataError: An input is missing, a folder or pattern has nothing to predict, nothing was
            given, or standard input is empty or too large.
    """
    paths = [path for word in words for path in _files(word)]
    if not paths:
        raise DataError("no images were given; name files, folders or patterns such as '*.jpg'")
    # by absolute path, so that a file that is named twice is predicted once
    unique: dict[str, Path] = {}
    for path in paths:
        unique.setdefault(os.path.abspath(path), path)  # noqa: PTH100 - links are kept as they are
    files = list(unique.values())
    content = _read_standard_input(standard_input) if STANDARD_INPUT in files else None
    names = _name(files)
    return [Found(names[path], path, content if path == STANDARD_INPUT else None) for path in files]


def refuse_outputs_over_inputs(
    found: Iterable[Found], outputs: Callable[[str], Iterable[Path]]
) -> None:
    """Refuse to write where any input lies.

    Args:
        found: The inputs.
        outputs: Returns where the outputs of a name go.

    Raises:
        ConfigError: An output would take the place of an input.
    """
    inputs = {file.path.resolve() for file in found if file.content is None}
    # whose frames or pages: clip for clip-000001.png
    parts = {path.parent / _PART.sub("", path.stem): path for path in sorted(inputs)}
    for file in found:
        is_sequence = file.path.suffix.lower() in _SEQUENCES
        for path in outputs(file.name):
            # the folder only: an output that is a link is itself replaced, not what it leads to
            place = path.parent.resolve() / path.name
            taken = parts.get(place.with_suffix("")) if is_sequence else None
            if place in inputs or taken not in (None, file.path.resolve()):
                raise ConfigError(
                    f"{taken or place}: is an input, and outputs of {file.path} could replace it; "
                    "choose another --out"
                )


def _files(word: Path) -> list[Path]:
    if word == STANDARD_INPUT:
        return [word]
    if word.is_dir():
        files = _in_folder(word)
        if not files:
            raise DataError(f"{word}: there are no images in this folder")
        return files
    if word.exists():
        return [word]
    if glob.has_magic(str(word)):
        return _matching(word)
    raise DataError(f"{word}: there is no such image or folder")


def _in_folder(folder: Path) -> list[Path]:
    """Return a folder's images and videos; hidden files (``._x.jpg``) are none."""
    wanted = SUFFIXES | VIDEO_SUFFIXES
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in wanted and not path.name.startswith(".") and path.is_file()
    )


def _matching(pattern: Path) -> list[Path]:
    """Return what a pattern matches, as a shell would; of folders, what is in them."""
    found = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 - with ** in the middle, too
    files = [file for path in found for file in (_in_folder(path) if path.is_dir() else [path])]
    if not files:
        raise DataError(
            f"{pattern}: no file matches this pattern; see what is there with: ls {pattern.parent}"
        )
    return files


def _read_standard_input(stream: BinaryIO | None) -> bytes:
    source = stream or sys.stdin.buffer
    if source.isatty():
        raise DataError(
            "-: standard input is the keyboard; pipe an image in: "
            "notan predict - --model FILE < photo.jpg"
        )
    content = source.read(MOST_BYTES + 1)
    if not content:
        raise DataError("-: standard input was empty; wanted the bytes of one image")
    if len(content) > MOST_BYTES:
        raise DataError(f"-: more than {MOST_BYTES:,} bytes on standard input; name a file instead")
    return content


def _name(paths: Sequence[Path]) -> Mapping[Path, str]:
    """Give every file the shortest of its names that no other has."""
    whole = {path: Path(os.path.abspath(path)) for path in paths}  # noqa: PTH100
    shared = Path(os.path.commonpath([path.parent for path in whole.values()]))
    choices = {path: _choices(path, whole[path].relative_to(shared)) for path in paths}
    level = dict.fromkeys(paths, 0)
    while True:
        names = {path: choices[path][level[path]] for path in paths}
        alike = [path for path in _alike(names) if level[path] + 1 < len(choices[path])]
        if not alike:
            break
        for path in alike:
            level[path] += 1
    for path in _alike(names):
        raise DataError(
            f"{path}: its outputs would have the name of another's ({names[path]}); rename one "
            "file, or predict them one after the other with another --out"
        )
    return names


def _choices(path: Path, relative: Path) -> list[str]:
    if path == STANDARD_INPUT:
        return ["stdin", "standard input"]
    return [path.stem, path.name, relative.with_suffix("").as_posix(), relative.as_posix()]


def _alike(names: Mapping[Path, str]) -> list[Path]:
    """Return the files whose outputs would share a name with another's.

    The frames of a video and the pages of a TIFF are not known yet, but how they will be called:
    ``clip-000001``, ``scan-p0001``.
    """
    groups = defaultdict(list)
    for path, name in names.items():
        groups[name.casefold()].append(path)
    alike = [path for group in groups.values() if len(group) > 1 for path in group]
    sequences = {
        name.casefold() for path, name in names.items() if path.suffix.lower() in _SEQUENCES
    }
    for path, name in names.items():
        parent = _PART.sub("", name.casefold())
        if parent != name.casefold() and parent in sequences:
            alike.append(path)
    return alike


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
