"""From the settings of a model to the model, freshly initialised."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from notan.errors import ConfigError, nearest
from notan.models.encoder_unet import EncoderUNet
from notan.models.encoders import build_encoder
from notan.models.resnet34_unet import ResNet34UNet
from notan.models.unet import UNet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from notan.config import Model
    from notan.models.base import SegmentationModel


def _unet(settings: Model, *, gated: bool = False) -> SegmentationModel:
    if settings.encoder is None:
        return UNet(settings.width, gated=gated)
    return EncoderUNet(build_encoder(settings.encoder), settings.width, gated=gated)


MODELS: Mapping[str, Callable[[Model], SegmentationModel]] = {
    "unet": _unet,
    "resnet34_unet": lambda settings: ResNet34UNet(settings.width, residual=settings.residual),
    "attention_unet": partial(_unet, gated=True),
}


def build_model(settings: Model) -> SegmentationModel:
    """Build a network from scratch, with PyTorch's own initial weights.

    Raises:
        ConfigError: There is no such model, or it has no such setting.
    """
    check_model(settings)
    return MODELS[settings.name](settings)


def check_model(settings: Model) -> None:
    """Refuse settings that no network can be built from.

    Raises:
        ConfigError: There is no such model, or it has no such setting.
    """
    if settings.name not in MODELS:
        raise ConfigError(
            f"'{settings.name}': there is no such model{nearest(settings.name, MODELS)}"
        )
    if settings.residual != "standard" and settings.name != "resnet34_unet":
        raise ConfigError(
            f"model.residual={settings.residual} belongs to resnet34_unet; "
            f"{settings.name} has no residual blocks"
        )
    if settings.encoder is not None and settings.name == "resnet34_unet":
        raise ConfigError(
            f"model.encoder={settings.encoder}: resnet34_unet has its own encoder; "
            "put another one under unet or attention_unet"
        )
