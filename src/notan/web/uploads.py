"""Images that somebody sends: refused by what their headers claim, before a pixel is decoded."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from notan.io.headers import guarded, header_size, identify
from notan.io.images import PLAIN, decode_image
from notan.web.answers import RefusedError

if TYPE_CHECKING:
    from notan.io.images import ImageReading
    from notan.types import Image8, Size

NAME = "the image that was sent"
MOST_PIXELS = 40_000_000


def upload_size(content: bytes, most_pixels: int = MOST_PIXELS) -> Size:
    """Return the (height, width) that an image will have, from its header.

    Args:
        content: The bytes of its file.
        most_pixels: Height times width at most.

    Raises:
        RefusedError: There is nothing, or it claims more pixels.
        DataError: It is no image, or a damaged one.
    """
    if not content:
        raise RefusedError(400, "the body is empty; wanted the bytes of an image file")
    size = guarded(lambda: header_size(identify(io.BytesIO(content), NAME), NAME), NAME)
    if size[0] * size[1] > most_pixels:
        raise RefusedError(
            413,
            f"{NAME} claims {size[0]}x{size[1]} pixels (height x width); at most {most_pixels:,} "
            "are taken; scale it down",
        )
    return size


def read_upload(
    content: bytes, reading: ImageReading = PLAIN, most_pixels: int = MOST_PIXELS
) -> Image8:
    """Decode an image, upright; of one with several frames or pages the first.

    Args:
        content: The bytes of its file.
        reading: How it becomes 8 bits a channel.
        most_pixels: Height times width at most.

    Raises:
        RefusedError: There is nothing, or it claims more pixels.
        DataError: It cannot be decoded.
    """
    upload_size(content, most_pixels)
    return decode_image(content, NAME, reading)
