"""What can be predicted: anything that holds one image, and the files that a command names.

``as_image`` is for Python: one thing, one image. ``find_inputs`` is for many files: which of them
the words on a command line mean, and what their outputs are called.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias, runtime_checkable

import numpy as np
from PIL import Image

from notan.data.layouts import SUFFIXES, passed_over
from notan.errors import ConfigError, DataError, ShapeError
from notan.io.images import (
    PLAIN,
    RGB_CHANNELS,
    convert_image,
    decode_image,
    read_image,
)
from notan.io.packed import find_pack
from notan.io.pipes import MAX_BYTES, read_pipe
from notan.io.remote import find_files, is_remote, require_plain, shown
from notan.io.video import VIDEO_SUFFIXES
from notan.prediction.lists import is_list, read_list

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

    from notan.io.images import ImageReading
    from notan.types import Image8

STANDARD_INPUT = Path("-")
PIECE = 2**24
"""Bytes that a file object is asked for at once."""

_SEQUENCES = VIDEO_SUFFIXES | {".tif", ".tiff"}
_PART = re.compile(r"-(\d{6,}|p\d{4,})$")
"""How the names of a video's frames and of a TIFF's pages end."""


class BinaryFile(Protocol):
    """A file object that was opened for reading bytes, or any other source of them."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many of the next bytes."""


@runtime_checkable
class Tensor(Protocol):
    """A torch.Tensor, told by what it can do: PyTorch need not be installed."""

    def detach(self) -> Any:  # noqa: ANN401 - the same kind again
        """Return it without its gradient."""

    def cpu(self) -> Any:  # noqa: ANN401
        """Return it in the memory of the processor."""


ImageLike: TypeAlias = (
    "str | Path | bytes | bytearray | memoryview | BinaryFile | Image.Image | Tensor "
    "| npt.NDArray[np.uint8]"
)

_WANTED = (
    "uint8 of shape (height, width, 3) is wanted, RGB; (height, width) is taken as grey and "
    "(height, width, 4) as RGBA, whose alpha is dropped"
)


def as_image(thing: ImageLike, reading: ImageReading = PLAIN) -> Image8:
    """Return whatever holds one image as 8 bits a channel, upright.

    Files, bytes and Pillow images are turned by their EXIF orientation. An array has none: it is
    taken as it stands, and its channels as red, green, blue (OpenCV reads blue first).

    Args:
        thing: A path; an address that begins with http:// or https://; the bytes of a whole file;
            a binary file object, which is read to its end; a Pillow image; a uint8 array of shape
            (height, width, 3) RGB, (height, width) grey or (height, width, 4) RGBA, whose alpha is
            dropped, as it is when files are read, or of as many channels as are wanted; a torch
            tensor likewise, or with its channels first, and of uint8 or of floats in 0..1.
        reading: How files are read, and how many channels are wanted.

    Returns:
        uint8, (height, width, channels). An array that is so already is returned itself.

    Raises:
        ShapeError: It is none of these, or an array of another shape or type.
        DataError: The file, the bytes or the image cannot be decoded, or the network failed.
    """
    if isinstance(thing, str) and thing.lower().startswith(("http://", "https://")):
        from notan.io.download import download_bytes  # what talks to the network loads slowly

        return decode_image(download_bytes(thing, MAX_BYTES), thing, reading)
    if isinstance(thing, (str, Path)):
        piped = read_pipe(Path(thing))
        if piped is None:
            return read_image(Path(thing), reading)
        return decode_image(piped, str(thing), reading)
    if isinstance(thing, (bytes, bytearray, memoryview)):
        return decode_image(bytes(thing), "the bytes that were given", reading)
    if isinstance(thing, Image.Image):
        name = str(getattr(thing, "filename", "") or "the Pillow image")
        return convert_image(thing, name, reading)
    if isinstance(thing, np.ndarray):
        return _from_array(thing, reading.channels)
    if isinstance(thing, Tensor):
        return _from_array(_array_of(thing, reading.channels), reading.channels)
    if callable(getattr(thing, "read", None)):
        return _from_file_object(thing, reading)
    raise ShapeError(
        f"a {type(thing).__name__} was given as an image; a path, an address, the bytes of a file, "
        "a binary file object, a Pillow image, a NumPy array or a torch tensor is wanted"
    )


def _from_file_object(file: BinaryFile, reading: ImageReading) -> Image8:
    name = str(getattr(file, "name", "the file object that was given"))
    content = bytearray()
    while True:  # a socket gives what it has, and is at its end only when it gives nothing
        try:
            piece: object = file.read(PIECE)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise DataError(f"{name}: could not be read ({error})") from error
        if not isinstance(piece, bytes):
            raise ShapeError(
                f"{name}: read() gave a {type(piece).__name__}; bytes are wanted: open the file "
                "with mode 'rb', and let it wait for them"
            )
        if not piece:
            break
        content += piece
        if len(content) > MAX_BYTES:
            raise DataError(f"{name}: holds more than {MAX_BYTES:,} bytes; give its path instead")
    if not content:
        raise DataError(
            f"{name}: gave no bytes; wanted those of an image: if it was read before, go back with "
            "seek(0)"
        )
    return decode_image(bytes(content), name, reading)


def _array_of(tensor: Tensor, channels: int) -> npt.NDArray[np.uint8]:
    """Return a tensor as an array with its channels last.

    Of (3, height, 3) and the like the first axis counts as the channels, as it does in torch.
    """
    plain = tensor.detach().cpu()
    # bfloat16 has no counterpart in NumPy
    array: npt.NDArray[Any] = (plain.float() if plain.is_floating_point() else plain).numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3, 4, channels):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.size == 0 or not np.issubdtype(array.dtype, np.floating):
        return array
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # so written, NaN is refused too
        raise ShapeError(
            f"a tensor of floats from {low:g} to {high:g} was given; 0..1 is wanted, before any "
            "normalising: the model file knows how to do that itself"
        )
    return np.round(array * np.float32(255)).astype(np.uint8)


def _from_array(array: npt.NDArray[np.uint8], channels: int) -> Image8:
    if channels != RGB_CHANNELS:
        return _from_channels(array, channels)
    if array.dtype == np.uint8 and array.size:
        if array.ndim == 2:
            return np.repeat(array[..., np.newaxis], 3, axis=2)
        if array.ndim == 3 and array.shape[2] in (3, 4):
            return array if array.shape[2] == 3 else array[..., :3]
    advice = ""
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (3, 4):
        advice = "; channels come last: array.transpose(1, 2, 0)"
    elif array.ndim == 4:
        advice = "; give one image at a time, or several to predict_many"
    elif array.dtype == np.bool_:
        advice = "; of a bool array, give array.astype('uint8') * 255"
    elif array.dtype == np.uint16:
        advice = "; of 16 bits, give (array / 257).round().astype('uint8')"
    elif np.issubdtype(array.dtype, np.floating):
        advice = "; of values 0..1, give (array * 255).round().astype('uint8')"
    raise ShapeError(
        f"an image of shape {array.shape} and type {array.dtype} was given; {_WANTED}{advice}"
    )


def _from_channels(array: npt.NDArray[np.uint8], channels: int) -> Image8:
    """Return an array of other channels than RGB as an image."""
    image = array[..., np.newaxis] if array.ndim == 2 else array
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels or not image.size:
        raise ShapeError(
            f"an image of shape {array.shape} and type {array.dtype} was given; uint8 of shape "
            f"(height, width, {channels}) is wanted, as in the images that the model learned from"
        )
    return image


@dataclass(frozen=True)
class Found:
    """A file to predict, and what its outputs are called.

    Attributes:
        name: Of its outputs, without a suffix; ``/`` where a folder tells it from another.
        path: The file; ``-`` for standard input.
        content: The file's bytes, of standard input, other pipes and what was fetched.
        fault: Why it could not be fetched.
    """

    name: str
    path: Path
    content: bytes | None = None
    fault: DataError | None = None


def find_inputs(words: Iterable[Path], *, standard_input: BinaryIO | None = None) -> list[Found]:
    """Return the files to predict in the order of the words, each with a name of its own.

    An output has its file's stem: ``cat`` for ``cat.jpg``. Where that would name two things alike,
    these keep their whole file names (``cat.jpg``, ``cat.png``), and where that is not enough their
    folders too (``monday/cat``, ``tuesday/cat``). Names differ in more than upper and lower case,
    which some disks do not tell apart, and they depend on the files alone.

    Args:
        words: Files, whatever they are called; folders, of which every image and video is taken;
            packed data likewise; addresses of the same in stores; lists (``lists.read_list``);
            patterns with ``*``, ``?`` or ``[a-z]``, and ``**`` for folders in folders; ``-`` for
            the bytes of one image on standard input. A named pipe, ``/dev/stdin`` and a shell's
            ``<(command)`` are read likewise.
        standard_input: Where ``-`` reads; None: the process's own.

    Raises:
        DataError: An input is missing, a folder or pattern has nothing to predict, nothing was
            given, or standard input or a pipe is empty, too large or fed by nobody.
    """
    paths = [path for word in words for path in _files(word)]
    if not paths:
        raise DataError("no images were given; name files, folders or patterns such as '*.jpg'")
    # by absolute path, so that a file that is named twice is predicted once
    unique: dict[str, Path] = {}
    for path in paths:
        unique.setdefault(os.path.abspath(path), path)  # noqa: PTH100 - links are kept as they are
    files = list(unique.values())
    names = _name(files)

    def content(path: Path) -> bytes | None:
        return _read_standard_input(standard_input) if path == STANDARD_INPUT else read_pipe(path)

    return [Found(names[path], path, content(path)) for path in files]


def is_in_store(out: Path) -> bool:
    """Say whether a place of outputs is an address; one with secrets in it is refused.

    Raises:
        DataError: It is such a one.
    """
    require_plain(out)
    return is_remote(out)


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
    inputs = {_resolved(file.path) for file in found if file.content is None}
    # whose frames or pages: clip for clip-000001.png
    parts = {path.parent / _PART.sub("", path.stem): path for path in sorted(inputs)}
    for file in found:
        is_sequence = file.path.suffix.lower() in _SEQUENCES
        for path in outputs(file.name):
            # the folder only: an output that is a link is itself replaced, not what it leads to
            place = _resolved(path.parent) / path.name
            taken = parts.get(place.with_suffix("")) if is_sequence else None
            if place in inputs or taken not in (None, _resolved(file.path)):
                raise ConfigError(
                    f"{shown(taken or place)}: is an input, and outputs of {shown(file.path)} "
                    "could replace it; choose another --out"
                )


def _resolved(path: Path) -> Path:
    return path if is_remote(path) else path.resolve()


def _files(word: Path) -> list[Path]:
    if word == STANDARD_INPUT:
        return [word]
    if is_remote(word):
        return _files_in_store(word)
    if word.is_dir() and (pack := find_pack(word)):
        return [pack.path_of(sample, sample.images[0]) for sample in pack.samples]
    if word.is_dir():
        files = _in_folder(word)
        if not files:
            raise DataError(f"{word}: there are no images in this folder")
        return files
    if word.exists():
        return read_list(word) if is_list(word) else [word]
    if glob.has_magic(str(word)):
        return _matching(word)
    raise DataError(f"{word}: there is no such image or folder")


def _files_in_store(word: Path) -> list[Path]:
    """Return the files that an address means."""
    require_plain(word)
    if is_list(word):
        return read_list(word)
    is_plain = not _is_image(word) and not {"*", "::"} & {*re.findall(r"\*|::", str(word))}
    if is_plain and (pack := find_pack(word)):
        return [pack.path_of(sample, sample.images[0]) for sample in pack.samples]
    try:
        files = find_files(word)
    except FileNotFoundError as error:
        is_web = shown(word).startswith(("http://", "https://"))  # fsspec keeps its answer back
        more = ", or its server shows it to nobody; try it in a browser" if is_web else ""
        raise DataError(f"{shown(word)}: there is no such image or folder{more}") from error
    if files != [word] and "*" not in str(word):
        files = [path for path in files if _is_image(path)]
    if not files:
        raise DataError(f"{shown(word)}: there are no images in this folder")
    return files


def _is_image(path: Path) -> bool:
    """Say by its name whether a file is an image or a video; hidden ones (``._x.jpg``) are none."""
    place = _whole(path)
    return place.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES and not place.name.startswith(".")


def _in_folder(folder: Path) -> list[Path]:
    """Return a folder's images and videos."""
    return sorted(path for path in folder.iterdir() if _is_image(path) and path.is_file())


def what_is_no_input(folder: Path) -> str:
    """Say what lies in a folder beside images and videos; may be empty."""
    return passed_over(folder, SUFFIXES | VIDEO_SUFFIXES)


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
    content = source.read(MAX_BYTES + 1)
    if not content:
        raise DataError("-: standard input was empty; wanted the bytes of one image")
    if len(content) > MAX_BYTES:
        raise DataError(f"-: more than {MAX_BYTES:,} bytes on standard input; name a file instead")
    return content


def _name(paths: Sequence[Path]) -> Mapping[Path, str]:
    """Give every file the shortest of its names that no other has."""
    whole = {path: _whole(path) for path in paths}
    shared = Path(os.path.commonpath([path.parent for path in whole.values()]))
    choices = {path: _choices(path, each, each.relative_to(shared)) for path, each in whole.items()}
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


def _whole(path: Path) -> Path:
    """Return where a file lies; of an address in another, such as zip://, the inner one counts."""
    if is_remote(path):
        return Path("/", str(path).partition("::")[0])
    return Path(os.path.abspath(path))  # noqa: PTH100 - links are kept as they are


def _choices(path: Path, whole: Path, relative: Path) -> list[str]:
    if path == STANDARD_INPUT:
        return ["stdin", "standard input"]
    return [whole.stem, whole.name, relative.with_suffix("").as_posix(), relative.as_posix()]


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
