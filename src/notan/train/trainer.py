"""Trainer: runs the epochs of a training, keeps its best checkpoint and its state."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from notan.checkpoint import Checkpoint, save_checkpoint
from notan.errors import DivergedError
from notan.files import write_bytes
from notan.predict.backends import TorchBackend
from notan.predict.formats import overlay_picture
from notan.predict.predictor import Predictor
from notan.train.budget import Budget, Frame
from notan.train.decide import decide, leave_undecided, rehearse
from notan.train.log import BEST, SPLIT, RunLog
from notan.train.loop import Loop
from notan.train.progress import Best, capture
from notan.train.steps import ADVICE, Validation, train_epoch, validate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import nn

    from notan.data.batches import Batch
    from notan.losses import LossValue
    from notan.train.parts import Parts
    from notan.train.progress import Progress
    from notan.types import Picture

logger = logging.getLogger("notan")

FIRST_STEPS = 4
"""Steps after which it is known well enough how fast they go to say how many fit into a budget."""


@dataclass(frozen=True)
class TrainResult:
    """What a training left.

    Attributes:
        checkpoint: The best checkpoint by validation Dice.
        dice: Its mean per-picture Dice on the validation split, at the pictures' own size, with
            the decision that was chosen there.
        epoch: The epoch it is from, counted from 1.
        seconds_left: What is left of the budget of time, below 0 where it was too small; None:
            there was none.
    """

    checkpoint: Path
    dice: float
    epoch: int
    seconds_left: float | None = field(default=None, compare=False)


class Trainer(Loop):
    """Runs one training in one folder."""

    command = "notan train"

    def __init__(self, parts: Parts, folder: Path, *, frame: Frame | None = None) -> None:
        """Take what ``prepare`` has built and checked, and the run folder.

        Args:
            parts: What to train with.
            folder: Where the run is kept.
            frame: What surrounds the training and is paid for by its budget too; None: nothing.
        """
        super().__init__(parts, parts.run.train, folder)
        self.parts: Parts = parts
        seconds, schedule = self.settings.budget_seconds, parts.optimization.schedule
        self.budget = Budget(seconds, frame or Frame(), schedule) if seconds else None
        self.told = False
        self.blank: DivergedError | None = None

    def train(self, tree: dict[str, Any] | None = None) -> TrainResult:
        """Train from the start, or from a state, to the end; see ``notan.train.train`` for errors.

        Args:
            tree: What ``capture`` returned, to go on from there.
        """
        parts = self.parts
        self.begin(tree)
        if tree and self.budget:  # older states have none
            self.budget.restore(tree.get("budget"), self.progress)
        anomaly = torch.autograd.set_detect_anomaly(self.settings.detect_anomaly)
        log = RunLog(self.folder, parts.run, first_epoch=self.progress.epoch)
        names = "".join(f"{name}\n" for name in parts.validation.names)
        write_bytes(self.folder / SPLIT, names.encode())
        try:
            with log, anomaly, self.stop:
                self._plan()
                best = self._epochs(log)
                dice = self._decide(best)
        finally:
            parts.training_batches.close()
            parts.validation_batches.close()
        left = self.budget.left if self.budget else None
        result = TrainResult(self.folder / BEST, dice, best.epoch, left)
        logger.info("done; best epoch %d: %s", best.epoch, result.checkpoint)
        if self.budget:
            used, whole = self.budget.total, self.budget.seconds
            logger.info("%.0f of %.0f seconds are used", used, whole)
        return result

    def _plan(self) -> None:
        """Divide the budget, where there is one: find out what the end will take."""
        budget, parts = self.budget, self.parts
        if budget is None:
            return
        if not budget.is_timed:
            choosing = rehearse(parts, self._stop_if_asked)
            # it reads and predicts all pictures twice, a validation once with each model
            budget.expect(choosing, validating=choosing / 2 * (2 if parts.average else 1))
        budget.plan()
        if budget.left < budget.end:
            logger.warning(
                "a budget of %g s is too small and will not be kept: %.0f s are spent before the "
                "first step, and the end takes about %.0f s; give --budget %.0fs or more",
                *(budget.seconds, budget.total, budget.end, 2 * (budget.total + budget.end)),
            )
        else:
            logger.info("%s", budget.in_words())

    def _decide(self, best: Best) -> float:
        """Choose how the best checkpoint's probabilities become masks; return its Dice."""
        path = self.folder / BEST
        if self.budget and not self.budget.spent.choice:
            leave_undecided(path)
            return best.dice
        return decide(path, self.parts, self._stop_if_asked).dice

    def _epochs(self, log: RunLog) -> Best:
        """Train epoch after epoch; the state after the last says that the run is finished."""
        while not self._finished():
            self._epoch(log)
        best = self.progress.best
        if best is None:
            (self.folder / BEST).unlink(missing_ok=True)  # see _keep_unscored
            raise self.blank or DivergedError(
                f"{self.folder}: no epoch of this run ended with a network that answers in "
                f"numbers; {ADVICE}"
            )
        if best.dice <= best.blind_dice:
            logger.warning(
                "the best Dice, %.4f, is no better than calling every pixel figure (%.4f): nothing "
                "was learned; look at the masks with notan check, or try another --learning-rate",
                *(best.dice, best.blind_dice),
            )
        self._save_state()
        return best

    def _finished(self) -> bool:
        if self.budget and not self.budget.has_validated:
            return False
        done, best, patience = self.progress.epoch - 1, self.progress.best, self.settings.patience
        if best and patience and done - best.epoch >= patience:
            logger.info("no better Dice for %d epochs: stopping early", patience)
            return True
        if self.budget and self.budget.is_over:
            logger.info("the time for steps is over")
            return True
        return done >= self.settings.epochs

    def _epoch(self, log: RunLog) -> None:
        """Train for the rest of an epoch, validate, keep the best, write down what happened."""
        parts, progress = self.parts, self.progress
        self.epoch_began = time.perf_counter() - progress.seconds
        parts.training_batches.go_to(progress.epoch, progress.batch)
        if self.budget:
            self.budget.begin_steps(anew=progress.batch == 0)
        with self._show_progress() as self.bar:
            batches = parts.teacher.mark(self.bar) if parts.teacher else self.bar
            if parts.consistency:
                batches = parts.consistency.mark(batches, first=progress.step)
            with parts.optimization.freezing.during(progress.epoch):
                in_time = self._while_time(batches)
                train_epoch(parts.model, in_time, parts.loss, parts.optimization, self)
        validates, validations = self._validates(), list[Validation]()
        if validates:
            self._keep_unscored()
            self.blank, validations = self._validated()
        schedule, budget = parts.optimization.schedule, self.budget
        rate = budget.spent.rate if budget else schedule.rate_after(progress.epoch - 1)
        seconds = time.perf_counter() - self.epoch_began
        if validations:
            self._keep_if_better(validations, log)
        if validates and budget:
            budget.after_validation()
        values = _history(progress, validations, rate, seconds)
        log.epoch(progress.epoch, values | (budget.history() if budget else {}))
        words = self._in_words(validations) if validates else self._start_in_words()
        logger.info("%s  %.1f s", words, seconds)
        if validates:
            loss = validations[0].losses["loss"] if validations else None
            weights = parts.loss.weights if parts.consistency else None
            self.recovery.after_epoch(progress, loss, self.blank, weights)
        progress.seconds = seconds
        progress.next_epoch()
        self.recovery.keep()

    def _while_time(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches until they or the budget's time for steps end."""
        if self.budget and self.budget.is_over:
            return
        for batch in batches:
            yield batch
            if self.budget and self.budget.is_over:
                return

    def _validates(self) -> bool:
        """Say whether to validate after this epoch: always, if it does not eat up a budget."""
        budget = self.budget
        if budget is None or budget.is_over or self.progress.epoch >= self.settings.epochs:
            return True
        return budget.wants_validation

    def _start_in_words(self) -> str:
        losses, of = self.progress.means.result(), f"/{self.settings.epochs}"
        if self.budget:
            of = f"  {self.budget.total / self.budget.seconds:.0%} of the time"
        return f"epoch {self.progress.epoch}{of}  loss {losses.get('loss', 0):.4f}"

    def _in_words(self, validations: list[Validation]) -> str:
        progress, start = self.progress, self._start_in_words()
        if not validations or progress.best is None:
            return f"{start}  validation gave no numbers"
        best, validation = progress.best, max(validations, key=lambda v: v.dice)
        return (
            f"{start}  validation loss {validation.losses['loss']:.4f}  "
            f"Dice {validation.dice:.4f}  best {best.dice:.4f} (epoch {best.epoch})"
        )

    def after_step(self, batch: Batch, value: LossValue, *, taken: bool) -> None:
        """Count the step's time too, before the state is saved; see ``Loop.after_step``."""
        if self.budget and self.budget.after_step():
            self._say_what_fits()
        super().after_step(batch, value, taken=taken)

    def _say_what_fits(self) -> None:
        """Say once how many steps fit into the budget, when that is known."""
        if self.budget and not self.told and self.progress.step + 1 >= FIRST_STEPS:
            logger.info("%s", self.budget.in_words())
            self.parts.optimization.freezing.warn_of_end(self.budget.epochs)
            self.told = True

    def capture(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on; see ``notan.train.progress``."""
        tree = capture(self.parts, self.progress, self.guard, self.recovery.good)
        return {**tree, "budget": self.budget and self.budget.state()}

    def _validated(self) -> tuple[DivergedError | None, list[Validation]]:
        try:
            return None, list(self._validations())
        except DivergedError as error:
            return error, []

    def _validations(self) -> Iterator[Validation]:
        """Score the model, then its weight average where one is kept."""
        parts = self.parts
        models = [parts.model, *([parts.average.model] if parts.average else [])]
        for model in models:
            backend = TorchBackend(model, parts.device)
            yield validate(backend, self._until_stopped(), parts.loss)

    def _until_stopped(self) -> Iterator[Batch]:
        """Read the validation pictures, which change nothing, so stopping is safe between them."""
        for batch in self.parts.validation_batches:
            self._stop_if_asked()
            yield batch

    def _keep_unscored(self) -> None:
        """Save a first model before its validation where that will end after the budget.

        Whoever ends the process then, when the budget is spent, leaves a model all the same.
        """
        budget, parts, progress = self.budget, self.parts, self.progress
        if budget and progress.best is None and budget.left < budget.spent.validating:
            card = parts.card(progress.epoch, {})
            save_checkpoint(self.folder / BEST, Checkpoint(card, parts.model.state_dict()))

    def _keep_if_better(self, validations: list[Validation], log: RunLog) -> None:
        """Save the model, or its average, if it is better than all before."""
        progress, parts = self.progress, self.parts
        scored = max(validations, key=lambda validation: validation.dice)
        if progress.best and scored.dice <= progress.best.dice:
            return
        averaged = parts.average if scored is not validations[0] else None
        model = averaged.model if averaged else parts.model
        card = parts.card(progress.epoch, {"dice": scored.dice, "iou": scored.iou})
        save_checkpoint(self.folder / BEST, Checkpoint(card, model.state_dict()))
        log.overlays(progress.epoch, list(self._overlays(model)))
        progress.best = Best(scored.dice, progress.epoch, averaged is not None, scored.blind_dice)

    def _overlays(self, model: nn.Module) -> Iterator[tuple[str, Picture]]:
        parts = self.parts
        predictor = Predictor(TorchBackend(model, parts.device), parts.preprocessor)
        for index in range(min(self.settings.overlays, len(parts.validation))):
            sample = parts.validation[index]
            mask = predictor(sample.image).mask
            yield sample.name, overlay_picture(sample.image, mask, sample.mask)


def _history(
    progress: Progress, validations: list[Validation], rate: float, seconds: float
) -> dict[str, float]:
    """Name an epoch's values; a term of the loss is not the score of the same name."""
    values = {
        **_named("train", progress.means.result()),
        "learning_rate": rate,
        "seconds": seconds,
    }
    for validation in validations[:1]:
        values |= _named("validation", validation.losses)
        values["validation/dice"] = validation.dice
        values["validation/iou"] = validation.iou
    for validation in validations[1:]:
        values["validation/average_dice"] = validation.dice
        values["validation/average_iou"] = validation.iou
    return values


def _named(part: str, losses: dict[str, float]) -> dict[str, float]:
    return {
        f"{part}/loss" if name == "loss" else f"{part}/{name}_loss": value
        for name, value in losses.items()
    }
