"""The loss guard: skips batches whose loss is NaN or jumps, and rolls back if that persists.

What counts as trouble is in judge.py. The device skips a bad batch by itself (spikes.py); here is
what the host does about it: write it down, go back to good weights, stop. A healthy run is the
same, bit for bit, with the guard and without it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from notan.errors import DivergedError, NotanError
from notan.run_folder import INCIDENTS
from notan.training.judge import LossJudge
from notan.training.log import append_line, keep_lines
from notan.training.spikes import SpikeDetector
from notan.training.state import begin_anew, restore_weights, weights_of
from notan.training.steps import ADVICE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from notan.data.batches import Batch
    from notan.training.build import Setup
    from notan.training.judge import Verdict
    from notan.training.state import Progress

logger = logging.getLogger("notan")

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
        spikes: What skips a step on the device, by the judge's rule.
        good: The weights and their average at the last calm moment that ``keep`` was called;
            which those are depends on the steps alone, so a resumed training rolls back to the
            very weights that it would have rolled back to without the stop.
    """

    def __init__(self, setup: Setup, folder: Path, *, enabled: bool, max_rollbacks: int) -> None:
        self.setup = setup
        self.path = folder / INCIDENTS
        self.judge = LossJudge(max_rollbacks) if enabled else None
        self.spikes = SpikeDetector(self.judge, setup.device)
        self.good: dict[str, Any] | None = None

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` takes up."""
        return {"guard": self.judge and self.judge.state(), "good": self.good}

    def restore(self, tree: dict[str, Any], progress: Progress) -> None:
        """Take up what ``state`` returned, and forget the incidents that will come again."""
        if self.judge and tree["guard"]:
            self.judge.restore(tree["guard"])
        self.spikes.load(self.judge)
        self.good = tree["good"]
        if self.setup.ranks.is_first:
            keep_lines(self.path, lambda line: _is_before(line, progress))

    def keep(self) -> None:
        """Remember the present weights as good, unless the last steps were trouble."""
        if self.judge and (self.judge.calm or self.good is None):
            self.good = weights_of(self.setup)

    def after_step(
        self,
        progress: Progress,
        batch: Batch,
        losses: Mapping[str, float],
        gradient_norm: float,
        *,
        taken: bool,
    ) -> bool:
        """Judge a step that the device has taken or skipped, and do what the verdict asks for.

        Args:
            progress: Before the step.
            batch: What it worked on.
            losses: By name; ``loss`` is the whole.
            gradient_norm: Of all weights together, before clipping.
            taken: Whether it has changed the weights.

        Returns:
            Whether the training has gone back: steps that were begun since then were skipped.

        Raises:
            DivergedError: The training has rolled back as often as it may, or the guard is off
                and the loss is NaN or infinite.
            StorageError: The incident could not be written down.
        """
        loss, place = losses["loss"], f"epoch {progress.epoch}, batch {progress.batch + 1}"
        verdict = self.judge.judge(loss, gradient_norm) if self.judge else None
        if taken != (verdict is None if self.judge else math.isfinite(loss)):
            raise NotanError(
                f"{place}: host and device judge a loss of {loss!r} differently (gradient norm "
                f"{gradient_norm!r}); this is a fault of notan: please report it"
            )
        if taken:
            return False
        of_ranks = self.setup.ranks.gather(_names_of(batch))
        names = tuple(name for part in of_ranks for name in part)
        what = _describe(names, losses, gradient_norm)
        if verdict is None:
            raise DivergedError(f"{place}: {what}; {ADVICE}")
        self._act(
            verdict,
            place,
            what,
            {
                "epoch": progress.epoch,
                "batch": progress.batch + 1,
                "step": progress.step + 1,
                "loss": _finite_or_text(loss),
                "terms": {name: _finite_or_text(term) for name, term in _terms(losses)},
                "gradient_norm": _finite_or_text(gradient_norm),
                "images": names,
            },
            progress,
        )
        if verdict.action == "go back":
            self._roll_back()
            return True
        return False

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
            progress,
        )
        self.spikes.load(self.judge)
        if verdict.action == "go back":
            self._roll_back()

    def _roll_back(self) -> None:
        """Put the good weights back and lower the rate; the optimizer's moments begin anew.

        The moments were made by the gradients that led astray.
        """
        if self.good:
            restore_weights(self.setup, self.good)
        begin_anew(self.setup.optimization)
        self.setup.optimization.schedule.lower(SLOWER)
        self.spikes.load(self.judge)

    def _act(
        self,
        verdict: Verdict,
        place: str,
        what: str,
        incident: dict[str, Any],
        progress: Progress,
    ) -> None:
        """Write an incident down, and stop where the verdict is that."""
        logger.warning("%s: %s; %s (%s)", place, verdict.reason, ACTIONS[verdict.action], what)
        schedule = self.setup.optimization.schedule
        rate = schedule.rate_after(progress.step / schedule.steps_per_epoch)
        if self.setup.ranks.is_first:
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
    return (*batch.names, *more)


def _terms(losses: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(name, loss) for name, loss in losses.items() if name != "loss"]


def _describe(names: Sequence[str], losses: Mapping[str, float], gradient_norm: float) -> str:
    """Say in a few words which batch it was and what it gave."""
    terms = ", ".join(f"{name} {term:.4g}" for name, term in _terms(losses))
    return f"loss of {_few(names)}: {terms}; gradient norm {gradient_norm:.4g}"


def _few(images: Sequence[str]) -> str:
    more = f" and {len(images) - 4} more" if len(images) > 4 else ""
    return ", ".join(images[:4]) + more


def _in_words(loss: float | None) -> str:
    return "none" if loss is None else f"{loss:.4g}"


def _finite_or_text(number: float) -> float | str:
    """JSON knows neither NaN nor infinity."""
    return number if math.isfinite(number) else str(number)
