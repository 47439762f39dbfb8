"""What the loss guard goes by: which losses are trouble, and what is to be done about it.

A step is judged by the median and the median absolute deviation of the recent losses, so one rule
fits a loss of 2 at the start and of 0.02 at the end, and one bad batch does not move it. An epoch
is judged by its validation and by whether most of what was learned has been lost: trouble that
creeps, and that no single step shows.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

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
