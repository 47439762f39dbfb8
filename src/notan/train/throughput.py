"""Throughput: how fast a training with a time limit goes, and how far."""

from __future__ import annotations

from dataclasses import dataclass

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
