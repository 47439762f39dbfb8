"""Small pictures of the files that findings name, ready to stand inside a page."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from notan.data.doctor.reading import mask_reader
from notan.data.formats import read_picture
from notan.errors import DataError
from notan.predict.formats import TRUTH, mask_picture, overlay_picture

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import Border
    from notan.data.doctor import Diagnosis
    from notan.types import Mask, Picture

SIDE = 220
"""The longer side of a thumbnail: twice what a phone shows, for sharp screens."""

LEAST_SIDE = 110
"""Smaller pictures are magnified to this, pixel by pixel."""

QUALITY = 82
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
        return None if pixels is None else jpeg(pixels)

    def _lone_mask(self, path: Path) -> Picture | None:
        mask = self._mask(path)
        return self._raw(path) if mask is None else _grey(fitted(mask_picture(mask)))

    def _sample(self, path: Path) -> Picture | None:
        try:
            picture = read_picture(path)
        except DataError:
            return None
        mask_path = self._mask_of.get(path)
        if mask_path is None:
            return fitted(picture)
        mask = self._mask(mask_path)
        if mask is None:
            raw = self._raw(mask_path)
            return fitted(picture) if raw is None else _beside(fitted(picture), raw)
        if mask.shape != picture.shape[:2]:
            return _beside(fitted(picture), _grey(fitted(mask_picture(mask))))
        return _tinted(fitted(picture), fitted(mask_picture(mask)) > 127)

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
        return fitted(spread.astype(np.uint8))


def fitted(picture: Picture) -> Picture:
    """Shrink to the thumbnail's size, or magnify what is tiny."""
    height, width = picture.shape[:2]
    longest = max(height, width)
    scale = min(1.0, SIDE / longest) if longest >= LEAST_SIDE else LEAST_SIDE / longest
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, size, interpolation=way), np.uint8)


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


def jpeg(picture: Picture) -> str:
    """Return a picture as JPEG, in base64 text."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return base64.b64encode(encoded.tobytes()).decode("ascii")
