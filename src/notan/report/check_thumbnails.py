"""Small images of the files that findings name, ready to stand inside a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from notan.data.doctor.reading import mask_reader
from notan.data.formats import read_image
from notan.errors import DataError
from notan.predict.formats import TRUTH, mask_image, overlay_image
from notan.report.images import as_jpeg, fitted

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import TrimapBorder
    from notan.data.doctor import Diagnosis
    from notan.types import Mask, RGBImage

SIDE = 220
"""The longer side of a thumbnail: twice what a phone shows, for sharp screens."""

LEAST_SIDE = 110
"""Smaller images are magnified to this, pixel by pixel."""

GAP = 6
MASK_FOLDERS = ("masks", "trimaps")


class Thumbnails:
    """Reads files again and shrinks them, image and mask together."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        self._read_mask = mask_reader(
            diagnosis.layout, cast("TrimapBorder", diagnosis.trimap_border)
        )
        self._mask_of = dict(diagnosis.pairs)

    def of(self, path: Path) -> str | None:
        """Return a JPEG as base64 text, or None when the file cannot be shown.

        Args:
            path: An image, shown with its mask where it has one, or a lone mask.
        """
        pixels = self._lone_mask(path) if path.parent.name in MASK_FOLDERS else self._sample(path)
        return None if pixels is None else as_jpeg(pixels)

    def _lone_mask(self, path: Path) -> RGBImage | None:
        mask = self._mask(path)
        return self._raw(path) if mask is None else _grey(fit(mask_image(mask)))

    def _sample(self, path: Path) -> RGBImage | None:
        try:
            image = read_image(path)
        except DataError:
            return None
        mask_path = self._mask_of.get(path)
        if mask_path is None:
            return fit(image)
        mask = self._mask(mask_path)
        if mask is None:
            raw = self._raw(mask_path)
            return fit(image) if raw is None else _beside(fit(image), raw)
        if mask.shape != image.shape[:2]:
            return _beside(fit(image), _grey(fit(mask_image(mask))))
        return _tinted(fit(image), fit(mask_image(mask)) > 127)

    def _mask(self, path: Path) -> Mask | None:
        try:
            return self._read_mask(path).labels.mask
        except DataError:
            return None

    def _raw(self, path: Path) -> RGBImage | None:
        """Show a mask that cannot be understood as it is, its values spread to be seen."""
        try:
            image = read_image(path)
        except DataError:
            return None
        low, high = int(image.min()), int(image.max())
        spread = (image.astype(np.float32) - low) * (255 / max(1, high - low))
        return fit(spread.astype(np.uint8))


def fit(image: RGBImage) -> RGBImage:
    """Shrink to the thumbnail's size, or magnify what is tiny."""
    return fitted(image, side=SIDE, least_side=LEAST_SIDE)


def _tinted(image: RGBImage, mask: Mask) -> RGBImage:
    """Tint and outline the foreground in the colour that every page gives to the truth."""
    tinted = image.copy()
    tinted[mask] = (0.65 * image[mask] + 0.35 * np.array(TRUTH)).astype(np.uint8)
    return overlay_image(tinted, np.zeros_like(mask), truth=mask)


def _grey(mask: RGBImage) -> RGBImage:
    return np.repeat(mask[..., None], 3, axis=2)


def _beside(one: RGBImage, other: RGBImage) -> RGBImage:
    height = max(one.shape[0], other.shape[0])
    sheet = np.full((height, one.shape[1] + GAP + other.shape[1], 3), 128, np.uint8)
    sheet[: one.shape[0], : one.shape[1]] = one
    sheet[: other.shape[0], -other.shape[1] :] = other
    return sheet
