"""How an image becomes part of a page."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from notan.types import RGBImage

QUALITY = 82


def fitted(image: RGBImage, *, side: int, least_side: int) -> RGBImage:
    """Shrink an image so that its longer side is ``side``, or magnify what is tiny.

    Args:
        image: uint8, (height, width) or (height, width, 3).
        side: The most pixels of the longer side.
        least_side: Smaller ones are magnified to this, pixel by pixel.
    """
    height, width = image.shape[:2]
    longest = max(height, width)
    scale = min(1.0, side / longest) if longest >= least_side else least_side / longest
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, size, interpolation=way), np.uint8)


def as_jpeg(image: RGBImage) -> str:
    """Return an RGB image as a JPEG in base64, ready for a ``data:image/jpeg`` address."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return base64.b64encode(encoded.tobytes()).decode("ascii")
