"""What every network keeps to: SegmentationModel, and Encoder for its downward half."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import nn

from notan.errors import ConfigError

if TYPE_CHECKING:
    from notan.config.sections import PerChannel
    from notan.types import Images, Logits

RAREST = 0.01
"""Foreground that is rarer counts as so rare: training cannot come back from certainty."""

IMAGENET_MEAN: PerChannel = (0.485, 0.456, 0.406)
IMAGENET_STD: PerChannel = (0.229, 0.224, 0.225)


class SegmentationModel(nn.Module, ABC):
    """A network from images to logits of the same height and width.

    Attributes:
        stride: Input height and width must be multiples of this; the Preprocessor pads to it.
        head: The last layer, which makes the logits.

    A module of your own needs no such base class: ``stride`` and ``forward`` are the contract.
    """

    stride: int
    head: nn.Conv2d

    def expect(self, foreground: float) -> None:
        """Let the first answers be about as much foreground as the images have.

        Else, where foreground is rare, the first steps go into learning that most of an image is
        background, which a bias learns no faster than any weight (benchmarks/first_steps.py).

        Source: Lin et al. 2017, RetinaNet, arXiv:1708.02002, section 4.1; there the share is 0.01
            whatever the images have, here the least and, mirrored, the most.

        Args:
            foreground: Its share of an image, 0..1.
        """
        share = min(max(foreground, RAREST), 1 - RAREST)
        bias = self.head.bias
        if bias is not None:
            nn.init.constant_(bias, math.log(share / (1 - share)))

    @abstractmethod
    def forward(self, images: Images) -> Logits:
        """Map (n, channels, h, w) normalised images to (n, 1, h, w) logits; no sigmoid."""


class Encoder(nn.Module, ABC):
    """A network that shrinks an image step by step and hands out every step.

    Attributes:
        channels: Channels of each feature map, finest first.
        strides: Stride of each feature map against the image; each twice the one before.
        mean: Mean of the red, green and blue channel (0..1) of the images that its published
            weights were trained on, as they were subtracted there.
        std: What was divided by.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: PerChannel = IMAGENET_MEAN
    std: PerChannel = IMAGENET_STD

    @abstractmethod
    def stages(self) -> list[list[nn.Module]]:
        """Return the modules that make each feature map, finest first; all parameters are there.

        One list of all of them says that it is not known which make which.
        """

    @abstractmethod
    def forward(self, images: Images) -> list[Images]:
        """Map (n, inputs, h, w) images to feature maps (n, channels, h / stride, w / stride)."""


def encoder_of(model: nn.Module) -> Encoder | None:
    """Return a network's downward half; None where it has none that hands out every step."""
    encoder = getattr(model, "encoder", None)
    return encoder if isinstance(encoder, Encoder) else None


def stride_of(model: nn.Module) -> int:
    """Return a model's stride.

    Raises:
        ConfigError: The model does not state one.
    """
    stride = getattr(model, "stride", None)
    if not isinstance(stride, int) or stride < 1:
        raise ConfigError(
            f"{type(model).__name__} states no stride; set self.stride to the number that input "
            "height and width must be multiples of (1 if any size will do)"
        )
    return stride
