"""The ResNet-34 encoder, with torchvision's parameter names, so that its weights load.

Source: He, Zhang, Ren, Sun 2016, arXiv:1512.03385.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from notan.models.base import Encoder
from notan.models.blocks import PointwiseConv2d

if TYPE_CHECKING:
    from notan.types import Images

Residual = Literal["standard", "report"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added back.

    ``standard`` is He et al.'s: ReLU after the addition, projection only where the shape changes.
    ``report`` is the reference report's: ReLU before the addition.
    """

    def __init__(
        self, inputs: int, outputs: int, *, stride: int = 1, project: bool, residual: Residual
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(PointwiseConv2d(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs))
            if project
            else nn.Identity()
        )
        self.relu_last = residual == "standard"

    def forward(self, features: Images) -> Images:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        inner = torch.relu(self.bn1(self.conv1(features)))
        inner = self.bn2(self.conv2(inner))
        around: Images = self.downsample(features)
        return torch.relu(inner + around) if self.relu_last else torch.relu(inner) + around


def residual_stage(
    inputs: int, outputs: int, blocks: int, *, stride: int, residual: Residual
) -> nn.Sequential:
    """Return a stage: blocks of one width, of which the first may shrink.

    The report's variant projects in every stage's first block, He et al.'s only where it must.
    """
    project = stride > 1 or inputs != outputs or residual == "report"
    first = ResidualBlock(inputs, outputs, stride=stride, project=project, residual=residual)
    rest = (
        ResidualBlock(outputs, outputs, project=False, residual=residual) for _ in range(blocks - 1)
    )
    return nn.Sequential(first, *rest)


class ResNet34Encoder(Encoder):
    """ResNet-34 without its classifier: features at strides 2, 4, 8, 16, 32."""

    def __init__(
        self, width: int = 64, *, residual: Residual = "standard", inputs: int = 3
    ) -> None:
        super().__init__()
        self.channels = (width, width, 2 * width, 4 * width, 8 * width)
        self.strides = (2, 4, 8, 16, 32)
        self.conv1 = nn.Conv2d(inputs, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = residual_stage(width, width, 3, stride=1, residual=residual)
        self.layer2 = residual_stage(width, 2 * width, 4, stride=2, residual=residual)
        self.layer3 = residual_stage(2 * width, 4 * width, 6, stride=2, residual=residual)
        self.layer4 = residual_stage(4 * width, 8 * width, 3, stride=2, residual=residual)

    def stages(self) -> list[list[nn.Module]]:
        """Return the modules that make each feature map, finest first."""
        return [
            [self.conv1, self.bn1],
            [self.layer1],
            [self.layer2],
            [self.layer3],
            [self.layer4],
        ]

    def forward(self, images: Images) -> list[Images]:
        """Map (n, inputs, h, w) to five feature maps, finest first."""
        features = [torch.relu(self.bn1(self.conv1(images)))]
        current = self.maxpool(features[0])
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            current = stage(current)
            features.append(current)
        return features
