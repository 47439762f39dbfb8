"""The U-Net and the Attention U-Net.

Source: Ronneberger, Fischer, Brox 2015, arXiv:1505.04597; Oktay et al. 2018, arXiv:1804.03999.
Both with padded convolutions and batch norm, so that logits have the image's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from notan.models.base import Encoder, SegmentationModel
from notan.models.blocks import Decoder, DoubleConv

if TYPE_CHECKING:
    from notan.types import Images, Logits

LEVELS = 5


class UNetEncoder(Encoder):
    """Five double convolutions with max pooling between them: strides 1, 2, 4, 8, 16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = tuple(width * 2**level for level in range(LEVELS))
        self.strides = tuple(2**level for level in range(LEVELS))
        self.levels = nn.ModuleList(map(DoubleConv, (3, *self.channels), self.channels))
        self.pool = nn.MaxPool2d(2)

    def stages(self) -> list[list[nn.Module]]:
        """Return the modules that make each feature map, finest first."""
        return [[level] for level in self.levels]

    def forward(self, images: Images) -> list[Images]:
        """Map (n, 3, h, w) to five feature maps, finest first."""
        features: list[Images] = []
        for level in self.levels:
            features.append(level(self.pool(features[-1]) if features else images))
        return features


class UNet(SegmentationModel):
    """The U-Net: 31,037,633 parameters at width 64."""

    def __init__(self, width: int = 64, *, gated: bool = False) -> None:
        """Build the network.

        Args:
            width: Channels of the finest level; doubled at each of the four levels below.
            gated: Attention gates on the skips.
        """
        super().__init__()
        self.encoder = UNetEncoder(width)
        self.decoder = Decoder(self.encoder.channels, self.encoder.channels[-2::-1], gated=gated)
        self.head = nn.Conv2d(width, 1, 1)
        self.stride = self.encoder.strides[-1]

    def forward(self, images: Images) -> Logits:
        """Map (n, 3, h, w) to logits (n, 1, h, w)."""
        logits: Logits = self.head(self.decoder(self.encoder(images)))
        return logits
