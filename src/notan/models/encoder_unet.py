"""A U-Net whose downward half is a classifier's: any encoder of the registry.

Source: Ronneberger, Fischer, Brox 2015, arXiv:1505.04597; on pretrained encoders: Iglovikov and
Shvets 2018, TernausNet, arXiv:1801.05746. Here the step from the finest features to the image's
size has no skip, as the encoder has no features of that size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from notan.models.base import SegmentationModel
from notan.models.blocks import Decoder, enlarge

if TYPE_CHECKING:
    from notan.models.base import Encoder
    from notan.types import Images, Logits


class EncoderUNet(SegmentationModel):
    """An encoder going down, a U-Net coming up, and plain steps from there to the image's size.

    Attributes:
        encoder: Its weights may come from elsewhere.
    """

    def __init__(self, encoder: Encoder, width: int = 16, *, gated: bool = False) -> None:
        """Build the upward half.

        Args:
            encoder: Features at strides that double from level to level.
            width: Channels at the image's size; times the stride at each level below.
            gated: Attention gates on the skips.
        """
        super().__init__()
        self.encoder = encoder
        steps = [width * stride for stride in encoder.strides[-2::-1]]
        self.decoder = Decoder(encoder.channels, steps, gated=gated)
        finest, stride = steps[-1], encoder.strides[0]
        enlarging: list[nn.Module] = []
        while stride > 1:
            enlarging += enlarge(finest, finest // 2)
            finest, stride = finest // 2, stride // 2
        self.enlarge = nn.Sequential(*enlarging)
        self.head = nn.Conv2d(finest, 1, 3, padding=1)
        self.stride = encoder.strides[-1]

    def forward(self, images: Images) -> Logits:
        """Map (n, 3, h, w) to logits (n, 1, h, w)."""
        logits: Logits = self.head(self.enlarge(self.decoder(self.encoder(images))))
        return logits
