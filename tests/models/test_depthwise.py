"""Depthwise convolution: PyTorch's own, but for where the gradient is found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from gradients import gradients
from notan.models.blocks import DepthwiseConv2d
from notan.models.efficientnet_lite import SCALES, EfficientNetLiteEncoder

CHANNELS = 6


def features(size: tuple[int, int] = (9, 12), dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(2, CHANNELS, *size, generator=torch.Generator().manual_seed(0))
    return drawn.to(dtype, memory_format=torch.channels_last)


@settings(deadline=None, max_examples=30)
@given(
    kernel=st.sampled_from((3, 5)),
    stride=st.sampled_from((1, 2)),
    height=st.integers(5, 20),
    width=st.integers(5, 20),
)
def test_the_gradients_in_bfloat16_are_those_of_float32_to_a_rounding(
    kernel: int, stride: int, height: int, width: int
) -> None:
    layer = DepthwiseConv2d(CHANNELS, kernel, stride=stride, padding=kernel // 2)
    inputs = features((height, width))
    exact = gradients(layer, inputs, bf16=False)
    rounded = gradients(layer, inputs, bf16=True)

    assert rounded[0].dtype is torch.bfloat16
    for found, wanted in zip(rounded, exact, strict=True):
        assert (found - wanted).abs().max() <= 0.02 * wanted.abs().max()


def test_the_way_there_is_pytorchs_to_the_bit_in_every_arithmetic() -> None:
    layer = DepthwiseConv2d(CHANNELS, 5, stride=2, padding=1)
    plain = nn.Conv2d(CHANNELS, CHANNELS, 5, 2, 1, groups=CHANNELS, bias=False)
    plain.load_state_dict(layer.state_dict())

    for bf16 in (False, True):
        found, wanted = (gradients(each, features(), bf16=bf16)[0] for each in (layer, plain))
        assert torch.equal(found, wanted)


def test_in_float32_the_gradients_are_pytorchs_to_the_bit() -> None:
    layer = DepthwiseConv2d(CHANNELS, 3, stride=1, padding=1)
    plain = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False)
    plain.load_state_dict(layer.state_dict())

    for found, wanted in zip(
        gradients(layer, features(), bf16=False),
        gradients(plain, features(), bf16=False),
        strict=True,
    ):
        assert torch.equal(found, wanted)


def test_the_weights_gradient_is_summed_in_float32() -> None:
    """Thousands of bfloat16 ones add up to less in bfloat16, which stops at 256."""
    layer = DepthwiseConv2d(CHANNELS, 3, stride=1, padding=0)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(torch.ones(1, CHANNELS, 66, 66))
    output.backward(torch.ones_like(output))

    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, torch.full_like(layer.weight, 64.0 * 64))


@pytest.mark.parametrize("learns", ["features", "weight"])
def test_what_does_not_learn_gets_no_gradient(learns: str) -> None:
    layer = DepthwiseConv2d(CHANNELS, 3, stride=1, padding=1)
    inputs = features().requires_grad_(learns == "features")
    layer.weight.requires_grad_(learns == "weight")
    with torch.autocast("cpu", torch.bfloat16):
        layer(inputs).sum().backward()

    assert (inputs.grad is not None) == (learns == "features")
    assert (layer.weight.grad is not None) == (learns == "weight")


def test_without_gradients_a_network_is_traced_as_plain_convolutions() -> None:
    layer = DepthwiseConv2d(CHANNELS, 3, stride=1, padding=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(features()).grad_fn is None
        wanted = functional.conv2d(features(), layer.weight, None, 1, 1, 1, CHANNELS)
        assert torch.equal(layer(features()), wanted)


@pytest.mark.parametrize(("name", "blocks"), [*zip(SCALES, (15, 20, 20), strict=True)])
def test_every_depthwise_layer_of_efficientnet_is_one(name: str, blocks: int) -> None:
    encoder = EfficientNetLiteEncoder(SCALES[name])
    layers = [each for each in encoder.modules() if isinstance(each, nn.Conv2d)]
    alone = [each for each in layers if each.groups > 1]

    assert len(alone) == blocks
    assert all(isinstance(each, DepthwiseConv2d) for each in alone)
