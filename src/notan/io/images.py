"""Images from bytes to arrays, by Pillow: what a file holds is decided once, from its header.

Formats are told by signature, sizes are refused before pixels are decoded, and whatever a broken
file makes Pillow raise becomes a DataError. All of it may be called from many threads at once.

A file's name says nothing about its format: real data sets hold GIF and PNG files called ``.jpg``.
Of a file with several frames or pages the first one is read. The EXIF orientation is taken from
the header only, so that sizes and pixels cannot disagree; a PNG that states it after its pixels
(allowed, rare) is read as it is stored.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
import zlib
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from PIL.ImageFile import ImageFile

    from notan.types import RGBImage, Size

# Pillow's own limit for a warning: 256 MiB of RGB. A few kilobytes on disk can claim much more,
# and memory for the claim would be taken before the fraud shows.
MAX_PIXELS = 89_478_485
_TOO_LARGE = (
    f"at most {MAX_PIXELS:,} pixels are decoded at once; scale it down, cut it up, or, to predict "
    "it as it is, save it as a tiled TIFF, which notan predict reads part by part"
)

# Named one by one because Pillow also knows formats that run other programs (EPS starts
# Ghostscript) or have no signature, so that any file may pass for them (TGA).
_FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000", "AVIF")
_WANTED = "PNG, JPEG, GIF, TIFF, WebP, BMP, PPM, JPEG 2000 or AVIF"

# Some of these can also be lossless, which Pillow does not tell.
_LOSSY_FORMATS = frozenset({"JPEG", "MPO", "WEBP", "JPEG2000", "AVIF"})
_LOSSY_IN_TIFF = frozenset({"jpeg", "tiff_jpeg", "webp"})

# Pillow's plugins trust the file: broken bytes end in almost any error of the language.
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
    EOFError, RuntimeError, MemoryError, AssertionError, struct.error, zlib.error,
)  # fmt: skip

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset(_TURNS[orientation] for orientation in (5, 6, 7, 8))

_ONE_AT_A_TIME = threading.Lock()

_T = TypeVar("_T")


def read_image(path: Path) -> RGBImage:
    """Read an image file as 8-bit RGB, upright.

    Transparency is dropped and the colours beneath it are kept. 16-bit grey is divided by 257, so
    that its full range becomes 0..255; nothing is clipped. Float images may hold 0..1 or 0..255.

    Args:
        path: A PNG, JPEG, GIF, TIFF, WebP, BMP, PPM, JPEG 2000 or AVIF file of any name.

    Returns:
        uint8, (height, width, 3), RGB.

    Raises:
        DataError: The file is missing, unreadable, too large or of values out of range.
    """
    return read_header(path, lambda image: to_rgb(decode(image, str(path)), str(path)))


def decode_image(content: bytes | BinaryIO, name: str) -> RGBImage:
    """Read an image from the bytes of its file, or an open file, as ``read_image`` does.

    Args:
        content: The whole file; or open for reading, wherever it stands.
        name: What to call it in messages.

    Returns:
        uint8, (height, width, 3), RGB.

    Raises:
        DataError: As for ``read_image``.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    return guarded(lambda: to_rgb(decode(identify(file, name), name), name), name)


def convert_image(image: Image.Image, name: str) -> RGBImage:
    """Turn an image of Pillow's, opened by the caller, into an array as ``read_image`` does.

    Args:
        image: Of any mode; its EXIF orientation is applied.
        name: What to call it in messages.

    Returns:
        uint8, (height, width, 3), RGB.

    Raises:
        DataError: As for ``read_image``.
    """
    refuse_size((image.height, image.width), name)
    return guarded(lambda: to_rgb(ImageOps.exif_transpose(image), name), name)


def read_size(path: Path) -> Size:
    """Read an image's upright size from its header, without decoding a pixel.

    Returns:
        (height, width) in pixels, as ``read_image`` would return it.

    Raises:
        DataError: The file is missing, is no image or claims too large a size.
    """
    with opened(path) as file:
        return decode_size(file, str(path))


def decode_size(file: BinaryIO, name: str) -> Size:
    """Read the upright size of an image in an open file, as ``read_size`` does.

    Raises:
        DataError: As for ``read_size``.
    """

    def upright_size() -> Size:
        image = identify(file, name)
        width, height = image.size
        refuse_size((height, width), name)
        return (width, height) if _turn(image) in _SIDEWAYS else (height, width)

    return guarded(upright_size, name)


def read_format(path: Path) -> str:
    """Read which format a file really has, whatever its name says: ``"PNG"``, ``"JPEG"`` ...

    Raises:
        DataError: The file is missing, or is no image.
    """
    return read_header(path, lambda image: image.format or "unknown")


def read_header(path: Path, work: Callable[[ImageFile], _T]) -> _T:
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
        file = path.open("rb")
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
    """Run Pillow; whatever a broken file makes it raise becomes a DataError.

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
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: {str(error).rstrip('.')}; {_TOO_LARGE}") from error
    except _BROKEN as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{name}: is damaged or cut short ({reason}); wanted a whole image file; "
            "copy it again from its source, or leave it out"
        ) from error


def _without_warnings(work: Callable[[], _T]) -> _T:
    # Only here are the filters touched, under a lock, because they belong to the whole process
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


def identify(file: BinaryIO, name: str) -> ImageFile:
    """Find the format by its signature and read the header.

    ``Image.open`` would do the same, but it warns of large sizes on stderr, and silencing it
    means changing the warning filters of the whole process at every image.
    """
    Image.init()
    file.seek(0)
    start = file.read(16)
    for kind in _FORMATS:
        factory, accepts = Image.OPEN.get(kind, (None, None))
        if factory is not None and accepts is not None and accepts(start) is True:
            file.seek(0)
            # Without a file name, because Pillow would map that file into memory: a TIFF stored
            # sideways then comes out scrambled, and bytes may share the name of some other file.
            return factory(file, "")
    found = f"begins with {start!r}" if start else "is empty (0 bytes)"
    raise DataError(
        f"{name}: {found}; wanted an image as {_WANTED}; save it as one of these, or leave it out"
    )


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


def is_lossy(image: ImageFile) -> bool:
    """Say whether a format changes pixels to save bytes; some can also leave them."""
    return image.format in _LOSSY_FORMATS or image.info.get("compression") in _LOSSY_IN_TIFF


def decode(image: ImageFile, name: str) -> Image.Image:
    """Decode the pixels after a header, turn them upright and bring rare modes to RGB.

    Returns:
        Of the modes 1, L, LA, P, RGB, RGBA, F and those that begin with I.
    """
    refuse_size((image.height, image.width), name)
    turn = _turn(image)
    image.load()
    upright = image if turn is None else image.transpose(turn)
    if upright.mode in ("PA", "RGBa"):
        return upright.convert("RGBA")
    is_common = upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "F")
    return upright if is_common or upright.mode.startswith("I") else upright.convert("RGB")


def _turn(image: ImageFile) -> Image.Transpose | None:
    """Return the turn that the header's EXIF asks for."""
    if image.format == "TIFF":
        return None  # Pillow turns this format itself: its size and its pixels are upright
    try:
        # The base class's method, because the one for PNG decodes the pixels first.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except _BROKEN:
        return None  # broken EXIF is no reason to refuse good pixels
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def to_rgb(image: Image.Image, name: str) -> RGBImage:
    """Bring any mode of Pillow to 8-bit RGB, (height, width, 3).

    Raises:
        DataError: Float or 16-bit values out of range.
    """
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image)
        low, high = float(grey.min()), float(grey.max())
        is_float = grey.dtype.kind == "f"
        if not (low >= 0 and high <= (255 if is_float else 65535)):  # so written, NaN is refused
            wanted = "0..1 or 0..255" if is_float else "0..65535"
            raise DataError(
                f"{name}: its grey values reach from {low:g} to {high:g}; wanted {wanted}; "
                "scale them and save the image as 8-bit PNG"
            )
        scale = 1 / 257 if not is_float else 255 if high <= 1 else 1
        levels = np.round(grey * np.float32(scale)).astype(np.uint8)
        return np.repeat(levels[..., np.newaxis], 3, axis=2)
    # Pillow warns of palettes with transparency unless they pass through RGBA
    through = image.convert("RGBA") if image.mode == "P" else image
    return np.array(through.convert("RGB"))
