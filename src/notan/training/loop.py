"""The loop of a training: step after step, guarded, timed, saved, and stopped when asked."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tqdm import tqdm

from notan.errors import DivergedError, StoppedBySignal
from notan.run_folder import STATES
from notan.training.compiling import Stepper, make_stepper
from notan.training.computing import flushing_denormals
from notan.training.guard import LossGuard
from notan.training.state import Progress, StateFolder, capture, restore
from notan.training.steps import ADVICE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import FrameType

    import torch

    from notan.config import Train
    from notan.data.batches import Batch
    from notan.data.loading import Batches
    from notan.training.build import Setup
    from notan.training.compiling import GraphStepper, How
    from notan.training.state import Best
    from notan.training.steps import Criterion, StepValues
    from notan.training.time_limit import TimeLimit

SIGHUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
SIGNALS = (signal.SIGINT, signal.SIGTERM, SIGHUP)

logger = logging.getLogger("notan")

GOOD_BATCHES = 500
"""Batches of a long epoch after which the weights are kept to roll back to, as at its start."""


AHEAD = 2
"""Steps that a GPU may have before it when the host begins one more: it never waits for the host,
and what the host knows (losses, time, signals) is at most so many steps old."""


def steps_ahead(device: torch.device) -> int:
    """Return how many steps the host may be ahead of a device; a CPU is the host itself."""
    return AHEAD if device.type == "cuda" else 0


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
            told = [SIGHUP] if signal.getsignal(SIGHUP) is signal.SIG_IGN else []  # by nohup
            numbers = [number for number in SIGNALS if number not in told]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.number == number == SIGHUP:
            return  # a shell that closes and its terminal send one each
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number


class _Begun(NamedTuple):
    """A step that was begun: its batch, the images of all ranks' slices, and what comes of it."""

    batch: Batch
    images: int
    values: StepValues


class Loop:
    """Takes the steps of one training in one folder.

    Attributes:
        command: What goes on with it: the words before ``--resume``.
        time_limit: None: the settings' epochs alone say when it ends.
        failure: What the last validation raised where the network answered with NaN.
    """

    command: ClassVar[str]

    def __init__(self, setup: Setup, settings: Train, folder: Path, loss: Criterion) -> None:
        self.setup: Setup = setup
        self.ranks = setup.ranks
        self.loss = loss
        self.folder = folder
        self.settings = settings
        self.progress = Progress()
        self.guard = LossGuard(
            setup, folder, enabled=settings.loss_guard, max_rollbacks=settings.max_rollbacks
        )
        self.time_limit: TimeLimit | None = None
        self.states = StateFolder(folder / STATES)
        self.stop = StopRequest()
        self.failure: DivergedError | None = None
        self._saved_at = self.ranks.now()
        self._epoch_began = time.perf_counter()
        self._ahead = steps_ahead(setup.device)
        self._begun: deque[_Begun] = deque()
        self._agreed: int | None = None
        self._take_step: Stepper | GraphStepper | None = None
        self._compiled: How | None = None

    def begin(self, tree: dict[str, Any] | None) -> None:
        """Say what begins, and take up where a state was written, if there is one.

        Args:
            tree: What ``capture`` returned; None: from the start.
        """
        logger.info("%s", self.setup.describe())
        logger.info("run folder: %s", self.folder)
        if tree is None:
            self.guard.keep()
            return
        self.progress = restore(self.setup, tree)
        self.guard.restore(tree, self.progress)
        self._compiled = tree.get("compiled")
        where = f"epoch {self.progress.epoch}, batch {self.progress.batch + 1}"
        logger.info("going on from %s", where)

    def capture(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on, as a tree for a StateFolder."""
        compiled = {"compiled": self._take_step.how if self._take_step else self._compiled}
        return {**capture(self.setup, self.progress), **self.guard.state(), **compiled}

    @property
    def asked_to_stop(self) -> int | None:
        """The signal that came; of several ranks, that one of them was sent by their last meeting.

        They all stop behind the same step then.
        """
        return self.stop.number if self.ranks.is_alone else self._agreed

    def _meet(self, images: int = 0) -> int:
        """Agree with the other ranks, before a step; return the images of their slices together."""
        images, self._agreed = self.ranks.meet(images, self.stop.number)
        return images

    def begin_epoch(self) -> None:
        """Start the clock of an epoch, or of the rest of one, and set its first batch."""
        self._epoch_began = time.perf_counter() - self.progress.seconds
        self.setup.training_batches.set_epoch(self.progress.epoch, self.progress.batch)
        if self.time_limit:
            self.time_limit.begin_steps(anew=self.progress.batch == 0)

    def train_epoch(self) -> dict[str, float]:
        """Train on the rest of an epoch's batches, or on as many as the time limit allows.

        The host begins a step while the device still computes the ones before it, and learns what
        came of those when they are done: a device that waited for it would compute nothing then.

        Returns:
            The mean of each loss by name.

        Raises:
            DivergedError: The loss is NaN or jumps, again and again.
            StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
            StorageError: The state could not be written.
        """
        freezing, progress = self.setup.optimization.freezing, self.progress
        if not (self.time_limit and self.time_limit.is_over):
            with self._progress_bar() as bar, freezing.during_steps(), flushing_denormals():
                for batch in bar:
                    self._begin_step(batch)
                    ahead = 0 if self._something_is_due() else self._ahead
                    while len(self._begun) > ahead:
                        self._end_step()
                    mean = progress.means.result().get("loss", 0)
                    bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
                    if self.time_limit and self.time_limit.is_over:
                        break
                while self._begun:
                    self._end_step()
        return progress.means.result()

    def answered(self, batch: Batch, step: int) -> Batch:
        """Return a batch with all that its step needs.

        Args:
            batch: As it was read.
            step: Steps of the run before it.
        """
        del step
        return batch

    def _begin_step(self, batch: Batch) -> None:
        """Have the device take a step, without waiting for it."""
        images = self._meet(len(batch.names))
        schedule = self.setup.optimization.schedule
        self.setup.optimization.freezing.set_mode(self.setup.model, frozen=schedule.freezes)
        if 0 < schedule.steps / schedule.steps_per_epoch == schedule.starts:
            logger.info("epoch %d: from here on the encoder learns too", self.progress.epoch)
        answered = self.answered(batch, schedule.steps)
        if self._take_step is None:
            self._take_step = self._prepare_steps(answered)
            if self.time_limit:  # what that took says nothing of the steps to come
                self.time_limit.begin_steps(anew=False)
        values = self._take_step(answered)
        schedule.advance()
        self._begun.append(_Begun(batch, images, values.on_the_way()))

    def _prepare_steps(self, batch: Batch) -> Stepper | GraphStepper:
        """Choose how steps are run on the device, once it is known what they work on."""
        setup, settings = self.setup, self.settings
        optimization, preprocessor = setup.optimization, setup.preprocessor
        # ranks could choose otherwise each, and would wait for each other for ever
        is_bound = settings.deterministic or not self.ranks.is_alone

        def steps_left(seconds: float) -> float:
            if self.time_limit:
                return self.time_limit.left / seconds
            return settings.epochs * len(setup.training_batches) - self.progress.step

        plain = Stepper(setup, self.loss, self.guard.spikes)
        if not self.ranks.is_alone:
            self._say_what_the_network_allows(plain, batch)
        return make_stepper(
            plain,
            batch,
            # what a clock decides would not be repeatable
            wanted="off" if is_bound and settings.compile == "auto" else settings.compile,
            known=self._compiled,
            steps_left=steps_left,
            one_size=preprocessor.image_size is not None and not preprocessor.keep_aspect_ratio,
            captures=not (
                optimization.own
                or optimization.scaler.is_enabled()
                or settings.detect_anomaly
                or not self.ranks.is_alone
            ),
        )

    def _say_what_the_network_allows(self, step: Stepper, batch: Batch) -> None:
        """Say before the first step how much of each the ranks will wait for each other's sums."""
        optimization, ranks = self.setup.optimization, self.ranks
        weights = [each for each in self.setup.model.parameters() if each.requires_grad]
        dtype = optimization.gradients_as or weights[0].dtype
        numbers = sum(each.numel() for each in weights)
        with step.trying():
            step(batch).read()
            began = time.perf_counter()
            step(batch).read()
            seconds = ranks.of_first(time.perf_counter() - began)
        message = ranks.seconds_to_add_up(numbers, self.setup.device, dtype)
        gain = ranks.count * max(0.0, 1 - message / seconds)
        logger.info(
            "%s: a step takes %.0f ms, %.0f of them for %.1f MB of gradients: up to %.1f times as "
            "fast as one process on one of these devices",
            *(ranks, 1000 * seconds, 1000 * message, numbers * dtype.itemsize / 1e6, gain),
        )
        if gain <= 1:
            logger.warning(
                "the network between the processes is too slow for them: one alone is as fast; "
                "train.compress_gradients=true halves the message, a larger --batch-size makes "
                "fewer of them"
            )

    def _something_is_due(self) -> bool:
        """Say whether what was begun must end before the next step: the weights will be kept."""
        every, begun = self.settings.checkpoint_every_steps, len(self._begun)
        return (
            (self.progress.batch + begun) % GOOD_BATCHES == 0
            or bool(every and (self.progress.step + begun) % every == 0)
            or self._is_time_to_save()
            or self.asked_to_stop is not None
        )

    def _end_step(self) -> None:
        """Learn what came of the first step that was begun, and do what follows from it.

        Steps that were begun after one from which the training went back have changed nothing; they
        are begun again.
        """
        batch, images, values = self._begun.popleft()
        taken, norm, losses = values.read()
        went_back = self.guard.after_step(self.progress, batch, losses, norm, taken=taken)
        if went_back:
            again = [each.batch for each in self._begun]
            self._begun.clear()
            self.setup.optimization.schedule.go_back(len(again))
            for each in again:
                self._begin_step(each)
        self.after_step(images, losses if taken else None)

    def after_step(self, images: int, losses: Mapping[str, float] | None) -> None:
        """Count a step, save the state when it is time, and stop where that was asked for.

        Args:
            images: Of the whole batch.
            losses: By name; None: it was skipped.
        """
        progress = self.progress
        if self.time_limit and self.time_limit.after_step():
            logger.info("%s", self.time_limit.in_words())
            logger.info("%s", self.time_limit.validations_in_words())
            self.setup.optimization.freezing.warn_of_end(self.time_limit.epochs)
        progress.batch += 1
        progress.step += 1
        progress.seconds = time.perf_counter() - self._epoch_began
        if losses is not None:
            progress.means.add(losses, images)
        if self._begun:  # the weights are of a later step
            return
        if progress.batch % GOOD_BATCHES == 0:
            self.guard.keep()
        every = self.settings.checkpoint_every_steps
        if self._is_time_to_save() or (every and progress.step % every == 0):
            self.save_state()
        self.stop_if_asked()

    def _is_time_to_save(self) -> bool:
        return self.ranks.now() - self._saved_at >= self.settings.checkpoint_every_seconds

    def end_epoch(self) -> None:
        """Go on to the next epoch, and remember its first weights as good if all is calm."""
        self.progress.next_epoch()
        self.guard.keep()

    def stop_clock(self) -> float:
        """Return the seconds of the present epoch, and count them as all that it took."""
        self.progress.seconds = time.perf_counter() - self._epoch_began
        return self.progress.seconds

    def require_best(self) -> Best:
        """Return the best epoch once the last is over.

        Raises:
            DivergedError: The network answered every validation with NaN.
        """
        if self.progress.best is None:
            raise self.failure or DivergedError(
                f"{self.folder}: no epoch of this run ended with a network that answers in "
                f"numbers; {ADVICE}"
            )
        return self.progress.best

    def until_stopped(self, batches: Batches) -> Iterator[Batch]:
        """Yield batches that are only looked at, between which stopping is safe.

        Where ranks divide them, one may have a batch less than another, and meets it all the same.
        """
        left = iter(batches)
        for _ in range(len(batches)):
            self._meet()
            self.stop_if_asked()
            yield from islice(left, 1)

    def stop_if_asked(self) -> None:
        """Save the state and end the training where a signal came.

        Raises:
            StoppedBySignal: One came.
        """
        number = self.asked_to_stop
        if number is None:
            return
        self.save_state()
        raise StoppedBySignal(
            f"stopped and saved; go on with: {self.command} --resume {self.folder}", number
        )

    def save_state(self) -> None:
        """Write all that a resume needs."""
        tree = self.capture()
        if self.ranks.is_first:
            self.states.save(self.progress.step, tree)
        self._saved_at = self.ranks.now()

    def _progress_bar(self) -> tqdm[Batch]:
        loader = self.setup.training_batches
        return tqdm(
            loader,
            desc=f"epoch {self.progress.epoch}",
            initial=self.progress.batch,
            total=len(loader),
            unit="batch",
            leave=False,
            disable=None if self.ranks.is_first else True,
        )
