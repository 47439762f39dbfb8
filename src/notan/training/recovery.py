"""Recovery: what is done about the guard's verdicts, and the file that records them."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from notan.errors import DivergedError
from notan.run_folder import INCIDENTS
from notan.training.log import append_line
from notan.training.state import restore_weights, weights_of
from notan.training.steps import ADVICE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from notan.data.batches import Batch
    from notan.losses import LossValue
    from notan.training.guard import Guard, Verdict
    from notan.training.state import Progress
    from notan.training.steps import Learned

logger = logging.getLogger("notan")

SLOWER = 0.25
"""What the learning rate is multiplied by each time the training goes back."""


class Recovery:
    """Skips bad batches, and goes back to the last good weights where that is not enough.

    Attributes:
        good: The weights, and their average, at the last calm moment that ``keep`` was called;
            which those are depends on the steps alone, so a resumed training goes back to the
            very weights that it would have gone back to without the stop.
    """

    def __init__(self, parts: Learned, guard: Guard | None, folder: Path) -> None:
        self.parts = parts
        self.guard = guard
        self.path = folder / INCIDENTS
        self.returning = False
        self.good: dict[str, Any] | None = None

    def keep(self) -> None:
        """Remember the present weights as good, unless the last steps were trouble."""
        if self.guard and (self.guard.calm or self.good is None):
            self.good = weights_of(self.parts)

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
        images = names_of(batch)
        self._act(
            verdict,
            _place(progress),
            describe(batch, value, gradient_norm),
            {
                "epoch": progress.epoch,
                "batch": progress.batch + 1,
                "step": progress.step + 1,
                "loss": _finite_or_text(loss),
                "terms": {name: _finite_or_text(term.item()) for name, term in value.terms.items()},
                "gradient_norm": _finite_or_text(gradient_norm),
                "images": images,
            },
        )
        self.returning = verdict.action == "go back"
        return False

    def after_step(self) -> None:
        """Go back to the last good weights if the step's verdict was that, with a smaller rate.

        Only now: the end of a skipped step sets batch norm's statistics to those before it.
        """
        if self.returning:
            self.returning = False
            self._return()

    def after_epoch(
        self,
        progress: Progress,
        loss: float | None,
        blank: DivergedError | None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Judge an epoch after its validation, and do what the verdict asks for.

        Args:
            progress: At the end of the epoch.
            loss: What it gave; None where the network answered an image with no number.
            blank: What was raised then.
            weights: Of the terms that its training is judged by; None: by the whole loss.

        Raises:
            DivergedError: The training has gone back as often as it may, or there is no guard
                and the answers are no numbers.
            StorageError: The incident could not be written down.
        """
        if self.guard is None:
            if blank:
                raise blank
            return
        training = _judged(progress.means.result(), weights)
        verdict = self.guard.judge_epoch(training, loss)
        if verdict is None:
            return
        images = blank.images if blank else tuple(self.parts.validation.names)
        self._act(
            verdict,
            f"epoch {progress.epoch}, validation",
            f"training loss {_in_words(training)}, validation loss {_in_words(loss)}; "
            f"{_names(images)}",
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
            self._return()

    def _return(self) -> None:
        """Put the good weights back and lower the rate; the optimizer's moments begin anew.

        The moments were made by the gradients that led astray.
        """
        if self.good:
            restore_weights(self.parts, self.good)
        optimization = self.parts.optimization
        optimization.optimizer.state.clear()
        optimization.schedule.lowered *= SLOWER
        optimization.schedule.apply()

    def _act(self, verdict: Verdict, place: str, what: str, incident: dict[str, Any]) -> None:
        """Write an incident down, and stop where the verdict is that."""
        logger.warning("%s: %s; %s (%s)", place, verdict.reason, ACTIONS[verdict.action], what)
        rate = self.parts.optimization.schedule.present_rate
        told = {"reason": verdict.reason, "action": verdict.action, "learning_rate": rate}
        append_line(self.path, {**incident, **told})
        if verdict.action == "stop":
            returns = self.guard.returns if self.guard else 0
            raise DivergedError(
                f"{place}: {verdict.reason}, having gone back {returns} time(s): {what}; all of "
                f"it is in {self.path}; {ADVICE}",
                tuple(incident["images"]),
            )


def _judged(losses: Mapping[str, float], weights: Mapping[str, float] | None) -> float | None:
    """Return the mean loss of an epoch, of some terms only where weights name them."""
    if weights is None or not losses:
        return losses.get("loss")
    return sum(weight * losses[name] for name, weight in weights.items())


def is_before(incident: dict[str, Any], progress: Progress) -> bool:
    """Say whether an incident was before a place in the training, and will not come again."""
    if incident["batch"] is None:
        return bool(incident["epoch"] < progress.epoch)
    return bool(incident["step"] <= progress.step)


ACTIONS = {
    "skip": "the batch is skipped",
    "watch": "nothing is done yet",
    "go back": f"back to the last good weights, learning rate times {SLOWER}",
    "stop": "stopping",
}


def _place(progress: Progress) -> str:
    return f"epoch {progress.epoch}, batch {progress.batch + 1}"


def names_of(batch: Batch) -> tuple[str, ...]:
    """Return the images of a step, those with masks first."""
    more = batch.unlabelled.names if batch.unlabelled else ()
    return (*(truth.name for truth in batch.truths), *more)


def describe(batch: Batch, value: LossValue, gradient_norm: float) -> str:
    """Say in a few words which batch it was and what it gave."""
    terms = ", ".join(f"{name} {term.item():.4g}" for name, term in value.terms.items())
    names = _names(names_of(batch))
    return f"loss of {names}: {terms}; gradient norm {gradient_norm:.4g}"


def _names(images: Sequence[str]) -> str:
    more = f" and {len(images) - 4} more" if len(images) > 4 else ""
    return ", ".join(images[:4]) + more


def _in_words(loss: float | None) -> str:
    return "none" if loss is None else f"{loss:.4g}"


def _finite_or_text(number: float) -> float | str:
    """JSON knows neither NaN nor infinity."""
    return number if math.isfinite(number) else str(number)
