"""Consistency: a network learns to answer pictures without masks as its own average does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from notan.errors import ConfigError
from notan.losses import LossValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn

    from notan.config import Run
    from notan.data.batches import Batch
    from notan.data.unlabelled import Unlabelled
    from notan.runtime import Precision
    from notan.train.average import WeightAverage
    from notan.train.teacher import Teacher
    from notan.types import Images, Logits, Mask, Probabilities

CONFIDENCE = 0.9
"""Probability of figure, or of ground, from which an answer is believed."""

MIXED = 0.5
"""How often a box of another picture is put into one, with what was answered there."""

MIXED_AREA = (0.1, 0.5)
"""The least and the largest share of a picture that such a box takes."""

SALT = 0xC07


@dataclass(frozen=True)
class Consistency:
    """Has pictures without masks answered, and says how much coming to the answers counts.

    Attributes:
        answer: Maps (n, 3, h, w) to probabilities, (n, 1, h, w).
        precision: Device and arithmetic of the training.
        weight: Of the term in the loss, once it has risen.
        ramp_steps: Steps over which it rises; 0: none.
        seed: With the step, decides what is mixed.

    Source:
        Tarvainen and Valpola 2017, arXiv:1703.01780: an average of the weights answers, and its
        weight rises as there. Sohn et al. 2020, arXiv:2001.07685: only what is answered with
        confidence counts, as if it were true; here each pixel by itself. French, Laine, Aila,
        Mackiewicz and Finlayson 2020, arXiv:1906.01916: pictures are mixed by boxes (CutMix), as
        changes of light alone teach a segmenter little.
    """

    answer: Callable[[Images], Probabilities]
    precision: Precision
    weight: float
    ramp_steps: float
    seed: int

    def mark(self, batches: Iterable[Batch], first: int) -> Iterator[Batch]:
        """Yield batches whose pictures without masks are answered, mixed and weighted.

        Each is answered when it is asked for, by the weights of that moment.

        Args:
            batches: In the order to train in.
            first: Steps of the run before them.
        """
        for step, batch in enumerate(batches, start=first):
            if batch.unlabelled is None:
                yield batch
                continue
            answered = self._answered(batch.unlabelled)._replace(weight=self.weight_at(step))
            rng = np.random.default_rng((self.seed, SALT, step))
            yield batch._replace(unlabelled=mix(answered, rng))

    def _answered(self, unlabelled: Unlabelled) -> Unlabelled:
        device = self.precision.device
        plain = unlabelled.plain.to(device, memory_format=torch.channels_last, non_blocking=True)
        return unlabelled._replace(
            varied=unlabelled.varied.to(device, non_blocking=True),
            inside=unlabelled.inside.to(device, non_blocking=True),
            answers=self.answer(plain),
        )

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
    *,
    steps_per_epoch: int,
) -> Consistency:
    """Choose who answers pictures without masks: the teacher where there is one, else the average.

    Raises:
        ConfigError: There is neither.
    """
    if teacher is not None:
        answer = teacher.answer
    elif average is not None:
        answer = partial(_answer, average.model, precision)
    else:
        raise ConfigError(
            "train.average_decay = none: it is the average of the weights that answers pictures "
            "without masks; leave the setting out, or give 0.99"
        )
    ramp_steps = run.train.consistency_ramp * run.train.epochs * steps_per_epoch
    return Consistency(answer, precision, run.loss.consistency, ramp_steps, run.seed)


@torch.no_grad()
def _answer(model: nn.Module, precision: Precision, images: Images) -> Probabilities:
    with precision.autocast():
        logits = model(images)
    return torch.sigmoid(logits.float())


def mix(unlabelled: Unlabelled, rng: np.random.Generator) -> Unlabelled:
    """Put a box of the next picture into some of the varied views, and its answer there too."""
    count, _, *size = unlabelled.varied.shape
    boxes = np.zeros((count, 1, *size), bool)
    for index in range(count):
        if rng.random() < MIXED:
            boxes[index, 0] = _box(rng, size[0], size[1])
    chosen = torch.from_numpy(boxes).to(unlabelled.varied.device)

    def mixed(part: Tensor) -> Tensor:
        return torch.where(chosen, part.roll(1, 0), part)

    answers = unlabelled.answers
    return unlabelled._replace(
        varied=mixed(unlabelled.varied),
        inside=mixed(unlabelled.inside),
        answers=None if answers is None else mixed(answers),
    )


def _box(rng: np.random.Generator, height: int, width: int) -> Mask:
    """Draw a box of a tenth to half of a picture, wherever it fits."""
    share = math.sqrt(rng.uniform(*MIXED_AREA))
    stretch = math.exp(rng.uniform(-0.5, 0.5)) ** 0.5
    tall = min(height, max(1, round(height * share * stretch)))
    wide = min(width, max(1, round(width * share / stretch)))
    top, left = rng.integers(0, (height - tall + 1, width - wide + 1))
    box = np.zeros((height, width), bool)
    box[top : top + tall, left : left + wide] = True
    return box


def add_agreement(value: LossValue, logits: Logits, unlabelled: Unlabelled) -> LossValue:
    """Add to a loss the cross entropy against the answers that are given with confidence.

    The mean is over all pixels inside the pictures, so that it counts the more, the more is
    believed.

    Args:
        value: Of the pictures with masks.
        logits: (n, 1, h, w), of the varied views.
        unlabelled: With its answers; without them nothing is added.
    """
    answers = unlabelled.answers
    if answers is None:
        return value
    believed = torch.maximum(answers, 1 - answers) >= CONFIDENCE
    inside = unlabelled.inside
    costs = functional.binary_cross_entropy_with_logits(
        logits.float(), (answers >= 0.5).float(), reduction="none"
    )
    term: Tensor = (costs * believed * inside).sum() / inside.sum().clamp(min=1)
    return LossValue(value.total + unlabelled.weight * term, {**value.terms, "consistency": term})
