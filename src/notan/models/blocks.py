"""Blocks that the networks are built of, and two convolutions that avoid faults of oneDNN.

oneDNN computes PyTorch's convolutions on a processor. Its bfloat16 code is quick forward but not
backward for depthwise convolutions: with kernels of 5x5, or where the size halves, the gradients of
an EfficientNet's few depthwise layers took two fifths of a training step or more
(benchmarks/training_step.py); DepthwiseConv2d finds them in float32.

It also writes outside its memory in the weight gradient of a 1x1 convolution with a stride, where
that reads fewer channels than a register holds and the channels lie last (uxlfoundation/oneDNN
issue 6035): the gradient is wrong, or the process ends. A ResNet's shortcuts are such convolutions;
PointwiseConv2d takes another way, and ``guard_convolutions`` has other networks' layers take it;
benchmarks/onednn_strided.py shows the fault.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.nn.modules.batchnorm import _BatchNorm

from notan.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from notan.types import Images

logger = logging.getLogger("notan")

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


REGISTER = 16
"""Float32 numbers that the widest register of a processor holds."""


class PointwiseConv2d(nn.Conv2d):
    """A convolution of 1x1 without bias."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's own name
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride), rounded up."""
        if not _is_faulty(self) or not _learns(self):
            return super().forward(input)
        return _convolve_picked(self, input)


def _is_faulty(layer: nn.Conv2d) -> bool:
    """Say whether oneDNN may find the gradient of a layer's weights beside its memory."""
    is_pointwise = layer.kernel_size == (1, 1) and layer.groups == 1
    steps: object = (
        layer.stride
    )  # a class of the user's may call something else so: the network's own
    skips = isinstance(steps, tuple) and max(steps) > 1
    return is_pointwise and skips and layer.in_channels < REGISTER


def _learns(layer: nn.Conv2d) -> bool:
    return torch.is_grad_enabled() and layer.weight.requires_grad


def _convolve_picked(layer: nn.Conv2d, features: Tensor) -> Tensor:
    """Pick a layer's pixels first, and convolve without a stride."""
    down, right = layer.stride
    return functional.conv2d(features[..., ::down, ::right], layer.weight, layer.bias)


def _answer_safely(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Answer in place of a convolution that learns, a forward hook; its own answer is let go."""
    features = inputs[0] if inputs else None
    if not isinstance(layer, nn.Conv2d) or features is None or not _learns(layer):
        return output
    return _convolve_picked(layer, features) if features.device.type == "cpu" else output


def guard_convolutions(network: nn.Module) -> int:
    """Have all layers of a network learn that would meet oneDNN's fault, on a processor.

    Their classes, weights and names stay, and so does what they answer, within rounding; copies of
    the network are guarded too. A layer that pads, or computes in its own way, is left alone.

    Returns:
        How many layers are guarded; those that avoid the fault themselves do not count.
    """
    guarded, unknown = 0, []
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Conv2d) or isinstance(layer, PointwiseConv2d):
            continue
        if not _is_faulty(layer) or layer.padding not in ((0, 0), "valid"):
            continue
        if type(layer).forward is not nn.Conv2d.forward:
            unknown.append(name)
            continue
        guarded += 1
        if _answer_safely not in layer._forward_hooks.values():
            layer.register_forward_hook(_answer_safely)
    if unknown:
        logger.warning(
            "%s: a strided 1x1 convolution of few channels; oneDNN may find wrong gradients for it "
            "on a processor without AVX-512, or end the process (see known faults in the docs)",
            ", ".join(unknown),
        )
    return guarded


MOMENTUM = 0.1
"""PyTorch's, of a batch norm's statistics. Published networks may have less, 0.01 for example, as
they were trained for 100,000 steps; after some hundred such means are those of other weights."""


def follow_quickly(network: nn.Module) -> None:
    """Let the statistics of all batch norms follow the weights at least at PyTorch's usual pace."""
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and layer.momentum is not None:
            layer.momentum = max(layer.momentum, MOMENTUM)


A_VECTOR = 16
"""Channels that a processor works on at once, in float32 with AVX-512."""


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's, quick for a few channels on a processor too.

    Its way back over channels in the last place works on a vector of them at a time; with fewer
    than fill one it takes several times as long as over channels in the first place.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's own name
        """Map (n, channels, h, w) to the same."""
        few = self.num_features < A_VECTOR and input.device.type == "cpu"
        return super().forward(input.contiguous() if few and self.training else input)


class DoubleConv(nn.Sequential):
    """Twice: 3x3 convolution without bias, batch norm, ReLU.

    Source: Ronneberger, Fischer, Brox 2015, arXiv:1505.04597; here padded, so that the size
    stays, and with batch norm (Ioffe and Szegedy 2015), which the paper did not have.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(*_conv_norm_relu(inputs, outputs), *_conv_norm_relu(outputs, outputs))


def _conv_norm_relu(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return (
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Up(nn.Module):
    """One step up: a 2x2 transposed convolution, the skip beside it, a double convolution."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.convolve = DoubleConv(outputs + skip, outputs)

    def forward(self, coarse: Images, skip: Images) -> Images:
        """Join (n, inputs, h, w) with the skip (n, skip, 2h, 2w) to (n, outputs, 2h, 2w)."""
        joined: Images = self.convolve(torch.cat([skip, self.enlarge(coarse)], dim=1))
        return joined


def enlarge(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return a step up without a skip: a 2x2 transposed convolution, batch norm, ReLU."""
    return (
        nn.ConvTranspose2d(inputs, outputs, 2, stride=2),
        BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class AttentionGate(nn.Module):
    """Weigh a skip by what the coarser level says of it.

    Source: Oktay et al. 2018, Attention U-Net, arXiv:1804.03999, equations 1 and 2, in two
    dimensions: additive attention on the grid of the coarser level, enlarged bilinearly.
    """

    def __init__(self, skip: int, gate: int) -> None:
        super().__init__()
        inner = skip
        self.from_skip = nn.Conv2d(skip, inner, 2, stride=2, bias=False)
        self.from_gate = nn.Conv2d(gate, inner, 1)
        self.weigh = nn.Conv2d(inner, 1, 1)
        self.finish = nn.Sequential(nn.Conv2d(skip, skip, 1, bias=False), nn.BatchNorm2d(skip))

    def forward(self, skip: Images, gate: Images) -> Images:
        """Weigh the skip (n, skip, 2h, 2w) by the gate (n, gate, h, w); the size stays."""
        score = self.weigh(torch.relu(self.from_skip(skip) + self.from_gate(gate)))
        attention = nn.functional.interpolate(
            torch.sigmoid(score), size=skip.shape[2:], mode="bilinear", align_corners=False
        )
        weighed: Images = self.finish(skip * attention)
        return weighed


class Decoder(nn.Module):
    """The upward half of a U-Net, for any encoder whose strides double from level to level.

    The head and any steps from the finest level back to the image's size are the model's.
    """

    def __init__(
        self, encoder_channels: Sequence[int], channels: Sequence[int], *, gated: bool = False
    ) -> None:
        """Build one step up for each pair of neighbouring levels.

        Args:
            encoder_channels: Channels of the encoder's feature maps, finest first.
            channels: Channels after each step up, coarsest first; one fewer than levels.
            gated: Put an attention gate on every skip but the finest, as Oktay et al. do.

        Raises:
            ConfigError: The two do not fit.
        """
        super().__init__()
        *skips, bottom = encoder_channels
        if len(channels) != len(skips):
            raise ConfigError(
                f"a decoder of {len(channels)} steps on an encoder of {len(encoder_channels)} "
                f"levels; {len(skips)} steps are wanted"
            )
        coarse_first = skips[::-1]
        inputs = [bottom, *channels[:-1]]
        self.steps = nn.ModuleList(map(Up, inputs, coarse_first, channels))
        self.gates = nn.ModuleList(
            AttentionGate(skip, gate)
            for skip, gate in zip(coarse_first[:-1] if gated else [], inputs, strict=False)
        )

    def forward(self, features: Sequence[Images]) -> Images:
        """Map the encoder's feature maps, finest first, to one of the finest map's size."""
        *skips, result = features
        for number, step in enumerate(self.steps):
            skip = skips[-1 - number]
            if number < len(self.gates):
                skip = self.gates[number](skip, result)
            result = step(result, skip)
        return result
