"""The optimizer and the learning rate's schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.optim.lr_scheduler import LambdaLR

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


def build_scheduler(
    optimizer: torch.optim.Optimizer, settings: Train, steps_per_epoch: int
) -> LambdaLR:
    """Return a scheduler to step after every optimizer step."""
    return LambdaLR(optimizer, lambda step: rate_factor(settings, step / steps_per_epoch))


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
