"""How wide the parts of a foreground are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from notan.types import Mask

WIDTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Tried from the thinnest on; what is wider than the last counts as that wide."""

MOST_SIDE = 2048
"""Of a larger mask, the part of this side with the most foreground is measured."""


def thickness(mask: Mask, shares: Sequence[float]) -> tuple[float, ...]:
    """Return the widths under which shares of a foreground lie, in pixels.

    A pixel is as wide as the widest disc that lies in the foreground and covers it. Foreground that
    reaches the image's edge is taken to go on beyond it.

    Source: the granulometry of Matheron 1975, Random Sets and Integral Geometry, by openings with
    discs; here through two distance transforms a width, and linear between the widths.

    Args:
        mask: bool, (height, width), with foreground.
        shares: Of the foreground's area, 0..1, such as 0.5 for the median width.
    """
    bits = _fullest_part(mask).astype(np.uint8)
    edge = min(WIDTHS[-1], max(bits.shape))
    bits = np.pad(bits, edge, mode="edge")
    inside = (slice(edge, -edge), slice(edge, -edge))
    lost = [(0.0, 0.0), *_losses(bits, inside, max(shares))]
    shares_lost = np.maximum.accumulate([share for _, share in lost])
    return tuple(
        float(np.interp(share, shares_lost, [width for width, _ in lost])) for share in shares
    )


def _losses(
    bits: np.ndarray[tuple[int, int], np.dtype[np.uint8]],
    inside: tuple[slice, slice],
    enough: float,
) -> Iterator[tuple[float, float]]:
    """Yield widths with the share of foreground that is thinner, until that is enough."""
    foreground = bits[inside] > 0
    depth = np.asarray(cv2.distanceTransform(bits, cv2.DIST_L2, 5))
    for width in WIDTHS:
        # lines of 2n-1 and of 2n pixels are both n deep, as depths lead to centres of pixels
        radius = width / 2 + 0.25
        core = (depth >= radius).astype(np.uint8)
        lost = 1.0
        if core.any():
            away = np.asarray(cv2.distanceTransform(1 - core, cv2.DIST_L2, 5))[inside]
            lost = float((away[foreground] >= radius).mean())
        yield float(width), lost
        if lost >= enough:
            return


def _fullest_part(mask: Mask) -> Mask:
    """Return the square part of a large mask that holds the most foreground."""
    if max(mask.shape) <= MOST_SIDE:
        return mask
    parts = (
        mask[top : top + MOST_SIDE, left : left + MOST_SIDE]
        for top in range(0, mask.shape[0], MOST_SIDE)
        for left in range(0, mask.shape[1], MOST_SIDE)
    )
    return max(parts, key=np.count_nonzero)
