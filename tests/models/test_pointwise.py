"""Convolution of single pixels: PyTorch's own, but for where the gradient would be wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradients import gradients
from notan.models.blocks import REGISTER, PointwiseConv2d
from notan.models.unet import ResNet34UNet

SIZE = (9, 12)


@pytest.mark.parametrize("inputs", [1, 2, 4, 7, 8, 15, REGISTER, 24])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_gradients_are_those_of_pytorchs_convolution_in_float64(
    inputs: int, stride: int
) -> None:
    layer = PointwiseConv2d(inputs, 2 * inputs, stride=stride)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = nn.Conv2d(inputs, 2 * inputs, 1, stride, bias=False).double()  # not oneDNN's
    plain.load_state_dict(layer.state_dict())
    drawn = torch.randn(8, inputs, *SIZE, generator=torch.Generator().manual_seed(0))
    exact = gradients(plain, drawn.double())
    for found, wanted in zip(
        gradients(layer, drawn.to(memory_format=torch.channels_last)), exact, strict=True
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


def test_a_narrow_layer_that_learns_asks_no_strided_convolution_of_onednn() -> None:
    def strides(inputs: int, *, learns: bool) -> list[list[int]]:
        layer = PointwiseConv2d(inputs, 4, stride=2).requires_grad_(learns)
        pixels = torch.randn(1, inputs, *SIZE)
        with torch.profiler.profile(record_shapes=True) as profile:
            layer(pixels)
        (call,) = [each for each in profile.events() if each.name == "aten::conv2d"]
        return [shape for shape in call.input_shapes if len(shape) == 4]

    taken = [1, 2, 5, 6]
    assert strides(2, learns=True)[0] == taken
    assert strides(2, learns=False)[0] == [1, 2, *SIZE]
    assert strides(REGISTER, learns=True)[0] == [1, REGISTER, *SIZE]


def test_the_shortcuts_of_a_resnet_are_such_layers() -> None:
    network = ResNet34UNet(2)
    shortcuts = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1)
    ]
    assert len(shortcuts) == 4
    assert all(isinstance(layer, PointwiseConv2d) for layer in shortcuts)
