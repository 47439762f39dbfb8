"""The guard: sees a loss that is no number or that jumps, when it happens, and says what to do.

A step is judged by the median and the median absolute deviation of the recent losses, so one rule
fits a loss of 2 at the start and of 0.02 at the end, and one bad batch does not move it. A healthy
run is the same, bit for bit, with the guard and without it: it only looks.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
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

Their median, not the first alone: one batch of easy pictures would make a low bar for ever.
"""

PERSISTENT = 3
"""Bad batches among the last ``RECENT`` after which skipping is not enough."""

RECENT = 10
CONSISTENT_DEVIATION = 1.4826  # of normal numbers: standard deviation over median deviation

Action = Literal["skip", "go back", "stop"]


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a step, and what to do about it."""

    reason: str
    action: Action


@dataclass
class Guard:
    """Watches the steps of one training.

    Attributes:
        most_returns: How often the training may go back to its last good state.
        returns: How often it has.
    """

    most_returns: int
    returns: int = 0
    first: list[float] = field(default_factory=list)
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))

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
        self.recent.clear()
        if self.returns == self.most_returns:
            return Verdict(reason, "stop")
        self.returns += 1
        if len(self.first) < FEWEST:  # perhaps they were the odd ones: measure anew
            self.first.clear()
            self.losses.clear()
        return Verdict(reason, "go back")

    @property
    def calm(self) -> bool:
        """Whether the last steps were all well, so that their weights are worth keeping."""
        return not any(self.recent)

    def _trouble(self, loss: float, gradient_norm: float) -> str | None:
        if not math.isfinite(loss):
            return "the loss is no number"
        if not math.isfinite(gradient_norm):
            return "the gradient is no number"
        highest = self._highest()
        if loss > highest:
            return f"the loss jumped above {highest:.4g}, the most that its recent values allow"
        return None

    def _highest(self) -> float:
        """Return the loss above which a step counts as a spike."""
        if not self.first:
            return math.inf
        runaway = RUNAWAY * max(self.first[0], median(self.first))
        if len(self.losses) < FEWEST:
            return runaway
        middle = median(self.losses)
        deviation = median(abs(loss - middle) for loss in self.losses)
        rise = max(DEVIATIONS * CONSISTENT_DEVIATION * deviation, SMALLEST_RISE * middle)
        return min(middle + rise, runaway)

    def state(self) -> dict[str, Any]:
        """Return what a resume needs, as plain values."""
        return {
            "returns": self.returns,
            "first": list(self.first),
            "losses": list(self.losses),
            "recent": list(self.recent),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` returned."""
        self.returns, self.first = state["returns"], list(state["first"])
        self.losses = deque(state["losses"], maxlen=WINDOW)
        self.recent = deque(state["recent"], maxlen=RECENT)
