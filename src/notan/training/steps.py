"""One training step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from notan.training.fine_tuning import Freezing
from notan.training.ranks import ALONE
from notan.training.semi_supervised import add_agreement
from notan.training.spikes import exact_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from notan.data.batches import Batch
    from notan.losses import LossValue
    from notan.runtime import Precision
    from notan.training.optim import Schedule
    from notan.training.ranks import Ranks
    from notan.training.spikes import SpikeDetector
    from notan.types import Images, Logits

Criterion: TypeAlias = "Callable[[Images, Tensor, Tensor, Tensor | None], LossValue]"
"""From a network's output, targets, valid pixels and a teacher's probabilities to the loss."""

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
        gradients_as: In which type gradients travel between ranks; None: their own.
    """

    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    precision: Precision
    gradient_clip: float | None
    freezing: Freezing = field(default_factory=Freezing)
    own: bool = False
    blank: dict[str, Any] = field(default_factory=dict)
    gradients_as: torch.dtype | None = None


@dataclass
class AverageMeter:
    """Means of named losses, weighted by the number of images."""

    sums: dict[str, float] = field(default_factory=dict)
    images: int = 0

    def add(self, losses: Mapping[str, float], images: int) -> None:
        """Count in the losses of a batch; ``loss`` is their weighted sum."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + loss * images
        self.images += images

    def result(self) -> dict[str, float]:
        """Return the mean of each loss by name."""
        return {name: total / self.images for name, total in self.sums.items()}


@dataclass(frozen=True)
class StepValues:
    """What a step has computed, on the device; reading it is what waits.

    Attributes:
        names: Of the losses, ``loss`` (the weighted sum) first.
        numbers: Whether the weights were changed (1 or 0), the norm of the gradient, and a number
            for each name.
        arrived: Happens when they are on the host; None: they are where they were computed.
    """

    names: tuple[str, ...]
    numbers: Tensor
    arrived: torch.cuda.Event | None = None

    @property
    def taken(self) -> Tensor:
        """bool, a scalar, on the device."""
        return self.numbers[0].bool()

    def on_the_way(self) -> StepValues:
        """Begin to bring the numbers to the host; ``read`` waits for these alone then."""
        if self.numbers.device.type != "cuda":
            return self
        host = torch.empty_like(self.numbers, device="cpu", pin_memory=True)
        host.copy_(self.numbers, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return StepValues(self.names, host, arrived)

    def read(self) -> tuple[bool, float, dict[str, float]]:
        """Wait for the device; return whether the step was taken, the norm, and the losses."""
        if self.arrived:
            self.arrived.synchronize()
        taken, norm, *losses = self.numbers.tolist()
        return bool(taken), norm, dict(zip(self.names, losses, strict=True))


def losses_of(value: LossValue) -> dict[str, float]:
    """Read a loss and its terms, as ``AverageMeter.add`` takes them; waits for the device."""
    return {"loss": value.total.item(), **{n: term.item() for n, term in value.terms.items()}}


def train_step(
    model: nn.Module,
    batch: Batch,
    loss: Criterion,
    optimization: Optimization,
    spikes: SpikeDetector | None = None,
    *,
    network: Callable[[Images], Logits] | None = None,
    ranks: Ranks = ALONE,
) -> StepValues:
    """Take one step down the gradient of one batch's loss, without waiting for the device.

    Whether the step is taken is decided there too: an optimizer that can (AdamW, fused) is told by
    a tensor to leave weights, moments and its count as they are, and batch norm's statistics are
    put back. Only an optimizer of the user's own that cannot is asked for by the host, which
    waits for it.

    Args:
        model: Changed in place; in the mode to train in.
        batch: Images and what is wanted of them.
        loss: What to make small.
        optimization: Optimizer, schedule and arithmetic.
        spikes: Says from the loss and the norm of the gradient whether to leave all as it is; None:
            never.
        network: The model, compiled; None: as it is.
        ranks: Each of which has a slice of the batch; their sums are what one process would have.
    """
    scaler, optimizer = optimization.scaler, optimization.optimizer
    # An image of NaN would stay in batch norm's statistics long after its batch was skipped.
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    optimizer.zero_grad(set_to_none=True)
    with ranks.counting():
        value = compute_loss(
            model if network is None else network, batch, loss, optimization.precision
        )
    scaler.scale(value.total).backward()  # type: ignore[no-untyped-call]
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    ranks.add_up(gradients, optimization.gradients_as)
    scaler.unscale_(optimizer)
    total, *terms = _losses_of_all(value, ranks)
    norm = _gradient_norm(model, optimization)
    overflow = ~norm.isfinite() & scaler.is_enabled()
    # float16's scaler scales less after such a step, which is no spike
    norm = norm.masked_fill(overflow, 0)
    skipped = spikes(total, norm) if spikes else torch.zeros_like(overflow)
    _change_weights(optimizer, skipped | overflow, asks=spikes is not None or scaler.is_enabled())
    ranks.average(buffers)
    with torch.no_grad():
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(torch.where(skipped, old, buffer))
    scaler.update()
    numbers = [~skipped, norm, total, *terms]
    exact = exact_dtype(total.device)
    return StepValues(("loss", *value.terms), torch.stack([number.to(exact) for number in numbers]))


def _losses_of_all(value: LossValue, ranks: Ranks) -> list[Tensor]:
    """Return the loss and its terms, of the whole batch."""
    here = [value.total.detach(), *(term.detach() for term in value.terms.values())]
    return here if ranks.is_alone else list(ranks.total(torch.stack(here)))


def _change_weights(optimizer: torch.optim.Optimizer, skipped: Tensor, *, asks: bool) -> None:
    """Take the optimizer's step, unless a tensor says, on the device, that it is skipped."""
    if not asks:
        optimizer.step()
    elif getattr(optimizer, "_step_supports_amp_scaling", False):
        told: Any = optimizer  # the way in which PyTorch's own GradScaler tells it
        told.grad_scale, told.found_inf = None, skipped.float()
        optimizer.step()
        del told.grad_scale, told.found_inf
    elif not skipped.item():
        optimizer.step()


def compute_loss(
    model: Callable[[Images], Logits], batch: Batch, loss: Criterion, precision: Precision
) -> LossValue:
    """Run the network on a batch, on its device and in its arithmetic.

    Images without masks go through it in one pass with the others, as in Tarvainen and Valpola
    2017 (arXiv:1703.01780): in passes of their own, batch norm would normalise each kind by itself,
    and the running statistics, which predict, would be those of neither.
    """
    device, unlabelled = precision.device, batch.unlabelled
    images = batch.images.to(device, non_blocking=True)
    if unlabelled is not None:
        varied = unlabelled.varied.to(device, non_blocking=True)
        images = torch.cat([images, varied])
    targets = batch.targets.to(device, non_blocking=True)
    valid = batch.valid.to(device, non_blocking=True)
    with precision.autocast():
        logits = model(images)
    count = len(batch.images)
    value = loss(logits[:count], targets, valid, batch.soft)
    return value if unlabelled is None else add_agreement(value, logits[count:], unlabelled)


def _gradient_norm(model: nn.Module, optimization: Optimization) -> Tensor:
    """Return the norm of all gradients, and clip them to the largest allowed."""
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    if optimization.gradient_clip is not None:
        clip_grads_with_norm_(weights, optimization.gradient_clip, norm)
    return norm
