"""The warp of a whole batch at once, wherever its tensors are: what ``Geometry`` does to one image.

The pixels lie in one tensor, those of an image behind each other, whatever their sizes. Each step
is the one of OpenCV's that ``notan.data.transforms`` takes, in the same order: area averaging to
the size from which the warp no longer shrinks, rounding to grey levels, bilinear interpolation with
mirrored edges, rounding again. A grey level is one off where a mean lies next to a half.

Nothing here looks at a value of a tensor, so that a GPU is never waited for, and all of it can be
compiled: numbers that decide shapes come from the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from notan.types import Size

FOREGROUND, BACKGROUND = 255, 0
"""What the byte says that follows a pixel's channels; its lowest bit is changed where the pixel is
ignored. Without such pixels it is a grey level to average as it is."""


class Whole(NamedTuple):
    """What a warp needs of each image in whole numbers, int64, (n,) each.

    Attributes:
        place: Its first pixel among all.
        height: Of the image.
        width: Likewise.
        small_height: What it is shrunk to before it is warped.
        small_width: Likewise.
        unit: Side of a cell of the grid of holes, at least 1.
        hole: Side of each hole; 0: none.
        top: How far the grid is moved.
        left: Likewise.
    """

    place: Tensor
    height: Tensor
    width: Tensor
    small_height: Tensor
    small_width: Tensor
    unit: Tensor
    hole: Tensor
    top: Tensor
    left: Tensor


class Frame(NamedTuple):
    """What all images of a batch have in common.

    Attributes:
        output: (height, width) that they are warped to.
        padded: (height, width) of the network's input.
        ignores: Whether any image has an ignored area.
    """

    output: Size
    padded: Size
    ignores: bool


class Extent(NamedTuple):
    """What must be known of a batch to give its tensors their shapes.

    Attributes:
        height: Of the highest image, once it is shrunk.
        width: Of the widest.
        down: Old pixels, at most, that one of a shrunken image covers in its height, in whole or in
            part; 1: none shrinks so.
        across: Likewise in its width.
    """

    height: int
    width: int
    down: int
    across: int

    @classmethod
    def of(cls, shrinking: Sequence[tuple[Size, Size]]) -> Extent:
        """Take it from the (height, width) of each image before and after shrinking."""
        down, across = (
            # a box of 2.5 old pixels reaches into 4 where it begins within one
            max(-(-old[axis] // new[axis]) + (old[axis] % new[axis] > 0) for old, new in shrinking)
            for axis in (0, 1)
        )
        height, width = (max(new[axis] for _, new in shrinking) for axis in (0, 1))
        return cls(height, width, down, across)


class Warped(NamedTuple):
    """Images with their masks, warped.

    Attributes:
        levels: uint8, (n, padded height, padded width, channels), whose last row and column are
            repeated in the padding.
        targets: float32, (n, 1, padded height, padded width), 1 = foreground.
        valid: Likewise, 0 = ignored or padding.
    """

    levels: Tensor
    targets: Tensor
    valid: Tensor


def warp(
    pixels: Tensor,
    whole: Whole,
    matrices: Tensor,
    tables: Tensor,
    frame: Frame,
    extent: Extent,
) -> Warped:
    """Shrink, warp, light and pierce the images of a batch.

    Args:
        pixels: uint8, (pixels, channels + 1): the channels, then what the mask says.
        whole: Of each image.
        matrices: float32, (n, 2, 3), from the output's pixels to the shrunken image's, both counted
            from the centre of the first.
        tables: uint8, (n, 256), what becomes of each grey level.
        frame: Of the batch.
        extent: Likewise.
    """
    levels = _interpolate(_shrink(pixels, whole, frame, extent), whole, matrices, frame)
    count, height, width = levels.shape[:3]
    channels, device = pixels.shape[1] - 1, pixels.device
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    inside = (rows < frame.output[0])[:, None] & (columns < frame.output[1])
    masks = levels[..., channels:] >= 128
    valid = inside & ~masks[..., 1] if frame.ignores else inside.expand(count, height, width)
    return Warped(
        _pierce(_light(levels[..., :channels], tables), whole, frame.output),
        (masks[..., 0] & inside)[:, None].float(),
        valid[:, None].float(),
    )


def _shrink(pixels: Tensor, whole: Whole, frame: Frame, extent: Extent) -> Tensor:
    """Average over areas; return uint8 (n, height, width, channels and masks), padded to one size.

    Where a new pixel covers fewer old ones than another, some are read that have no weight.
    """
    rows, down = _shares(whole.height, whole.small_height, extent.height, extent.down)
    columns, across = _shares(whole.width, whole.small_width, extent.width, extent.across)
    starts = whole.place[:, None, None] + rows * whole.width[:, None, None]  # (n, height, taps)

    def read(tap_down: int, tap_across: int) -> Tensor:
        where = starts[:, :, tap_down, None] + columns[:, None, :, tap_across]
        found = pixels.index_select(0, where.flatten()).view(*where.shape, -1)
        return _unpacked(found, ignores=frame.ignores)

    if extent.down == extent.across == 1:  # none shrinks
        return read(0, 0)

    def averaged(tap_down: int) -> Tensor:
        row = read(tap_down, 0) * across[:, None, :, 0, None]
        for tap in range(1, extent.across):
            row = row + read(tap_down, tap) * across[:, None, :, tap, None]
        return row * down[:, :, tap_down, None, None]

    total = averaged(0)
    for tap in range(1, extent.down):
        total = total + averaged(tap)
    # OpenCV rounds a half up where both sides are halved, else to even
    halved = (whole.height == 2 * whole.small_height) & (whole.width == 2 * whole.small_width)
    rounded = torch.where(halved[:, None, None, None], (total + 0.5).floor(), total.round())
    return rounded.to(torch.uint8)


def _shares(before: Tensor, after: Tensor, side: int, taps: int) -> tuple[Tensor, Tensor]:
    """Return which old pixels each new one covers, and which share of it each of them has.

    Returns:
        int64 and float32, (n, side, taps).
    """
    old, new = before[:, None, None], after[:, None, None]
    index = torch.arange(side, device=before.device)[None, :, None]
    index = torch.minimum(index, new - 1)
    places = index * old // new + torch.arange(taps, device=before.device)
    return torch.minimum(places, old - 1), share(places, index, old, new)


def share(place: Tensor, index: Tensor, before: Tensor | int, after: Tensor | int) -> Tensor:
    """Return which share of a new pixel an old one has, when a side shrinks from before to after.

    They are shares of whole numbers, as in ``notan.exporting.end_to_end.area_weights``, which no
    GPU nor rounding moves.

    Args:
        place: int64, counts the old pixels.
        index: int64, counts the new ones.
        before: Length of the side in old pixels.
        after: In new ones.

    Returns:
        float32, of the shape that all four give together.
    """
    ends = torch.minimum((place + 1) * after, (index + 1) * before)
    overlap = ends - torch.maximum(place * after, index * before)
    # OpenCV leaves out what is less than a thousandth of a pixel
    return torch.where(overlap * 1000 > after, overlap, 0).float() / before


def _unpacked(found: Tensor, *, ignores: bool) -> Tensor:
    """Make grey levels of what the last byte says: uint8, (..., channels and masks)."""
    if not ignores:
        return found
    codes = found[..., -1:]
    masks = (codes >> 7) * FOREGROUND
    return torch.cat([found[..., :-1], masks, ((codes ^ masks) & 1) * 255], dim=-1)


def _interpolate(levels: Tensor, whole: Whole, matrices: Tensor, frame: Frame) -> Tensor:
    """Warp bilinearly; what comes from outside an image is its mirror image.

    Args:
        levels: uint8, (n, height, width, channels), of which each image fills a part.
        whole: Says which.
        matrices: From the output's pixels.
        frame: Of the batch.

    Returns:
        uint8, (n, padded height, padded width, channels).
    """
    count, height, width = levels.shape[:3]
    device = levels.device
    # in the padding the last row and the last column are computed again
    y = torch.arange(frame.padded[0], device=device).clamp(max=frame.output[0] - 1)[:, None]
    x = torch.arange(frame.padded[1], device=device).clamp(max=frame.output[1] - 1)
    m = matrices[..., None, None]
    at_x = m[:, 0, 0] * x + (m[:, 0, 1] * y + m[:, 0, 2])
    at_y = m[:, 1, 0] * x + (m[:, 1, 1] * y + m[:, 1, 2])
    left, top = at_x.floor(), at_y.floor()
    far_x, far_y = (at_x - left)[..., None], (at_y - top)[..., None]
    starts = torch.arange(count, device=device)[:, None, None] * height
    flat = levels.flatten(0, 2)
    # a GPU divides numbers of 32 bits quicker; no shrunken images have 2**31 pixels
    sides = (side.int()[:, None, None] for side in (whole.small_height, whole.small_width))
    rows, columns = (
        [_mirrored(first.int(), side), _mirrored(first.int() + 1, side)]
        for first, side in zip((top, left), sides, strict=True)
    )

    def read(down: int, across: int) -> Tensor:
        where = (starts + rows[down]) * width + columns[across]
        return flat.index_select(0, where.flatten()).view(*where.shape, -1).float()

    upper, lower = read(0, 0), read(1, 0)
    upper = upper + far_x * (read(0, 1) - upper)
    lower = lower + far_x * (read(1, 1) - lower)
    return (upper + far_y * (lower - upper)).round().to(torch.uint8)


def _mirrored(places: Tensor, side: Tensor) -> Tensor:
    """Reflect places outside 0..side - 1 at the image's edges, as often as it takes."""
    places = places % (2 * side)
    return torch.minimum(places, 2 * side - 1 - places)


def _light(levels: Tensor, tables: Tensor) -> Tensor:
    """Look every grey level up in its image's table."""
    count = len(tables)
    start = torch.arange(count, device=levels.device)[:, None, None, None] * tables.shape[1]
    where = start + levels
    return tables.flatten().index_select(0, where.flatten()).view(where.shape)


def _pierce(levels: Tensor, whole: Whole, output: Size) -> Tensor:
    """Blacken the holes."""
    device = levels.device
    unit, hole = whole.unit[:, None], whole.hole[:, None]
    rows = torch.arange(levels.shape[1], device=device).clamp(max=output[0] - 1)
    columns = torch.arange(levels.shape[2], device=device).clamp(max=output[1] - 1)
    in_rows = (rows + whole.top[:, None]) % unit < hole
    in_columns = (columns + whole.left[:, None]) % unit < hole
    holes = in_rows[:, :, None] & in_columns[:, None, :]
    return levels.masked_fill(holes[..., None], 0)
