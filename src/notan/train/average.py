"""The exponential moving average of a model's weights.

Source: Polyak and Juditsky 1992; the warm-up of the decay follows Tarvainen and Valpola 2017,
arXiv:1703.01780. Buffers (batch norm's statistics) are averaged too, counters are copied.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


class WeightAverage:
    """Keeps a second model whose weights follow the first one's slowly.

    Attributes:
        model: The averaged model, on the same device; never trained itself.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from a model's present weights.

        Args:
            model: The one that is trained.
            decay: The share of the average that is kept at each step, below 1; 0.99 looks back
                over about 100 steps. In the first steps it is less, so that the random start
                is soon forgotten.
        """
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights after a step."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        current = model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(current[name], 1 - decay)
            else:
                average.copy_(current[name])
