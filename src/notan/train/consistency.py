"""Consistency: a network learns to answer images without masks as its own average does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from notan.errors import ConfigError
from notan.losses import LossValue, bce

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import nn

    from notan.config import Run
    from notan.data.batches import Batch
    from notan.data.unlabelled import Unlabelled
    from notan.runtime import Precision
    from notan.train.average import WeightAverage
    from notan.train.teacher import Teacher
    from notan.types import Images, Logits, Probabilities


@dataclass(frozen=True)
class Consistency:
    """Has images without masks answered, and says how much coming to the answers counts.

    Attributes:
        answer: Maps (n, 3, h, w) to probabilities, (n, 1, h, w).
        precision: Device and arithmetic of the training.
        weight: Of the term in the loss, once it has risen.
        ramp_steps: Steps over which it rises; 0: none.

    Source:
        Tarvainen and Valpola 2017, arXiv:1703.01780: an average of the weights is the teacher, and
        the weight of its term rises as there. There the images with masks are answered too, and
        the distance is the squared one of probabilities; here it is the cross entropy, as against
        any teacher of ours.
    """

    answer: Callable[[Images], Probabilities]
    precision: Precision
    weight: float
    ramp_steps: int

    def mark(self, batches: Iterable[Batch], first: int) -> Iterator[Batch]:
        """Yield batches whose images without masks are answered and weighted.

        Each is answered when it is asked for, by the weights of that moment.

        Args:
            batches: In the order to train in.
            first: Steps of the run before them.
        """
        for step, batch in enumerate(batches, start=first):
            unlabelled = batch.unlabelled
            if unlabelled is not None:
                plain = unlabelled.plain.to(
                    self.precision.device, memory_format=torch.channels_last, non_blocking=True
                )
                unlabelled = unlabelled._replace(
                    answers=self.answer(plain), weight=self.weight_at(step)
                )
            yield batch._replace(unlabelled=unlabelled)

    def weight_at(self, step: int) -> float:
        """Return the term's weight at a step, counted from 0: at first next to nothing.

        An untrained network's answers are worth nothing.
        """
        missing = max(0.0, 1 - step / self.ramp_steps) if self.ramp_steps else 0.0
        return self.weight * math.exp(-5 * missing**2)


def build_consistency(
    run: Run,
    precision: Precision,
    average: WeightAverage | None,
    teacher: Teacher | None,
) -> Consistency:
    """Choose who answers images without masks: the teacher where there is one, else the average.

    Raises:
        ConfigError: There is neither.
    """
    if teacher is not None:
        answer = teacher.answer
    elif average is not None:
        answer = partial(_answer, average.model, precision)
    else:
        raise ConfigError(
            "train.ema_decay = none: it is the average of the weights that answers images "
            "without masks; leave the setting out, or give 0.99"
        )
    return Consistency(answer, precision, run.loss.consistency, run.train.consistency_steps)


@torch.no_grad()
def _answer(model: nn.Module, precision: Precision, images: Images) -> Probabilities:
    with precision.autocast():
        logits = model(images)
    return torch.sigmoid(logits.float())


def add_agreement(value: LossValue, logits: Logits, unlabelled: Unlabelled) -> LossValue:
    """Add to a loss the cross entropy against what images without masks were answered with.

    Args:
        value: Of the images with masks.
        logits: (n, 1, h, w), of the varied views.
        unlabelled: With its answers; without them nothing is added.
    """
    if unlabelled.answers is None:
        return value
    inside = unlabelled.inside.to(logits.device, non_blocking=True)
    term = bce(logits, unlabelled.answers, inside)
    return LossValue(value.total + unlabelled.weight * term, {**value.terms, "consistency": term})
