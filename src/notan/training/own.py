"""What the user brings to a training in place of notan's own parts, checked before it begins.

A network, and plain callables: a loss, an optimizer, a schedule, a logger, an augmentation. What
stands in settings beside them and is not used is said; what cannot go together is refused.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from notan.config import LossTerms, Model, Own
from notan.errors import ConfigError
from notan.losses import LossValue, bce, share_of_whole
from notan.models.build import build_model
from notan.models.own import (
    Network,
    build_own,
    in_a_line,
    keeping_random_numbers,
    name_own,
    short_name,
    shown,
)
from notan.training.trackers import Called, Tracker, require_trackers

if TYPE_CHECKING:
    from notan.config import Run
    from notan.types import Images, Size

logger = logging.getLogger("notan")

OwnLoss: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits, mask, ignore), each (n, 1, h, w) -> a scalar, which the training makes small.

Logits are float32. The mask is float32, 1 = foreground. Ignore is bool, True where a pixel must
not count: it lies outside the image, or the masks leave it out.
"""

OwnOptimizer: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""The network's weights -> an optimizer of them, at the highest rate that it will have."""

OwnSchedule: TypeAlias = Callable[[int, int], float]
"""(step, steps): a step from 0 and how many there are -> what the rate is multiplied by then."""

OwnLogger: TypeAlias = Callable[[Mapping[str, float]], object]
"""Called after every epoch with what history.jsonl gets."""

OwnTransform: TypeAlias = Callable[..., Mapping[str, Any]]

OF_OTHERS = ("teacher", "consistency")
"""Terms of the loss that stand beside one's own."""

UNUSED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "loss": ("loss", tuple(name for name in LossTerms.model_fields if name not in OF_OTHERS)),
    "optimizer": ("train", ("learning_rate", "weight_decay")),
    "schedule": ("train", ("schedule", "gamma", "warmup_epochs")),
    "transform": ("augment", ()),
    "model": ("model", ("name", "encoder", "width", "residual")),
}
"""What is the user's own -> the section of settings that it takes the place of, and which of them;
none: all."""

BY_GROUP = ("encoder_lr_multiplier", "layer_lr_decay")
"""Settings that divide the weights among AdamW's groups."""


@dataclass(frozen=True, kw_only=True)
class OwnParts:
    """What the user brings; None: notan's own."""

    model: Network | None = None
    loss: OwnLoss | None = None
    optimizer: OwnOptimizer | None = None
    schedule: OwnSchedule | None = None
    logger: OwnLogger | Tracker | None = None
    transform: OwnTransform | None = None

    def noted_in(self, run: Run) -> Run:
        """Return settings that name what is the user's own, so that card and resume know.

        Raises:
            ConfigError: They name something that was not brought, or that cannot go with it.
            MissingExtraError: They name a tracker that is not installed.
        """
        names: dict[str, str | None] = {}
        for part in Own.model_fields:
            given, noted = getattr(self, part), getattr(run.own, part)
            if noted and given is None:
                raise ConfigError(
                    f"own.{part} = {noted}: these settings are of a training with a {part} of "
                    f"one's own, which is not here; give it in Python, {part}=..., or begin a "
                    "training without it"
                )
            names[part] = None if given is None else _name_of(part, given)
        require_trackers(run.train.trackers)
        if self.logger is not None and not isinstance(self.logger, Tracker):
            _name_of("logger", self.logger)
        self._refuse_together(run)
        model = run.model if self.model is None else self._named_model(run.model)
        for part, (section, fields) in UNUSED.items():
            if getattr(self, part) is not None:
                _say_unused(part, section, getattr(run, section), fields)
        return run.model_copy(update={"own": Own(**names), "model": model})

    @property
    def tracker(self) -> Tracker | None:
        """What the user follows the training with."""
        given = self.logger
        return given if given is None or isinstance(given, Tracker) else Called(given)

    def _named_model(self, settings: Model) -> Model:
        """Return settings of the user's network; one of the same name keeps its noted path."""
        if self.model is None:
            return settings
        noted, path = settings.class_path, name_own(self.model)
        same = noted is not None and short_name(noted) == short_name(self.model)
        return Model(class_path=noted if same else path, arguments=settings.arguments)

    def _refuse_together(self, run: Run) -> None:
        if self.schedule is not None and run.train.time_limit_seconds:
            raise ConfigError(
                "a schedule of your own goes by the number of steps, which a time limit does not "
                "know before its end; give epochs instead, or leave the schedule to notan"
            )
        for name in BY_GROUP if self.optimizer is not None else ():
            if getattr(run.train, name) != 1:
                raise ConfigError(
                    f"train.{name} = {getattr(run.train, name)}: an optimizer of your own divides "
                    "the weights into groups itself; leave the setting out"
                )


def _name_of(part: str, given: object) -> str:
    """Return what a function is called, without the place that it stands in."""
    if not callable(given):
        raise ConfigError(f"{part}={shown(given)}: this cannot be called; a function is wanted")
    inner = given.func if isinstance(given, functools.partial) else given
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))


def _say_unused(part: str, section: str, settings: Any, fields: tuple[str, ...]) -> None:  # noqa: ANN401 - any section
    kinds = type(settings).model_fields
    changed = [
        f"{section}.{name} = {getattr(settings, name)}"
        for name in fields or kinds
        if getattr(settings, name) != kinds[name].default
    ]
    if changed:
        hint = ", which is built with model.arguments.NAME=VALUE" if part == "model" else ""
        logger.warning("%s: not used; the %s is your own%s", ", ".join(changed), part, hint)


def build_network(settings: Model, own: OwnParts, channels: int) -> nn.Module:
    """Build the network that the settings name, for so many channels, or return the user's.

    Raises:
        ConfigError: There is no such model, or it cannot be built.
    """
    if own.model is None:
        return build_model(settings, channels)
    return build_own(own.model, settings.arguments)


class Objective:
    """A loss of the user's own, as the steps call one: the teacher's term beside it.

    Attributes:
        weights: Of its terms, by name.
    """

    weights: Mapping[str, float] = {"own": 1.0}

    def __init__(self, function: OwnLoss, *, teacher: float = 0.0, guarded: bool = True) -> None:
        """Take a loss.

        Args:
            function: As ``OwnLoss`` says.
            teacher: Weight of the cross entropy against a teacher's probabilities.
            guarded: Refuse values below 0, between which no guard can tell a jump.
        """
        self.function = function
        self.teacher = teacher
        self.guarded = guarded

    def __call__(
        self, logits: Images, targets: Tensor, valid: Tensor, soft: Tensor | None = None
    ) -> LossValue:
        """Compute it, and refuse what is no loss.

        Raises:
            ConfigError: It is no scalar, cannot be differentiated, or is below 0.
        """
        own: object = self.function(logits.float(), targets, valid == 0)
        if not isinstance(own, Tensor) or own.dim() != 0 or not own.is_floating_point():
            found = f"of shape {tuple(own.shape)}" if isinstance(own, Tensor) else ""
            raise ConfigError(
                f"loss: it returned a {type(own).__name__} {found}".rstrip() + "; a scalar tensor "
                "is wanted: end it with .mean() or .sum()"
            )
        if logits.requires_grad and not own.requires_grad:
            raise ConfigError(
                "loss: what it returned has no gradient; leave out .detach(), .item(), no_grad() "
                "and thresholds between the logits and the loss"
            )
        if self.guarded and own.item() < 0:
            raise ConfigError(
                f"loss: it returned {own.item():.4g}, and the guard takes losses from 0 on; add a "
                "constant, such as 1 - dice, or switch the guard off: train.loss_guard=false"
            )
        own = own * share_of_whole(len(logits), own)
        terms = {"own": own}
        if soft is None or self.teacher == 0:
            return LossValue(own, terms)
        terms["teacher"] = bce(logits, soft, valid)
        return LossValue(own + self.teacher * terms["teacher"], terms)


def try_loss(loss: Objective, size: Size, device: torch.device) -> None:
    """Refuse a loss that does not work on noise, before anything is trained.

    Args:
        loss: The user's.
        size: (height, width) of an input.
        device: Where the training will compute.

    Raises:
        ConfigError: It fails, gives no number, or has no gradient.
    """
    noise = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, *size, generator=noise).to(device).requires_grad_()
    mask = (torch.rand(2, 1, *size, generator=noise) < 0.5).float().to(device)
    with keeping_random_numbers(device):
        try:
            value = loss(logits, mask, torch.ones_like(mask)).total
            found = torch.autograd.grad(value, logits, allow_unused=True)
            gradient = cast("Tensor | None", found[0])
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"loss: it fails on logits, mask and ignore of {tuple(logits.shape)}: "
                f"{in_a_line(error)}"
            ) from error
    if not math.isfinite(value.item()):
        raise ConfigError(f"loss: it returned {value.item()} for logits and a mask of noise")
    if gradient is None or not torch.isfinite(gradient).all() or not gradient.any():
        fault = "no" if gradient is None or not gradient.any() else "a NaN or infinite"
        raise ConfigError(f"loss: it has {fault} gradient at the logits, so nothing would learn")


def build_own_optimizer(make: OwnOptimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Return the user's optimizer, its groups marked for the schedule.

    Args:
        make: As ``OwnOptimizer`` says.
        model: What is trained.

    Raises:
        ConfigError: It fails, is no optimizer, or one of other weights.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        optimizer: object = make(weights)
    except Exception as error:
        raise ConfigError(f"optimizer: it fails on the weights: {in_a_line(error)}") from error
    name = type(optimizer).__name__
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer: it returned a {name}; a torch.optim.Optimizer is wanted")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure and closure.default is inspect.Parameter.empty:
        raise ConfigError(
            f"optimizer: {name} computes the loss itself, several times a step; "
            "choose one whose step() needs no closure"
        )
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    if held - {id(weight) for weight in weights}:
        raise ConfigError(
            f"optimizer: {name} holds weights that are not this network's; make it of the "
            "parameters that it is called with"
        )
    if len(held) < len(weights):
        logger.warning(
            "the optimizer holds %d of the network's %d tensors; the others stay as they are",
            *(len(held), len(weights)),
        )
    peak = _mark_groups(optimizer)
    logger.info("the optimizer is your own: %s, learning rate %g", name, peak)
    return optimizer


def _mark_groups(optimizer: torch.optim.Optimizer) -> float:
    """Note how fast each group learns against the first, whose rate is returned."""
    name, groups = type(optimizer).__name__, optimizer.param_groups
    for group in groups:
        rate = group.get("lr")
        if not isinstance(rate, int | float | Tensor) or not 0 < float(rate) < math.inf:
            raise ConfigError(
                f"optimizer: a learning rate (lr) of {name} is {rate}; one above 0 is wanted"
            )
    peak = float(groups[0]["lr"])
    for group in groups:
        group.update(factor=float(group["lr"]) / peak, late=False)
        try:
            json.dumps(
                {key: value for key, value in group.items() if key != "params"}, default=_plain
            )
        except TypeError as error:
            raise ConfigError(f"optimizer: {name} holds what no state can keep: {error}") from error
    return peak


def _plain(value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"a {type(value).__name__} among its settings")


def checked_factor(schedule: OwnSchedule, step: int, steps: int) -> float:
    """Return what the user's schedule says of a step.

    Raises:
        ConfigError: It fails, or returns no number of at least 0.
    """
    try:
        factor = schedule(step, steps)
        number = float(factor)
    except Exception as error:
        raise ConfigError(f"schedule({step}, {steps}) fails: {in_a_line(error)}") from error
    if not 0 <= number < math.inf:
        raise ConfigError(
            f"schedule({step}, {steps}) returned {factor}; a finite number of at least 0 is wanted"
        )
    return number
