"""The gradients of one layer, for tests that compare two ways to find them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def gradients(
    layer: nn.Conv2d, inputs: Tensor, *, bf16: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output and the gradients for input and weight of a sum with fixed factors."""
    inputs = inputs.detach().clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = layer(inputs)
    factors = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output * factors.to(output.dtype)).sum().backward()
    assert inputs.grad is not None
    assert layer.weight.grad is not None
    return output, inputs.grad, layer.weight.grad
