"""Trainer: runs the epochs of a training, keeps its best checkpoint and its state.

Ctrl-C and SIGTERM wait for the end of a step, so that what is saved is whole.

The end of a training: what validation decides is written into the best checkpoint.

Loop: how every training begins, and what it does at a step's end, whatever it learns.

Trainer: runs the epochs of a training, keeps its best checkpoint and its state.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from tqdm import tqdm

from notan.data.samples import Part
from notan.errors import DivergedError, StoppedBySignal
from notan.evaluation.calibrate import choose_postprocessing
from notan.io.write import write_bytes
from notan.modelfile.card import Checkpoint, load_checkpoint, save_checkpoint
from notan.prediction.backends import TorchBackend, rebuild
from notan.prediction.formats import overlay_image
from notan.prediction.predictor import Predictor
from notan.run_folder import BEST, SPLIT, STATES
from notan.training.guard import Guard
from notan.training.log import RunLog, keep_lines
from notan.training.recovery import Recovery, is_before
from notan.training.state import Best, Progress, StateFolder, capture, restore
from notan.training.steps import ADVICE, Validation, train_epoch, validate
from notan.training.time_limit import Overhead, TimeLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import FrameType

    from torch import nn

    from notan.config import Train
    from notan.data.batches import Batch
    from notan.evaluation.calibrate import Choice
    from notan.losses import LossValue
    from notan.training.build import Parts
    from notan.training.steps import Learned
    from notan.types import RGBImage

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Remembers a signal while a training is between two safe points; a context manager.

    A second Ctrl-C does not wait. Outside the main thread, where Python allows no handlers,
    signals keep their usual meaning.

    Attributes:
        number: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number


logger = logging.getLogger("notan")

REHEARSED = 2
"""Images that the choice is rehearsed on."""

UNDECIDED = "the time limit left no time to choose a threshold: 0.5, and nothing else"


def decide(path: Path, parts: Parts, between: Callable[[], None]) -> Choice:
    """Choose how the best checkpoint's probabilities become masks, and store it in its card.

    Args:
        path: The checkpoint, which is written anew.
        parts: Of the training that made it; its model receives the checkpoint's weights.
        between: Called between images; what it raises ends the choice and leaves the file.

    Raises:
        CheckpointError: The checkpoint was changed since it was written.
        StorageError: It could not be written; the old one is whole.
    """
    checkpoint = load_checkpoint(path)
    backend = TorchBackend(rebuild(checkpoint, parts.model), parts.device)
    choice = choose_postprocessing(
        Predictor(backend, parts.preprocessor),
        parts.validation,
        batch_size=parts.run.train.batch_size,
        between=between,
    )
    scores = {"dice": choice.dice, "iou": choice.iou, "plain_dice": choice.plain_dice}
    told = {"postprocessing": choice.postprocessing, "choices": choice.reasons, "scores": scores}
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


def rehearse(parts: Parts, between: Callable[[], None]) -> float:
    """Make the choice on an image or two before the training, which it leaves as it was.

    Args:
        parts: Of the training that is to come.
        between: Called between images; what it raises ends the rehearsal.

    Returns:
        Seconds that the choice on all validation images will take, going by that.
    """
    names = parts.validation.names
    few = Part(parts.validation, frozenset(names[:: -(-len(names) // REHEARSED)]))
    began = time.monotonic()
    with contextlib.suppress(DivergedError):  # it took its time all the same
        choose_postprocessing(
            Predictor(TorchBackend(parts.model, parts.device), parts.preprocessor),
            few,
            batch_size=parts.run.train.batch_size,
            between=between,
        )
    return (time.monotonic() - began) * len(names) / len(few)


GOOD_BATCHES = 500
"""Batches of a long epoch after which the weights are kept to go back to, as at its start."""


class Loop(ABC):
    """Judges, counts and saves the steps of one training in one folder, and stops it when asked.

    Attributes:
        command: What goes on with it: the words before ``--resume``.
    """

    command: ClassVar[str]

    def __init__(self, parts: Learned, settings: Train, folder: Path) -> None:
        self.parts = parts
        self.folder = folder
        self.settings = settings
        self.progress = Progress()
        self.guard = Guard(settings.max_rollbacks) if settings.loss_guard else None
        self.recovery = Recovery(parts, self.guard, folder)
        self.states = StateFolder(folder / STATES)
        self.stop = StopRequest()
        self.saved_at = time.monotonic()
        self.epoch_began = time.perf_counter()
        self.bar: tqdm[Batch] | None = None

    def begin(self, tree: dict[str, Any] | None) -> None:
        """Say what begins, and take up where a state was written, if there is one.

        Args:
            tree: What ``capture`` returned; None: from the start.
        """
        logger.info("%s", self.parts.describe())
        logger.info("run folder: %s", self.folder)
        if tree:
            self.progress = restore(self.parts, tree, self.guard)
            self.recovery.good = tree["good"]
            where = f"epoch {self.progress.epoch}, batch {self.progress.batch + 1}"
            logger.info("going on from %s", where)
        else:
            self.recovery.keep()
        keep_lines(self.recovery.path, lambda line: is_before(line, self.progress))

    @abstractmethod
    def capture(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on, as a tree for a StateFolder."""

    def allows(self, batch: Batch, value: LossValue, gradient_norm: float) -> bool:
        """Let the guard judge a step before the weights change; see ``Recovery.allows``."""
        return self.recovery.allows(self.progress, batch, value, gradient_norm)

    def after_step(self, batch: Batch, value: LossValue, *, taken: bool) -> None:
        """Count a step, save the state when it is time, and stop where that was asked for.

        Raises:
            StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
            StorageError: The state could not be written.
        """
        progress = self.progress
        self.recovery.after_step()
        progress.batch += 1
        progress.step += 1
        progress.seconds = time.perf_counter() - self.epoch_began
        if taken:
            progress.means.add(value, len(batch.truths))
            if self.parts.average:
                self.parts.average.update(self.parts.model)
        if progress.batch % GOOD_BATCHES == 0:
            self.recovery.keep()
        if self.bar is not None:
            losses = progress.means.result()
            self.bar.set_postfix(loss=f"{losses.get('loss', 0):.4f}", refresh=False)
        every = self.settings.checkpoint_every_steps
        seconds = time.monotonic() - self.saved_at
        if seconds >= self.settings.checkpoint_every_seconds or (
            every and progress.step % every == 0
        ):
            self._save_state()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.stop.number is None:
            return
        self._save_state()
        raise StoppedBySignal(
            f"stopped and saved; go on with: {self.command} --resume {self.folder}",
            self.stop.number,
        )

    def _save_state(self) -> None:
        self.states.save(self.progress.step, self.capture())
        self.saved_at = time.monotonic()

    def _show_progress(self) -> tqdm[Batch]:
        loader = self.parts.training_batches
        return tqdm(
            loader,
            desc=f"epoch {self.progress.epoch}",
            initial=self.progress.batch,
            total=len(loader),
            unit="batch",
            leave=False,
            disable=None,
        )


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
        """Train from the start, or from a state, to the end; for errors see ``train``.

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
        """Return all that the rest of the training depends on; see ``notan.training.state``."""
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
