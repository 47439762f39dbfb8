"""From the settings of a model to the model, freshly initialised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notan.errors import ConfigError, nearest
from notan.models.resnet34_unet import ResNet34UNet
from notan.models.unet import UNet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from notan.config import Model
    from notan.models.base import SegmentationModel

MODELS: Mapping[str, Callable[[Model], SegmentationModel]] = {
    "unet": lambda settings: UNet(settings.width),
    "resnet34_unet": lambda settings: ResNet34UNet(settings.width, residual=settings.residual),
    "attention_unet": lambda settings: UNet(settings.width, gated=True),
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
