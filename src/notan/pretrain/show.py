"""An image of what the network sees, what it fills in, and what was there."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from notan.predict.formats import contact_sheet, write_png

if TYPE_CHECKING:
    from pathlib import Path

    from notan.preprocess import Preprocessor
    from notan.pretrain.parts import PretrainParts
    from notan.types import ModelInput, RGBImage

SHOWN = 6
"""Held-out images, one to a row."""


def write_reconstructions(path: Path, parts: PretrainParts) -> None:
    """Write held-out images in three columns: with gaps, with the gaps filled in, whole.

    Args:
        path: A PNG file.
        parts: The network and the images.

    Raises:
        StorageError: The file could not be written.
    """
    model, precision = parts.model.eval(), parts.optimization.precision
    cells: list[RGBImage] = []
    rows = (row for batch in parts.validation_batches for row in zip(*batch[:3], strict=True))
    for seen, whole, hidden in islice(rows, SHOWN):
        with torch.no_grad(), precision.autocast():
            answer = model(seen[None].to(precision.device))[0].float().cpu()
        filled = torch.where(hidden > 0, answer, whole)
        cells += [as_colours(each.numpy(), parts.preprocessor) for each in (seen, filled, whole)]
    write_png(path, contact_sheet(cells, columns=3))


def as_colours(image: ModelInput, preprocessor: Preprocessor) -> RGBImage:
    """Undo ``Preprocessor.normalize``; what lies beyond black and white is cut off."""
    colours = image.transpose(1, 2, 0) * np.asarray(preprocessor.std) + preprocessor.mean
    levels: RGBImage = np.rint(255 * np.clip(colours, 0, 1)).astype(np.uint8)
    return levels
