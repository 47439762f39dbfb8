"""Images from bytes to arrays: decoded by Pillow, or by tifffile where Pillow cannot.

Of a file with several frames or pages the first one is read. The EXIF orientation is taken from
the header only, so that sizes and pixels cannot disagree; a PNG that states it after its pixels
(allowed, rare) is read as it is stored. ``notan.io.headers`` says what else is chosen, and what a
file that cannot be read is.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from notan.errors import DataError, UnsupportedError
from notan.io.headers import (
    WHITE_IS_ZERO,
    ForeignTiff,
    find_orientation,
    find_pages,
    find_turn,
    guarded,
    identify,
    is_deep,
    is_white_zero,
    read_header,
    refuse_size,
)

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.ImageFile import ImageFile

    from notan.io.headers import Header
    from notan.types import RGBImage

Number = TypeVar("Number", bound=np.generic)

FULL_DEPTH = 65535
"""The 16-bit value that is read as white, 255, unless a data set uses fewer bits."""


class Raster(NamedTuple):
    """Decoded pixels, upright, with the values that the file stores.

    Attributes:
        values: (height, width), or (height, width, channels); of any type of numbers, or bool.
        palette: uint8, (256, 3): the colours that the values are indices of; None: they are none.
        alpha: uint8, (height, width): the transparency; None: there is none.
        white_is_zero: Whether 0 is shown in white.
    """

    values: npt.NDArray[Any]
    palette: npt.NDArray[np.uint8] | None = None
    alpha: npt.NDArray[np.uint8] | None = None
    white_is_zero: bool = False


def read_image(path: Path, *, white: int = FULL_DEPTH, upright: bool = True) -> RGBImage:
    """Read an image file as 8-bit RGB, upright.

    Transparency is dropped and the colours beneath it are kept. 16-bit values are scaled so that
    ``white`` becomes 255; nothing below it is clipped. Floats may hold 0..1 or 0..255.

    Args:
        path: A PNG, JPEG, GIF, TIFF, WebP, BMP, PPM, JPEG 2000 or AVIF file of any name.
        white: Of 16-bit data, the value that is read as 255: 4095 for 12 bits in use.
        upright: Apply the EXIF orientation; False: leave the pixels as they are stored.

    Returns:
        uint8, (height, width, 3), RGB.

    Raises:
        DataError: The file is missing, unreadable, too large or of values out of range.
    """

    def read(header: Header) -> RGBImage:
        pixels = decode(header, str(path), upright=upright, deep=white != FULL_DEPTH)
        return to_rgb(pixels, str(path), white=white)

    return read_header(path, read)


def decode_image(content: bytes | BinaryIO, name: str, *, white: int = FULL_DEPTH) -> RGBImage:
    """Read an image from the bytes of its file, or an open file, as ``read_image`` does.

    Args:
        content: The whole file; or open for reading, wherever it stands.
        name: What to call it in messages.
        white: As for ``read_image``.

    Returns:
        uint8, (height, width, 3), RGB.

    Raises:
        DataError: As for ``read_image``.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    deep = white != FULL_DEPTH
    return guarded(
        lambda: to_rgb(decode(identify(file, name), name, deep=deep), name, white=white), name
    )


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
    return guarded(lambda: to_rgb(pixels_of(ImageOps.exif_transpose(image)), name), name)


def read_peak(path: Path) -> int:
    """Return the largest value of an image of 16 bits a channel; 0 for any other image.

    Raises:
        DataError: It cannot be read.
    """

    def peak(header: Header) -> int:
        if not is_deep(header):
            return 0
        values = decode(header, str(path), deep=True).values
        return int(values.max()) if values.dtype.kind in "iu" and values.itemsize > 1 else 0

    return read_header(path, peak)


def decode(
    header: Header, name: str, *, page: int = 0, upright: bool = True, deep: bool = False
) -> Raster:
    """Decode the pixels after a header, and turn them upright.

    Args:
        header: What the file holds.
        name: What to call it in messages.
        page: Which of the pages or frames that ``count_pages`` counts, from 0.
        upright: Apply the EXIF orientation.
        deep: Keep the 16 bits of colours, of which Pillow drops the lower eight.

    Raises:
        DataError: Too large, cut short or damaged.
    """
    refuse_size((header.size[1], header.size[0]), name)
    if isinstance(header, ForeignTiff):
        return _decode_foreign(header, page, name)
    if page:
        numbers = (
            find_pages(header, name)[0] if isinstance(header, TiffImageFile) else range(page + 1)
        )
        header.seek(numbers[page])
        refuse_size((header.size[1], header.size[0]), name)
    turn = find_turn(header) if upright else None
    if deep and header.mode in ("RGB", "RGBA") and is_deep(header):
        return _decode_deep(header, name, upright=upright)
    return decode_current(header, turn)


def decode_current(header: ImageFile, turn: Image.Transpose | None = None) -> Raster:
    """Decode the page of an image that is the current one, and turn it."""
    header.load()
    pixels = pixels_of(header if turn is None else header.transpose(turn))
    if not is_white_zero(header):
        return pixels
    # Pillow has inverted what has up to eight bits; what is stored counts here
    stored = pixels.values
    if stored.dtype == np.bool_:
        stored = ~stored
    elif stored.dtype == np.uint8:
        stored = 255 - stored
    return Raster(stored, white_is_zero=True)


def _decode_foreign(header: ForeignTiff, number: int, name: str) -> Raster:
    """Decode a page of a TIFF by tifffile, channels last."""
    header.file.seek(0)
    with tifffile.TiffFile(header.file) as tiff:
        page = tiff.pages[header.pages[number][0]].aspage()
        refuse_size((page.imagelength, page.imagewidth), name)
        _refuse_gaps(page, header.file, name)
        values = page.asarray()
        order = [page.axes.find(axis) for axis in "YXS"]
        if page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"axes {page.axes} are not supported")
        white_is_zero = page.photometric == WHITE_IS_ZERO
    values = values if values.ndim == 2 else values.transpose(order)
    if values.shape[:2] != header.pages[number][1][::-1]:
        raise ValueError(f"{values.shape[0]}x{values.shape[1]} pixels were found")
    return Raster(values, white_is_zero=white_is_zero)


def _refuse_gaps(page: tifffile.TiffPage, file: BinaryIO, name: str) -> None:
    """Refuse a page whose strips or tiles are not all there: tifffile would fill them with zeros.

    Raises:
        DataError: They are not.
    """
    length = file.seek(0, io.SEEK_END)
    places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    missing = [1 for place, count in places if count < 1 or place + count > length]
    if missing or len(places) != math.prod(page.chunked):
        raise DataError(
            f"{name}: is cut short or damaged ({len(missing)} of {len(places)} parts are not "
            "there); wanted a whole image file; copy it again from its source, or leave it out"
        )


def _decode_deep(header: ImageFile, name: str, *, upright: bool) -> Raster:
    """Decode the 16-bit colours of a PNG or TIFF by OpenCV, which keeps them; alpha is dropped.

    Like Pillow, OpenCV turns a TIFF upright itself, and no other format when asked for its bits.
    """
    orientation = find_orientation(header) if upright and header.format != "TIFF" else 1
    file = header.fp
    if file is None:
        raise ValueError("the file is closed")
    file.seek(0)
    encoded = np.frombuffer(file.read(), np.uint8)
    colours = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if colours is None or colours.dtype != np.uint16 or colours.ndim != 3:
        raise UnsupportedError(
            f"{name}: its 16-bit colours cannot be read; save it as a TIFF without compression"
        )
    return Raster(turn_upright(colours[..., 2::-1], orientation))


def turn_upright(stored: npt.NDArray[Number], orientation: int) -> npt.NDArray[Number]:
    """Turn an array (height, width, ...) as its EXIF orientation, 1 to 8, asks."""
    values = stored.swapaxes(0, 1) if orientation >= 5 else stored
    # after the exchange of rows and columns: 90 degrees to the right are a transpose and a mirror
    down, across = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return values[:: -1 if down else 1, :: -1 if across else 1]


def pixels_of(image: Image.Image) -> Raster:
    """Return the pixels of a decoded image of Pillow's, of any mode."""
    if image.mode in ("PA", "RGBa", "La"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode in ("LA", "RGBA"):
        values = np.asarray(image)
        colours = values[..., 0] if image.mode == "LA" else values[..., :3]
        return Raster(colours, alpha=values[..., -1])
    if image.mode == "P":
        return Raster(np.asarray(image), _palette(image), _palette_alpha(image))
    if image.mode in ("1", "L", "RGB", "F") or image.mode.startswith("I"):
        values = np.asarray(image)
        return Raster(values, alpha=_keyed_alpha(image, values))
    return Raster(np.asarray(image.convert("RGB")))


def _palette(image: Image.Image) -> npt.NDArray[np.uint8]:
    colours = np.zeros((256, 3), dtype=np.uint8)  # a short palette is filled up with black
    flat = np.array(image.getpalette("RGB") or [], dtype=np.uint8)
    colours.reshape(-1)[: flat.size] = flat
    return colours


def _palette_alpha(image: Image.Image) -> npt.NDArray[np.uint8] | None:
    """Return the transparency of indices: of each its own, or of one index alone."""
    told = image.info.get("transparency")
    if told is None:
        return None
    of_index = np.full(256, 255, np.uint8)
    if isinstance(told, bytes):
        of_index[: len(told)] = np.frombuffer(told[:256], np.uint8)
    else:
        of_index[told] = 0
    alpha: npt.NDArray[np.uint8] = of_index[np.asarray(image)]
    return alpha


def _keyed_alpha(image: Image.Image, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8] | None:
    """Return the transparency where one grey value or colour is said to be transparent."""
    told = image.info.get("transparency")
    if told is None or isinstance(told, bytes):
        return None
    same = values == np.asarray(told)
    return np.where(same.all(axis=2) if same.ndim == 3 else same, 0, 255).astype(np.uint8)


def to_rgb(pixels: Raster, name: str, *, white: int = FULL_DEPTH) -> RGBImage:
    """Bring decoded pixels to 8-bit RGB, (height, width, 3).

    Args:
        pixels: Grey, colours or indices.
        name: What to call the image in messages.
        white: Of integers above eight bits, the value that becomes 255.

    Raises:
        DataError: Values out of range.
        UnsupportedError: Channels that are neither grey nor colours.
    """
    values = pixels.values
    if pixels.palette is not None:
        colours: RGBImage = pixels.palette[values]
        return colours
    if values.ndim == 3 and values.shape[2] != 3:
        raise UnsupportedError(
            f"{name}: has {values.shape[2]} channels that are not said to be colours; wanted grey "
            "or red, green and blue; save the three that matter as an RGB image"
        )
    if values.dtype == np.bool_:
        levels = values.astype(np.uint8) * 255
    elif values.dtype == np.uint8:
        levels = values
    else:
        levels = _eight_bits(values, name, white)
    if pixels.white_is_zero:
        levels = 255 - levels
    return np.repeat(levels[..., np.newaxis], 3, axis=2) if levels.ndim == 2 else np.array(levels)


def _eight_bits(values: npt.NDArray[Any], name: str, white: int) -> npt.NDArray[np.uint8]:
    """Scale integers of more than eight bits, or floats, to 0..255."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        wanted, fits = "0..1 or 0..255", high <= 255
        scale = 255.0 if high <= 1 else 1.0
    else:
        wanted, fits = f"0..{white}", high <= white
        scale = 255 / white
        if not fits and white != FULL_DEPTH:
            wanted += ", as in the images that the model learned from (preprocess.white)"
    if not (low >= 0 and fits):  # so written, NaN is refused
        raise DataError(
            f"{name}: its {'grey ' if values.ndim == 2 else ''}values reach from {low:g} to "
            f"{high:g}; wanted {wanted}; scale them and save the image as 8-bit PNG"
        )
    levels: npt.NDArray[np.uint8] = np.round(values.astype(np.float32) * np.float32(scale)).astype(
        np.uint8
    )
    return levels
