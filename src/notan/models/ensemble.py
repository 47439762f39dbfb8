"""Ensemble: several networks that answer as one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from notan.models.base import SegmentationModel, stride_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notan.types import Images, Logits


class Ensemble(SegmentationModel):
    """Networks whose calibrated probabilities are averaged.

    Source: Lakshminarayanan, Pritzel and Blundell 2017, arXiv:1612.01474. There all members weigh
        alike and are taken as they are; here each has a weight, and is calibrated first, so that a
        member that is too sure of itself does not speak for all.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        weights: Sequence[float],
        *,
        temperatures: Sequence[float],
        biases: Sequence[float],
    ) -> None:
        """Join networks.

        Args:
            members: Each maps the same images to logits and states its stride; at least one.
            weights: Above 0; their sum does not matter.
            temperatures: What each one's logits are divided by.
            biases: What is added to them then.

        Raises:
            ConfigError: A member states no stride.
        """
        super().__init__()
        self.members = nn.ModuleList(members)
        self.log_weights = [math.log(weight / sum(weights)) for weight in weights]
        self.temperatures = list(temperatures)
        self.biases = list(biases)
        self.stride = math.lcm(*(stride_of(member) for member in members))

    def forward(self, images: Images) -> Logits:
        """Map (n, channels, h, w) to logits (n, 1, h, w) of the mean probability."""
        foreground: list[Logits] = []
        background: list[Logits] = []
        settings = zip(self.members, self.log_weights, self.temperatures, self.biases, strict=True)
        for member, log_weight, temperature, bias in settings:
            logits = member(images).float() / temperature + bias
            foreground.append(log_weight - functional.softplus(-logits))
            background.append(log_weight - functional.softplus(logits))
        return _log_sum(foreground) - _log_sum(background)


def _log_sum(logarithms: Sequence[Logits]) -> Logits:
    """Return the logarithm of a sum of numbers that are given by their logarithms.

    Written out, because other runtimes have no logsumexp that keeps sure pixels from becoming
    infinite.
    """
    stacked = torch.stack(list(logarithms))
    highest = stacked.amax(dim=0)
    return highest + (stacked - highest).exp().sum(dim=0).log()
