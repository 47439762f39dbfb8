"""Trainer: a Run becomes a run folder with the best checkpoint in it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from notan.checkpoint import Checkpoint, save_checkpoint
from notan.files import fresh_folder, write_bytes
from notan.predict.backends import TorchBackend
from notan.predict.formats import overlay_picture
from notan.predict.predictor import Predictor
from notan.train.log import BEST, SPLIT, RunLog, claim_folder, clear_folder
from notan.train.parts import THRESHOLD, Parts, prepare
from notan.train.steps import Validation, train_epoch, validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

    from notan.config import Run
    from notan.data.sample import Source
    from notan.types import Picture

logger = logging.getLogger("notan")


@dataclass(frozen=True)
class TrainResult:
    """What a training left.

    Attributes:
        checkpoint: The best checkpoint by validation Dice.
        dice: Its mean per-picture Dice on the validation split, at the pictures' own size.
        epoch: The epoch it is from, counted from 1.
    """

    checkpoint: Path
    dice: float
    epoch: int


def train(
    run: Run,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    training: Source | None = None,
    validation: Source | None = None,
    model: nn.Module | None = None,
    transform: Callable[..., Mapping[str, Any]] | None = None,
) -> TrainResult:
    """Train a model and keep the best checkpoint by validation Dice; no test picture is read.

    Args:
        run: All settings.
        out: The run folder; None takes a fresh one under ``runs/``.
        overwrite: Replace a run that is already in ``out``.
        training: Pictures of your own instead of those of ``run.data``.
        validation: Likewise; both or neither.
        model: A module of your own instead of ``run.model``: (n, 3, h, w) to logits
            (n, 1, h, w), with an attribute ``stride``.
        transform: An augmentation of your own instead of ``run.augment``, called as
            ``transform(image=, mask=)`` and returning a mapping with both.

    Raises:
        ConfigError: A setting does not fit, or the folder is taken.
        DataError: A picture or mask is missing, unreadable or ambiguous.
        DivergedError: The loss is no longer a number.
        StorageError: The disk is full; what was saved before is whole.
    """
    folder = out or fresh_folder(Path("runs") / _folder_name(run, model))
    claim_folder(folder, overwrite=overwrite)
    parts = prepare(run, training=training, validation=validation, model=model, transform=transform)
    clear_folder(folder)  # only now: a wrong setting must not cost the earlier run
    return Trainer(parts).train(folder)


class Trainer:
    """Runs the epochs of a training and keeps its best checkpoint."""

    def __init__(self, parts: Parts) -> None:
        """Take what ``prepare`` has built and checked."""
        self.parts = parts
        self.best: TrainResult | None = None

    def train(self, folder: Path) -> TrainResult:
        """Train for all epochs, or until patience or Ctrl-C ends it; see ``train`` for errors."""
        parts = self.parts
        logger.info("%s", parts.describe())
        logger.info("run folder: %s", folder)
        anomaly = torch.autograd.set_detect_anomaly(parts.run.train.detect_anomaly)
        with RunLog(folder, parts.run) as log, anomaly:
            names = "".join(f"{name}\n" for name in parts.validation.names)
            write_bytes(folder / SPLIT, names.encode())
            try:
                for epoch in range(1, parts.run.train.epochs + 1):
                    best = self._epoch(epoch, log)
                    if self._out_of_patience(epoch, best):
                        break
            except KeyboardInterrupt:
                logger.warning("stopped; %s", self._kept())
                raise
            finally:
                parts.training_batches.close()
                parts.validation_batches.close()
        logger.info("done; %s", self._kept())
        return best

    def _epoch(self, epoch: int, log: RunLog) -> TrainResult:
        """Train for an epoch, validate, save if better, and write down what happened."""
        parts, start = self.parts, time.perf_counter()
        rate = float(parts.optimization.scheduler.get_last_lr()[0])
        parts.training_batches.epoch = epoch
        losses = train_epoch(parts.model, parts.training_batches, parts.loss, parts.optimization)
        backend = TorchBackend(parts.model, parts.device)
        validation = validate(backend, parts.validation_batches, parts.loss, THRESHOLD)
        best = self._keep_if_better(epoch, validation, log)
        seconds = time.perf_counter() - start
        log.epoch(epoch, _history(losses, validation, rate, seconds))
        progress = f"epoch {epoch}/{parts.run.train.epochs}"
        logger.info(
            f"{progress}  loss {losses['loss']:.4f}  "
            f"validation loss {validation.losses['loss']:.4f}  Dice {validation.dice:.4f}  "
            f"best {best.dice:.4f} (epoch {best.epoch})  {seconds:.1f} s"
        )
        return best

    def _keep_if_better(self, epoch: int, validation: Validation, log: RunLog) -> TrainResult:
        if self.best and validation.dice <= self.best.dice:
            return self.best
        scores = {"dice": validation.dice, "iou": validation.iou}
        card = self.parts.card(epoch, scores)
        path = log.folder / BEST
        save_checkpoint(path, Checkpoint(card, self.parts.model.state_dict()))
        log.overlays(epoch, list(self._overlays()))
        self.best = TrainResult(path, validation.dice, epoch)
        return self.best

    def _overlays(self) -> Iterator[tuple[str, Picture]]:
        parts = self.parts
        predictor = Predictor(TorchBackend(parts.model, parts.device), parts.preprocessor)
        for index in range(min(parts.run.train.overlays, len(parts.validation))):
            sample = parts.validation[index]
            mask = predictor(sample.image).mask
            yield sample.name, overlay_picture(sample.image, mask, sample.mask)

    def _out_of_patience(self, epoch: int, best: TrainResult) -> bool:
        patience = self.parts.run.train.patience
        if patience is None or epoch - best.epoch < patience:
            return False
        logger.info(f"no better Dice for {patience} epochs: stopping early")
        return True

    def _kept(self) -> str:
        if self.best is None:
            return "no epoch was finished, so there is no checkpoint"
        return (
            f"best Dice {self.best.dice:.4f} on validation, at epoch {self.best.epoch}: "
            f"{self.best.checkpoint}"
        )


def _folder_name(run: Run, model: nn.Module | None) -> str:
    return run.model.name if model is None else type(model).__name__


def _history(
    losses: Mapping[str, float], validation: Validation, rate: float, seconds: float
) -> dict[str, float]:
    return {
        **_named("train", losses),
        **_named("validation", validation.losses),
        "validation/dice": validation.dice,
        "validation/iou": validation.iou,
        "learning_rate": rate,
        "seconds": seconds,
    }


def _named(part: str, losses: Mapping[str, float]) -> dict[str, float]:
    """Call the loss term ``dice`` dice_loss: the score of that name means the opposite."""
    return {
        f"{part}/{name if name == 'loss' else f'{name}_loss'}": value
        for name, value in losses.items()
    }
