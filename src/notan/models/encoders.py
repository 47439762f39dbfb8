"""Encoders by name: our own, and those of timm."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from notan.errors import ConfigError, nearest
from notan.models.efficientnet_lite import SCALES, EfficientNetLiteEncoder
from notan.models.resnet34 import ResNet34Encoder
from notan.models.timm_encoder import TimmEncoder, is_timm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from notan.models.base import Encoder

ENCODERS: Mapping[str, Callable[..., Encoder]] = {
    "resnet34": ResNet34Encoder,
    **{name: partial(EfficientNetLiteEncoder, scale) for name, scale in SCALES.items()},
}


def build_encoder(name: str, channels: int = 3) -> Encoder:
    """Build an encoder from scratch.

    Args:
        name: As ``model.encoder`` has it.
        channels: Of the images that it takes.

    Raises:
        ConfigError: There is no such encoder, or a network of timm does not fit under a U-Net.
        MissingExtraError: It is timm's, and timm is not installed.
    """
    if is_timm(name):
        return TimmEncoder(name, channels)
    if name not in ENCODERS:
        raise ConfigError(
            f"'{name}': there is no such encoder{nearest(name, ENCODERS)}; "
            "those of timm are called timm:NAME"
        )
    return ENCODERS[name](inputs=channels)
