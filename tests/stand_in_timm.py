"""A stand-in for timm: small networks behind the functions of timm that notan calls."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

CHANNELS = (4, 5, 6, 7, 8)
HALF = (0.5, 0.5, 0.5)
LEARNED = 0.25
"""What all published weights are."""


class Chain(nn.Module):
    """A convolution with batch norm for each map."""

    def __init__(self, kind: str, strides: tuple[int, ...], channels: int = 3) -> None:
        super().__init__()
        self.kind = kind
        for number, stride in enumerate(strides):
            inputs = (channels, *CHANNELS)[number]
            layer = nn.Sequential(
                nn.Conv2d(inputs, CHANNELS[number], 3, stride=stride, padding=1),
                nn.BatchNorm2d(CHANNELS[number], momentum=0.01),
            )
            self.add_module(f"layers_{number}", layer)  # as timm does with layers.0

    def forward(self, images: Tensor) -> list[Tensor]:
        if self.kind == "vit":
            raise AssertionError("Input height (64) doesn't match model (224).\nMore of it.")
        maps = [images]
        for layer in self.children():
            maps.append(layer(maps[-1]))
        maps = maps[1:]
        if self.kind == "mixed":
            maps[0] = maps[0] + maps[-1].mean()
        if self.kind == "swin":
            maps = [each.permute(0, 2, 3, 1) for each in maps]
        return maps


STRIDES = {"flat": (16, 1, 1), "late": (4, 2, 2, 2), "short": (2, 2, 2)}
NAMES = ("tiny", "tiny_two", "flat", "late", "short", "vit", "mixed", "swin", "refuses", "untaught")


class Shelf:
    """Makes the networks of a package, and remembers which it made with weights.

    Attributes:
        asked: Name and whether weights were wanted, of each network made.
        offline: Whether weights cannot be fetched.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, bool]] = []
        self.offline = False

    def make(self, name: str, *, pretrained: bool, in_chans: int = 3) -> Chain:
        self.asked.append((name, pretrained))
        kind = name.partition(".")[0]
        if kind == "refuses":
            raise RuntimeError("features_only not implemented for this network")
        if pretrained and self.offline:
            raise OSError("cannot reach the hub. Check your connection.\nTraceback and more")
        network = Chain(kind, STRIDES.get(kind, (2, 2, 2, 2, 2)), in_chans)
        if pretrained:
            for weight in network.parameters():
                nn.init.constant_(weight, LEARNED)
        return network


def fake_timm(shelf: Shelf) -> ModuleType:
    def list_models(*, include_tags: bool = False) -> list[str]:
        return [f"{name}.made_up" for name in NAMES] if include_tags else list(NAMES)

    def create_model(
        name: str, *, features_only: bool, pretrained: bool, in_chans: int = 3
    ) -> nn.Module:
        assert features_only
        network = shelf.make(name, pretrained=pretrained, in_chans=in_chans)
        taught = {} if name == "untaught" else {"hf_hub_id": f"timm/{name}"}
        network.pretrained_cfg = {  # type: ignore[assignment]
            "architecture": name.partition(".")[0],
            "tag": "made_up",
            "url": "",
            "mean": HALF,
            "std": (0.25, 0.25, 0.25),
            **taught,
        }
        return network

    module = ModuleType("timm")
    vars(module).update(list_models=list_models, create_model=create_model, __version__="9.8")
    return module


def full_weights() -> dict[str, Tensor]:
    """Return a whole network's weights as timm publishes them, a classifier's too."""
    torch.manual_seed(4)
    weights = Chain("tiny", (2, 2, 2, 2, 2)).state_dict()
    renamed = {name.replace("layers_", "layers."): tensor for name, tensor in weights.items()}
    return {**renamed, "head.fc.weight": torch.ones(9, 8), "head.fc.bias": torch.ones(9)}
