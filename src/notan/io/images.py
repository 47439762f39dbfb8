"""Images from bytes to arrays: decoded by Pillow, or by tifffile where Pillow cannot.

Of a file with several frames or pages the first one is read. The EXIF orientation is taken from
the header only, so that sizes and pixels cannot disagree; a PNG that states it after its pixels
(allowed, rare) is read as it is stored. ``notan.io.headers`` says what else is chosen, and what a
file that cannot be read is.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from notan.errors import DataError, UnsupportedError
from notan.io.foreign import ForeignTiff, as_foreign
from notan.io.headers import (
    MAX_PIXELS,
    WHITE_IS_ZERO,
    channel_counts,
    count_extra,
    count_page_channels,
    find_orientation,
    find_pages,
    find_turn,
    guarded,
    identify,
    is_deep,
    is_white_zero,
    read_header,
    refuse_size,
    refuse_turned,
)
from notan.io.npy import NpyArray

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL.ImageFile import ImageFile

    from notan.io.headers import Header
    from notan.types import Image8, RGBImage

Number = TypeVar("Number", bound=np.generic)

FULL_DEPTH = 65535
"""The 16-bit value that is read as white, 255, unless a data set uses fewer bits."""

RGB_CHANNELS = 3

MOST_VALUES = RGB_CHANNELS * MAX_PIXELS
"""Of all channels together: a small file can claim thousands of them."""

USUAL_OF, USUAL_BEYOND = 2**20, 0.1
"""Of so many values about, so many per cent at either end are no usual ones."""


@dataclass(frozen=True)
class ImageReading:
    """How the image files of a data set become 8 bits a channel.

    Attributes:
        white: The value of 16-bit images that is read as white, unless there are ranges.
        upright: Whether they are turned by their EXIF orientation.
        channels: How many there are; 3: red, green and blue, and grey becomes all of them.
        ranges: Of each channel, what becomes 0 and what 255, in images of more than 8 bits; of
            three channels, in floats only; none: as ``white`` says, and floats within 0..1 or
            0..255.
        floats: Whether the ranges are those of floats.
    """

    white: int = FULL_DEPTH
    upright: bool = True
    channels: int = RGB_CHANNELS
    ranges: tuple[tuple[float, float], ...] = ()
    floats: bool = False


PLAIN = ImageReading()


class Raster(NamedTuple):
    """Decoded pixels, upright, with the values that the file stores.

    Attributes:
        values: (height, width), or (height, width, channels); of any type of numbers, or bool.
        palette: uint8, (256, 3): the colours that the values are indices of; None: they are none.
        alpha: (height, width): the transparency; None: there is none.
        white_is_zero: Whether 0 is shown in white.
        colours: Whether the first three of more channels are red, green and blue.
    """

    values: npt.NDArray[Any]
    palette: npt.NDArray[np.uint8] | None = None
    alpha: npt.NDArray[Any] | None = None
    white_is_zero: bool = False
    colours: bool = False


def read_image(path: Path, reading: ImageReading = PLAIN) -> Image8:
    """Read an image file as 8 bits a channel, upright.

    As RGB, transparency is dropped and the colours beneath it are kept; 16-bit values are scaled
    so that ``white`` becomes 255, and nothing below it is clipped; floats may hold 0..1 or 0..255
    unless the reading states their ranges.

    Args:
        path: A PNG, JPEG, GIF, TIFF, WebP, BMP, PPM, JPEG 2000, AVIF or NPY file of any name; HEIC
            where pillow-heif is installed.
        reading: How the files of the data set are read.

    Returns:
        uint8, (height, width, channels); RGB where there are three.

    Raises:
        DataError: The file is missing, unreadable, too large, or of values or channels other than
            those that are wanted.
    """
    return read_header(path, lambda header: _decode_as(header, str(path), reading))


def read_channels(paths: Sequence[Path], reading: ImageReading = PLAIN) -> Image8:
    """Read an image whose channels lie in a file each, as nnU-Net keeps them.

    Args:
        paths: One file of one channel for each channel, in their order; or one file with all.
        reading: How the files of the data set are read.

    Returns:
        uint8, (height, width, channels).

    Raises:
        DataError: As for ``read_image``, or they are too few or too many, or differ in size.
    """
    if len(paths) == 1:
        return read_image(paths[0], reading)
    if len(paths) != reading.channels:
        raise DataError(
            f"{paths[0]}: {len(paths)} files hold one channel each; {reading.channels} channels "
            "are wanted: give that many files, or say how many there are: "
            f"data.channels={len(paths)}"
        )
    planes = []
    for number, path in enumerate(paths):
        one = replace(reading, channels=1, ranges=reading.ranges[number : number + 1])
        planes.append(read_image(path, one))
        if planes[-1].shape != planes[0].shape:
            sizes = [f"{plane.shape[0]}x{plane.shape[1]}" for plane in (planes[0], planes[-1])]
            raise DataError(
                f"{path}: is {sizes[1]} (height x width) and {paths[0].name}, another channel of "
                f"the same image, is {sizes[0]}; all must be of one size"
            )
    return np.concatenate(planes, axis=2)


def decode_image(content: bytes | BinaryIO, name: str, reading: ImageReading = PLAIN) -> Image8:
    """Read an image from the bytes of its file, or an open file, as ``read_image`` does.

    Args:
        content: The whole file; or open for reading, wherever it stands.
        name: What to call it in messages.
        reading: As for ``read_image``.

    Returns:
        uint8, (height, width, channels).

    Raises:
        DataError: As for ``read_image``.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    return guarded(lambda: _decode_as(identify(file, name), name, reading), name)


def _decode_as(header: Header, name: str, reading: ImageReading) -> Image8:
    deep = reading.white != FULL_DEPTH or reading.channels != RGB_CHANNELS
    pixels = decode(header, name, upright=reading.upright, deep=deep, channels=reading.channels)
    return to_image(pixels, name, reading)


def convert_image(image: Image.Image, name: str, reading: ImageReading = PLAIN) -> Image8:
    """Turn an image of Pillow's, opened by the caller, into an array as ``read_image`` does.

    Args:
        image: Of any mode; its EXIF orientation is applied.
        name: What to call it in messages.
        reading: As for ``read_image``; of 16-bit images all bits count.

    Returns:
        uint8, (height, width, channels).

    Raises:
        DataError: As for ``read_image``.
    """
    refuse_size((image.height, image.width), name)
    return guarded(lambda: to_image(pixels_of(ImageOps.exif_transpose(image)), name, reading), name)


class Held(NamedTuple):
    """What an image of more than 8 bits a channel holds, its transparency last.

    Attributes:
        floats: Whether its values are floats.
        lows: The least value of each channel.
        highs: The largest.
        usual: Of each channel, what 998 of 1000 values lie between.
    """

    floats: bool
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    usual: tuple[tuple[float, float], ...]


def read_held(path: Path) -> Held | None:
    """Return between what the values of an image lie; None for one of 8 bits a channel.

    Raises:
        DataError: It cannot be read, or holds NaN or infinity.
    """

    def held(header: Header) -> Held | None:
        if not is_deep(header):
            return None
        pixels = decode(header, str(path), deep=True, channels=channel_counts(header)[0])
        values = _with_alpha(pixels)
        if values.dtype == np.bool_ or values.itemsize < 2:
            return None
        flat = values.reshape(-1, values.shape[2])
        _refuse_no_numbers(flat, str(path))
        some = flat[:: max(1, len(flat) // USUAL_OF)].astype(np.float64)
        usual = np.percentile(some, (USUAL_BEYOND, 100 - USUAL_BEYOND), axis=0).T
        return Held(
            values.dtype.kind == "f",
            tuple(map(float, flat.min(axis=0))),
            tuple(map(float, flat.max(axis=0))),
            tuple((float(low), float(high)) for low, high in usual),
        )

    return read_header(path, held)


def decode(
    header: Header,
    name: str,
    *,
    page: int = 0,
    upright: bool = True,
    deep: bool = False,
    channels: int | None = None,
) -> Raster:
    """Decode the pixels after a header, and turn them upright.

    Args:
        header: What the file holds.
        name: What to call it in messages.
        page: Which of the pages or frames that ``count_pages`` counts, from 0.
        upright: Apply the EXIF orientation.
        deep: Keep the 16 bits of colours, of which Pillow drops the lower eight.
        channels: Take so many where the file has them beside its colours, or in its pages.

    Raises:
        DataError: Too large, cut short or damaged.
    """
    refuse_size((header.size[1], header.size[0]), name)
    if isinstance(header, NpyArray):
        return Raster(header.read())
    if isinstance(header, ForeignTiff):
        return _decode_foreign(header, page, name)
    if channels and isinstance(header, TiffImageFile) and header.fp is not None:
        if channels > 1 and channels == count_page_channels(header):
            return _decode_pages(header.fp, name)
        if header.mode == "RGB" and channels == RGB_CHANNELS + count_extra(header) > RGB_CHANNELS:
            # Pillow drops what it has no mode for
            pixels = _decode_foreign(as_foreign(header.fp), 0, name)
            return pixels._replace(values=turn_upright(pixels.values, find_orientation(header)))
    if page:
        numbers = (
            find_pages(header, name)[0] if isinstance(header, TiffImageFile) else range(page + 1)
        )
        header.seek(numbers[page])
        refuse_size((header.size[1], header.size[0]), name)
    refuse_turned(header, name, upright=upright)
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
        refuse_values(page.imagelength * page.imagewidth * page.samplesperpixel, name)
        _refuse_gaps(page, header.file, name)
        values = page.asarray()
        order = [page.axes.find(axis) for axis in "YXS"]
        if page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"axes {page.axes} are not supported")
        white_is_zero = page.photometric == WHITE_IS_ZERO
    values = values if values.ndim == 2 else values.transpose(order)
    if values.shape[:2] != header.pages[number][1][::-1]:
        raise ValueError(f"{values.shape[0]}x{values.shape[1]} pixels were found")
    return Raster(values, white_is_zero=white_is_zero, colours=header.colours)


def _decode_pages(file: IO[bytes], name: str) -> Raster:
    """Decode all pages of a TIFF as the channels of one image."""
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        refuse_values(math.prod(series.shape), name)
        for each in tiff.pages:
            _refuse_gaps(each.aspage(), file, name)
        return Raster(series.asarray().transpose(1, 2, 0))


def refuse_values(count: int, name: str) -> None:
    """Refuse to decode more values than ``MOST_VALUES``.

    Raises:
        DataError: There are more.
    """
    if count > MOST_VALUES:
        raise DataError(
            f"{name}: its channels hold {count:,} values; at most {MOST_VALUES:,} are decoded at "
            "once; cut the image up, or keep fewer channels"
        )


def _refuse_gaps(page: tifffile.TiffPage, file: IO[bytes], name: str) -> None:
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
    """Decode the 16-bit colours of a PNG or TIFF by OpenCV, which keeps them.

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
    upright_colours = turn_upright(colours, orientation)
    alpha = upright_colours[..., 3] if colours.shape[2] > 3 else None
    return Raster(upright_colours[..., 2::-1], alpha=alpha)


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


def to_image(pixels: Raster, name: str, reading: ImageReading = PLAIN) -> Image8:
    """Bring decoded pixels to 8 bits a channel.

    Args:
        pixels: Grey, colours, indices or any channels.
        name: What to call the image in messages.
        reading: How the files of the data set are read.

    Returns:
        uint8, (height, width, channels).

    Raises:
        DataError: Values out of range, or another number of channels.
        UnsupportedError: Channels that are neither grey nor colours, where these are wanted.
    """
    values = pixels.values
    if reading.channels != RGB_CHANNELS:
        values = _with_alpha(pixels)
        values = values[..., : max(reading.channels, values.shape[2] - (pixels.alpha is not None))]
        if values.shape[2] != reading.channels:
            raise other_channels(name, values.shape[2], reading.channels)
    elif pixels.palette is not None:
        colours: Image8 = pixels.palette[values]
        return colours
    elif values.ndim == 3 and values.shape[2] != RGB_CHANNELS:
        if not pixels.colours:
            raise UnsupportedError(
                f"{name}: has {values.shape[2]} channels that are not said to be colours; wanted "
                "grey or red, green and blue; save the three that matter as an RGB image, or, to "
                f"train on all of them, set data.channels={values.shape[2]}"
            )
        values = values[..., :RGB_CHANNELS]
    levels = _to_bytes(values, name, reading)
    if pixels.white_is_zero:
        levels = 255 - levels
    return np.repeat(levels[..., np.newaxis], 3, axis=2) if levels.ndim == 2 else np.array(levels)


def _with_alpha(pixels: Raster) -> npt.NDArray[Any]:
    """Return (height, width, channels), of which the last is the transparency, if there is one."""
    values = pixels.values if pixels.palette is None else pixels.palette[pixels.values]
    values = values if values.ndim == 3 else values[..., np.newaxis]
    return values if pixels.alpha is None else np.dstack([values, pixels.alpha])


def other_channels(name: str, found: int, wanted: int) -> DataError:
    """Return the refusal of an image of another number of channels than a model takes."""
    counted = "1 channel" if found == 1 else f"{found} channels"
    return DataError(
        f"{name}: has {counted}; {wanted} wanted, as in the images that the model learned from "
        "(preprocess.channels); give it such an image, or train anew with "
        f"data.channels={found}"
    )


def _to_bytes(values: npt.NDArray[Any], name: str, reading: ImageReading) -> npt.NDArray[np.uint8]:
    """Bring values of any type to 0..255."""
    floats, is_rgb = values.dtype.kind == "f", reading.channels == RGB_CHANNELS
    if values.dtype == np.bool_ or values.dtype == np.uint8:
        if not all(map(is_full_scale, reading.ranges)):
            raise _other_kind(name, "8 bits", reading)
        return values.astype(np.uint8) * 255 if values.dtype == np.bool_ else values
    if not reading.ranges or (is_rgb and not floats):
        if not all(map(is_full_scale, reading.ranges)):
            raise _other_kind(name, "integers", reading)
        return _whole_scale(values, name, reading.white)
    if floats != reading.floats:
        raise _other_kind(name, "floats" if floats else "integers", reading)
    _refuse_no_numbers(values, name)
    lows, highs = np.array(reading.ranges, np.float32).T
    if values.ndim == 2:  # grey, to become red, green and blue
        lows, highs = lows[0], highs[0]
    exact = values.astype(np.float32)
    outside = (exact < lows) | (exact > highs)
    # in other channels than colours, some floats do pass the end of a usual scale
    strict = all(map(is_full_scale, reading.ranges)) and (is_rgb or not floats)
    if (strict and outside.any()) or outside.mean() > MOST_OUTSIDE:
        ranges = " and ".join(dict.fromkeys(f"{low:g}..{high:g}" for low, high in reading.ranges))
        raise DataError(
            f"{name}: its values reach from {exact.min():g} to {exact.max():g}; wanted {ranges}, "
            "as in the images that the model learned from (preprocess.ranges); scale them likewise"
        )
    scaled = (np.clip(exact, lows, highs) - lows) * (255 / (highs - lows))
    levels: npt.NDArray[np.uint8] = np.round(scaled).astype(np.uint8)
    return levels


MOST_OUTSIDE = 0.5
"""Share of an image's values that may lie beyond a measured range and are cut off there."""


def is_full_scale(values: tuple[float, float]) -> bool:
    """Say whether a range is a type's or a notation's own, such as 0..1 or 0..4095."""
    low, high = values
    return low == 0 and high in (1, *(2**bits - 1 for bits in range(8, 17)))


def _other_kind(name: str, found: str, reading: ImageReading) -> DataError:
    ranges = ", ".join(dict.fromkeys(f"{low:g}..{high:g}" for low, high in reading.ranges))
    return DataError(
        f"{name}: its values are {found}; wanted {'floats' if reading.floats else 'integers'} "
        f"within {ranges}, as in the images that the model learned from (preprocess.ranges); save "
        "it as those were saved"
    )


def _refuse_no_numbers(values: npt.NDArray[Any], name: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(
            f"{name}: holds NaN or infinity; wanted numbers; fill these places, say with 0"
        )


def _whole_scale(values: npt.NDArray[Any], name: str, white: int) -> npt.NDArray[np.uint8]:
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


def shown(image: Image8) -> RGBImage:
    """Return an image as something to look at: its first three channels, or its first as grey."""
    if image.ndim == 2:
        return np.repeat(image[..., np.newaxis], 3, axis=2)
    if image.shape[2] == RGB_CHANNELS:
        return image
    first = image[..., :3] if image.shape[2] > RGB_CHANNELS else image[..., [0, 0, 0]]
    return np.ascontiguousarray(first)
