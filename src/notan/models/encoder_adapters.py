"""Encoders of other packages: ``timm:NAME`` and ``smp:NAME``.

Source: Wightman, PyTorch Image Models (timm), Apache-2.0,
https://github.com/huggingface/pytorch-image-models; Iakubovskii, segmentation_models_pytorch (smp),
MIT, https://github.com/qubvel-org/segmentation_models.pytorch. Nothing of them is copied here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from notan.errors import EXTRAS, ConfigError, MissingExtraError, explaining_extras
from notan.models.foreign_encoder import ForeignEncoder, one_line

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from types import ModuleType

    from torch import nn

TIMM, SMP = "timm", "segmentation_models_pytorch"


class TimmEncoder(ForeignEncoder):
    """A network of timm; its maps are those that ``features_only`` hands out."""

    package = "timm"
    listed_by = "timm.list_models()"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.mean, self.std = (_per_channel(self._settings[each]) for each in ("mean", "std"))

    def names(self) -> Collection[str]:
        """Return all of them, with and without the tag of their weights."""
        timm = import_package(TIMM)
        return {*timm.list_models(), *timm.list_models(include_tags=True)}

    def build(self, *, pretrained: bool) -> nn.Module:
        """Build the network, with the weights that timm fetches or without any."""
        network: nn.Module = import_package(TIMM).create_model(
            self.name, features_only=True, pretrained=pretrained
        )
        return network

    def published(self) -> tuple[str, str]:
        """Say in words what the published weights are, and at which address they are."""
        settings = self._settings
        where = settings.get("hf_hub_id")
        address = f"https://huggingface.co/{where}" if where else settings.get("url")
        if not address:
            raise ConfigError(
                f"train.pretrained: timm has no published weights of {self.called}; leave "
                "--pretrained, or choose one of timm.list_pretrained()"
            )
        tagged = ".".join(filter(None, (settings["architecture"], settings.get("tag"))))
        return f"timm {import_package(TIMM).__version__} {tagged}", address

    @property
    def _settings(self) -> Mapping[str, Any]:
        settings: Mapping[str, Any] = self.network.pretrained_cfg  # type: ignore[assignment]
        return settings


class SmpEncoder(ForeignEncoder):
    """An encoder of segmentation_models_pytorch, whose first map is the image itself.

    What its weights want of images stands on the hub with them, so it is known once they are
    fetched; until then mean and std are ImageNet's, as those of most of them are.
    """

    package = "smp"
    listed_by = "segmentation_models_pytorch.encoders.get_encoder_names()"
    skipped = 1

    def names(self) -> Collection[str]:
        """Return all of them."""
        names: Collection[str] = import_package(SMP).encoders.get_encoder_names()
        return names

    def build(self, *, pretrained: bool) -> nn.Module:
        """Build the encoder, with the weights that the package fetches or without any."""
        network: nn.Module = import_package(SMP).encoders.get_encoder(
            self.name, depth=5, weights=IMAGENET if pretrained else None
        )
        return network

    def published(self) -> tuple[str, str]:
        """Say in words what the published weights are, and at which address they are."""
        smp = import_package(SMP)
        settings = smp.encoders.encoders[self.name]["pretrained_settings"].get(IMAGENET)
        if settings is None:
            raise ConfigError(
                f"train.pretrained: {SMP} has no weights of {self.called} that were learned on "
                "ImageNet; leave --pretrained, or choose another encoder"
            )
        address = f"https://huggingface.co/{settings['repo_id']}"
        return f"{SMP} {smp.__version__} {self.name} {IMAGENET}", address

    def load_published(self) -> str:
        """Take the weights that the package publishes, and learn what images they want."""
        words = super().load_published()
        with self.fetching(self.published()[1]):
            wanted = import_package(SMP).encoders.get_preprocessing_params(self.name, IMAGENET)
        if (wanted["input_space"], wanted["input_range"]) != ("RGB", [0, 1]):
            raise ConfigError(
                f"{self.called}: its weights want images in {wanted['input_space']} from "
                f"{wanted['input_range']}, and notan has RGB from 0 to 1; choose another encoder"
            )
        self.mean, self.std = (_per_channel(wanted[each]) for each in ("mean", "std"))
        return words


IMAGENET = "imagenet"
ADAPTERS = {each.package: each for each in (TimmEncoder, SmpEncoder)}
"""Before the colon of an encoder's name -> what builds it."""


def is_foreign(name: str) -> bool:
    """Say whether an encoder's name is one of another package's."""
    package, colon, _ = name.partition(":")
    return bool(colon) and package in ADAPTERS


def build_foreign(name: str) -> ForeignEncoder:
    """Build an encoder of another package, without weights.

    Raises:
        ConfigError: The package has no such network, or its maps do not fit under a U-Net.
        MissingExtraError: The package is not installed, or cannot be imported.
    """
    package, _, inner = name.partition(":")
    return ADAPTERS[package](inner)


def import_package(name: str) -> ModuleType:
    """Import an optional package whose own needs may be unmet.

    Raises:
        MissingExtraError: It is not installed, or cannot be imported.
    """
    try:
        with explaining_extras():
            return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise MissingExtraError(
            f"{name} is installed but cannot be imported ({one_line(error)}); install all that it "
            f"needs, a torchvision made for torch {torch.__version__} too: pip install "
            f"'notan[{EXTRAS[name]}]'"
        ) from error


def _per_channel(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue
