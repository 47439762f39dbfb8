"""The loss guard: skips batches whose loss is NaN or jumps, and rolls back if that persists.

A step is judged by the median and the median absolute deviation of the recent losses, so one rule
fits a loss of 2 at the start and of 0.02 at the end, and one bad batch does not move it. An epoch
is judged by its validation and by whether most of what was learned has been lost: trouble that
creeps, and that no single step shows. A healthy run is the same, bit for bit, with the guard and
without it.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from notan.errors import DivergedError
from notan.run_folder import INCIDENTS
from notan.training.log import append_line, keep_lines
from notan.training.state import restore_optimizer, restore_weights, weights_of
from notan.training.steps import ADVICE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from notan.data.batches import Batch
    from notan.losses import LossValue
    from notan.training.build import Setup
    from notan.training.state import Progress

logger = logging.getLogger("notan")

WINDOW = 50
"""Losses that the statistics are taken over."""

FEWEST = 10
"""Losses from which on they mean something; before that only ``RUNAWAY`` counts."""

DEVIATIONS = 10.0
SMALLEST_RISE = 2.0
"""A spike lies this many robust standard deviations, and this many medians, above the median."""

RUNAWAY = 5.0
"""Times what the first losses were: higher than any training that learns goes.

Their median, not the first alone: one batch of easy images would make a low bar for ever.
"""

PERSISTENT = 3
"""Bad batches among the last ``RECENT`` after which skipping is not enough."""

RECENT = 10

LOST = 0.5
"""Share of the fall from the first epoch's loss to the lowest: lost again, it is a collapse."""

LEARNED = 2.0
"""Times the lowest loss that the first epoch's has to be, for a fall to speak of."""

LASTING = 2
"""Bad epochs in a row after which the training goes back."""

CONSISTENT_DEVIATION = 1.4826  # of normal numbers: standard deviation over median deviation

Action = Literal["skip", "watch", "go back", "stop"]


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a step or an epoch, and what to do about it."""

    reason: str
    action: Action


@dataclass
class LossJudge:
    """Judges the losses of one training; changes nothing but its own memory of them.

    Attributes:
        max_rollbacks: How often the training may go back to its last good state.
        returns: How often it has.
        first: The first losses, in which RUNAWAY is measured.
        losses: The recent losses of steps that were well.
        recent: Whether each of the last steps was bad.
        epochs: The mean losses of the first epoch and of the best, of those that were well.
        bad_epochs: How many epochs in a row were bad, up to the last.
    """

    max_rollbacks: int
    returns: int = 0
    first: list[float] = field(default_factory=list)
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))
    epochs: list[float] = field(default_factory=list)
    bad_epochs: int = 0

    def judge(self, loss: float, gradient_norm: float) -> Verdict | None:
        """Judge a step before its weights are changed.

        Args:
            loss: Of the batch.
            gradient_norm: Of all weights together, before clipping.

        Returns:
            None where all is well.
        """
        reason = self._trouble(loss, gradient_norm)
        self.recent.append(reason is not None)
        if reason is None:
            if len(self.first) < FEWEST:
                self.first.append(loss)
            self.losses.append(loss)
            return None
        if sum(self.recent) < PERSISTENT:
            return Verdict(reason, "skip")
        return self._go_back(reason)

    def judge_epoch(self, training: float | None, validation: float | None) -> Verdict | None:
        """Judge an epoch after its validation.

        Args:
            training: Mean loss of its steps; None where all were skipped.
            validation: Mean loss on the validation images; None where the network answered one
                of them with NaN or infinity.

        Returns:
            None where all is well. The first bad epoch is only watched, unless the answers are no
            numbers: from there no training comes back.
        """
        reason = self._trouble_of_epoch(training, validation)
        if reason is None:
            self.bad_epochs = 0
            if training is not None:
                first, best = self.epochs or (training, training)
                self.epochs = [first, min(best, training)]
            return None
        self.bad_epochs += 1
        if validation is not None and self.bad_epochs < LASTING:
            return Verdict(reason, "watch")
        return self._go_back(reason)

    @property
    def calm(self) -> bool:
        """Whether the last steps and epochs were all well, and the weights are worth keeping."""
        return not any(self.recent) and self.bad_epochs == 0

    def _go_back(self, reason: str) -> Verdict:
        self.recent.clear()
        self.bad_epochs = 0
        if self.returns == self.max_rollbacks:
            return Verdict(reason, "stop")
        self.returns += 1
        if len(self.first) < FEWEST:  # perhaps they were the odd ones: measure anew
            self.first.clear()
            self.losses.clear()
        return Verdict(reason, "go back")

    def _trouble(self, loss: float, gradient_norm: float) -> str | None:
        if not math.isfinite(loss):
            return "the loss is NaN or infinite"
        if not math.isfinite(gradient_norm):
            return "the gradient is NaN or infinite"
        highest = self._highest()
        if loss > highest:
            return f"the loss jumped above {highest:.4g}, the most that its recent values allow"
        return None

    def _trouble_of_epoch(self, training: float | None, validation: float | None) -> str | None:
        if validation is None:
            return "the network gives NaN or infinity for validation images"
        if validation > self._runaway():
            return (
                f"the validation loss, {validation:.4g}, is above {RUNAWAY:g} times "
                "what the first losses were"
            )
        if self.epochs and training is not None:
            first, best = self.epochs
            if first > LEARNED * best and training > best + LOST * (first - best):
                return (
                    f"the epoch's mean loss, {training:.4g}, has lost more than half of the way "
                    f"from {first:.4g} down to {best:.4g}"
                )
        return None

    def _runaway(self) -> float:
        """Return a loss that no training that learns comes to."""
        return RUNAWAY * max(self.first[0], median(self.first)) if self.first else math.inf

    def _highest(self) -> float:
        """Return the loss above which a step counts as a spike."""
        runaway = self._runaway()
        if len(self.losses) < FEWEST:
            return runaway
        middle = median(self.losses)
        deviation = median(abs(loss - middle) for loss in self.losses)
        rise = max(DEVIATIONS * CONSISTENT_DEVIATION * deviation, SMALLEST_RISE * middle)
        return min(middle + rise, runaway)

    def state(self) -> dict[str, Any]:
        """Return what a resume needs, as plain values."""
        return {
            name: list(value) if isinstance(value, deque) else value
            for name, value in asdict(self).items()
            if name != "max_rollbacks"  # a resume may give another
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` returned."""
        for name, value in state.items():
            now = getattr(self, name)
            setattr(self, name, deque(value, now.maxlen) if isinstance(now, deque) else value)


SLOWER = 0.25
"""What the learning rate is multiplied by at each rollback."""

ACTIONS: dict[str, str] = {
    "skip": "the batch is skipped",
    "watch": "nothing is done yet",
    "go back": f"back to the last good weights, learning rate times {SLOWER}",
    "stop": "stopping",
}


class LossGuard:
    """Skips bad batches, and rolls back to the last good weights where that is not enough.

    Attributes:
        judge: None: the guard is off, and a loss that is NaN ends the training.
        good: The weights and their average at the last calm moment that ``keep`` was called;
            which those are depends on the steps alone, so a resumed training rolls back to the
            very weights that it would have rolled back to without the stop.
    """

    def __init__(self, setup: Setup, folder: Path, *, enabled: bool, max_rollbacks: int) -> None:
        self.setup = setup
        self.path = folder / INCIDENTS
        self.judge = LossJudge(max_rollbacks) if enabled else None
        self.good: dict[str, Any] | None = None
        self._rolls_back = False

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` takes up."""
        return {"guard": self.judge and self.judge.state(), "good": self.good}

    def restore(self, tree: dict[str, Any], progress: Progress) -> None:
        """Take up what ``state`` returned, and forget the incidents that will come again."""
        if self.judge and tree["guard"]:
            self.judge.restore(tree["guard"])
        self.good = tree["good"]
        keep_lines(self.path, lambda line: _is_before(line, progress))

    def keep(self) -> None:
        """Remember the present weights as good, unless the last steps were trouble."""
        if self.judge and (self.judge.calm or self.good is None):
            self.good = weights_of(self.setup)

    def allows(
        self, progress: Progress, batch: Batch, value: LossValue, gradient_norm: float
    ) -> bool:
        """Judge a step before the weights change, and do what the verdict asks for.

        Returns:
            Whether the step may change the weights.

        Raises:
            DivergedError: The training has rolled back as often as it may, or the guard is off
                and the loss is NaN or infinite.
            StorageError: The incident could not be written down.
        """
        loss, place = value.total.item(), f"epoch {progress.epoch}, batch {progress.batch + 1}"
        if self.judge is None:
            if not math.isfinite(loss):
                raise DivergedError(f"{place}: {_describe(batch, value, gradient_norm)}; {ADVICE}")
            return True
        verdict = self.judge.judge(loss, gradient_norm)
        if verdict is None:
            return True
        self._act(
            verdict,
            place,
            _describe(batch, value, gradient_norm),
            {
                "epoch": progress.epoch,
                "batch": progress.batch + 1,
                "step": progress.step + 1,
                "loss": _finite_or_text(loss),
                "terms": {name: _finite_or_text(term.item()) for name, term in value.terms.items()},
                "gradient_norm": _finite_or_text(gradient_norm),
                "images": _names_of(batch),
            },
        )
        self._rolls_back = verdict.action == "go back"
        return False

    def after_step(self) -> None:
        """Roll back if that was the step's verdict.

        Only now: the end of a skipped step sets batch norm's statistics to those before it.
        """
        if self._rolls_back:
            self._rolls_back = False
            self._roll_back()

    def after_epoch(
        self,
        progress: Progress,
        loss: float | None,
        failure: DivergedError | None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Judge an epoch after its validation, and do what the verdict asks for.

        Args:
            progress: At the end of the epoch.
            loss: Of the validation; None where the network answered an image with NaN.
            failure: What was raised then.
            weights: Of the terms that its training is judged by; None: by the whole loss.

        Raises:
            DivergedError: The training has rolled back as often as it may, or the guard is off
                and the answers are NaN.
            StorageError: The incident could not be written down.
        """
        if self.judge is None:
            if failure:
                raise failure
            return
        losses = progress.means.result()
        training = losses.get("loss")
        if weights and losses:
            training = sum(weight * losses[name] for name, weight in weights.items())
        verdict = self.judge.judge_epoch(training, loss)
        if verdict is None:
            return
        images = failure.images if failure else tuple(self.setup.validation.names)
        self._act(
            verdict,
            f"epoch {progress.epoch}, validation",
            f"training loss {_in_words(training)}, validation loss {_in_words(loss)}; "
            f"{_few(images)}",
            {
                "epoch": progress.epoch,
                "batch": None,
                "step": progress.step,
                "loss": training,
                "validation_loss": loss,
                "images": images,
            },
        )
        if verdict.action == "go back":
            self._roll_back()

    def _roll_back(self) -> None:
        """Put the good weights back and lower the rate; the optimizer's moments begin anew.

        The moments were made by the gradients that led astray.
        """
        if self.good:
            restore_weights(self.setup, self.good)
        optimization = self.setup.optimization
        optimization.optimizer.state.clear()
        if optimization.blank:  # some have moments from the start, and no step without them
            restore_optimizer(optimization.optimizer, {"state": optimization.blank})
        optimization.schedule.lowered *= SLOWER
        optimization.schedule.apply()

    def _act(self, verdict: Verdict, place: str, what: str, incident: dict[str, Any]) -> None:
        """Write an incident down, and stop where the verdict is that."""
        logger.warning("%s: %s; %s (%s)", place, verdict.reason, ACTIONS[verdict.action], what)
        rate = self.setup.optimization.schedule.present_rate
        append_line(self.path, {**incident, **asdict(verdict), "learning_rate": rate})
        if verdict.action == "stop":
            returns = self.judge.returns if self.judge else 0
            raise DivergedError(
                f"{place}: {verdict.reason}, having gone back {returns} time(s): {what}; all of "
                f"it is in {self.path}; {ADVICE}",
                tuple(incident["images"]),
            )


def _is_before(incident: dict[str, Any], progress: Progress) -> bool:
    """Say whether an incident was before a place in the training, and will not come again."""
    if incident["batch"] is None:
        return bool(incident["epoch"] < progress.epoch)
    return bool(incident["step"] <= progress.step)


def _names_of(batch: Batch) -> tuple[str, ...]:
    """Return the images of a step, those with masks first."""
    more = batch.unlabelled.names if batch.unlabelled else ()
    return (*(truth.name for truth in batch.truths), *more)


def _describe(batch: Batch, value: LossValue, gradient_norm: float) -> str:
    """Say in a few words which batch it was and what it gave."""
    terms = ", ".join(f"{name} {term.item():.4g}" for name, term in value.terms.items())
    return f"loss of {_few(_names_of(batch))}: {terms}; gradient norm {gradient_norm:.4g}"


def _few(images: Sequence[str]) -> str:
    more = f" and {len(images) - 4} more" if len(images) > 4 else ""
    return ", ".join(images[:4]) + more


def _in_words(loss: float | None) -> str:
    return "none" if loss is None else f"{loss:.4g}"


def _finite_or_text(number: float) -> float | str:
    """JSON knows neither NaN nor infinity."""
    return number if math.isfinite(number) else str(number)
