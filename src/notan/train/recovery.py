"""Recovery: what is done about the guard's verdicts, and the file that records them."""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING, Any

from notan.errors import DivergedError
from notan.files import storage_errors
from notan.train.progress import restore_weights
from notan.train.steps import ADVICE

if TYPE_CHECKING:
    from pathlib import Path

    from notan.data.batches import Batch
    from notan.losses import LossValue
    from notan.train.guard import Guard, Verdict
    from notan.train.parts import Parts
    from notan.train.progress import Progress

logger = logging.getLogger("notan")

INCIDENTS = "incidents.jsonl"
SLOWER = 0.25
"""What the learning rate is multiplied by each time the training goes back."""


class Recovery:
    """Skips bad batches, and goes back to the last good state where that is not enough."""

    def __init__(self, parts: Parts, guard: Guard | None, folder: Path) -> None:
        self.parts = parts
        self.guard = guard
        self.path = folder / INCIDENTS
        self.returning = False
        self.good: dict[str, Any] | None = None
        """The last state whose neighbouring steps were all well."""

    def keep(self, tree: dict[str, Any]) -> None:
        """Remember a state as good, unless it was taken amid trouble."""
        if self.guard and (self.guard.calm or self.good is None):
            self.good = tree

    def allows(
        self, progress: Progress, batch: Batch, value: LossValue, gradient_norm: float
    ) -> bool:
        """Judge a step and do what the verdict asks for.

        Returns:
            Whether the step may change the weights.

        Raises:
            DivergedError: The training has gone back as often as it may, or there is no guard
                and the loss is no number.
            StorageError: The incident could not be written down.
        """
        loss = value.total.item()
        if self.guard is None:
            if not math.isfinite(loss):
                what = describe(batch, value, gradient_norm)
                raise DivergedError(f"{_place(progress)}: {what}; {ADVICE}")
            return True
        verdict = self.guard.judge(loss, gradient_norm)
        if verdict is None:
            return True
        self._record(progress, batch, value, gradient_norm, verdict)
        if verdict.action == "stop":
            raise DivergedError(
                f"{_place(progress)}: {verdict.reason}, having gone back {self.guard.returns} "
                f"time(s): {describe(batch, value, gradient_norm)}; all of it is in {self.path}; "
                f"{ADVICE}"
            )
        self.returning = verdict.action == "go back"
        return False

    def after_step(self) -> None:
        """Go back to the last good weights if the step's verdict was that, with a smaller rate.

        Only now: the end of a skipped step sets batch norm's statistics to those before it.
        """
        if not self.returning:
            return
        self.returning = False
        schedule = self.parts.optimization.schedule
        if self.good:
            restore_weights(self.parts, self.good)
        schedule.lowered *= SLOWER
        schedule.apply()

    def _record(
        self,
        progress: Progress,
        batch: Batch,
        value: LossValue,
        gradient_norm: float,
        verdict: Verdict,
    ) -> None:
        logger.warning(
            "%s: %s; %s (%s)",
            *(_place(progress), verdict.reason, ACTIONS[verdict.action]),
            describe(batch, value, gradient_norm),
        )
        incident = {
            "epoch": progress.epoch,
            "batch": progress.batch + 1,
            "step": progress.step + 1,
            "reason": verdict.reason,
            "action": verdict.action,
            "loss": _finite_or_text(value.total.item()),
            "terms": {name: _finite_or_text(term.item()) for name, term in value.terms.items()},
            "gradient_norm": _finite_or_text(gradient_norm),
            "learning_rate": self.parts.optimization.schedule.present_rate,
            "pictures": [truth.name for truth in batch.truths],
        }
        with storage_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(incident) + "\n")


ACTIONS = {
    "skip": "the batch is skipped",
    "go back": f"back to the last good weights, learning rate times {SLOWER}",
    "stop": "stopping",
}


def _place(progress: Progress) -> str:
    return f"epoch {progress.epoch}, batch {progress.batch + 1}"


def describe(batch: Batch, value: LossValue, gradient_norm: float) -> str:
    """Say in a few words which batch it was and what it gave."""
    terms = ", ".join(f"{name} {term.item():.4g}" for name, term in value.terms.items())
    names = ", ".join(truth.name for truth in batch.truths[:4])
    more = f" and {len(batch.truths) - 4} more" if len(batch.truths) > 4 else ""
    return f"loss of {names}{more}: {terms}; gradient norm {gradient_norm:.4g}"


def _finite_or_text(number: float) -> float | str:
    """JSON knows neither NaN nor infinity."""
    return number if math.isfinite(number) else str(number)
