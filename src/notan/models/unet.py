"""U-Net, Attention U-Net, U-Nets on an encoder, and the reference report's ResNet34-U-Net.

Source: Ronneberger, Fischer, Brox 2015, arXiv:1505.04597; attention gates: Oktay et al. 2018,
arXiv:1804.03999; pretrained encoders: Iglovikov and Shvets 2018, TernausNet, arXiv:1801.05746.
Convolutions are padded and batch norm follows them, so that logits have the image's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from notan.models.base import Encoder, SegmentationModel
from notan.models.blocks import Decoder, DoubleConv, enlarge
from notan.models.resnet34 import Residual, ResNet34Encoder, residual_stage

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


class EncoderUNet(SegmentationModel):
    """An encoder going down, a U-Net coming up, and plain steps from there to the image's size.

    The last steps up have no skip, as the encoder has no features of the image's size.

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
