"""The warp of a whole batch at once, wherever its tensors are: what ``Geometry`` does to one image.

The pixels lie in one tensor, those of an image behind each other, whatever their sizes. Each step
is the one of OpenCV's that ``notan.data.transforms`` takes, in the same order: area averaging to
the size from which the warp no longer shrinks, rounding to grey levels, bilinear interpolation with
mirrored borders, rounding again. A grey level is one off where a mean lies next to a half.

Nothing here looks at a value of a tensor, so that a GPU is never waited for: sizes that decide
shapes come from the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from notan.types import Size

FOREGROUND, IGNORED = 1, 2
"""Bits of the byte that follows a pixel's channels."""

MOST_PIXELS = 2**23
"""Of shrunken images that are worked on at once: some 600 MB while it lasts. Images of a batch are
padded to the largest of them, and one may be as large as its file."""


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
    shrinking: Sequence[tuple[Size, Size]],
) -> Warped:
    """Shrink, warp, light and pierce the images of a batch.

    Args:
        pixels: uint8, (pixels, channels + 1): the channels, then what the mask says.
        whole: Of each image.
        matrices: float32, (n, 2, 3), from the output's pixels to the shrunken image's, both counted
            from the centre of the first.
        tables: uint8, (n, 256), what becomes of each grey level.
        frame: Of the batch.
        shrinking: Of each image the (height, width) before and after shrinking, known to the host.
    """
    count, (height, width) = len(matrices), frame.padded
    parts, first = [], 0
    while first < count:
        last = first + _how_many([small for _, small in shrinking[first:]])
        some = Whole(*(each[first:last] for each in whole))
        levels = _shrink(pixels, some, shrinking[first:last], ignores=frame.ignores)
        parts.append(_interpolate(levels, some, matrices[first:last], frame))
        first = last
    levels = torch.cat(parts) if len(parts) > 1 else parts[0]
    channels = pixels.shape[1] - 1
    device = pixels.device
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    inside = (rows < frame.output[0])[:, None] & (columns < frame.output[1])
    masks = levels[..., channels:] >= 128
    valid = inside & ~masks[..., 1] if frame.ignores else inside.expand(count, height, width)
    return Warped(
        _pierce(_light(levels[..., :channels], tables), whole, frame.output),
        (masks[..., 0] & inside)[:, None].float(),
        valid[:, None].float(),
    )


def _how_many(smalls: Sequence[Size]) -> int:
    """Return how many of the first images may be worked on at once; at least one."""
    height = width = 0
    for count, small in enumerate(smalls):
        height, width = max(height, small[0]), max(width, small[1])
        if count and (count + 1) * height * width > MOST_PIXELS:
            return count
    return len(smalls)


def _shrink(
    pixels: Tensor, whole: Whole, shrinking: Sequence[tuple[Size, Size]], *, ignores: bool
) -> Tensor:
    """Average over areas; return uint8 (n, height, width, channels and masks), padded to one size.

    Each new pixel covers at most so many old ones down and across; those of no weight are read all
    the same.
    """
    height, width = (max(small[axis] for _, small in shrinking) for axis in (0, 1))
    rows, down = _shares(whole.height, whole.small_height, height, _taps(shrinking, 0))
    columns, across = _shares(whole.width, whole.small_width, width, _taps(shrinking, 1))
    starts = whole.place[:, None, None] + rows * whole.width[:, None, None]  # (n, height, taps)

    def read(tap_down: int, tap_across: int) -> Tensor:
        where = starts[:, :, tap_down, None] + columns[:, None, :, tap_across]
        found = pixels.index_select(0, where.flatten()).view(*where.shape, -1)
        return _unpacked(found, ignores=ignores)

    if rows.shape[2] == columns.shape[2] == 1:  # none shrinks
        return read(0, 0)

    def averaged(tap_down: int) -> Tensor:
        row = read(tap_down, 0) * across[:, None, :, 0, None]
        for tap in range(1, columns.shape[2]):
            row = row + read(tap_down, tap) * across[:, None, :, tap, None]
        return row * down[:, :, tap_down, None, None]

    total = averaged(0)
    for tap in range(1, rows.shape[2]):
        total = total + averaged(tap)
    # OpenCV rounds a half up where both sides are halved, else to even
    halved = (whole.height == 2 * whole.small_height) & (whole.width == 2 * whole.small_width)
    rounded = torch.where(halved[:, None, None, None], (total + 0.5).floor(), total.round())
    return rounded.to(torch.uint8)


def _taps(shrinking: Sequence[tuple[Size, Size]], axis: int) -> int:
    """Return the most old pixels that a new one covers along an axis, in whole or in part."""
    sides = {(before[axis], after[axis]) for before, after in shrinking}
    # a box of 2.5 old pixels reaches into 4 where it begins within one
    return max(-(-old // new) + (old % new > 0) for old, new in sides)


def _shares(before: Tensor, after: Tensor, side: int, taps: int) -> tuple[Tensor, Tensor]:
    """Return which old pixels each new one covers, and which share of it each of them has.

    They are shares of whole numbers, as in ``notan.exporting.end_to_end.area_weights``.

    Returns:
        int64 and float32, (n, side, taps).
    """
    old, new = before[:, None, None], after[:, None, None]
    counted = torch.arange(side, device=before.device)[None, :, None]
    index = torch.minimum(counted, new - 1)
    places = index * old // new + torch.arange(taps, device=before.device)
    overlap = torch.minimum((places + 1) * new, (index + 1) * old) - torch.maximum(
        places * new, index * old
    )
    # OpenCV leaves out what is less than a thousandth of a pixel
    overlap = torch.where(overlap * 1000 > new, overlap, 0)
    return torch.minimum(places, old - 1), overlap.float() / old


def _unpacked(found: Tensor, *, ignores: bool) -> Tensor:
    """Make grey levels of the last channel's bits: uint8, (..., channels and masks)."""
    bits = found[..., -1:]
    masks = [(bits & FOREGROUND) * 255]
    if ignores:
        masks.append((bits // IGNORED) * 255)
    return torch.cat([found[..., :-1], *masks], dim=-1)


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
    start = torch.arange(count, device=device)[:, None, None] * height
    flat = levels.flatten(0, 2)

    def read(down: int, across: int) -> Tensor:
        row = _mirrored(top.long() + down, whole.small_height[:, None, None])
        column = _mirrored(left.long() + across, whole.small_width[:, None, None])
        where = (start + row) * width + column
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
