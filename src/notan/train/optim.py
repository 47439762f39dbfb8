"""The optimizer and the learning rate's schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

    from notan.config import Train


def build_optimizer(model: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """Return AdamW over all parameters.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    return torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )


class Schedule:
    """Sets the learning rate before each step, as a function of the steps done and nothing else.

    Attributes:
        lowered: What the guard has multiplied the learning rate by.
        steps: Batches since the start of the run, used or skipped.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, settings: Train, steps_per_epoch: int
    ) -> None:
        self.optimizer = optimizer
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.lowered = 1.0
        self.steps = 0
        self.apply()

    def advance(self) -> None:
        """Go on to the next step."""
        self.steps += 1
        self.apply()

    def apply(self) -> None:
        """Set the optimizer's learning rate to the present one."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.present_rate

    @property
    def present_rate(self) -> float:
        """The learning rate of the next step."""
        return self.rate_after(self.steps / self.steps_per_epoch)

    def rate_after(self, epochs_done: float) -> float:
        """Return the learning rate after so many epochs, with fractions."""
        rate = self.settings.learning_rate * self.lowered
        return rate * rate_factor(self.settings, epochs_done)


def rate_factor(settings: Train, epochs_done: float) -> float:
    """Return what the learning rate is multiplied by.

    Args:
        settings: ``exponential`` falls by ``gamma`` after each whole epoch; ``cosine`` rises
            from near 0 over ``warmup_epochs``, then falls to 0 as half a cosine.
        epochs_done: Since the start, with fractions.
    """
    if settings.schedule == "exponential":
        return settings.gamma ** math.floor(epochs_done)
    warmup = min(settings.warmup_epochs, settings.epochs)
    if epochs_done < warmup:
        return max(epochs_done / warmup, 0.01)
    remaining = max(settings.epochs - warmup, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (epochs_done - warmup) / remaining)))
