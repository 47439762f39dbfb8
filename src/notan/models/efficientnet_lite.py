"""EfficientNet-Lite encoders: small, and made of what processors and int8 do well.

Source: Tan and Le 2019, arXiv:1905.11946; the Lite variants (no squeeze-and-excitation, ReLU6) by
Liu 2020, https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. Written
anew, without the classifier and the stage that feeds it; no stochastic depth.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from notan.models.base import Encoder
from notan.models.blocks import DepthwiseConv2d

if TYPE_CHECKING:
    from collections.abc import Mapping

    from notan.types import Images

STEM_CHANNELS = 32


class Stage(NamedTuple):
    """Blocks of one kind, of which the first changes the size."""

    blocks: int
    channels: int
    expansion: int
    kernel: int
    stride: int


STAGES = (
    Stage(1, 16, 1, 3, 1),
    Stage(2, 24, 6, 3, 2),
    Stage(2, 40, 6, 5, 2),
    Stage(3, 80, 6, 3, 2),
    Stage(3, 112, 6, 5, 1),
    Stage(4, 192, 6, 5, 2),
)
"""Of Lite0: table 1 of the paper without its last row, which widens 192 channels to 320 for the
classifier: a fifth of all weights, of no use to a decoder."""


class Scale(NamedTuple):
    """How much larger than Lite0 an encoder is.

    Attributes:
        width: Factor of the channels, but for the stem's.
        depth: Factor of the blocks in a stage, but for the first stage's.
    """

    width: float
    depth: float


SCALES: Mapping[str, Scale] = {
    "efficientnet_lite0": Scale(1.0, 1.0),
    "efficientnet_lite1": Scale(1.0, 1.1),
    "efficientnet_lite2": Scale(1.1, 1.2),
}
"""What ``model.encoder`` calls an encoder -> its scale, of those whose weights a package holds."""

MULTIPLE = 8
"""Channels are whole multiples of it, which processors like."""


def scale_stages(scale: Scale) -> tuple[Stage, ...]:
    """Return the stages of one of the family.

    Source: Liu 2020, as above: unlike in the paper's larger networks, the stem and the number of
        blocks in the first stage stay as they are.
    """
    first, *rest = (
        stage._replace(channels=MULTIPLE * round(stage.channels * scale.width / MULTIPLE))
        for stage in STAGES
    )
    return first, *(stage._replace(blocks=math.ceil(stage.blocks * scale.depth)) for stage in rest)


HANDED_OUT = (0, 1, 2, 4, 5)
"""Stages whose output is the last of its size: strides 2, 4, 8, 16, 32."""


class ConvNorm(nn.Module):
    """A convolution padded as TensorFlow does, batch norm, and ReLU6 where there is one.

    Where it halves an even size, TensorFlow pads one pixel more below and to the right, which
    PyTorch's own padding cannot, and the published weights were trained so.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        depthwise: bool = False,
        activated: bool = True,
    ) -> None:
        super().__init__()
        total = kernel - stride
        self.pad = nn.ZeroPad2d((total // 2, total - total // 2) * 2) if stride > 1 else None
        padding = 0 if self.pad else kernel // 2
        self.conv = (
            DepthwiseConv2d(inputs, kernel, stride=stride, padding=padding)
            if depthwise
            else nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        )
        # TensorFlow's epsilon: the published weights are small where 1e-5 would show. Not its
        # momentum, 0.01: a few hundred steps end before such means have caught up with the weights
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.activate = nn.ReLU6(inplace=True) if activated else None

    def forward(self, features: Images) -> Images:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride); even sizes halve."""
        result: Images = self.norm(self.conv(self.pad(features) if self.pad else features))
        return self.activate(result) if self.activate else result


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; the input is added where the shape stays.

    Source: Sandler et al. 2018, MobileNetV2, arXiv:1801.04381.
    """

    def __init__(self, inputs: int, stage: Stage, *, stride: int) -> None:
        super().__init__()
        inner = inputs * stage.expansion
        self.expand = ConvNorm(inputs, inner, 1) if stage.expansion > 1 else None
        self.depthwise = ConvNorm(inner, inner, stage.kernel, stride=stride, depthwise=True)
        self.project = ConvNorm(inner, stage.channels, 1, activated=False)
        self.adds = stride == 1 and inputs == stage.channels

    def forward(self, features: Images) -> Images:
        """Map (n, inputs, h, w) to (n, channels, h / stride, w / stride)."""
        inner = self.expand(features) if self.expand else features
        result: Images = self.project(self.depthwise(inner))
        return result + features if self.adds else result


class EfficientNetLiteEncoder(Encoder):
    """An EfficientNet-Lite without its classifier: features at strides 2, 4, 8, 16, 32.

    Args:
        scale: Which one; Lite0, Lite1 and Lite2 have 2.4, 3.1 and 3.6 million parameters.
        inputs: Channels of the images.
    """

    mean = (127 / 255,) * 3
    std = (128 / 255,) * 3

    def __init__(self, scale: Scale, *, inputs: int = 3) -> None:
        super().__init__()
        stages = scale_stages(scale)
        self.channels = tuple(stages[number].channels for number in HANDED_OUT)
        self.strides = (2, 4, 8, 16, 32)
        self.stem = ConvNorm(inputs, STEM_CHANNELS, 3, stride=2)
        width = STEM_CHANNELS
        parts: list[nn.Sequential] = []
        for stage in stages:
            first = InvertedResidual(width, stage, stride=stage.stride)
            width = stage.channels
            rest = (InvertedResidual(width, stage, stride=1) for _ in range(stage.blocks - 1))
            parts.append(nn.Sequential(first, *rest))
        self.parts = nn.ModuleList(parts)

    def stages(self) -> list[list[nn.Module]]:
        """Return the modules that make each feature map, finest first."""
        starts = (0, *(number + 1 for number in HANDED_OUT[:-1]))
        found = [
            [self.parts[number] for number in range(start, end + 1)]
            for start, end in zip(starts, HANDED_OUT, strict=True)
        ]
        found[0].insert(0, self.stem)
        return found

    def forward(self, images: Images) -> list[Images]:
        """Map (n, inputs, h, w) to five feature maps, finest first."""
        features: list[Images] = []
        current = images
        for stage in self.stages():
            for module in stage:
                current = module(current)
            features.append(current)
        return features
