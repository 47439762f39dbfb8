"""The smallest encoder that keeps the contract, for tests in which one is pretrained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from notan.models.base import Encoder

if TYPE_CHECKING:
    from notan.types import Images


class TinyEncoder(Encoder):
    """Five levels of a few channels, so that a pretraining takes a moment."""

    def __init__(self, inputs: int = 3) -> None:
        super().__init__()
        self.channels = (4, 4, 4, 4, 4)
        self.strides = (2, 4, 8, 16, 32)
        self.levels = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Conv2d(before, 4, 3, stride=2, padding=1),
                torch.nn.BatchNorm2d(4),
                torch.nn.ReLU(),
            )
            for before in (inputs, 4, 4, 4, 4)
        )

    def stages(self) -> list[list[torch.nn.Module]]:
        return [[level] for level in self.levels]

    def forward(self, images: Images) -> list[Images]:
        features = [images]
        for level in self.levels:
            features.append(level(features[-1]))
        return features[1:]
