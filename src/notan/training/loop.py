"""The loop of a training: step after step, guarded, timed, saved, and stopped when asked."""

from __future__ import annotations

import logging
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

from tqdm import tqdm

from notan.errors import DivergedError, StoppedBySignal
from notan.run_folder import STATES
from notan.training.guard import LossGuard
from notan.training.state import Progress, StateFolder, capture, restore
from notan.training.steps import ADVICE, train_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import FrameType

    from notan.config import Train
    from notan.data.batches import Batch
    from notan.losses import LossValue
    from notan.training.build import Setup
    from notan.training.state import Best
    from notan.training.steps import Criterion
    from notan.training.time_limit import TimeLimit

SIGHUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
SIGNALS = (signal.SIGINT, signal.SIGTERM, SIGHUP)

logger = logging.getLogger("notan")

GOOD_BATCHES = 500
"""Batches of a long epoch after which the weights are kept to roll back to, as at its start."""


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


class Loop:
    """Takes the steps of one training in one folder.

    Attributes:
        command: What goes on with it: the words before ``--resume``.
        time_limit: None: the settings' epochs alone say when it ends.
        failure: What the last validation raised where the network answered with NaN.
    """

    command: ClassVar[str]

    def __init__(self, setup: Setup, settings: Train, folder: Path) -> None:
        self.setup: Setup = setup
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
        self._saved_at = time.monotonic()
        self._epoch_began = time.perf_counter()

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
        where = f"epoch {self.progress.epoch}, batch {self.progress.batch + 1}"
        logger.info("going on from %s", where)

    def capture(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on, as a tree for a StateFolder."""
        return {**capture(self.setup, self.progress), **self.guard.state()}

    def begin_epoch(self) -> None:
        """Start the clock of an epoch, or of the rest of one, and set its first batch."""
        self._epoch_began = time.perf_counter() - self.progress.seconds
        self.setup.training_batches.set_epoch(self.progress.epoch, self.progress.batch)
        if self.time_limit:
            self.time_limit.begin_steps(anew=self.progress.batch == 0)

    def train_epoch(
        self,
        loss: Criterion,
        prepare: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    ) -> dict[str, float]:
        """Train on the rest of an epoch's batches, or on as many as the time limit allows.

        Args:
            loss: What to make small.
            prepare: Adds to batches what a teacher answers.

        Returns:
            The mean of each loss by name.

        Raises:
            DivergedError: The loss is NaN or jumps, again and again.
            StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
            StorageError: The state could not be written.
        """
        setup, progress = self.setup, self.progress
        if not (self.time_limit and self.time_limit.is_over):
            with self._progress_bar() as bar, setup.optimization.freezing.during(progress.epoch):
                for batch in prepare(bar):
                    value, taken = train_step(
                        setup.model, batch, loss, setup.optimization, self.allows
                    )
                    self.after_step(batch, value, taken=taken)
                    mean = progress.means.result().get("loss", 0)
                    bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
                    if self.time_limit and self.time_limit.is_over:
                        break
        return progress.means.result()

    def allows(self, batch: Batch, value: LossValue, gradient_norm: float) -> bool:
        """Let the guard judge a step before the weights change; see ``LossGuard.allows``."""
        return self.guard.allows(self.progress, batch, value, gradient_norm)

    def after_step(self, batch: Batch, value: LossValue, *, taken: bool) -> None:
        """Count a step, save the state when it is time, and stop where that was asked for."""
        progress, average = self.progress, self.setup.average
        if self.time_limit and self.time_limit.after_step():
            logger.info("%s", self.time_limit.in_words())
            self.setup.optimization.freezing.warn_of_end(self.time_limit.epochs)
        self.guard.after_step()
        progress.batch += 1
        progress.step += 1
        progress.seconds = time.perf_counter() - self._epoch_began
        if taken:
            progress.means.add(value, len(batch.truths))
            if average:
                average.update_parameters(self.setup.model)
        if progress.batch % GOOD_BATCHES == 0:
            self.guard.keep()
        every = self.settings.checkpoint_every_steps
        seconds = time.monotonic() - self._saved_at
        if seconds >= self.settings.checkpoint_every_seconds or (
            every and progress.step % every == 0
        ):
            self.save_state()
        self.stop_if_asked()

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

    def until_stopped(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches that are only looked at, between which stopping is safe."""
        for batch in batches:
            self.stop_if_asked()
            yield batch

    def stop_if_asked(self) -> None:
        """Save the state and end the training where a signal came.

        Raises:
            StoppedBySignal: One came.
        """
        if self.stop.number is None:
            return
        self.save_state()
        raise StoppedBySignal(
            f"stopped and saved; go on with: {self.command} --resume {self.folder}",
            self.stop.number,
        )

    def save_state(self) -> None:
        """Write all that a resume needs."""
        self.states.save(self.progress.step, self.capture())
        self._saved_at = time.monotonic()

    def _progress_bar(self) -> tqdm[Batch]:
        loader = self.setup.training_batches
        return tqdm(
            loader,
            desc=f"epoch {self.progress.epoch}",
            initial=self.progress.batch,
            total=len(loader),
            unit="batch",
            leave=False,
            disable=None,
        )
