"""A convolution of single pixels that may pass over some, whose gradient is right on a processor.

oneDNN, which computes PyTorch's convolutions on a processor, writes beside its memory when it finds
the gradient of such a convolution's weights, where it passes over pixels, reads fewer channels than
a register holds and the channels lie last (uxlfoundation/oneDNN issue 6035): the gradient is wrong,
or the process ends. A ResNet's shortcuts are such convolutions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

REGISTER = 16
"""Float32 numbers that the widest register of a processor holds."""


class PointwiseConv2d(nn.Conv2d):
    """A convolution of 1x1 without bias."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's own name
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride), rounded up."""
        step = self.stride[0]
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        if not learns or step == 1 or self.in_channels >= REGISTER:
            return super().forward(input)
        return functional.conv2d(input[..., ::step, ::step], self.weight)
