"""The ResNet34-U-Net of the reference report: a ResNet-34 going down, a U-Net coming up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from notan.models.base import SegmentationModel
from notan.models.blocks import Decoder, enlarge
from notan.models.resnet34 import Residual, ResNet34Encoder, residual_stage

if TYPE_CHECKING:
    from notan.types import Images, Logits


class ResNet34UNet(SegmentationModel):
    """A ResNet-34, a residual bottleneck at stride 64, a U-Net decoder, two plain steps up.

    48,194,497 parameters at width 64; 48,198,721 with ``residual="report"``. The features at
    stride 2 are not skipped across: the last two steps up see the decoder's output alone.
    """

    def __init__(self, width: int = 64, *, residual: Residual = "standard") -> None:
        """Build the network.

        Args:
            width: Channels of the stem and the first stage.
            residual: He et al.'s block, or the reference report's.
        """
        super().__init__()
        self.encoder = ResNet34Encoder(width, residual=residual)
        *_, deepest = self.encoder.channels
        self.bottleneck = residual_stage(deepest, 2 * deepest, 1, stride=2, residual=residual)
        levels = (*self.encoder.channels[1:], 2 * deepest)
        self.decoder = Decoder(levels, levels[-2::-1])
        self.enlarge = nn.Sequential(*enlarge(width, width), *enlarge(width, width))
        self.head = nn.Conv2d(width, 1, 1)
        self.stride = 2 * self.encoder.strides[-1]

    def forward(self, images: Images) -> Logits:
        """Map (n, 3, h, w) to logits (n, 1, h, w)."""
        _, *features = self.encoder(images)
        features.append(self.bottleneck(features[-1]))
        logits: Logits = self.head(self.enlarge(self.decoder(features)))
        return logits
