"""What counts as one image from Python: a file, its bytes, a Pillow image or an array."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from notan.data.decode import guarded_image, refuse_size, rgb
from notan.data.formats import decode_image, read_image
from notan.errors import ShapeError

if TYPE_CHECKING:
    import numpy.typing as npt

    from notan.types import RGBImage

ImageLike: TypeAlias = (
    "str | Path | bytes | bytearray | memoryview | Image.Image | npt.NDArray[np.uint8]"
)

_WANTED = (
    "uint8 of shape (height, width, 3) is wanted, RGB; (height, width) is taken as grey and "
    "(height, width, 4) as RGBA, whose alpha is dropped"
)


def as_image(thing: ImageLike) -> RGBImage:
    """Return whatever holds one image as 8-bit RGB, upright.

    Files, bytes and Pillow images are turned by their EXIF orientation. An array has none: it is
    taken as it stands, and its channels as red, green, blue (OpenCV reads blue first).

    Args:
        thing: A path, the bytes of a whole file, a Pillow image, or a uint8 array of shape
            (height, width, 3) RGB, (height, width) grey or (height, width, 4) RGBA; alpha is
            dropped and the colours beneath it are kept, as when files are read.

    Returns:
        uint8, (height, width, 3), RGB. An array that is so already is returned itself.

    Raises:
        ShapeError: It is none of these, or an array of another shape or type.
        DataError: The file, the bytes or the image cannot be decoded.
    """
    if isinstance(thing, (str, Path)):
        return read_image(Path(thing))
    if isinstance(thing, (bytes, bytearray, memoryview)):
        return decode_image(bytes(thing), "the bytes that were given")
    if isinstance(thing, Image.Image):
        return _from_pillow(thing)
    if isinstance(thing, np.ndarray):
        return _from_array(thing)
    raise ShapeError(
        f"a {type(thing).__name__} was given as an image; a path, the bytes of a file, a Pillow "
        "image or a NumPy array is wanted; of a tensor, give tensor.cpu().numpy() as "
        "(height, width, 3)"
    )


def _from_pillow(image: Image.Image) -> RGBImage:
    name = str(getattr(image, "filename", "") or "the Pillow image that was given")
    refuse_size((image.height, image.width), name)
    return guarded_image(lambda: rgb(ImageOps.exif_transpose(image), name), name)


def _from_array(array: npt.NDArray[np.uint8]) -> RGBImage:
    if array.dtype != np.uint8 or array.size == 0 or array.ndim not in (2, 3):
        raise _wrong(array)
    if array.ndim == 2:
        return np.repeat(array[..., np.newaxis], 3, axis=2)
    if array.shape[2] not in (3, 4):
        raise _wrong(array)
    return array[..., :3]


def _wrong(array: npt.NDArray[np.uint8]) -> ShapeError:
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
    return ShapeError(
        f"an image of shape {array.shape} and type {array.dtype} was given; {_WANTED}{advice}"
    )
