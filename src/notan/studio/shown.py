"""Images as a browser shows them: encoded anew, so that no file reaches a page as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from notan.data.samples import hash_ends
from notan.errors import DataError, NotanError
from notan.io.headers import read_format
from notan.io.images import read_image, shown
from notan.io.write import write_bytes
from notan.prediction.pixels import PREDICTION, encode_png

if TYPE_CHECKING:
    from pathlib import Path

    from notan.io.images import ImageReading
    from notan.studio.gallery import ListedImage
    from notan.types import Mask, RGBImage

THUMBNAIL_SIDE = 320
THUMBNAIL_QUALITY, IMAGE_QUALITY = 80, 95
HALF = 127
LOSSY = frozenset({"JPEG", "MPO", "WEBP", "AVIF", "HEIF"})
"""Formats that hold no exact pixels; others are sent without loss."""


def read_shown(image: ListedImage, reading: ImageReading) -> RGBImage:
    """Return an image as it is shown: uint8, (height, width, 3).

    Raises:
        DataError: It cannot be read, or is larger than the page can hold.
    """
    image.require_small_enough(upright=reading.upright)
    return shown(read_image(image.path, reading))


def encode_image(image: ListedImage, reading: ImageReading) -> tuple[bytes, str]:
    """Return an image at its full size, and its media type.

    Raises:
        DataError: It cannot be read, or is larger than the page can hold.
    """
    pixels = read_shown(image, reading)
    if read_format(image.path) in LOSSY:
        full = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        options = [cv2.IMWRITE_JPEG_QUALITY, IMAGE_QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, full]
        return _encode(".jpg", pixels, options, image), "image/jpeg"
    return _encode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1], image), "image/png"


def thumbnail(image: ListedImage, reading: ImageReading, cache: Path) -> bytes:
    """Return a small JPEG of an image, made once.

    Args:
        image: Which.
        reading: How it becomes 8 bits a channel.
        cache: A folder that keeps what was made.

    Raises:
        DataError: It cannot be read, or is too large.
    """
    turned = "" if reading.upright else "-stored"
    path = cache / "thumbnails" / f"{hash_ends(image.path)}{turned}.jpg"
    if path.is_file():
        return path.read_bytes()
    pixels = read_shown(image, reading)
    size = _thumbnail_size(*pixels.shape[:2])
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    content = _encode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY], image)
    try:
        write_bytes(path, content)
    except NotanError:  # it is made again then
        return content
    return content


def outline(mask: Mask) -> bytes:
    """Return a mask's outline at a thumbnail's size: a PNG that is transparent elsewhere.

    Raises:
        StorageError: PNG cannot hold it.
    """
    size = _thumbnail_size(mask.shape[0], mask.shape[1])
    small = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
    contours, _ = cv2.findContours(
        (small > HALF).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    for colour, thickness in (((0, 0, 0, 170), 4), ((*PREDICTION, 255), 2)):
        cv2.drawContours(pixels, contours, -1, colour, thickness)
    return encode_png(pixels)


def _thumbnail_size(height: int, width: int) -> tuple[int, int]:
    """Return (width, height), as OpenCV wants them."""
    scale = min(1.0, THUMBNAIL_SIDE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _encode(suffix: str, pixels: RGBImage, options: list[int], image: ListedImage) -> bytes:
    fine, encoded = cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not fine:
        raise DataError(f"{image.name}: {pixels.shape} pixels could not be encoded for the page")
    return encoded.tobytes()
