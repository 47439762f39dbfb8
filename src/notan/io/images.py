"""Images as bytes to arrays: what a file holds is decided here, once, from its content.

Pillow, kept on a leash: formats by signature, sizes before pixels, every failure a DataError.

Everything here may be called from many threads at once.

Reading image and mask files: by content, upright, checked for size before they are decoded.

Every reader here raises DataError, and only that, for a file it cannot read, and may be called
from many threads at once. How a mask's values are understood is written in
``notan.io.masks``.

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
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar, get_args

import numpy as np
from PIL import ExifTags, Image

from notan.config import TrimapBorder
from notan.errors import ConfigError, DataError, nearest
from notan.io.masks import (
    Bytes,
    Grey,
    MaskReading,
    describe_values,
    mask_from_bits,
    mask_from_colours,
    mask_from_grey,
    mask_from_palette,
    refuse_varying_alpha,
    values_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from PIL.ImageFile import ImageFile

    from notan.types import Mask, RGBImage, Size

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


class Decoded(NamedTuple):
    """A decoded first frame, and whether its format changes pixels to save bytes."""

    image: Image.Image
    lossy: bool


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


def guarded(work: Callable[[BinaryIO, str], _T], file: BinaryIO, name: str) -> _T:
    """Run Pillow on a file; whatever a broken one raises becomes a DataError."""
    return guarded_image(lambda: work(file, name), name)


def guarded_image(work: Callable[[], _T], name: str, *, once: bool = False) -> _T:
    """Run Pillow on an image that is open already, as ``guarded`` does.

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


def decode(file: BinaryIO, name: str) -> Decoded:
    """Decode the first frame, turn it upright and bring rare modes to RGB."""
    image = header(file, name)
    lossy = image.format in _LOSSY_FORMATS or image.info.get("compression") in _LOSSY_IN_TIFF
    turn = _turn(image)
    image.load()
    return Decoded(_common_mode(image if turn is None else image.transpose(turn)), lossy)


def decode_rgb(file: BinaryIO, name: str) -> RGBImage:
    """Decode the first frame as uint8, (height, width, 3), RGB, upright."""
    return rgb(decode(file, name).image, name)


def _common_mode(image: Image.Image) -> Image.Image:
    """Leave only the modes 1, L, LA, P, RGB, RGBA, F and those that begin with I."""
    if image.mode in ("PA", "RGBa"):
        return image.convert("RGBA")
    is_common = image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "F")
    return image if is_common or image.mode.startswith("I") else image.convert("RGB")


def upright_size(file: BinaryIO, name: str) -> Size:
    """Return (height, width) of the first frame as it is decoded, from the header alone."""
    image = header(file, name)
    width, height = image.size
    return (width, height) if _turn(image) in _SIDEWAYS else (height, width)


def header(file: BinaryIO, name: str) -> ImageFile:
    """Read a header and refuse a size that must not be decoded."""
    image = identified(file, name)
    refuse_size((image.size[1], image.size[0]), name)
    return image


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


def identified(file: BinaryIO, name: str) -> ImageFile:
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


def rgb(image: Image.Image, name: str) -> RGBImage:
    """Bring any mode of Pillow to 8-bit RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = _eight_bits(np.asarray(image), name)
        return np.repeat(grey[..., np.newaxis], 3, axis=2)
    # Pillow warns of palettes with transparency unless they pass through RGBA
    through = image.convert("RGBA") if image.mode == "P" else image
    return np.array(through.convert("RGB"))


def _eight_bits(grey: Grey, name: str) -> Bytes:
    """Scale 16-bit or float grey, (height, width), to 0..255."""
    low, high = float(grey.min()), float(grey.max())
    is_float = grey.dtype.kind == "f"
    limit = 255 if is_float else 65535
    if not (low >= 0 and high <= limit):  # so written, NaN is refused too
        wanted = "0..1 or 0..255" if is_float else "0..65535"
        raise DataError(
            f"{name}: its grey values reach from {low:g} to {high:g}; wanted {wanted}; "
            "scale them and save the image as 8-bit PNG"
        )
    scale = 1 / 257 if not is_float else 255 if high <= 1 else 1
    return np.round(grey * np.float32(scale)).astype(np.uint8)


__all__ = [
    "MAX_PIXELS",
    "MaskReading",
    "decode_image",
    "read_format",
    "read_header",
    "read_image",
    "read_mask",
    "read_size",
    "read_trimap",
]


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
    with opened(path) as file:
        return guarded(decode_rgb, file, str(path))


def decode_image(content: bytes, name: str) -> RGBImage:
    """Read an image from the bytes of its file, as ``read_image`` does.

    Args:
        content: The whole file.
        name: What to call it in messages.

    Returns:
        uint8, (height, width, 3), RGB.

    Raises:
        DataError: As for ``read_image``.
    """
    return guarded(decode_rgb, io.BytesIO(content), name)


def read_size(path: Path) -> Size:
    """Read an image's upright size from its header, without decoding a pixel.

    Returns:
        (height, width) in pixels, as ``read_image`` would return it.

    Raises:
        DataError: The file is missing, is no image or claims too large a size.
    """
    with opened(path) as file:
        return guarded(upright_size, file, str(path))


def read_format(path: Path) -> str:
    """Read which format a file really has, whatever its name says: ``"PNG"``, ``"JPEG"`` ...

    Raises:
        DataError: The file is missing, or is no image.
    """
    with opened(path) as file:
        return guarded(identified, file, str(path)).format or "unknown"


def read_header(path: Path, work: Callable[[ImageFile], _T]) -> _T:
    """Take something from an image's header, whatever size it claims; no pixel is decoded.

    Args:
        path: An image of any of the formats that are read.
        work: Is given the opened header, which closes afterwards.

    Raises:
        DataError: The file is missing, is no image, or its header is broken.
    """
    with opened(path) as file:
        return guarded(lambda file, name: work(identified(file, name)), file, str(path))


def read_mask(path: Path) -> MaskReading:
    """Read a mask of two classes, upright, by the rule written in ``notan.io.masks``.

    Returns:
        The mask, bool, (height, width), True = foreground; and the encoding that was found.

    Raises:
        DataError: The file is unreadable, or its values can mean more than one thing.
    """
    name = str(path)
    with opened(path) as file:
        image, lossy = guarded(decode, file, name)
    if image.mode == "1":
        return mask_from_bits(np.array(image))
    if image.mode == "P":
        return mask_from_palette(np.asarray(image), _palette(image), name=name)
    grey_or_colour = _without_alpha(image, name)
    if grey_or_colour.ndim == 3:
        return mask_from_colours(grey_or_colour, name=name, lossy=lossy)
    return mask_from_grey(grey_or_colour, name=name, lossy=lossy)


def read_trimap(path: Path, trimap_border: TrimapBorder) -> tuple[Mask, Mask | None]:
    """Read a trimap of the Oxford-IIIT pets: 1 = pet, 2 = background, 3 = border.

    Args:
        path: The trimap; grey values or palette indices.
        trimap_border: ``"foreground"``: the border belongs to the pet; ``"background"``: it does
            not; ``"ignore"``: it does not, and is left out of loss and score.

    Returns:
        The mask, bool, (height, width), True = foreground; and the ignored pixels, bool, of the
        same shape, or None when nothing is ignored.

    Raises:
        DataError: The file is unreadable or holds values other than 1, 2 and 3.
        ConfigError: There is no such border rule.
    """
    if trimap_border not in get_args(TrimapBorder):
        raise ConfigError(
            f"trimap_border = '{trimap_border}' is no "
            f"rule{nearest(trimap_border, get_args(TrimapBorder))}"
        )
    name = str(path)
    with opened(path) as file:
        image = guarded(decode, file, name).image
    labels: Grey = np.asarray(image) if image.mode in ("P", "1") else _without_alpha(image, name)
    if labels.ndim == 3:
        raise DataError(
            f"{name}: a {image.mode} image; wanted a trimap of 1 (pet), 2 (background) and "
            "3 (border) in grey or palette; check that this is the trimap and not its image"
        )
    values = values_of(labels)
    if not {1, 2, 3}.issuperset(values):
        raise DataError(
            f"{name}: holds {describe_values(values)}; a trimap holds 1 (pet), 2 (background) and "
            "3 (border) only; read a mask of two classes as a folder of images and masks"
        )
    is_border = labels == 3
    mask = labels != 2 if trimap_border == "foreground" else labels == 1
    return mask, is_border if trimap_border == "ignore" else None


def _palette(image: Image.Image) -> Bytes:
    """Return the palette as uint8, (256, 3); a short one is filled up with black."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    flat = np.array(image.getpalette("RGB") or [], dtype=np.uint8)
    colours.reshape(-1)[: flat.size] = flat
    return colours


def _without_alpha(image: Image.Image, name: str) -> Grey:
    """Return grey as (height, width) or colour as (height, width, 3), if alpha is constant."""
    pixels: Grey = np.asarray(image)
    if image.mode not in ("LA", "RGBA"):
        return pixels
    refuse_varying_alpha(pixels[..., -1], name=name)
    return pixels[..., 0] if image.mode == "LA" else pixels[..., :3]
