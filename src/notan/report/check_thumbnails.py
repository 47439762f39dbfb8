"""Small pictures of the files that findings name, ready to stand inside a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from notan.data.doctor.reading import mask_reader
from notan.data.formats import read_picture
from notan.errors import DataError
from notan.predict.formats import TRUTH, mask_picture, overlay_picture
from notan.report.pictures import as_jpeg, fitted

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import Border
    from notan.data.doctor import Diagnosis
    from notan.types import Mask, Picture

SIDE = 220
"""The longer side of a thumbnail: twice what a phone shows, for sharp screens."""

LEAST_SIDE = 110
"""Smaller pictures are magnified to this, pixel by pixel."""

GAP = 6
MASK_FOLDERS = ("masks", "trimaps")


class Thumbnails:
    """Reads files again and shrinks them, picture and mask together."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        self._read_mask = mask_reader(diagnosis.layout, cast("Border", diagnosis.border))
        self._mask_of = dict(diagnosis.pairs)

    def of(self, path: Path) -> str | None:
        """Return a JPEG as base64 text, or None when the file cannot be shown.

        Args:
            path: A picture, shown with its mask where it has one, or a lone mask.
        """
        pixels = self._lone_mask(path) if path.parent.name in MASK_FOLDERS else self._sample(path)
        return None if pixels is None else as_jpeg(pixels)

    def _lone_mask(self, path: Path) -> Picture | None:
        mask = self._mask(path)
        return self._raw(path) if mask is None else _grey(fit(mask_picture(mask)))

    def _sample(self, path: Path) -> Picture | None:
        try:
            picture = read_picture(path)
        except DataError:
            return None
        mask_path = self._mask_of.get(path)
        if mask_path is None:
            return fit(picture)
        mask = self._mask(mask_path)
        if mask is None:
            raw = self._raw(mask_path)
            return fit(picture) if raw is None else _beside(fit(picture), raw)
        if mask.shape != picture.shape[:2]:
            return _beside(fit(picture), _grey(fit(mask_picture(mask))))
        return _tinted(fit(picture), fit(mask_picture(mask)) > 127)

    def _mask(self, path: Path) -> Mask | None:
        try:
            return self._read_mask(path).labels.mask
        except DataError:
            return None

    def _raw(self, path: Path) -> Picture | None:
        """Show a mask that cannot be understood as it is, its values spread to be seen."""
        try:
            picture = read_picture(path)
        except DataError:
            return None
        low, high = int(picture.min()), int(picture.max())
        spread = (picture.astype(np.float32) - low) * (255 / max(1, high - low))
        return fit(spread.astype(np.uint8))


def fit(picture: Picture) -> Picture:
    """Shrink to the thumbnail's size, or magnify what is tiny."""
    return fitted(picture, side=SIDE, least_side=LEAST_SIDE)


def _tinted(picture: Picture, mask: Mask) -> Picture:
    """Tint and outline the figure in the colour that every page gives to the truth."""
    tinted = picture.copy()
    tinted[mask] = (0.65 * picture[mask] + 0.35 * np.array(TRUTH)).astype(np.uint8)
    return overlay_picture(tinted, np.zeros_like(mask), truth=mask)


def _grey(mask: Picture) -> Picture:
    return np.repeat(mask[..., None], 3, axis=2)


def _beside(one: Picture, other: Picture) -> Picture:
    height = max(one.shape[0], other.shape[0])
    sheet = np.full((height, one.shape[1] + GAP + other.shape[1], 3), 128, np.uint8)
    sheet[: one.shape[0], : one.shape[1]] = one
    sheet[: other.shape[0], -other.shape[1] :] = other
    return sheet
