"""What a prediction is written as: a mask, or an overlay on its picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from notan.errors import ConfigError, StorageError, nearest
from notan.files import write_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.predict.predictor import Prediction
    from notan.types import Mask, Picture

PREDICTION = (230, 159, 0)
TRUTH = (86, 180, 233)
"""Orange and sky blue of Okabe and Ito's palette, told apart by colour-blind readers."""


def mask_picture(mask: Mask) -> Picture:
    """Return a mask as grey levels: figure 255, ground 0."""
    return mask.astype(np.uint8) * 255


def overlay_picture(image: Picture, mask: Mask, truth: Mask | None = None) -> Picture:
    """Tint the predicted figure and outline it; outline the truth too where it is known.

    Args:
        image: uint8, (height, width, 3), RGB.
        mask: The predicted figure, of the same size; orange.
        truth: The true figure; outlined in sky blue.

    Returns:
        uint8, (height, width, 3), RGB.
    """
    result = image.copy()
    result[mask] = (0.6 * image[mask] + 0.4 * np.array(PREDICTION)).astype(np.uint8)
    thickness = max(1, round(min(mask.shape) / 200))
    for outline, colour in ((truth, TRUTH), (mask, PREDICTION)):
        if outline is not None:
            contours, _ = cv2.findContours(
                outline.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(result, contours, -1, colour, thickness)
    return result


def write_png(path: Path, picture: Picture) -> None:
    """Write grey or RGB pixels as PNG, whole or not at all.

    Raises:
        StorageError: The file could not be written.
    """
    pixels = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    fine, encoded = cv2.imencode(".png", pixels)
    if not fine:
        raise StorageError(f"{path}: {picture.shape} pixels could not be encoded as PNG")
    write_bytes(path, encoded.tobytes())


def write_overlay_and_mask(
    folder: Path, name: str, image: Picture, mask: Mask, truth: Mask | None = None
) -> None:
    """Write ``masks/NAME.png`` (0 / 255) and ``overlays/NAME.png`` into a folder.

    Raises:
        StorageError: A file could not be written.
    """
    write_png(folder / "masks" / f"{name}.png", mask_picture(mask))
    write_png(folder / "overlays" / f"{name}.png", overlay_picture(image, mask, truth))


def contact_sheet(pictures: Sequence[Picture], *, columns: int, gap: int = 4) -> Picture:
    """Lay pictures of one size out in rows on white.

    Args:
        pictures: uint8, (height, width, 3), RGB, all of one size; at least one.
        columns: Pictures in a row.
        gap: White pixels between them.

    Returns:
        uint8, (rows x height + gaps, columns x width + gaps, 3), RGB.
    """
    height, width, _ = pictures[0].shape
    rows = -(-len(pictures) // columns)
    down, across = height + gap, width + gap
    sheet = np.full((rows * down - gap, columns * across - gap, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * down, number % columns * across
        sheet[top : top + height, left : left + width] = picture
    return sheet


class Writers:
    """Write every output that was asked for."""

    def __init__(self, names: Sequence[str], out: Path) -> None:
        self.names = names
        self.out = out

    def paths(self, name: str) -> list[Path]:
        """Return where a picture's outputs go."""
        folders = {"mask": "masks", "overlay": "overlays"}
        return [self.out / folders[kind] / f"{name}.png" for kind in self.names]

    def add(self, name: str, picture: Path, image: Picture, prediction: Prediction) -> None:
        """Write all outputs of one picture."""
        del picture
        for kind, path in zip(self.names, self.paths(name), strict=True):
            mask = prediction.mask
            write_png(path, mask_picture(mask) if kind == "mask" else overlay_picture(image, mask))

    def has(self, name: str) -> bool:
        """Say whether all outputs of a name are there already."""
        return all(path.exists() for path in self.paths(name))

    def close(self) -> None:
        """Write what is written once for all pictures."""


def open_formats(names: Sequence[str], out: Path) -> Writers:
    """Open formats by name.

    Raises:
        ConfigError: There is no such format.
    """
    for name in names:
        if name not in ("mask", "overlay"):
            raise ConfigError(f"there is no format '{name}'{nearest(name, ('mask', 'overlay'))}")
    return Writers(names, out)
