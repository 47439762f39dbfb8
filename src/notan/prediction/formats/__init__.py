"""What a prediction is written as: pixels, run lengths, outlines."""

from __future__ import annotations

from notan.prediction.formats.images import (
    PREDICTION,
    TRUTH,
    contact_sheet,
    mask_image,
    overlay_image,
    write_overlay_and_mask,
    write_png,
)
from notan.prediction.formats.writers import FORMATS, Writers, open_formats

__all__ = [
    "FORMATS",
    "PREDICTION",
    "TRUTH",
    "Writers",
    "contact_sheet",
    "mask_image",
    "open_formats",
    "overlay_image",
    "write_overlay_and_mask",
    "write_png",
]
