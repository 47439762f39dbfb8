"""AdamW, its learning rate schedule, and the EMA of the weights."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import AveragedModel

from notan.models.base import encoder_of
from notan.training.spikes import exact_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from notan.config import Train

SHORTEST = 1e-9
"""Seconds of a step, for a clock too coarse to see one."""


@dataclass(frozen=True)
class Throughput:
    """How fast a training goes, and how far; noted at one step, it holds until the next note.

    Attributes:
        step: Steps since the start of the run when it was noted.
        trained: Seconds that they took.
        left: Seconds of further steps that are left.
        step_seconds: What a step takes at present.
    """

    step: int
    trained: float
    left: float
    step_seconds: float

    @property
    def steps(self) -> float:
        """Steps of the whole training, at the present speed; at least one."""
        return max(1.0, (self.trained + self.left) / self.step_seconds)

    def share(self, steps: float) -> float:
        """Return the share (0..1) of the training time that is over after so many steps."""
        whole = max(self.trained + self.left, SHORTEST)
        trained = self.trained + (steps - self.step) * self.step_seconds
        return min(1.0, max(0.0, trained / whole))


class AdamW(torch.optim.AdamW):
    """PyTorch's, whose steps are taken without its compiler.

    What PyTorch puts around a step imports the compiler, which takes some two seconds of every
    training, to tell it where to leave off; see ``notan.runtime.leave_out_compiler``.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; see PyTorch's."""
        loss: float | None = PLAIN_STEP(self, closure)
        return loss


PLAIN_STEP = inspect.unwrap(torch.optim.Adam.step)


def build_optimizer(model: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """Return AdamW over all parameters, in groups of one learning rate each.

    It is fused: all weights in one pass, and a step can be skipped by a tensor's word, without the
    host's.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    return AdamW(
        parameter_groups(model, settings),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def parameter_groups(model: nn.Module, settings: Train) -> list[dict[str, Any]]:
    """Divide a network's weights by how fast they learn, and from when on.

    Returns:
        Groups, each with its ``params``, the ``factor`` of its learning rate, and whether it begins
        ``late`` to learn; one where the settings treat no encoder apart. They keep the order
        of the network's weights, by which a state knows whose moments are whose, so that a run may
        go on with other rates.
    """
    encoder = encoder_of(model)
    late = bool(settings.freeze_epochs or settings.freeze_fraction)
    pace: dict[nn.Parameter, tuple[float, bool]] = {}
    for depth, stage in enumerate(reversed(encoder.stages() if encoder else [])):
        factor = settings.encoder_lr_multiplier * settings.layer_lr_decay**depth
        for module in stage:
            pace |= dict.fromkeys(module.parameters(), (factor, late))
    return [
        {"params": list(weights), "factor": factor, "late": late}
        for (factor, late), weights in groupby(
            model.parameters(), key=lambda weight: pace.get(weight, (1.0, False))
        )
    ]


LONGEST_WARMUP = 0.1
"""Share of a training with a time limit that a warm-up may take."""


class Schedule:
    """Sets the learning rates before each step, as a function of the steps done and nothing else.

    Attributes:
        lowered: What the guard has multiplied the learning rate by.
        steps: Batches since the start of the run, used or skipped.
        pace: How many steps there will be, where a time limit decides; None: the settings'
            epochs do.
        thawed: Epochs, with fractions, after which ``freeze_fraction`` of the training was over;
            None: it is not yet. Once known it stays, whatever the speed becomes.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        settings: Train,
        steps_per_epoch: int,
        *,
        peak: float | None = None,
        own: Callable[[int, int], float] | None = None,
    ) -> None:
        """Set the rates of the first step.

        Args:
            optimizer: Its groups say how fast each learns, and from when on.
            settings: How long and how fast to train.
            steps_per_epoch: Batches in an epoch.
            peak: The highest rate; None: that of the settings.
            own: From a step and how many there are to the rate's factor; None: as the settings say.
        """
        self.optimizer = optimizer
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.peak = settings.learning_rate if peak is None else peak
        self.own = own
        self.lowered = 1.0
        self.steps = 0
        self.pace: Throughput | None = None
        self.thawed: float | None = None
        self.apply()

    def advance(self) -> None:
        """Go on to the next step."""
        self.steps += 1
        fraction = self.settings.freeze_fraction
        if fraction and self.thawed is None and self.share >= fraction:
            self.thawed = self.steps / self.steps_per_epoch
        self.apply()

    def go_back(self, steps: int) -> None:
        """Go back so many steps, which are to be taken again."""
        self.steps -= steps
        self.apply()

    def lower(self, factor: float) -> None:
        """Multiply the learning rate of all steps to come."""
        self.lowered *= factor
        self.apply()

    def apply(self) -> None:
        """Set the learning rate of each of the optimizer's groups to its present one.

        What starts late warms up when it starts: its moments are empty until then, and the first
        steps of Adam are as long as any.
        """
        rate, epochs_done = self.present_rate, self.steps / self.steps_per_epoch
        for group in self.optimizer.param_groups:
            late = group["late"] and self.own is None
            warm = self._warm_up(epochs_done - self.starts) if late else 1.0
            learning_rate = rate * group["factor"] * warm
            if isinstance(group["lr"], torch.Tensor):  # a captured step knows it by its place
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate

    @property
    def share(self) -> float:
        """The share (0..1) that is over: of the time where a limit decides, else of the steps."""
        if self.pace is None:
            return self.steps / (self.settings.epochs * self.steps_per_epoch)
        return self.pace.share(self.steps)

    @property
    def starts(self) -> float:
        """Epochs before what starts late learns; infinity where that is not yet known."""
        if self.settings.freeze_fraction and self.thawed is None:
            return math.inf
        return max(self.settings.freeze_epochs, self.thawed or 0.0)

    @property
    def freezes(self) -> bool:
        """Whether what starts late does not learn at the next step."""
        return self.steps / self.steps_per_epoch < self.starts

    @property
    def halves(self) -> bool:
        """Whether the next step sees images at half their size.

        Source: Tan and Le 2021, EfficientNetV2, arXiv:2104.00298, who enlarge them in more stages
        and vary them more as they grow.
        """
        return self.share < self.settings.half_size_fraction

    def _warm_up(self, epochs_done: float) -> float:
        """Return the share of its rate that something has after so many epochs of learning.

        It rises from near 0 over ``warmup_epochs`` where the schedule is ``cosine``, the only one
        that warms up.
        """
        warmup = min(self.settings.warmup_epochs, self.settings.epochs)
        if self.pace:
            warmup = min(warmup, LONGEST_WARMUP * self.pace.steps / self.steps_per_epoch)
        if self.settings.schedule == "exponential" or epochs_done >= warmup or not warmup:
            return 1.0
        return max(epochs_done / warmup, 0.01)

    @property
    def present_rate(self) -> float:
        """The learning rate of the next step, of what is not slowed down."""
        return self.rate_after(self.steps / self.steps_per_epoch)

    def rate_after(self, epochs_done: float) -> float:
        """Return the learning rate after so many epochs, with fractions."""
        rate = self.peak * self.lowered
        if self.own:
            steps = self.settings.epochs * self.steps_per_epoch
            step = round(epochs_done * self.steps_per_epoch)
            return rate * self.own(min(step, steps - 1), steps)
        if self.pace is None or self.settings.schedule == "exponential":
            return rate * rate_factor(self.settings, epochs_done)
        share = self.pace.share(epochs_done * self.steps_per_epoch)
        warmup = self.settings.warmup_epochs * self.steps_per_epoch / self.pace.steps
        return rate * cosine_factor(share, 1.0, min(warmup, LONGEST_WARMUP))


def rate_factor(settings: Train, epochs_done: float) -> float:
    """Return what the learning rate is multiplied by.

    Args:
        settings: ``exponential`` falls by ``gamma`` after each whole epoch; ``cosine`` rises
            from near 0 over ``warmup_epochs``, then falls to 0 as half a cosine.
        epochs_done: Since the start, with fractions.
    """
    if settings.schedule == "exponential":
        return settings.gamma ** math.floor(epochs_done)
    return cosine_factor(epochs_done, settings.epochs, min(settings.warmup_epochs, settings.epochs))


def cosine_factor(done: float, whole: float, warmup: float) -> float:
    """Return the cosine schedule's factor; the three are epochs, or shares of a training."""
    if done < warmup:
        return max(done / warmup, 0.01)
    remaining = max(whole - warmup, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / remaining)))


class WeightAverage(AveragedModel):
    """An exponential moving average (EMA) of a model's weights and buffers.

    PyTorch's own asks the device how often it was updated, and waits for the answer.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        weight = next(model.parameters())
        # at 0 the first update would copy the weights, not average them
        self.n_averaged = torch.ones_like(self.n_averaged, device=weight.device)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module, taken: Tensor | None = None) -> None:
        """Come nearer to the model's present weights.

        Args:
            model: The one that is trained.
            taken: bool, a scalar: whether it has taken a step; None: it has.
        """
        steps = self.n_averaged.to(exact_dtype(self.n_averaged.device))
        share = 1 - (steps / (steps + 10)).clamp(max=self.decay)
        if taken is not None:
            share = torch.where(taken, share, 0)
        pairs = zip(self.module.parameters(), model.parameters(), strict=True)
        buffers = zip(self.module.buffers(), model.buffers(), strict=True)
        for average, current in (*pairs, *buffers):
            if average.is_floating_point():
                average.lerp_(current, share.to(average.dtype))
            else:
                average.copy_(current)
        self.n_averaged += 1 if taken is None else taken


def average_weights(model: nn.Module, decay: float) -> WeightAverage:
    """Return an exponential moving average (EMA) of a model's weights and buffers.

    Args:
        model: The one that is trained; the average starts from its present weights.
        decay: The share of the average that is kept at each step, below 1; 0.99 looks back over
            about 100 steps, and never over more than a tenth of the steps so far: the random start
            is soon forgotten, and of a training whose steps nobody can foresee, as under a time
            limit, a decay near 1 averages the last tenth, however many steps fit.
    """
    return WeightAverage(model, decay).eval().requires_grad_(requires_grad=False)
