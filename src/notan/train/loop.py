"""Loop: how every training begins, and what it does at a step's end, whatever it learns."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from tqdm import tqdm

from notan.errors import StoppedBySignal
from notan.train.folder import STATES
from notan.train.guard import Guard
from notan.train.log import keep_lines
from notan.train.progress import Progress, restore
from notan.train.recovery import Recovery, is_before
from notan.train.state import StateFolder
from notan.train.stopping import StopRequest

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import Train
    from notan.data.batches import Batch
    from notan.losses import LossValue
    from notan.train.steps import Learned

logger = logging.getLogger("notan")

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
