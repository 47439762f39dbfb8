"""What waits for the network and what is in work: both bounded, whatever comes.

Threads of their own predict, so that the event loop always answers. What waits is encoded bytes; an
image is decoded only when its turn has come, and of all images in work together there are no more
pixels than one image may have.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from notan.errors import NotanError, explaining_memory
from notan.prediction.predictor import Prediction
from notan.prediction.tiles import PixelsInMemory
from notan.web.answers import RefusedError
from notan.web.uploads import MOST_PIXELS, read_upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from notan.prediction.predictor import Predictor
    from notan.types import Image8, Size

logger = logging.getLogger("notan")

MOST_WAITING = 16
WORKERS = 2
"""One decodes and encodes while the other's image is in the network."""

STEPS_BACK = 5
"""Of niceness. The event loop computes for 2 ms at most and then waits, but where a core is shared
it would get its turn only when the network's is over."""

END_SECONDS = 5.0
"""That the threads have to leave; they keep no process from its end."""


class Reply(NamedTuple):
    """What a request is answered with."""

    content: bytes
    media_type: str


@dataclass(eq=False)
class MaskJob:
    """One image that somebody waits for.

    Attributes:
        content: The bytes of its file.
        size: (height, width), from its header.
        encode: Makes the reply of the prediction, in the thread that predicted.
        reply: What will come of it.
        is_left: Whether nobody waits for it any more.
    """

    content: bytes
    size: Size
    encode: Callable[[Prediction], Reply]
    reply: Future[Reply] = field(default_factory=Future)
    is_left: bool = False

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.size[0] * self.size[1]

    def finish(self, reply: Reply) -> None:
        """Give the reply to who waits, unless the job has failed: the server may be stopped."""
        with contextlib.suppress(InvalidStateError):
            self.reply.set_result(reply)

    def fail(self, error: BaseException) -> None:
        """Tell who waits that there will be no reply, unless there is one."""
        with contextlib.suppress(InvalidStateError):
            self.reply.set_exception(error)


class Jobs:
    """A queue with threads that work it off.

    Attributes:
        images: That were predicted.
        pixels: Of them.
        batches: Runs of the network for them.
        seconds: That the last ones took each, in the mean.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        batch_size: int | None = None,
        most_waiting: int = MOST_WAITING,
        most_pixels: int = MOST_PIXELS,
        workers: int = WORKERS,
    ) -> None:
        """Make a queue that nothing works off yet.

        Args:
            predictor: What predicts.
            batch_size: Waiting images that go through the network together where their inputs are
                of one size; None: as the predictor chooses, one by one on a processor.
            most_waiting: Images that may wait.
            most_pixels: Of one image, and of all that are in work together.
            workers: Threads.

        Raises:
            ConfigError: The batch size is less than 1.
        """
        self.predictor = predictor
        self.batch_size = predictor.choose_batch_size(batch_size)
        self.most_waiting, self.most_pixels = most_waiting, most_pixels
        self.images, self.pixels, self.batches, self.seconds = 0, 0, 0, 0.0
        self._waiting: deque[MaskJob] = deque()
        self._in_work: set[MaskJob] = set()
        self._changed = threading.Condition()
        self._is_stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"predict-{number}", daemon=True)
            for number in range(workers)
        ]

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def in_work(self) -> int:
        """How many are being worked on."""
        return len(self._in_work)

    def start(self) -> None:
        """Begin to work the queue off."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let nobody wait any more, and the threads leave when they are done."""
        with self._changed:
            self._is_stopped = True
            left = [*self._waiting, *self._in_work]
            self._waiting.clear()
            self._changed.notify_all()
        for job in left:
            job.is_left = True
            job.fail(RefusedError(503, "the server was stopped before this was done"))
        until = time.monotonic() + END_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def use(self, predictor: Predictor) -> None:
        """Have what is not in work yet be predicted by another model; from any thread."""
        with self._changed:
            self.predictor = predictor

    def put(self, job: MaskJob) -> None:
        """Have an image wait for its turn.

        Raises:
            RefusedError: As many as may wait do so.
        """
        with self._changed:
            if self._is_stopped:
                raise RefusedError(503, "the server is being stopped")
            if len(self._waiting) >= self.most_waiting:
                raise RefusedError(
                    429,
                    f"{self.most_waiting} images wait already; send it again later",
                    {"retry-after": str(self._seconds_to_wait())},
                )
            self._waiting.append(job)
            self._changed.notify()

    def _seconds_to_wait(self) -> int:
        turns = (len(self._waiting) + len(self._in_work)) / len(self._threads)
        return max(1, math.ceil(turns * self.seconds))

    def leave(self, job: MaskJob) -> None:
        """Give the place of an image back that nobody waits for any more."""
        job.is_left = True
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _take(self) -> tuple[list[MaskJob], Predictor]:
        """Wait for work and take it: the oldest image, and what can go with it; none: the end.

        Returns:
            The jobs, and what predicts them, which may be another before they are done.
        """
        with self._changed:
            while not self._is_stopped:
                room = self.most_pixels - sum(job.pixels for job in self._in_work)
                if self._waiting and (not self._in_work or self._waiting[0].pixels <= room):
                    batch = self._batch(room)
                    self._in_work.update(batch)
                    return batch, self.predictor
                self._changed.wait()
        return [], self.predictor

    def _batch(self, room: int) -> list[MaskJob]:
        """Take the oldest image off the queue, and others whose inputs are of the same size."""
        batch = [self._waiting.popleft()]
        room -= batch[0].pixels
        if self.predictor.cuts(batch[0].size):
            return batch
        wanted = self.predictor.preprocessor.place(batch[0].size).padded
        for job in list(self._waiting):
            if len(batch) >= self.batch_size:
                break
            if self.predictor.cuts(job.size) or job.pixels > room:
                continue
            if self.predictor.preprocessor.place(job.size).padded == wanted:
                self._waiting.remove(job)
                batch.append(job)
                room -= job.pixels
        return batch

    def _work(self) -> None:
        _step_back()
        while (taken := self._take())[0]:
            batch, predictor = taken
            began = time.monotonic()
            try:
                with explaining_memory():
                    self._answer(batch, predictor)
            except NotanError as error:
                for job in batch:
                    job.fail(error)
            except Exception as error:
                logger.exception("a prediction ended in an error of notan's")
                for job in batch:
                    job.fail(error)
            finally:
                with self._changed:
                    self._in_work.difference_update(batch)
                    each = (time.monotonic() - began) / len(batch)
                    self.seconds = each if not self.seconds else 0.9 * self.seconds + 0.1 * each
                    self._changed.notify_all()

    def _answer(self, batch: Sequence[MaskJob], predictor: Predictor) -> None:
        jobs: list[MaskJob] = []
        images: list[Image8] = []
        reading = predictor.preprocessor.reading
        for job in batch:
            if not job.is_left:
                with _failing(job):
                    images.append(read_upload(job.content, reading, self.most_pixels))
                    jobs.append(job)
        for job, prediction in zip(jobs, self._predict(jobs, images, predictor), strict=True):
            if prediction is None or job.is_left:
                continue
            with self._changed:
                self.images += 1
                self.pixels += job.pixels
            with _failing(job):
                job.finish(job.encode(prediction))

    def _predict(
        self, jobs: Sequence[MaskJob], images: Sequence[Image8], predictor: Predictor
    ) -> Iterator[Prediction | None]:
        if not jobs:
            return
        with self._changed:
            self.batches += 1
        if not predictor.cuts(jobs[0].size):
            yield from predictor.predict_many(images, batch_size=self.batch_size)
            return
        bands = []
        for band in predictor.predict_bands(PixelsInMemory(images[0])):
            if jobs[0].is_left:  # between two rows of tiles, of which there may be many
                yield None
                return
            bands.append(band)
        rule = predictor.postprocessing_in_tiles(jobs[0].size)
        yield Prediction(np.concatenate(bands), rule, images[0])


def _step_back() -> None:
    """Let the event loop go before this thread, where threads have a priority of their own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            own = threading.get_native_id()
            niceness = os.getpriority(os.PRIO_PROCESS, own) + STEPS_BACK
            os.setpriority(os.PRIO_PROCESS, own, min(niceness, 19))


@contextlib.contextmanager
def _failing(job: MaskJob) -> Iterator[None]:
    """Let what goes wrong inside fail one job alone; what is no fault of its image goes on up."""
    try:
        yield
    except NotanError as error:
        job.fail(error)
