"""A convolution of each channel by itself, whose gradient a processor finds in float32.

oneDNN, which computes PyTorch's convolutions on a processor, has quick bfloat16 code for the way
there but not for the way back: with kernels of 5x5, or where the size halves, the gradients of an
EfficientNet's few depthwise layers took some two fifths of a training step or more
(benchmarks/training_step.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple[int, int]


class DepthwiseConv2d(nn.Conv2d):
    """A convolution without bias that filters each channel by itself."""

    def __init__(self, channels: int, kernel: int, *, stride: int, padding: int) -> None:
        super().__init__(
            channels, channels, kernel, stride=stride, padding=padding, groups=channels, bias=False
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's own name
        """Map (n, channels, h, w) to (n, channels, h', w')."""
        learns = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        if not learns or input.device.type != "cpu":
            return super().forward(input)
        pairs = (self.stride[0], self.stride[1]), (int(self.padding[0]), int(self.padding[1]))
        result: Tensor = _QuickGradient.apply(input, self.weight, *pairs)  # type: ignore[no-untyped-call]
        return result


class _Context(Protocol):
    """What the way there keeps for the way back."""

    saved_tensors: tuple[Tensor, Tensor]
    needs_input_grad: tuple[bool, ...]
    stride: Pair
    padding: Pair

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors."""


class _QuickGradient(torch.autograd.Function):
    """The convolution as it is, and its gradients in float32, whatever the arithmetic."""

    @staticmethod
    def forward(
        context: _Context, features: Tensor, weight: Tensor, stride: Pair, padding: Pair
    ) -> Tensor:
        context.save_for_backward(features, weight)
        context.stride, context.padding = stride, padding
        return functional.conv2d(features, weight, None, stride, padding, 1, weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(
        context: _Context, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        features, weight = context.saved_tensors
        exact, geometry = gradient.float(), (context.stride, context.padding, 1, weight.shape[0])
        to_features = to_weight = None
        if context.needs_input_grad[0]:
            to_features = conv2d_input(features.shape, weight.float(), exact, *geometry)  # type: ignore[no-untyped-call]
        if context.needs_input_grad[1]:
            to_weight = conv2d_weight(features.float(), weight.shape, exact, *geometry)  # type: ignore[no-untyped-call]
        return (
            None if to_features is None else to_features.to(features.dtype),
            None if to_weight is None else to_weight.to(weight.dtype),
            None,
            None,
        )
