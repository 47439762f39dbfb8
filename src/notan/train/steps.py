"""One pass over the training pictures, and one over the validation pictures."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from notan.errors import DivergedError
from notan.metrics import Counts
from notan.predict.predictor import sigmoid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from torch.optim.lr_scheduler import LambdaLR

    from notan.data.batches import Batch, Truth
    from notan.losses import Loss, LossValue
    from notan.predict.backends import Array, Backend
    from notan.runtime import Precision


@dataclass(frozen=True)
class Optimization:
    """What a training step changes the network with."""

    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    scaler: torch.amp.GradScaler
    precision: Precision


@dataclass(frozen=True)
class Validation:
    """Scores of a pass over the validation pictures, each a mean over pictures."""

    losses: dict[str, float]
    dice: float
    iou: float


class Means:
    """Means of named losses, weighted by the number of pictures."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._pictures = 0

    def add(self, value: LossValue, pictures: int) -> None:
        """Count in the losses of a batch."""
        for name, term in (("loss", value.total), *value.terms.items()):
            self._sums[name] += term.item() * pictures
        self._pictures += pictures

    def result(self) -> dict[str, float]:
        """Return the mean of each loss by name; ``loss`` is the weighted sum."""
        return {name: total / self._pictures for name, total in self._sums.items()}


def train_epoch(
    model: nn.Module, batches: Iterable[Batch], loss: Loss, optimization: Optimization
) -> dict[str, float]:
    """Train on every batch once.

    Args:
        model: Changed in place.
        batches: In the order to train in.
        loss: What to make small.
        optimization: Optimizer, schedule and arithmetic.

    Returns:
        The mean of each loss by name.

    Raises:
        DivergedError: A loss is no number; the message names the batch's pictures.
    """
    model.train()
    means = Means()
    bar = tqdm(batches, desc="training", unit="batch", leave=False, disable=None)
    for batch in bar:
        value = train_step(model, batch, loss, optimization)
        means.add(value, len(batch.truths))
        bar.set_postfix(loss=f"{means.result()['loss']:.4f}", refresh=False)
    return means.result()


def train_step(model: nn.Module, batch: Batch, loss: Loss, optimization: Optimization) -> LossValue:
    """Take one step down the gradient of one batch's loss."""
    precision, scaler = optimization.precision, optimization.scaler
    images = batch.images.to(precision.device, memory_format=torch.channels_last, non_blocking=True)
    targets = batch.targets.to(precision.device, non_blocking=True)
    valid = batch.valid.to(precision.device, non_blocking=True)
    optimization.optimizer.zero_grad(set_to_none=True)
    with precision.autocast():
        logits = model(images)
    value = loss(logits, targets, valid)
    if not torch.isfinite(value.total):
        raise DivergedError(_diverged(batch, value))
    scaler.scale(value.total).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimization.optimizer)
    scaler.update()
    optimization.scheduler.step()
    return value


def validate(
    backend: Backend, batches: Iterable[Batch], loss: Loss, threshold: float
) -> Validation:
    """Score every validation picture at its own size, by the Predictor's own path.

    Args:
        backend: The network in evaluation mode.
        batches: Pictures without augmentation.
        loss: Computed at the model's size.
        threshold: Probability from which a pixel is figure.
    """
    means, counts = Means(), list[Counts]()
    bar = tqdm(batches, desc="validating", unit="batch", leave=False, disable=None)
    for batch in bar:
        logits = backend(batch.images.numpy())
        means.add(loss(torch.from_numpy(logits), batch.targets, batch.valid), len(batch.truths))
        probabilities = sigmoid(logits[:, 0])
        counts.extend(map(lambda p, t: count(p, t, threshold), probabilities, batch.truths))
    return Validation(
        means.result(),
        dice=sum(count.dice for count in counts) / len(counts),
        iou=sum(count.iou for count in counts) / len(counts),
    )


def count(probability: Array, truth: Truth, threshold: float) -> Counts:
    """Count one picture's pixels at its own size."""
    prediction = truth.placement.restore(probability) >= threshold
    return Counts.of(prediction, truth.mask, truth.ignore)


def _diverged(batch: Batch, value: LossValue) -> str:
    terms = ", ".join(f"{name} {term.item():.4g}" for name, term in value.terms.items())
    names = ", ".join(truth.name for truth in batch.truths[:4])
    more = f" and {len(batch.truths) - 4} more" if len(batch.truths) > 4 else ""
    return (
        f"the loss is no longer a number ({terms}) at the batch with {names}{more}; "
        "try a smaller --learning-rate, train.precision=fp32, or --detect-anomaly to find where"
    )
