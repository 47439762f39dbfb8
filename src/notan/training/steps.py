"""One training step, and one pass over the validation images."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from notan.errors import DivergedError
from notan.metrics import Counts
from notan.modelfile.postprocess import sigmoid
from notan.training.fine_tuning import Freezing
from notan.training.semi_supervised import add_agreement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn

    from notan.data.batches import Batch, Target
    from notan.losses import LossValue
    from notan.prediction.backends import Array, Backend
    from notan.runtime import Precision
    from notan.training.optim import Schedule
    from notan.types import Images

Criterion: TypeAlias = "Callable[[Images, Tensor, Tensor, Tensor | None], LossValue]"
"""From a network's output, targets, valid pixels and a teacher's probabilities to the loss."""

THRESHOLD = 0.5
"""Probability from which a pixel is foreground while training; its end chooses a better one."""

ADVICE = "try a smaller --learning-rate, train.precision=fp32, or --detect-anomaly to find where"


@dataclass(frozen=True)
class Optimization:
    """What a training step changes the network with.

    Attributes:
        optimizer: Holds the weights and their moments.
        schedule: Advanced after every batch, used or skipped.
        scaler: Scales float16's losses; does nothing in other arithmetic.
        precision: Device and arithmetic of the network.
        gradient_clip: Largest norm of the gradient of all weights together; None: any.
        freezing: What it leaves as it is.
        own: Whether the optimizer is the user's, and its groups' settings belong to the state.
        blank: What the optimizer knew of its weights before the first step.
    """

    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    precision: Precision
    gradient_clip: float | None
    freezing: Freezing = field(default_factory=Freezing)
    own: bool = False
    blank: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Validation:
    """Scores of a pass over the validation images, each a mean over images.

    Attributes:
        losses: By name, at the model's size.
        dice: At the images' own size.
        iou: Likewise.
        all_foreground_dice: What calling every pixel foreground would score.
    """

    losses: dict[str, float]
    dice: float
    iou: float
    all_foreground_dice: float


@dataclass
class AverageMeter:
    """Means of named losses, weighted by the number of images."""

    sums: dict[str, float] = field(default_factory=dict)
    images: int = 0

    def add(self, value: LossValue, images: int) -> None:
        """Count in the losses of a batch."""
        for name, term in (("loss", value.total), *value.terms.items()):
            self.sums[name] = self.sums.get(name, 0.0) + term.item() * images
        self.images += images

    def result(self) -> dict[str, float]:
        """Return the mean of each loss by name; ``loss`` is the weighted sum."""
        return {name: total / self.images for name, total in self.sums.items()}


def train_step(
    model: nn.Module,
    batch: Batch,
    loss: Criterion,
    optimization: Optimization,
    allows: Callable[[Batch, LossValue, float], bool] | None = None,
) -> tuple[LossValue, bool]:
    """Take one step down the gradient of one batch's loss.

    Args:
        model: Changed in place.
        batch: Images and what is wanted of them.
        loss: What to make small.
        optimization: Optimizer, schedule and arithmetic.
        allows: Says from the loss and the norm of the gradient whether to change the weights; if
            not, batch norm's statistics stay too. None: always.

    Returns:
        The loss before the step, and whether the step was taken.
    """
    scaler, optimizer = optimization.scaler, optimization.optimizer
    optimization.freezing.set_mode(model)
    # An image of NaN would stay in batch norm's statistics long after its batch was skipped.
    buffers = [buffer.clone() for buffer in model.buffers()]
    optimizer.zero_grad(set_to_none=True)
    value = compute_loss(model, batch, loss, optimization.precision)
    scaler.scale(value.total).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimizer)
    norm = _gradient_norm(model, optimization)
    taken = allows is None or allows(batch, value, norm)
    if taken:
        scaler.step(optimizer)
    else:
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
    scaler.update()
    optimization.schedule.advance()
    return value, taken


def compute_loss(
    model: nn.Module, batch: Batch, loss: Criterion, precision: Precision
) -> LossValue:
    """Run the network on a batch, on its device and in its arithmetic.

    Images without masks go through it in one pass with the others, as in Tarvainen and Valpola
    2017 (arXiv:1703.01780): in passes of their own, batch norm would normalise each kind by itself,
    and the running statistics, which predict, would be those of neither.
    """
    device, unlabelled = precision.device, batch.unlabelled
    images = batch.images.to(device, memory_format=torch.channels_last, non_blocking=True)
    if unlabelled is not None:
        varied = unlabelled.varied.to(device, memory_format=torch.channels_last, non_blocking=True)
        images = torch.cat([images, varied])
    targets = batch.targets.to(device, non_blocking=True)
    valid = batch.valid.to(device, non_blocking=True)
    with precision.autocast():
        logits = model(images)
    count = len(batch.images)
    value = loss(logits[:count], targets, valid, batch.soft)
    return value if unlabelled is None else add_agreement(value, logits[count:], unlabelled)


def _gradient_norm(model: nn.Module, optimization: Optimization) -> float:
    """Return the norm of all gradients, and clip them to the largest allowed."""
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    if optimization.gradient_clip is not None:
        clip_grads_with_norm_(weights, optimization.gradient_clip, norm)
    if optimization.scaler.is_enabled() and not torch.isfinite(norm):
        return 0.0  # float16's scaler skips such a step itself and scales less from then on
    return norm.item()


def validate(backend: Backend, batches: Iterable[Batch], loss: Criterion) -> Validation:
    """Score every validation image at its own size, by the Predictor's own path.

    Args:
        backend: The network in evaluation mode.
        batches: Images without augmentation.
        loss: Computed at the model's size.

    Raises:
        DivergedError: The network's output has NaN or infinity.
    """
    means, counts, all_foreground = AverageMeter(), list[Counts](), list[Counts]()
    bar = tqdm(batches, desc="validating", unit="batch", leave=False, disable=None)
    for batch in bar:
        logits = backend(batch.images.numpy())
        if not np.isfinite(logits).all():
            names = tuple(truth.name for truth in batch.truths)
            raise DivergedError(
                f"the network gives NaN or infinity for {', '.join(names[:4])}; {ADVICE}", names
            )
        value = loss(torch.from_numpy(logits), batch.targets, batch.valid, None)
        means.add(value, len(batch.truths))
        counts.extend(_counts(sigmoid(logits[:, 0]), batch.truths))
        all_foreground.extend(_counts(np.ones_like(logits[:, 0]), batch.truths))
    return Validation(
        means.result(),
        dice=fmean(count.dice for count in counts),
        iou=fmean(count.iou for count in counts),
        all_foreground_dice=fmean(count.dice for count in all_foreground),
    )


def _counts(probabilities: Array, truths: Iterable[Target]) -> Iterator[Counts]:
    """Count each image's pixels at its own size."""
    for probability, truth in zip(probabilities, truths, strict=True):
        prediction = truth.placement.restore(probability) >= THRESHOLD
        yield Counts.of(prediction, truth.mask, truth.ignore)
