"""U-Net, Attention U-Net, U-Nets on an encoder, and the reference report's ResNet34-U-Net.

Source: Ronneberger, Fischer, Brox 2015, arXiv:1505.04597; attention gates: Oktay et al. 2018,
arXiv:1804.03999; pretrained encoders: Iglovikov and Shvets 2018, TernausNet, arXiv:1801.05746.
Convolutions are padded and batch norm follows them, so that logits have the image's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from notan.config.sections import WIDTH_ON_AN_ENCODER
from notan.errors import ConfigError
from notan.models.base import Encoder, SegmentationModel
from notan.models.blocks import Decoder, DoubleConv, enlarge
from notan.models.encoders import build_encoder
from notan.models.resnet34 import Residual, ResNet34Encoder, residual_stage

if TYPE_CHECKING:
    from notan.types import Images, Logits

LEVELS = 5
WIDTH = 64


class UNetEncoder(Encoder):
    """Five double convolutions with max pooling between them: strides 1, 2, 4, 8, 16."""

    def __init__(self, width: int, inputs: int = 3) -> None:
        super().__init__()
        self.channels = tuple(width * 2**level for level in range(LEVELS))
        self.strides = tuple(2**level for level in range(LEVELS))
        self.levels = nn.ModuleList(map(DoubleConv, (inputs, *self.channels), self.channels))
        self.pool = nn.MaxPool2d(2)

    def stages(self) -> list[list[nn.Module]]:
        """Return the modules that make each feature map, finest first."""
        return [[level] for level in self.levels]

    def forward(self, images: Images) -> list[Images]:
        """Map (n, inputs, h, w) to five feature maps, finest first."""
        features: list[Images] = []
        for level in self.levels:
            features.append(level(self.pool(features[-1]) if features else images))
        return features


class UNet(SegmentationModel):
    """The U-Net on its own double convolutions, or on another encoder.

    31,037,633 parameters at width 64. On another encoder plain steps lead from its finest feature
    map to the image's size, where it has no features to skip across.

    Attributes:
        encoder: Going down; its ``mean`` and ``std`` are those of the images that it expects.
        decoder: Coming up.
        stride: Images' height and width must be multiples of it.

    Example:
        >>> import torch
        >>> network = notan.UNet(encoder="efficientnet_lite0", width=4)
        >>> logits = network(torch.zeros(2, 3, 64, 96))
        >>> logits.shape
        torch.Size([2, 1, 64, 96])
        >>> logits.mean().backward()
    """

    def __init__(
        self,
        encoder: str | Encoder | None = None,
        *,
        width: int | None = None,
        attention: bool = False,
        pretrained: bool = False,
        channels: int = 3,
    ) -> None:
        """Build the network.

        Args:
            encoder: ``resnet34``, ``efficientnet_lite0`` (1, 2), ``timm:NAME`` or your own module;
                None: the double convolutions of the U-Net.
            width: Channels at the image's size; times the stride at each level below. None: 64,
                or 16 on another encoder.
            attention: Put attention gates on the skips.
            pretrained: Start the encoder from its published weights, learned on ImageNet.
            channels: Of the images; a module of your own must take as many.

        Raises:
            ConfigError: There is no such encoder, it has no published weights, or the width is
                below 1.
            CheckpointError: The weights cannot be fetched, or are not those that were published.
            MissingExtraError: The package with the encoder or its weights is not installed.
            StorageError: What was fetched cannot be kept.
        """
        super().__init__()
        width = width if width is not None else WIDTH if encoder is None else WIDTH_ON_AN_ENCODER
        if width < 1:
            raise ConfigError(f"a U-Net of width {width}; give at least 1")
        if pretrained and not isinstance(encoder, str):
            raise ConfigError(
                "pretrained: nobody has published weights of this encoder; name one, such as "
                "encoder='efficientnet_lite0', or give your own its weights yourself"
            )
        if isinstance(encoder, str):
            self.encoder = build_encoder(encoder, channels)
        else:
            self.encoder = encoder or UNetEncoder(width, channels)
        strides = self.encoder.strides
        steps = [width * stride for stride in strides[-2::-1]]
        self.decoder = Decoder(self.encoder.channels, steps, gated=attention)
        finest = steps[-1]
        enlarging: list[nn.Module] = []
        for _ in range(strides[0].bit_length() - 1):
            enlarging += enlarge(finest, finest // 2)
            finest //= 2
        self.enlarge = nn.Sequential(*enlarging)
        # the paper's 1x1 on its own encoder, 3x3 on another: saved models have them so
        self.head = (
            nn.Conv2d(finest, 1, 3, padding=1) if encoder is not None else nn.Conv2d(finest, 1, 1)
        )
        self.stride = strides[-1]
        if pretrained:
            # slow to import, as it can download
            from notan.models.encoder_weights import load_published

            load_published(str(encoder), self.encoder)

    def forward(self, images: Images) -> Logits:
        """Map (n, channels, h, w) to logits (n, 1, h, w)."""
        logits: Logits = self.head(self.enlarge(self.decoder(self.encoder(images))))
        return logits


class ResNet34UNet(SegmentationModel):
    """A ResNet-34, a residual bottleneck at stride 64, a U-Net decoder, two plain steps up.

    48,194,497 parameters at width 64; 48,198,721 with ``residual="report"``. The features at
    stride 2 are not skipped across: the last two steps up see the decoder's output alone.
    """

    def __init__(
        self, width: int = 64, *, residual: Residual = "standard", channels: int = 3
    ) -> None:
        """Build the network.

        Args:
            width: Channels of the stem and the first stage.
            residual: He et al.'s block, or the reference report's.
            channels: Of the images.
        """
        super().__init__()
        self.encoder = ResNet34Encoder(width, residual=residual, inputs=channels)
        *_, deepest = self.encoder.channels
        self.bottleneck = residual_stage(deepest, 2 * deepest, 1, stride=2, residual=residual)
        levels = (*self.encoder.channels[1:], 2 * deepest)
        self.decoder = Decoder(levels, levels[-2::-1])
        self.enlarge = nn.Sequential(*enlarge(width, width), *enlarge(width, width))
        self.head = nn.Conv2d(width, 1, 1)
        self.stride = 2 * self.encoder.strides[-1]

    def forward(self, images: Images) -> Logits:
        """Map (n, channels, h, w) to logits (n, 1, h, w)."""
        features = list(self.encoder(images))[1:]
        features.append(self.bottleneck(features[-1]))
        logits: Logits = self.head(self.enlarge(self.decoder(features)))
        return logits
