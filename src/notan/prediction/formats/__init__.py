"""What a prediction is written as: pixels, run lengths, outlines."""

from __future__ import annotations

from notan.prediction.formats.writers import FORMATS, Writers
from notan.prediction.pixels import (
    PREDICTION,
    TRUTH,
    contact_sheet,
    mask_image,
    overlay_image,
    write_overlay_and_mask,
    write_png,
)

__all__ = [
    "FORMATS",
    "PREDICTION",
    "TRUTH",
    "Writers",
    "contact_sheet",
    "mask_image",
    "overlay_image",
    "write_overlay_and_mask",
    "write_png",
]
