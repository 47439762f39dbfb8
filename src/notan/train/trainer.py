"""Trainer: runs the epochs of a training, keeps its best checkpoint and its state."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from notan.checkpoint import Checkpoint, save_checkpoint
from notan.errors import DivergedError
from notan.files import write_bytes
from notan.predict.backends import TorchBackend
from notan.predict.formats import overlay_picture
from notan.predict.predictor import Predictor
from notan.train.decide import decide
from notan.train.log import BEST, SPLIT, RunLog, keep_lines
from notan.train.loop import Loop
from notan.train.progress import Best, capture, restore
from notan.train.recovery import is_before
from notan.train.steps import ADVICE, Validation, train_epoch, validate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

    from notan.data.batches import Batch
    from notan.train.parts import Parts
    from notan.train.progress import Progress
    from notan.types import Picture

logger = logging.getLogger("notan")


@dataclass(frozen=True)
class TrainResult:
    """What a training left.

    Attributes:
        checkpoint: The best checkpoint by validation Dice.
        dice: Its mean per-picture Dice on the validation split, at the pictures' own size, with
            the decision that was chosen there.
        epoch: The epoch it is from, counted from 1.
    """

    checkpoint: Path
    dice: float
    epoch: int


class Trainer(Loop):
    """Runs one training in one folder."""

    command = "notan train"

    def __init__(self, parts: Parts, folder: Path) -> None:
        """Take what ``prepare`` has built and checked, and the run folder."""
        super().__init__(parts, parts.run.train, folder)
        self.parts: Parts = parts
        self.blank: DivergedError | None = None

    def train(self, tree: dict[str, Any] | None = None) -> TrainResult:
        """Train from the start, or from a state, to the end; see ``notan.train.train`` for errors.

        Args:
            tree: What ``capture`` returned, to go on from there.
        """
        parts = self.parts
        logger.info("%s", parts.describe())
        logger.info("run folder: %s", self.folder)
        if tree:
            self.progress = restore(parts, tree, self.guard)
            self.recovery.good = tree["good"]
            where = f"epoch {self.progress.epoch}, batch {self.progress.batch + 1}"
            logger.info("going on from %s", where)
        else:
            self.recovery.keep()
        keep_lines(self.recovery.path, lambda line: is_before(line, self.progress))
        anomaly = torch.autograd.set_detect_anomaly(self.settings.detect_anomaly)
        log = RunLog(self.folder, parts.run, first_epoch=self.progress.epoch)
        names = "".join(f"{name}\n" for name in parts.validation.names)
        write_bytes(self.folder / SPLIT, names.encode())
        try:
            with log, anomaly, self.stop:
                best = self._epochs(log)
                choice = decide(self.folder / BEST, parts, self._stop_if_asked)
        finally:
            parts.training_batches.close()
            parts.validation_batches.close()
        result = TrainResult(self.folder / BEST, choice.dice, best.epoch)
        logger.info("done; best epoch %d: %s", best.epoch, result.checkpoint)
        return result

    def _epochs(self, log: RunLog) -> Best:
        """Train epoch after epoch; the state after the last says that the run is finished."""
        while not self._finished():
            self._epoch(log)
        best = self.progress.best
        if best is None:
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
        done, best, patience = self.progress.epoch - 1, self.progress.best, self.settings.patience
        if best and patience and done - best.epoch >= patience:
            logger.info("no better Dice for %d epochs: stopping early", patience)
            return True
        budget, spent = self.settings.budget_seconds, self.progress.earlier_seconds
        if done and budget is not None and spent >= budget:
            logger.info("%.0f of %.0f seconds are spent: stopping", spent, budget)
            return True
        return done >= self.settings.epochs

    def _epoch(self, log: RunLog) -> None:
        """Train for the rest of an epoch, validate, keep the best, write down what happened."""
        parts, progress = self.parts, self.progress
        self.epoch_began = time.perf_counter() - progress.seconds
        parts.training_batches.go_to(progress.epoch, progress.batch)
        with self._show_progress() as self.bar:
            batches = parts.teacher.mark(self.bar) if parts.teacher else self.bar
            if parts.consistency:
                batches = parts.consistency.mark(batches, first=progress.step)
            with parts.optimization.freezing.during(progress.epoch):
                train_epoch(parts.model, batches, parts.loss, parts.optimization, self)
        try:
            self.blank, validations = None, list(self._validations())
        except DivergedError as error:
            self.blank, validations = error, []
        rate = parts.optimization.schedule.rate_after(progress.epoch - 1)
        seconds = time.perf_counter() - self.epoch_began
        if validations:
            self._keep_if_better(validations, log)
        log.epoch(progress.epoch, _history(progress, validations, rate, seconds))
        logger.info("%s  %.1f s", self._in_words(validations), seconds)
        loss = validations[0].losses["loss"] if validations else None
        # by the masks alone: what others add grows with its weight, and the sum may with it
        weights = parts.loss.weights if parts.consistency else None
        self.recovery.after_epoch(progress, loss, self.blank, weights)
        progress.seconds = seconds
        progress.next_epoch()
        self.recovery.keep()

    def _in_words(self, validations: list[Validation]) -> str:
        progress, losses = self.progress, self.progress.means.result()
        start = f"epoch {progress.epoch}/{self.settings.epochs}  loss {losses.get('loss', 0):.4f}"
        if not validations or progress.best is None:
            return f"{start}  validation gave no numbers"
        best, validation = progress.best, max(validations, key=lambda v: v.dice)
        return (
            f"{start}  validation loss {validation.losses['loss']:.4f}  "
            f"Dice {validation.dice:.4f}  best {best.dice:.4f} (epoch {best.epoch})"
        )

    def capture(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on; see ``notan.train.progress``."""
        return capture(self.parts, self.progress, self.guard, self.recovery.good)

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
