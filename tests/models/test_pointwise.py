"""Convolution of single pixels: PyTorch's own, but for where the gradient would be wrong."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from gradients import gradients
from notan.models.blocks import REGISTER, PointwiseConv2d, guard_convolutions
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


@pytest.mark.parametrize("inputs", [1, 3, 4, 7, 15])
@pytest.mark.parametrize("stride", [2, (1, 2), 3])
@pytest.mark.parametrize("bias", [False, True])
def test_a_guarded_layer_has_the_gradients_of_float64(
    inputs: int, stride: int | tuple[int, int], bias: bool
) -> None:
    layer = nn.Conv2d(inputs, 4, 1, stride, bias=bias)
    plain = copy.deepcopy(layer).double()  # not oneDNN's
    assert guard_convolutions(layer.to(memory_format=torch.channels_last)) == 1  # type: ignore[call-overload]
    drawn = torch.randn(8, inputs, *SIZE, generator=torch.Generator().manual_seed(0))
    exact = gradients(plain, drawn.double())
    for found, wanted in zip(
        gradients(layer, drawn.to(memory_format=torch.channels_last)), exact, strict=True
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


class Narrow(nn.Module):
    """A network of a user's own with such a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(3, 4, 1, stride=2, bias=False)
        self.wide = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.wide(self.shortcut(images))
        return result


def strided(network: nn.Module) -> list[bool]:
    """Say of each convolution in a step whether its gradient would be that of a strided one."""
    pixels = torch.randn(1, 3, *SIZE)
    seen, todo = [], [network(pixels).grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            seen += [node._saved_stride] if "ConvolutionBackward" in node.name() else []
            todo += [parent for parent, _ in node.next_functions]
    return [max(stride) > 1 for stride in seen]


def test_a_guarded_network_and_its_copies_keep_all_but_the_strided_gradient() -> None:
    network = Narrow()
    before = {name: each.clone() for name, each in network.state_dict().items()}
    classes = [type(each) for each in network.modules()]
    assert any(strided(network))
    assert guard_convolutions(network) == guard_convolutions(network) == 1
    assert len(network.shortcut._forward_hooks) == 1
    assert [type(each) for each in network.modules()] == classes
    assert [*network.state_dict()] == [*before]
    twin = copy.deepcopy(network)
    twin.shortcut.weight.data.zero_()
    assert not any(strided(network))
    assert not any(strided(twin))
    pixels = torch.ones(1, 3, 4, 4)
    assert not twin.shortcut(pixels).any()
    plain = Narrow()
    plain.load_state_dict(before)
    torch.testing.assert_close(network(pixels), plain(pixels))


class OwnForward(nn.Conv2d):
    """Computes in its own way, as timm's do with padding."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - PyTorch's own name
        return super().forward(2 * input)


def test_a_layer_that_cannot_be_guarded_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="notan"):
        assert guard_convolutions(nn.Sequential(OwnForward(3, 4, 1, stride=2))) == 0
    assert "0: a strided 1x1 convolution of few channels" in caplog.text


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(REGISTER, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.Conv2d(4, 4, 1, stride=2, groups=2),
        nn.Conv2d(4, 4, 1, stride=2, padding=1),
        PointwiseConv2d(4, 4, stride=2),
    ],
)
def test_other_layers_are_left_alone(layer: nn.Conv2d) -> None:
    assert guard_convolutions(layer) == 0
    assert not layer._forward_hooks
