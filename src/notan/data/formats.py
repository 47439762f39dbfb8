"""Reading image and mask files: by content, upright, checked for size before they are decoded.

Every reader here raises DataError, and only that, for a file it cannot read, and may be called
from many threads at once. How a mask's values are understood is written in
``notan.data.mask_values``.

A file's name says nothing about its format: real data sets hold GIF and PNG files called ``.jpg``.
Of a file with several frames or pages the first one is read. The EXIF orientation is taken from
the header only, so that sizes and pixels cannot disagree; a PNG that states it after its pixels
(allowed, rare) is read as it is stored.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, TypeVar, get_args

import numpy as np

from notan.config import TrimapBorder
from notan.data.decode import (
    MAX_PIXELS,
    decode,
    decode_rgb,
    guarded,
    identified,
    opened,
    upright_size,
)
from notan.data.mask_values import (
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
from notan.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from PIL import Image
    from PIL.ImageFile import ImageFile

    from notan.types import Mask, RGBImage, Size

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
    """Read a mask of two classes, upright, by the rule written in ``notan.data.mask_values``.

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
