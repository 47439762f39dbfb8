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
from notan.predict.formats import overlay_image
from notan.predict.predictor import Predictor
from notan.train.decide import decide, leave_undecided, rehearse
from notan.train.log import BEST, SPLIT, RunLog
from notan.train.loop import Loop
from notan.train.progress import Best, capture
from notan.train.steps import ADVICE, Validation, train_epoch, validate
from notan.train.time_limit import Overhead, TimeLimit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import nn

    from notan.data.batches import Batch
    from notan.losses import LossValue
    from notan.train.parts import Parts
    from notan.train.progress import Progress
    from notan.types import RGBImage

logger = logging.getLogger("notan")

FIRST_STEPS = 4
"""Steps after which their speed is known well enough to say how many fit into a time limit."""


@dataclass(frozen=True)
class TrainResult:
    """What a training left.

    Attributes:
        checkpoint: The best checkpoint by validation Dice.
        dice: Its mean per-image Dice on the validation split, at the images' own size, with
            the postprocessing that was chosen there.
        epoch: The epoch it is from, counted from 1.
        seconds_left: What is left of the time limit, below 0 where it was too small; None:
            there was none.
    """

    checkpoint: Path
    dice: float
    epoch: int
    seconds_left: float | None = field(default=None, compare=False)


class Trainer(Loop):
    """Runs one training in one folder."""

    command = "notan train"

    def __init__(self, parts: Parts, folder: Path, *, overhead: Overhead | None = None) -> None:
        """Take what ``prepare`` has built and checked, and the run folder.

        Args:
            parts: What to train with.
            folder: Where the run is kept.
            overhead: Work around the training that counts against its time limit; None: none.
        """
        super().__init__(parts, parts.run.train, folder)
        self.parts: Parts = parts
        seconds, schedule = self.settings.time_limit_seconds, parts.optimization.schedule
        self.time_limit = TimeLimit(seconds, overhead or Overhead(), schedule) if seconds else None
        self.told = False
        self.blank: DivergedError | None = None

    def train(self, tree: dict[str, Any] | None = None) -> TrainResult:
        """Train from the start, or from a state, to the end; see ``notan.train.train`` for errors.

        Args:
            tree: What ``capture`` returned, to go on from there.
        """
        parts = self.parts
        self.begin(tree)
        if tree and self.time_limit:  # older states have none
            self.time_limit.restore(tree.get("time limit"), self.progress)
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
        left = self.time_limit.left if self.time_limit else None
        result = TrainResult(self.folder / BEST, dice, best.epoch, left)
        logger.info("done; best epoch %d: %s", best.epoch, result.checkpoint)
        if self.time_limit:
            used, whole = self.time_limit.total, self.time_limit.seconds
            logger.info("%.0f of %.0f seconds are used", used, whole)
        return result

    def _plan(self) -> None:
        """Divide the time limit, where there is one: find out what the end will take."""
        time_limit, parts = self.time_limit, self.parts
        if time_limit is None:
            return
        if not time_limit.is_timed:
            choosing = rehearse(parts, self._stop_if_asked)
            # it reads and predicts all images twice, a validation once with each model
            time_limit.expect(choosing, validating=choosing / 2 * (2 if parts.average else 1))
        time_limit.plan()
        if time_limit.left < time_limit.end:
            logger.warning(
                "a time limit of %g s is too small and will not be kept: %.0f s are spent before "
                "the "
                "first step, and the end takes about %.0f s; give --time-limit %.0fs or more",
                *(
                    time_limit.seconds,
                    time_limit.total,
                    time_limit.end,
                    2 * (time_limit.total + time_limit.end),
                ),
            )
        else:
            logger.info("%s", time_limit.in_words())

    def _decide(self, best: Best) -> float:
        """Choose how the best checkpoint's probabilities become masks; return its Dice."""
        path = self.folder / BEST
        if self.time_limit and not self.time_limit.spent.choice:
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
        if best.dice <= best.all_foreground_dice:
            logger.warning(
                "the best Dice, %.4f, is no better than calling every pixel foreground (%.4f): "
                "nothing "
                "was learned; look at the masks with notan check, or try another --learning-rate",
                *(best.dice, best.all_foreground_dice),
            )
        self._save_state()
        return best

    def _finished(self) -> bool:
        if self.time_limit and not self.time_limit.has_validated:
            return False
        done, best, patience = self.progress.epoch - 1, self.progress.best, self.settings.patience
        if best and patience and done - best.epoch >= patience:
            logger.info("no better Dice for %d epochs: stopping early", patience)
            return True
        if self.time_limit and self.time_limit.is_over:
            logger.info("the time for steps is over")
            return True
        return done >= self.settings.epochs

    def _epoch(self, log: RunLog) -> None:
        """Train for the rest of an epoch, validate, keep the best, write down what happened."""
        parts, progress = self.parts, self.progress
        self.epoch_began = time.perf_counter() - progress.seconds
        parts.training_batches.set_epoch(progress.epoch, progress.batch)
        if self.time_limit:
            self.time_limit.begin_steps(anew=progress.batch == 0)
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
        schedule, time_limit = parts.optimization.schedule, self.time_limit
        rate = time_limit.spent.rate if time_limit else schedule.rate_after(progress.epoch - 1)
        seconds = time.perf_counter() - self.epoch_began
        if validations:
            self._keep_if_better(validations, log)
        if validates and time_limit:
            time_limit.after_validation()
        values = _history(progress, validations, rate, seconds)
        log.epoch(progress.epoch, values | (time_limit.history() if time_limit else {}))
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
        """Yield batches until they or the time limit's time for steps end."""
        if self.time_limit and self.time_limit.is_over:
            return
        for batch in batches:
            yield batch
            if self.time_limit and self.time_limit.is_over:
                return

    def _validates(self) -> bool:
        """Say whether to validate after this epoch: always, if it does not eat up a time limit."""
        time_limit = self.time_limit
        if time_limit is None or time_limit.is_over or self.progress.epoch >= self.settings.epochs:
            return True
        return time_limit.wants_validation

    def _start_in_words(self) -> str:
        losses, of = self.progress.means.result(), f"/{self.settings.epochs}"
        if self.time_limit:
            of = f"  {self.time_limit.total / self.time_limit.seconds:.0%} of the time"
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
        if self.time_limit and self.time_limit.after_step():
            self._say_what_fits()
        super().after_step(batch, value, taken=taken)

    def _say_what_fits(self) -> None:
        """Say once how many steps fit into the time limit, when that is known."""
        if self.time_limit and not self.told and self.progress.step + 1 >= FIRST_STEPS:
            logger.info("%s", self.time_limit.in_words())
            self.parts.optimization.freezing.warn_of_end(self.time_limit.epochs)
            self.told = True

    def capture(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on; see ``notan.train.progress``."""
        tree = capture(self.parts, self.progress, self.guard, self.recovery.good)
        return {**tree, "time limit": self.time_limit and self.time_limit.state()}

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
        """Read the validation images, which change nothing, so stopping is safe between them."""
        for batch in self.parts.validation_batches:
            self._stop_if_asked()
            yield batch

    def _keep_unscored(self) -> None:
        """Save a first model before its validation where that will end after the time limit.

        Whoever ends the process then, when the time limit is spent, leaves a model all the same.
        """
        time_limit, parts, progress = self.time_limit, self.parts, self.progress
        if time_limit and progress.best is None and time_limit.left < time_limit.spent.validating:
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
        progress.best = Best(
            scored.dice, progress.epoch, averaged is not None, scored.all_foreground_dice
        )

    def _overlays(self, model: nn.Module) -> Iterator[tuple[str, RGBImage]]:
        parts = self.parts
        predictor = Predictor(TorchBackend(model, parts.device), parts.preprocessor)
        for index in range(min(self.settings.log_images, len(parts.validation))):
            sample = parts.validation[index]
            mask = predictor(sample.image).mask
            yield sample.name, overlay_image(sample.image, mask, sample.mask)


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
