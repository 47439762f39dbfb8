"""A network that white images make ill, and trainings that show it some."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from notan.training import train
from notan.training.trainer import Trainer
from runs import Drawn, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import Run
    from notan.training import TrainResult

TRAINING = Drawn(24, size=(16, 16))
VALIDATION = Drawn(4, size=(16, 16), first=24)
BATCHES = 8  # of an epoch


class Allergic(nn.Module):
    """A small network that a white image makes ill: its loss, or only its gradient, is NaN."""

    stride = 1

    def __init__(self, where: str = "loss") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.norm = nn.BatchNorm2d(3)
        self.layer = nn.Conv2d(3, 1, 3, padding=1)
        self.where = where

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        white = images.amin(dim=(1, 2, 3), keepdim=True) >= 1
        if self.where == "loss":
            images = torch.where(white, math.nan, images)
        logits: torch.Tensor = self.layer(self.norm(images))
        if self.where == "gradient" and white.any():
            logits = logits + (0 * self.layer.weight.sum()).sqrt()
        return logits


class Whitening:
    """An augmentation that makes every image of some batches white, and counts the batches."""

    def __init__(self, *batches: int) -> None:
        self.batches, self.images = batches, 0

    def __call__(self, *, image: Any, mask: Any) -> dict[str, Any]:
        self.images += 1
        bad = (self.images + 2) // 3 in self.batches
        return {"image": np.full_like(image, 255) if bad else image, "mask": mask}


def watched(**flags: object) -> Run:
    plain: dict[str, object] = {"preprocess__mean": (0, 0, 0), "preprocess__std": (1, 1, 1)}
    return tiny(**{**plain, "train__epochs": 3, "train__learning_rate": 0.02, **flags})


def train_allergic(
    run: Run, out: Path, *bad: int, to: str = "loss"
) -> tuple[TrainResult, list[dict[str, torch.Tensor]]]:
    """Train with bad batches; return the weights after each step too, those before it first."""
    after: list[dict[str, torch.Tensor]] = []
    begin_epoch, after_step = Trainer.begin_epoch, Trainer.after_step

    def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in trainer.setup.model.state_dict().items()}

    def before(trainer: Trainer) -> None:
        if not after:
            after.append(weights_of(trainer))
        begin_epoch(trainer)

    def recorded(trainer: Trainer, *arguments: Any, **named: Any) -> None:
        after_step(trainer, *arguments, **named)
        after.append(weights_of(trainer))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "begin_epoch", before)
        patch.setattr(Trainer, "after_step", recorded)
        parts: dict[str, Any] = {"training": TRAINING, "validation": VALIDATION}
        result = train(run, out=out, model=Allergic(to), transform=Whitening(*bad), **parts)
    return result, after


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())
