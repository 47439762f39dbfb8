"""What every network keeps to: SegmentationModel, and Encoder for its downward half."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import nn

from notan.errors import ConfigError

if TYPE_CHECKING:
    from notan.types import Images, Logits


class SegmentationModel(nn.Module, ABC):
    """A network from pictures to logits of the same height and width.

    Attributes:
        stride: Input height and width must be multiples of this; the Preprocessor pads to it.

    A module of your own needs no such base class: ``stride`` and ``forward`` are the contract.
    """

    stride: int

    @abstractmethod
    def forward(self, images: Images) -> Logits:
        """Map (n, 3, h, w) normalised pictures to (n, 1, h, w) logits; no sigmoid."""


class Encoder(nn.Module, ABC):
    """A network that shrinks a picture step by step and hands out every step.

    Attributes:
        channels: Channels of each feature map, finest first.
        strides: Stride of each feature map against the picture; each twice the one before.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @abstractmethod
    def forward(self, images: Images) -> list[Images]:
        """Map (n, 3, h, w) pictures to feature maps (n, channels, h / stride, w / stride)."""


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
