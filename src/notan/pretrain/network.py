"""The network that fills in what is hidden, and by how much it is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from notan.losses import LossValue
from notan.models.encoder_unet import EncoderUNet

if TYPE_CHECKING:
    from torch import Tensor

    from notan.models.base import Encoder
    from notan.types import Images, Masks, Probabilities


class Reconstructor(EncoderUNet):
    """An encoder with a light way up to colours instead of a logit.

    Source: a decoder with skips, so that every level of a convolutional encoder learns: Tian et al.
    2023, SparK, arXiv:2301.03580; here with dense convolutions, for which hidden pixels have the
    mean colour.
    """

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__(encoder, width)
        self.head = nn.Conv2d(self.head.in_channels, 3, 3, padding=1)


def reconstruction_loss(
    predicted: Images, targets: Images, hidden: Masks, soft: Probabilities | None = None
) -> LossValue:
    """Return the mean absolute difference over the hidden pixels.

    Source: Xie et al. 2022, SimMIM, arXiv:2111.09886, section 3.4.

    Args:
        predicted: (n, 3, h, w), in normalised colours.
        targets: Likewise, the whole images.
        hidden: (n, 1, h, w), 1 where a pixel was hidden and is in the image.
        soft: Nobody teaches here; not used.
    """
    del soft
    differences = (predicted.float() - targets).abs() * hidden
    mean: Tensor = differences.sum() / (3 * hidden.sum()).clamp(min=1)
    return LossValue(mean, {"reconstruction": mean})


@torch.no_grad()
def blind_loss(targets: Images, hidden: Masks) -> float:
    """Return the loss of filling everything with the mean colour."""
    return reconstruction_loss(torch.zeros_like(targets), targets, hidden).total.item()
