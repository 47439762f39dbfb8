"""Trainer: runs the epochs of a training, keeps its best checkpoint, and chooses its threshold."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from notan.data.opening import NO_FOREGROUND
from notan.data.samples import Subset
from notan.errors import ConfigError, DivergedError
from notan.evaluation.calibrate import choose_postprocessing
from notan.io.write import write_bytes
from notan.modelfile.card import Checkpoint, load_checkpoint, read_card, save_checkpoint
from notan.prediction.backends import TorchBackend, rebuild
from notan.prediction.formats import overlay_image
from notan.prediction.predictor import Predictor
from notan.run_folder import BEST, SPLIT
from notan.training.log import RunLog
from notan.training.loop import Loop
from notan.training.ranks import ALONE
from notan.training.state import Best
from notan.training.time_limit import Overhead, Rehearsal, TimeLimit
from notan.training.validation import Validation, open_scoring, validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from torch import nn

    from notan.data.batches import Batch
    from notan.evaluation.calibrate import Choice
    from notan.training.build import TrainingSetup
    from notan.types import ProgressCallback, RGBImage

logger = logging.getLogger("notan")

REHEARSED = 2
"""Images that the choice is rehearsed on."""

UNDECIDED = "the time limit left no time to choose a threshold: 0.5, and nothing else"


def decide(path: Path, setup: TrainingSetup, between: Callable[[], None]) -> Choice:
    """Choose how the best checkpoint's probabilities become masks, and store it in its card.

    Args:
        path: The checkpoint, which is written anew.
        setup: Of the training that made it; its model receives the checkpoint's weights.
        between: Called between images; what it raises ends the choice and leaves the file.

    Raises:
        CheckpointError: The checkpoint was changed since it was written.
        StorageError: It could not be written; the old one is whole.
    """
    checkpoint = load_checkpoint(path)
    backend = TorchBackend(rebuild(checkpoint, setup.model), setup.device)
    choice = choose_postprocessing(
        Predictor(backend, setup.preprocessor),
        setup.validation,
        training=setup.training,
        batch_size=setup.run.train.batch_size,
        between=between,
    )
    told = {
        "postprocessing": choice.postprocessing,
        "choices": choice.reasons,
        "scores": choice.scores(),
    }
    card = checkpoint.card.model_copy(update=told)
    save_checkpoint(path, Checkpoint(card, checkpoint.weights))
    for reason in choice.reasons:
        logger.info("chosen on validation: %s", reason)
    return choice


def leave_undecided(path: Path) -> None:
    """Write into the best checkpoint's card that nothing was chosen, for want of time.

    Raises:
        CheckpointError: The checkpoint was changed since it was written.
        StorageError: It could not be written; the old one is whole.
    """
    checkpoint = load_checkpoint(path)
    card = checkpoint.card.model_copy(update={"choices": (UNDECIDED,)})
    save_checkpoint(path, Checkpoint(card, checkpoint.weights))
    logger.warning("%s", UNDECIDED)


def rehearse(setup: TrainingSetup, between: Callable[[], None]) -> Rehearsal:
    """Make the choice on an image or two before the training, which it leaves as it was.

    Args:
        setup: Of the training that is to come.
        between: Called between images; what it raises ends the rehearsal.

    Returns:
        Seconds that the end will take on all validation images, going by that.
    """
    names = setup.validation.names
    few = Subset(setup.validation, frozenset(names[:: -(-len(names) // REHEARSED)]))
    predictor = Predictor(
        TorchBackend(setup.model, setup.device, in_training=True), setup.preprocessor
    )
    moments = [time.monotonic()]

    def note() -> None:
        between()
        moments.append(time.monotonic())

    with contextlib.suppress(DivergedError):  # it took its time all the same
        predictor(few[0].image)  # the first image of a network takes many times as long
        moments = [time.monotonic()]
        choose_postprocessing(predictor, few, batch_size=setup.run.train.batch_size, between=note)
    moments.append(time.monotonic())
    predicted = moments[: len(few) + 1]
    of_all = len(names) / len(few)
    return Rehearsal(*(of_all * (each - moments[0]) for each in (predicted[-1], moments[-1])))


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
        time_for_report: Whether enough of it is left for a report.
    """

    checkpoint: Path
    dice: float
    epoch: int
    seconds_left: float | None = field(default=None, compare=False)
    time_for_report: bool = field(default=True, compare=False)


class Trainer(Loop):
    """Runs one training in one folder."""

    command = "notan train"

    def __init__(
        self,
        setup: TrainingSetup,
        folder: Path,
        *,
        overhead: Overhead | None = None,
        on_epoch: ProgressCallback | None = None,
        profile: bool = False,
    ) -> None:
        """Take what ``prepare`` has built and checked, and the run folder.

        Args:
            setup: What to train with.
            folder: Where the run is kept.
            overhead: Work around the training that counts against its time limit; None: none.
            on_epoch: Called with the number of epochs that are done, and of all.
            profile: Measure first what the steps wait for; see ``notan.training.profile``.
        """
        super().__init__(setup, setup.run.train, folder, setup.loss)
        self.setup: TrainingSetup = setup
        self._on_epoch = on_epoch
        self._scoring = open_scoring(setup.device, setup.validation_batches, setup.preprocessor)
        self._profiles = profile
        self._halved = False
        seconds, schedule = self.settings.time_limit_seconds, setup.optimization.schedule
        if seconds:
            overhead = self.ranks.of_first(overhead or Overhead())
            self.time_limit = TimeLimit(seconds, overhead, schedule, self.ranks)

    def train(self, tree: dict[str, Any] | None = None) -> TrainResult:
        """Train from the start, or from a state, to the end; for errors see ``train``.

        Args:
            tree: What ``capture`` returned, to go on from there.
        """
        setup, time_limit = self.setup, self.time_limit
        self.begin(tree)
        if tree and time_limit:
            time_limit.restore(tree["time limit"], self.progress)
        log = RunLog(
            self.folder,
            setup.run,
            first_epoch=self.progress.epoch,
            own=setup.tracker,
            writes=self.ranks.is_first,
        )
        if self.ranks.is_first:
            names = "".join(f"{name}\n" for name in setup.validation.names)
            write_bytes(self.folder / SPLIT, names.encode(errors="surrogateescape"))
        anomaly = torch.autograd.set_detect_anomaly(self.settings.detect_anomaly)
        try:
            with log, anomaly, self.stop:
                if self._profiles:
                    self._profile()
                self._plan()
                while not self._finished():
                    self.begin_epoch()
                    losses = self.train_epoch()
                    validates, validations = self._validates(), list[Validation]()
                    if validates:
                        self._keep_unscored()
                        validations = self._validate()
                        self._keep_if_better(validations, log)
                    self._write_down(losses, validations, log, validated=validates)
                    if validates:
                        loss = validations[0].losses["loss"] if validations else None
                        # consistency rises with its weight, and is no sign of trouble
                        weights = setup.loss.weights if setup.consistency else None
                        self.guard.after_epoch(self.progress, loss, self.failure, weights)
                    self.end_epoch()
                    if self._on_epoch:
                        self._on_epoch(self.progress.epoch - 1, self.settings.epochs)
                best, dice = self._finish()
                if self.ranks.is_first:  # others may see no more of the folder by then
                    log.card(read_card(self.folder / BEST).model_dump_json(indent=2))
        finally:
            setup.training_batches.close()
            setup.validation_batches.close()
        left = time_limit.left if time_limit else None
        fits = time_limit.fits_report() if time_limit and self.ranks.is_alone else True
        result = TrainResult(self.folder / BEST, dice, best.epoch, left, fits)
        logger.info("done; best epoch %d: %s", best.epoch, result.checkpoint)
        if time_limit:
            logger.info("%.0f of %.0f seconds are used", time_limit.total, time_limit.seconds)
        return result

    def capture(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on; see ``notan.training.state``."""
        spent = self.time_limit and self.time_limit.state()
        return {**super().capture(), **self.setup.identity(), "time limit": spent}

    def _profile(self) -> None:
        """Say what the steps wait for; of a time limit it takes a part."""
        if not self.ranks.is_alone:
            raise ConfigError(
                "--profile measures one process: leave it out under torchrun, or measure without"
            )
        from notan.training.profile import profile_training  # it loads what no training wants

        profile_training(self, self.setup, self.score)

    def _plan(self) -> None:
        """Divide the time limit, where there is one: find out what the end will take."""
        time_limit, setup = self.time_limit, self.setup
        if time_limit is None:
            return
        if time_limit.spent.choosing is None:
            rehearsal = self.ranks.first_does(lambda: rehearse(setup, self._rehearsing))
            time_limit.expect(rehearsal, self._models_validated)
        time_limit.plan()
        time_limit.warn_if_too_small()

    @property
    def _models_validated(self) -> int:
        return 2 if self.setup.average else 1

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

    def answered(self, batch: Batch, step: int) -> Batch:
        """Give a batch its size, and add what a teacher, or the EMA of the weights, answers."""
        setup = self.setup
        was_halved, self._halved = self._halved, setup.optimization.schedule.halves
        if self._halved:
            batch = batch.halved(setup.preprocessor.stride)
        elif was_halved:
            logger.info("epoch %d: from here on images have their whole size", self.progress.epoch)
        if setup.teacher:
            batch = setup.teacher.mark(batch)
        if setup.consistency:
            batch = setup.consistency.mark(batch, step)
        return batch

    def _validates(self) -> bool:
        """Say whether to validate after this epoch: always, if it does not eat up a time limit."""
        time_limit = self.time_limit
        if time_limit is None or time_limit.is_over or self.progress.epoch >= self.settings.epochs:
            return True
        return time_limit.wants_validation

    def _validate(self) -> list[Validation]:
        """Score the model and its EMA; return nothing where one of them answers with NaN."""
        self.failure = None
        try:
            return list(self._validations())
        except DivergedError as error:
            self.failure = error
            return []

    def _validations(self) -> Iterator[Validation]:
        """Score the model, then the EMA of its weights where one is kept."""
        setup = self.setup
        for model in (setup.model, *([setup.average.module] if setup.average else [])):
            yield self.score(model, self.until_stopped(setup.validation_batches))

    def score(self, model: nn.Module, batches: Iterable[Batch]) -> Validation:
        """Score a network of this training's on batches of validation images.

        Raises:
            DivergedError: It answers with NaN or infinity.
        """
        setup = self.setup
        if self._scoring:
            return self._scoring(model, batches, setup.loss, self.ranks)
        backend = TorchBackend(model, setup.device, in_training=True)
        return validate(backend, batches, setup.loss, self.ranks)

    def _keep_unscored(self) -> None:
        """Save a first model before its validation where that will end after the time limit.

        Whoever ends the process then, when the time limit is spent, leaves a model all the same.
        """
        time_limit, setup, progress = self.time_limit, self.setup, self.progress
        if time_limit and progress.best is None and time_limit.left < time_limit.spent.validating:
            self._save_best(setup.model, {})

    def _keep_if_better(self, validations: list[Validation], log: RunLog) -> None:
        """Save the model, or its EMA, if it is better than all before."""
        progress, setup = self.progress, self.setup
        scored = max(validations, key=lambda validation: validation.compared, default=None)
        if scored is None or (progress.best and not scored.is_better_than(progress.best)):
            return
        averaged = setup.average if scored is not validations[0] else None
        model = averaged.module if averaged else setup.model
        self._save_best(model, {"dice": scored.dice, "iou": scored.iou})
        log.overlays(progress.epoch, self._overlays(model))  # drawn for trackers alone
        progress.best = Best(
            scored.dice,
            progress.epoch,
            scored.all_foreground_dice,
            averaged is not None,
            scored.steady_dice,
        )

    def _save_best(self, model: nn.Module, scores: dict[str, float]) -> None:
        if self.ranks.is_first:
            card = self.setup.card(self.progress.epoch, scores)
            save_checkpoint(self.folder / BEST, Checkpoint(card, model.state_dict()))

    def _overlays(self, model: nn.Module) -> Iterator[tuple[str, RGBImage]]:
        setup = self.setup
        predictor = Predictor(
            TorchBackend(model, setup.device, in_training=True), setup.preprocessor
        )
        for index in range(min(self.settings.log_images, len(setup.validation))):
            sample = setup.validation[index]
            mask = predictor(sample.image).mask
            yield sample.name, overlay_image(sample.image, mask, sample.mask)

    def _write_down(
        self,
        losses: dict[str, float],
        validations: list[Validation],
        log: RunLog,
        *,
        validated: bool,
    ) -> None:
        """Write an epoch into the history, and a line of it into the log."""
        progress, time_limit = self.progress, self.time_limit
        schedule = self.setup.optimization.schedule
        seconds, of = self.stop_clock(), f"/{self.settings.epochs}"
        rate = time_limit.spent.rate if time_limit else schedule.rate_after(progress.epoch - 1)
        values = {**_named("train", losses), "learning_rate": rate, "seconds": seconds}
        if time_limit:
            if validated:
                time_limit.after_validation(self._models_validated)
            of = f"  {time_limit.total / time_limit.seconds:.0%} of the time"
        for validation, name in zip(validations, ("", "ema_"), strict=False):
            values |= {} if name else _named("validation", validation.losses)
            values[f"validation/{name}dice"] = validation.dice
            if validation.steady_dice is not None:
                values[f"validation/{name}steady_dice"] = validation.steady_dice
            values[f"validation/{name}iou"] = validation.iou
        log.epoch(progress.epoch, values | (time_limit.history() if time_limit else {}))
        words = f"epoch {progress.epoch}{of}  loss {losses.get('loss', 0):.4f}"
        best = progress.best
        if validations and best:
            scored = max(validations, key=lambda validation: validation.compared)
            words += f"  validation loss {scored.losses['loss']:.4f}  Dice {scored.dice:.4f}"
            if scored.steady_dice is not None:
                words += f"  steady Dice {scored.steady_dice:.4f}"
            words += f"  best {best.score:.4f} (epoch {best.epoch})"
        elif validated:
            words += "  validation gave NaN"
        logger.info("%s  %.1f s", words, seconds)

    def _finish(self) -> tuple[Best, float]:
        """Choose how the best checkpoint's probabilities become masks; return it and its Dice.

        The state that is saved before says that the run is finished. Of several ranks the first
        goes on alone from there.
        """
        path = self.folder / BEST
        if self.progress.best is None and self.ranks.is_first:
            path.unlink(missing_ok=True)  # see _keep_unscored
        best = self.require_best()
        if best.baseline == 0:  # what all foreground scores where there is none
            logger.warning(NO_FOREGROUND)
        elif best.score <= best.baseline:
            logger.warning(
                "the best Dice, %.4f, is no better than calling every pixel foreground (%.4f): "
                "nothing was learned; look at the masks with notan check, or try another "
                "--learning-rate",
                *(best.score, best.baseline),
            )
        self.save_state()
        if not self.ranks.is_first:
            return best, best.score
        self._go_on_alone()
        if self.time_limit is None or self.time_limit.fits_choice:
            with contextlib.suppress(TimeoutError):
                return best, decide(path, self.setup, self._while_choosing).dice
        leave_undecided(path)
        return best, best.score

    def _go_on_alone(self) -> None:
        """Have the clock and the signals of this process decide from here on."""
        self.ranks = ALONE
        if self.time_limit:
            self.time_limit.ranks = ALONE

    def _rehearsing(self) -> None:
        if self.ranks.is_alone:  # several hear of a signal when they meet
            self.stop_if_asked()

    def _while_choosing(self) -> None:
        self.stop_if_asked()
        if self.time_limit:
            self.time_limit.require_time()


def _named(part: str, losses: dict[str, float]) -> dict[str, float]:
    """Name an epoch's losses; a term of the loss is not the score of the same name."""
    return {
        f"{part}/loss" if name == "loss" else f"{part}/{name}_loss": value
        for name, value in losses.items()
    }
