"""Images of several sizes in one batch, each padded to the largest height and width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from notan.types import Size


def largest(tensors: Iterable[Tensor]) -> Size:
    """Return the largest height and the largest width of tensors (n, c, h, w)."""
    heights, widths = zip(*(tensor.shape[-2:] for tensor in tensors), strict=True)
    return max(heights), max(widths)


def join_padded(tensors: Sequence[Tensor], size: Size, mode: Literal["edge", "zero"]) -> Tensor:
    """Put tensors (n, c, h, w) together, each padded below and to the right.

    Args:
        tensors: Alike but for their heights and widths.
        size: (height, width), at least every tensor's.
        mode: Repeat the last row and column, as ``Preprocessor`` pads images, or add zeros.
    """
    return torch.cat([_pad(tensor, size, mode) for tensor in tensors])


def _pad(tensor: Tensor, size: Size, mode: Literal["edge", "zero"]) -> Tensor:
    height, width = tensor.shape[-2:]
    if (height, width) == size:
        return tensor
    how = "replicate" if mode == "edge" else "constant"
    return functional.pad(tensor, (0, size[1] - width, 0, size[0] - height), mode=how)
