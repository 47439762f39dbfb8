"""The encoders that a U-Net can be put on, by name: ours, and those of other packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.errors import ConfigError, nearest
from notan.models.efficientnet_lite0 import EfficientNetLite0Encoder
from notan.models.encoder_adapters import build_foreign, is_foreign
from notan.models.resnet34 import ResNet34Encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from notan.config import Model
    from notan.models.base import Encoder

ENCODERS: Mapping[str, Callable[[], Encoder]] = {
    "resnet34": ResNet34Encoder,
    "efficientnet_lite0": EfficientNetLite0Encoder,
}

OWN: Mapping[str, str] = {"attention_unet": "unet", "resnet34_unet": "resnet34"}
"""Model -> the name of the encoder that it has of its own, where that is not the model's."""


def name_encoder(settings: Model) -> str:
    """Return what the encoder of a model is called; two of one name take each other's weights."""
    return settings.encoder or OWN.get(settings.name, settings.name)


def build_encoder(name: str) -> Encoder:
    """Build an encoder from scratch.

    Raises:
        ConfigError: There is no such encoder, or another package's does not fit under a U-Net.
        MissingExtraError: It is of a package that is not installed.
    """
    if is_foreign(name):
        return build_foreign(name)
    if name not in ENCODERS:
        raise ConfigError(
            f"'{name}': there is no such encoder{nearest(name, ENCODERS)}; "
            "those of other packages are called timm:NAME and smp:NAME"
        )
    return ENCODERS[name]()
