"""What a file holds, from its header: which format it is, or what else, and how it can be read.

Formats are told by signature, sizes are refused before pixels are decoded, and a file that cannot
be read gets one of five answers, each with its remedy: it is not an image, over a limit, of a kind
that is not read, cut short, or damaged. All of it may be called from many threads at once.

A file's name says nothing about its format: real data sets hold GIF and PNG files called ``.jpg``.
Where a file can be read in more than one way, ``Contents`` says what an image's reading chooses.
A mask with such a choice is refused (``notan.io.masks``).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import struct
import threading
import warnings
import zlib
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeAlias, TypeVar

import tifffile
from PIL import ExifTags, Image
from PIL import TiffImagePlugin as Tiff
from PIL.ImageFile import ImageFile

from notan.errors import DataError, UnsupportedError
from notan.io.foreign import COPY, MOST_PAGES, TRANSPARENCY, ForeignTiff, as_foreign
from notan.io.npy import NpyArray, read_npy
from notan.io.packed import open_file
from notan.io.signatures import NPY, RAW, find_format, heif_opener, without_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from notan.types import Size

# Pillow's own limit for a warning: 256 MiB of RGB. A few kilobytes on disk can claim much more,
# and memory for the claim would be taken before the fraud shows.
MAX_PIXELS = 89_478_485
_TOO_LARGE = (
    f"at most {MAX_PIXELS:,} pixels are decoded at once; scale it down, cut it up, or, to predict "
    "it as it is, save it as a tiled TIFF, which notan predict reads part by part"
)

# Some of these can also be lossless, which Pillow does not tell.
_LOSSY_FORMATS = frozenset({"JPEG", "MPO", "WEBP", "JPEG2000", "AVIF", "HEIF"})
_LOSSY_IN_TIFF = frozenset({"jpeg", "tiff_jpeg", "webp"})

# Pillow's plugins trust the file: broken bytes end in almost any error of the language.
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
    EOFError, RuntimeError, MemoryError, AssertionError, struct.error, zlib.error,
)  # fmt: skip

_UNSUPPORTED = (
    "unknown pixel mode", "unknown data organization", "not available", "not supported",
    "unsupported", "requires the 'imagecodecs' package",
)  # fmt: skip
"""What Pillow and tifffile say of a healthy file that they cannot decode."""

_NO_MODE = (
    "unknown pixel mode", "string index out of range", "Invalid value for samples per pixel",
)  # fmt: skip
"""Pillow's own words for TIFFs that it has no mode for, whose grey channels lie apart, or that
have more than six."""

logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # what it logs, it also raises

_CUT_SHORT = ("truncated", "buffer is not large enough", "not enough data", "unexpected end")

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what brings the stored pixels upright."""

_SIDEWAYS = frozenset(TURNS[orientation] for orientation in (5, 6, 7, 8))

_ONE_AT_A_TIME = threading.RLock()  # a page is sought while its file is read

SUBFILE_TYPE, SUB_IFDS, DNG_VERSION = 254, 330, 50706

WHITE_IS_ZERO, GREY, CFA, LINEAR_RAW = 0, 1, 32803, 34892
FAX_COMPRESSIONS = (2, 3, 4)
UNSIGNED, SIGNED = 1, 2
"""Values of SampleFormat."""

ALPHA_MODES = ("LA", "PA", "La", "RGBA", "RGBa")
DROPPED = "dropped"
PAGES = "several pages or frames; the first is read"
CHANNELS_IN_PAGES = ("channels=", '"CYX"', "SizeC=")
"""What ImageJ, tifffile and OME write where the pages of a TIFF may be channels of one image."""

_T = TypeVar("_T")


Header: TypeAlias = ImageFile | ForeignTiff | NpyArray
"""An image file whose header was read and whose pixels were not."""


class Contents(NamedTuple):
    """What the header of an image file says.

    Attributes:
        size: (height, width), upright.
        pages: Images of their own in the file: pages of a TIFF, frames of an animation.
        orientation: How EXIF says that the stored pixels are turned, 1 (not at all) to 8.
        deep: Whether there may be more than 8 bits a channel.
        channels: The numbers of channels that it can be read as, as ``channel_counts`` has them.
        choices: What reading it as one grey or RGB image chooses among several readings.
    """

    size: Size
    pages: int
    orientation: int
    deep: bool
    channels: tuple[int, ...]
    choices: tuple[str, ...]

    def choices_for(self, channels: int) -> Iterator[str]:
        """Say what is chosen where the file is read as so many channels."""
        for choice in self.choices:
            is_kept = choice == PAGES and 1 < self.pages == channels == self.channels[0]
            if not is_kept and (channels in (1, 3) or not choice.endswith(DROPPED)):
                yield choice


def read_contents(path: Path, *, upright: bool = True) -> Contents:
    """Read from its header what an image file holds; no pixel is decoded.

    Args:
        path: The file.
        upright: Whether its EXIF orientation is applied.

    Raises:
        DataError: The file is missing, is no image, or claims too large a size.
    """
    name = str(path)
    return read_header(path, lambda header: _contents(header, name, upright=upright))


def decode_contents(file: BinaryIO, name: str) -> Contents:
    """Read from its header what an image in an open file holds, as ``read_contents`` does.

    Raises:
        DataError: As for ``read_contents``.
    """
    return guarded(lambda: _contents(identify(file, name), name), name)


def _contents(header: Header, name: str, *, upright: bool = True) -> Contents:
    pages = count_pages(header, name)
    choices = list(header_choices(header))
    if pages > 1:
        choices.insert(0, PAGES)
    return Contents(
        header_size(header, name, upright=upright),
        pages,
        find_orientation(header),
        is_deep(header),
        channel_counts(header),
        tuple(choices),
    )


def read_size(path: Path, *, upright: bool = True) -> Size:
    """Read an image's upright size from its header, without decoding a pixel.

    Args:
        path: The image.
        upright: Whether its EXIF orientation is applied.

    Returns:
        (height, width) in pixels, as ``read_image`` would return it.

    Raises:
        DataError: The file is missing, is no image or claims too large a size.
    """
    return read_header(path, lambda header: header_size(header, str(path), upright=upright))


def header_size(header: Header, name: str, *, upright: bool = True) -> Size:
    """Return (height, width), after the turn that EXIF asks for where that is applied.

    Raises:
        DataError: No pixels, or too many.
    """
    width, height = header.size
    refuse_size((height, width), name)
    refuse_turned(header, name, upright=upright)
    is_turned = upright and find_turn(header) in _SIDEWAYS
    return (width, height) if is_turned else (height, width)


def read_format(path: Path) -> str:
    """Read which format a file really has, whatever its name says: ``"PNG"``, ``"JPEG"`` ...

    Raises:
        DataError: The file is missing, or is no image.
    """
    return read_header(path, lambda header: header.format or "unknown")


def read_header(path: Path, work: Callable[[Header], _T]) -> _T:
    """Do something with an image whose header was read, whatever size that claims.

    Args:
        path: An image of any of the formats that are read.
        work: Is given the image, whose file closes afterwards; it may decode it.

    Raises:
        DataError: The file is missing, is no image, or is broken.
    """
    name = str(path)
    with opened(path) as file:
        return guarded(lambda: work(identify(file, name)), name)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, or say why that is impossible."""
    try:
        file = open_file(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise DataError(_why_not_opened(path, error)) from error
    with file:
        yield file


def _why_not_opened(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path}: there is no such file; wanted an image or mask; check the path"
    if isinstance(error, IsADirectoryError) or path.is_dir():  # Windows calls it a PermissionError
        return f"{path}: is a folder; wanted one image or mask; name a file in it"
    reason = getattr(error, "strerror", None) or str(error)
    return (
        f"{path}: could not be opened ({reason}); wanted an image or mask; "
        "check its permissions and the disk it lies on"
    )


def guarded(work: Callable[[], _T], name: str, *, once: bool = False) -> _T:
    """Run Pillow or tifffile; whatever a file makes them raise becomes a DataError.

    Args:
        work: What to do.
        name: What to call the image in messages.
        once: Whether the work, ended half-way by a warning, could not be begun again.
    """
    try:
        try:
            return _without_warnings(work) if once else work()
        except Warning:
            # The program turns warnings into errors, and Pillow warns of blemishes such as a
            # cut EXIF block: the file must read as it would elsewhere.
            return _without_warnings(work)
    except MemoryError as error:
        raise DataError(
            f"{name}: memory ran out while it was read; scale it down, cut it up, or give the "
            "machine more memory"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: {str(error).rstrip('.')}; {_TOO_LARGE}") from error
    except _BROKEN as error:
        raise _explained(name, error) from error


def _explained(name: str, error: Exception) -> DataError:
    """Say of what a decoder raised whether the file is of another kind, cut short or damaged."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if any(words in str(error).lower() for words in _UNSUPPORTED):
        return UnsupportedError(
            f"{name}: is an image of a kind that is not read ({reason}); save it as an 8-bit PNG, "
            "or as a TIFF without compression"
        )
    cut = isinstance(error, EOFError) or any(words in str(error).lower() for words in _CUT_SHORT)
    return DataError(
        f"{name}: {'is cut short' if cut else 'is damaged'} ({reason}); wanted a whole image "
        "file; copy it again from its source, or leave it out"
    )


def _without_warnings(work: Callable[[], _T]) -> _T:
    # Only here are the filters touched, under a lock, because they belong to the whole process
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


def identify(file: BinaryIO, name: str) -> Header:
    """Find the format by its signature and read the header.

    ``Image.open`` would do the same, but it warns of large sizes on stderr, and silencing it
    means changing the warning filters of the whole process at every image.

    Raises:
        DataError: It is no image.
        UnsupportedError: It is one of a kind that is not read.
    """
    kind = find_format(file, name)
    file = without_texts(file) if kind == "PNG" else file
    file.seek(0)
    if kind == NPY:
        return read_npy(file, name)
    if kind == "TIFF":
        return _identify_tiff(file, name)
    if kind == "HEIF" and (opener := heif_opener()):
        return opener(file, "")
    # Without a file name, because Pillow would map that file into memory: a TIFF stored
    # sideways then comes out scrambled, and bytes may share the name of some other file.
    return Image.OPEN[kind][0](file, "")


def _identify_tiff(file: BinaryIO, name: str) -> Header:
    """Open a TIFF with Pillow, or with tifffile where Pillow would misread it or cannot read it.

    Raises:
        UnsupportedError: It is a camera's raw file, whose first page is a thumbnail.
    """
    try:
        image = Image.OPEN["TIFF"][0](file, "")
    except SyntaxError as error:
        if str(error) not in _NO_MODE:
            raise
        return as_foreign(file)
    tags: Tiff.ImageFileDirectory_v2 = image.tag_v2  # type: ignore[attr-defined]
    colours = tags.get(Tiff.PHOTOMETRIC_INTERPRETATION)
    is_preview = SUB_IFDS in tags and int(tags.get(SUBFILE_TYPE, 0) or 0) & COPY
    if DNG_VERSION in tags or colours in (CFA, LINEAR_RAW) or is_preview:
        raise UnsupportedError(f"{name}: is {RAW}; or leave it out")
    samples = tags.get(Tiff.SAMPLESPERPIXEL, 1)
    bits, signs = (first(tags.get(tag, 1)) for tag in (Tiff.BITSPERSAMPLE, Tiff.SAMPLEFORMAT))
    # Of two grey channels Pillow takes the first without a word; signed bytes and unsigned
    # 32-bit numbers change their values in its modes
    loses_channels = colours in (WHITE_IS_ZERO, GREY) and samples > len(image.getbands())
    if loses_channels or (bits, signs) in ((8, SIGNED), (32, UNSIGNED)):
        return as_foreign(file)
    return image


def first(value: object) -> object:
    """Return the first of a TIFF tag's values; one number stands for itself."""
    return value[0] if isinstance(value, tuple) else value


def header_choices(header: Header) -> Iterator[str]:
    """Say, from its header, what reading a file as an image chooses among several readings."""
    if not isinstance(header, ImageFile):
        return
    if is_white_zero(header):
        yield "WhiteIsZero: shown as it says, 0 in white"
    if header.mode in ALPHA_MODES or "transparency" in header.info:
        yield "transparency, which is dropped"
    if header.format == "HEIF" and int(getattr(header, "n_frames", 1)) > 1:
        yield "several images; the main one is read"
    if count_extra(header):
        yield "channels beyond the colours, which are dropped"


def count_extra(header: Header) -> int:
    """Return how many channels a TIFF of Pillow's has beside its colours, transparency aside."""
    if not isinstance(header, Tiff.TiffImageFile) or header.mode not in ("RGB", "CMYK"):
        return 0
    return len(header.tag_v2.get(Tiff.EXTRASAMPLES, ()))


def channel_counts(header: Header) -> tuple[int, ...]:
    """Return the numbers of channels that a file can be read as, the one that it states first.

    Grey is one channel and may be widened to three. Transparency is one only if it is asked for.
    """
    if isinstance(header, ImageFile):
        grey = header.mode in ("1", "L", "LA", "La") or header.mode[:1] in ("I", "F")
        count = 1 if grey else 3
        samples = count + (header.mode in ALPHA_MODES or "transparency" in header.info)
        extra = count_extra(header) if header.mode == "RGB" else 0
        stated = count_page_channels(header) or count + extra
    elif isinstance(header, ForeignTiff):
        samples = header.samples
        stated = samples - header.transparent if header.colours else samples
        count = 3 if header.colours else samples
    else:
        samples = stated = count = header.channels
    widened = 3 if count == 1 else count
    return tuple(dict.fromkeys((stated, count, widened, samples)))


def count_page_channels(header: Header) -> int:
    """Return how many pages of a TIFF are said to be the channels of one image; 0: none are."""
    if not isinstance(header, Tiff.TiffImageFile) or header.fp is None:
        return 0
    told = str(header.tag_v2.get(Tiff.IMAGEDESCRIPTION, ""))
    if not any(words in told for words in CHANNELS_IN_PAGES):
        return 0
    header.fp.seek(0)
    with tifffile.TiffFile(header.fp) as tiff:
        one, *others = tiff.series
        return int(one.shape[0]) if one.axes == "CYX" and not others else 0


def is_deep(header: Header) -> bool:
    """Say whether a file has more than 8 bits a channel, or what Pillow has no mode for."""
    if isinstance(header, NpyArray):
        return header.dtype.itemsize > 1
    if isinstance(header, ForeignTiff):
        return True
    return header.mode in ("I", "F") or ";16" in str(header.tile)


def is_white_zero(header: Header) -> bool:
    """Say whether an image is a TIFF that shows the value 0 as white."""
    return (
        isinstance(header, Tiff.TiffImageFile)
        and header.tag_v2.get(Tiff.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO
    )


def stored_bits_count(header: Header) -> bool | None:
    """Say whether the foreground of a WhiteIsZero mask is what is stored as set; None: unclear.

    tifffile marks boolean arrays so without inverting them: what is stored is meant. In a fax
    compression the mark is the norm, and its writers (Pillow, ImageMagick, libtiff) invert the
    bits: what is shown is meant. Others do either.
    """
    if not isinstance(header, ImageFile):
        return True  # numbers of a kind that only scientific programs write
    tags: Tiff.ImageFileDirectory_v2 = header.tag_v2  # type: ignore[attr-defined]
    if tags.get(Tiff.COMPRESSION) in FAX_COMPRESSIONS:
        return False
    return True if str(tags.get(Tiff.SOFTWARE, "")).startswith("tifffile") else None


def count_pages(header: Header, name: str) -> int:
    """Return how many images of their own a file holds: pages of a TIFF, frames of an animation."""
    if isinstance(header, ForeignTiff):
        return len(header.pages)
    if isinstance(header, NpyArray):
        return 1
    if isinstance(header, Tiff.TiffImageFile):
        numbers, _ = find_pages(header, name)
        header.seek(0)
        return len(numbers)
    if header.format in ("MPO", "HEIF"):
        return 1  # the others are the camera's own previews, or the second eye
    return int(getattr(header, "n_frames", 1))


def find_pages(image: Tiff.TiffImageFile, name: str) -> tuple[list[int], DataError | None]:
    """Find the pages of a TIFF that are images of their own; no pixel is decoded.

    Reduced copies, transparency masks and the levels of a pyramid are none, nor is what a slide
    scanner adds to the slide: its label, a macro photograph, a thumbnail.

    Args:
        image: The current page is another one afterwards.
        name: What to call it in messages.

    Returns:
        Their numbers, from 0, at least one; and why no further page was found, where the file is
        damaged after some good ones.

    Raises:
        DataError: It has too many pages.

    Source: TIFF 6.0, Adobe 1992, page 36 (NewSubfileType). A chain of pages that leads back into
        itself ends where it would begin again. Aperio's scanners (ImageDescription begins with
        their name) mark no level of their pyramids.
    """
    sizes: dict[int, tuple[int, int]] = {}
    fault = None
    is_slide = str(image.tag_v2.get(Tiff.IMAGEDESCRIPTION, "")).startswith("Aperio")
    for number in range(MOST_PAGES + 1):
        try:
            if not seek_page(image, number, name) or (is_slide and number):
                break
        except DataError as error:
            # After a lone page, programs do leave rubbish behind its end
            fault = error if len(sizes) > 1 else None
            break
        if not int(image.tag_v2.get(SUBFILE_TYPE, 0) or 0) & (COPY | TRANSPARENCY):
            sizes[number] = image.size
    else:
        raise DataError(f"{name}: has more than {MOST_PAGES:,} pages; split it into several files")
    numbers = list(sizes) or [0]
    steps = itertools.pairwise(sizes.values())
    is_pyramid = len(sizes) > 1 and all(_is_half(*step) for step in steps)
    return (numbers[:1] if is_pyramid else numbers), fault


def _is_half(larger: tuple[int, int], smaller: tuple[int, int]) -> bool:
    """Say whether a page is the next level of a pyramid: half as large, rounded either way."""
    return all(
        whole > 1 and whole // 2 <= half <= (whole + 1) // 2
        for whole, half in zip(larger, smaller, strict=True)
    )


def seek_page(image: Tiff.TiffImageFile, number: int, name: str) -> bool:
    """Make a page the current one; False where the file ends before it.

    Raises:
        DataError: The file is damaged there.
    """

    def seek() -> bool:
        try:
            image.seek(number)
        except EOFError:
            return False
        return True

    # A warning that became an error would leave Pillow's list of pages longer than the file's
    return guarded(seek, f"{name}, page {number + 1}", once=True)


def refuse_size(size: Size, name: str) -> None:
    """Refuse a (height, width) that must not be decoded.

    Raises:
        DataError: No pixels, or more than ``MAX_PIXELS``.
    """
    height, width = size
    if width < 1 or height < 1:
        raise DataError(
            f"{name}: its header claims {height}x{width} pixels (height x width); wanted at least "
            "1x1; make the file again, or leave it out"
        )
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: its header claims {height}x{width} (height x width), {width * height:,} "
            f"pixels; {_TOO_LARGE}"
        )


def refuse_turned(header: Header, name: str, *, upright: bool) -> None:
    """Refuse to read as it is stored what only comes upright from its decoder.

    Raises:
        UnsupportedError: It is a HEIC file that was turned.
    """
    if not upright and header.format == "HEIF" and header.info.get("original_orientation") in TURNS:
        raise UnsupportedError(
            f"{name}: is HEIC, which is turned upright by its decoder; to read images as they are "
            "stored (data.exif_orientation = ignore), save it as PNG before masks are drawn on it"
        )


def is_lossy(header: Header) -> bool:
    """Say whether a format changes pixels to save bytes; some can also leave them."""
    return header.format in _LOSSY_FORMATS or header.info.get("compression") in _LOSSY_IN_TIFF


def find_turn(header: Header) -> Image.Transpose | None:
    """Return the turn that the header's EXIF asks for and that Pillow does not do itself."""
    if header.format == "TIFF":
        return None  # Pillow turns this format: its size and its pixels are upright
    return TURNS.get(find_orientation(header))


def find_orientation(header: Header) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where none, or none that can be read, is stated."""
    if not isinstance(header, ImageFile):
        return 1
    if header.format == "TIFF":
        orientation = header.tag_v2.get(ExifTags.Base.Orientation)  # type: ignore[attr-defined]
    else:
        try:
            # The base class's method, because the one for PNG decodes the pixels first.
            orientation = Image.Image.getexif(header).get(ExifTags.Base.Orientation)
        except _BROKEN:
            return 1  # broken EXIF is no reason to refuse good pixels
    return orientation if isinstance(orientation, int) and orientation in TURNS else 1
