"""Networks by name, freshly initialised from the settings of a model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from notan.errors import ConfigError, nearest
from notan.models.unet import ResNet34UNet, UNet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from notan.config import Model
    from notan.models.base import SegmentationModel

OWN: Mapping[str, str] = {"attention_unet": "unet", "resnet34_unet": "resnet34"}
"""Model -> the name of the encoder that it has of its own, where that is not the model's."""


def name_encoder(settings: Model) -> str:
    """Return what the encoder of a model is called; two of one name take each other's weights."""
    return settings.encoder or OWN.get(settings.name, settings.name)


def _unet(settings: Model, channels: int, *, attention: bool = False) -> SegmentationModel:
    return UNet(settings.encoder, width=settings.width, attention=attention, channels=channels)


def _resnet34_unet(settings: Model, channels: int) -> SegmentationModel:
    return ResNet34UNet(settings.width, residual=settings.residual, channels=channels)


MODELS: Mapping[str, Callable[[Model, int], SegmentationModel]] = {
    "unet": _unet,
    "resnet34_unet": _resnet34_unet,
    "attention_unet": partial(_unet, attention=True),
}


def build_model(settings: Model, channels: int = 3) -> SegmentationModel:
    """Build a network from scratch, with PyTorch's own initial weights.

    Args:
        settings: Which network.
        channels: Of the images that it takes.

    Raises:
        ConfigError: There is no such model, or it has no such setting.
    """
    check_model(settings)
    return MODELS[settings.name](settings, channels)


def check_model(settings: Model) -> None:
    """Refuse settings that no network of notan's can be built from.

    Raises:
        ConfigError: There is no such model, it has no such setting, or it is the user's own.
    """
    if settings.class_path is not None:
        raise ConfigError(
            f"model.class_path = {settings.class_path}: a network of your own, whose code notan "
            f"imports only where the command says so; add --model-class {settings.class_path}, "
            "or in Python model="
        )
    if settings.arguments:
        raise ConfigError(
            f"model.arguments.{next(iter(settings.arguments))}: {settings.name} takes no "
            "arguments; they are for a class of your own, which --model-class names"
        )
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
