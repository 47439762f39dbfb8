"""Progress: where a training stands, and how all of it is put into a state and taken out again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from notan.config import run_to_toml
from notan.errors import CheckpointError
from notan.train.state import (
    clone_weights,
    random_states,
    restore_optimizer,
    restore_random_states,
)
from notan.train.steps import AverageMeter

if TYPE_CHECKING:
    from notan.train.guard import Guard
    from notan.train.parts import Parts
    from notan.train.steps import Learned


@dataclass(frozen=True)
class Best:
    """The best validation Dice so far.

    Attributes:
        dice: Mean over the validation images, at their own size.
        epoch: The epoch it is from, counted from 1.
        averaged: Whether the weight average scored it.
        all_foreground_dice: What calling every pixel foreground would score.
    """

    dice: float
    epoch: int
    averaged: bool
    all_foreground_dice: float


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        epoch: The epoch that is being trained, counted from 1.
        batch: Batches of it that are done.
        step: Batches since the start of the run.
        seconds: Time spent on this epoch so far.
        earlier_seconds: Time spent on the epochs before it.
        means: Losses of this epoch so far.
        best: The best epoch so far.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    earlier_seconds: float = 0.0
    means: AverageMeter = field(default_factory=AverageMeter)
    best: Best | None = None

    def next_epoch(self) -> None:
        """Go on to the first batch of the next epoch."""
        self.earlier_seconds += self.seconds
        self.epoch += 1
        self.batch, self.seconds, self.means = 0, 0.0, AverageMeter()


def capture(
    parts: Parts, progress: Progress, guard: Guard | None, good: dict[str, Any] | None
) -> dict[str, Any]:
    """Return all that the rest of a training depends on, as a tree for a StateFolder.

    Args:
        parts: The weights and what changes them.
        progress: The place in the training.
        guard: What it has seen.
        good: The weights that it would go back to.
    """
    return {
        "run": run_to_toml(parts.run),
        "images": fingerprints(parts),
        "teacher": parts.teacher and parts.teacher.identity,
        "encoder_start": parts.start and asdict(parts.start),
        "unlabelled": parts.data_card.unlabelled_fingerprint,
        **capture_learning(parts, progress, guard, good),
    }


def capture_learning(
    parts: Learned, progress: Progress, guard: Guard | None, good: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the part of a state that does not depend on what is learned; see ``capture``."""
    return {
        "progress": asdict(progress),
        **weights_of(parts),
        **optimization_state(parts),
        "guard": guard and guard.state(),
        "good": good,
        "random": random_states(),
    }


def weights_of(parts: Learned) -> dict[str, Any]:
    """Return copies of the weights and of their average."""
    average = parts.average
    return {
        "model": clone_weights(parts.model),
        "average": average and {"steps": average.steps, "model": clone_weights(average.model)},
    }


def fingerprints(parts: Parts) -> list[str]:
    """Say which images are trained and validated on."""
    return [parts.data_card.training_fingerprint, parts.data_card.validation_fingerprint]


def optimization_state(parts: Learned) -> dict[str, Any]:
    """Return the state of optimizer, schedule and scaler; the moments are copies."""
    optimization = parts.optimization
    return {
        "optimizer": _copied(optimization.optimizer.state_dict()),
        "schedule": {
            "lowered": optimization.schedule.lowered,
            "steps": optimization.schedule.steps,
        },
        "scaler": optimization.scaler.state_dict(),
    }


def restore(parts: Learned, tree: dict[str, Any], guard: Guard | None) -> Progress:
    """Put a training back to where ``capture`` found it, to the last bit."""
    restore_weights(parts, tree)
    restore_optimizer(parts.optimization.optimizer, tree["optimizer"])
    parts.optimization.scaler.load_state_dict(tree["scaler"])
    schedule = parts.optimization.schedule
    schedule.lowered, schedule.steps = tree["schedule"]["lowered"], tree["schedule"]["steps"]
    schedule.apply()
    if guard and tree["guard"]:
        guard.restore(tree["guard"])
    restore_random_states(tree["random"])
    fields = tree["progress"]
    best = fields["best"]
    return Progress(
        **{**fields, "means": AverageMeter(**fields["means"]), "best": best and Best(**best)}
    )


def restore_weights(parts: Learned, tree: dict[str, Any]) -> None:
    """Put back what ``weights_of`` returned.

    Raises:
        CheckpointError: They are another network's.
    """
    try:
        parts.model.load_state_dict(tree["model"])
    except RuntimeError as error:
        raise CheckpointError(
            "the state of this run does not fit the network; resume with the model settings, "
            "or the module, that it was started with"
        ) from error
    if parts.average and tree["average"]:
        parts.average.steps = tree["average"]["steps"]
        parts.average.model.load_state_dict(tree["average"]["model"])


def _copied(node: Any) -> Any:  # noqa: ANN401 - any tree
    """Copy a tree, tensors too: an optimizer's own state goes on changing."""
    if torch.is_tensor(node):
        return node.detach().clone()
    if isinstance(node, dict):
        return {key: _copied(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_copied(value) for value in node]
    return node
