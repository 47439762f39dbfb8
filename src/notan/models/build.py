"""From the settings of a model to the model, freshly initialised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

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
    """Build a network from scratch; PyTorch's random state decides its weights.

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
    return MODELS[settings.name](settings).apply(initialise)


def initialise(module: nn.Module) -> None:
    """Give a convolution He et al.'s normal weights; other layers keep PyTorch's own.

    Source: He, Zhang, Ren, Sun 2015, arXiv:1502.01852.
    """
    if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
