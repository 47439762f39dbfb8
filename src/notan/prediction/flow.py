"""Many images through a network: read ahead of it, finished behind it, in bounded memory.

A thread goes through what there is to do; others read images and make them ready; the caller's
thread does nothing but give them to the network, those of one input size together; others again
make masks of the answers and do what is to be done with them. Results come in the order of the
things. Whatever is read and not done yet is counted in bytes, not in images, because one image may
weigh as much as ten thousand others.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import numpy as np

from notan.errors import DataError, ShapeError
from notan.prediction.batches import Batches
from notan.runtime import count_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    import numpy.typing as npt

    from notan.prediction.predictor import Placed, Prediction, Predictor
    from notan.types import Image8, ModelInput, Size

    _Read: TypeAlias = tuple[Placed, ModelInput] | Image8 | DataError | None

T = TypeVar("T")
R = TypeVar("R")
A = TypeVar("A")

BUDGET = 256 * 2**20
"""Bytes that may wait before the network, and again behind it; one larger image waits alone."""

LEAST_AHEAD, LEAST_BEHIND = 2**22, 2**20
"""Bytes that even the smallest image counts as, so that few of them wait: before the network their
files are open, behind it their rows are not in the table yet."""

DECODING, WRITING, VALUE = 7, 8, 4
"""Bytes a pixel: Pillow's four beside our three; an image, its probabilities and its mask; and of
each value that the network takes or gives."""

PATIENCE = 4
"""Batches that may overtake an image which waits for others of its input size."""

FEWEST_THREADS, CORES_A_THREAD = 2, 4
"""Where the network runs on the processor it needs the cores itself: a thread for so many of them
reads, and one finishes."""


def choose_threads(cores: int, *, leaves_processor_free: bool) -> int:
    """Choose how many threads read, and how many finish; decoding leaves Python's lock.

    Args:
        cores: That the process may use.
        leaves_processor_free: Whether the network runs on a GPU. Then all cores read and write;
            the queues between decide which they do more.
    """
    return max(FEWEST_THREADS, cores if leaves_processor_free else cores // CORES_A_THREAD)


@dataclass(frozen=True)
class Job(Generic[R]):
    """What is to be done with one image.

    Attributes:
        read: Decodes it, in a thread; raises DataError where it cannot.
        finish: Makes the result of the image and its prediction, in a thread.
        bytes_ahead: That it counts as until the network has it.
        in_order: Whether it must be read before the next thing is asked for.
        result: What is known without the network; None: nothing is, so it is read.
        alone: What makes the result, in the caller's thread and when all before it is done,
            instead of all this.
    """

    read: Callable[[], Image8]
    finish: Callable[[Image8, Prediction], R]
    bytes_ahead: int = LEAST_AHEAD
    in_order: bool = False
    result: R | DataError | None = None
    alone: Callable[[], R] | None = None


@dataclass(frozen=True)
class Timing:
    """Where the time of a job went, for the thread that runs the network.

    Attributes:
        seconds: From its beginning to its end.
        reading: Of these, it waited for images that were not read yet.
        network: Of these, it was at the network: giving it batches, waiting for its answers.
        writing: Of these, it waited for what was behind the network to be finished and written.
        computing: Seconds that the network itself computed, waits left out.
        images: That went through the network.
        files: Everything that there was to do, failures too.
    """

    seconds: float
    reading: float
    network: float
    writing: float
    computing: float
    images: int
    files: int

    @property
    def files_a_second(self) -> float:
        """From files to files."""
        return self.files / self.seconds if self.seconds else 0.0

    @property
    def network_alone(self) -> float:
        """Images a second that the network would do if nothing else were to be done."""
        return self.images / self.computing if self.computing else 0.0

    @property
    def waited_for(self) -> str:
        """What most of the time went to: ``reading``, ``network`` or ``writing``."""
        shares = {"reading": self.reading, "network": self.network, "writing": self.writing}
        return max(shares, key=lambda name: shares[name])

    def in_words(self) -> str:
        """Say both rates and what held the job up."""
        whole = self.seconds or 1.0
        shares = ", ".join(
            f"{name} {seconds / whole:.0%}"
            for name, seconds in (
                ("reading", self.reading),
                ("the network", self.network),
                ("writing", self.writing),
            )
        )
        return (
            f"{self.files_a_second:.3g} images a second from files to files, "
            f"{self.network_alone:.3g} by the network alone; it waited for {shares} of the time: "
            f"{REMEDIES[self.waited_for]}"
        )


REMEDIES = {
    "reading": "reading is what holds it up; more cores, a quicker disk or smaller images help",
    "network": "the network is what holds it up; a GPU, bf16 or a smaller network helps",
    "writing": "writing is what holds it up; more cores, a quicker disk or fewer formats help",
}
"""By what a job waited for most."""


@dataclass
class _Slot(Generic[T, R]):
    """The place of a thing in the order of results.

    Attributes:
        thing: The thing.
        bytes_behind: That it counts as until its result is given out.
        result: None: it is before or in the network.
        group: The input size of those that it waits for meanwhile.
    """

    thing: T
    bytes_behind: int
    result: Future[R | DataError] | None = None
    group: Size | None = None


@dataclass(frozen=True)
class _Way(Generic[T, R]):
    """What an image needs behind the network."""

    slot: _Slot[T, R]
    placed: Placed
    finish: Callable[[Image8, Prediction], R]


class Flow(Generic[T, R]):
    """Takes things through a network, each in its own way, and gives their results in order.

    It is for one use. However it ends, what was in the threads is finished; ``rest`` gives the
    results that were not given out.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        batch_size: int,
        budget: int = BUDGET,
        images: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Prepare for a job.

        Args:
            predictor: The network.
            batch_size: Images that go through it at once, at most.
            budget: Bytes that may wait on either side of it.
            images: How many there are about; None: not known.
            threads: That read, and as many that finish; None: chosen by the cores.
        """
        self._predictor = predictor
        self._batches: Batches[_Way[T, R]] = Batches(predictor.backend, batch_size)
        self._batch_size = batch_size
        self._budget = budget
        self._images = images
        self._threads = threads or choose_threads(
            count_cores(), leaves_processor_free=predictor.leaves_processor_free
        )
        self._slots: deque[_Slot[T, R]] = deque()
        self._waiting: dict[Size, list[tuple[_Way[T, R], ModelInput]]] = {}
        self._held = 0
        self._spent = {"reading": 0.0, "network": 0.0, "writing": 0.0}
        self._files, self._tiled, self._tile_seconds = 0, 0, 0.0
        self._began = self._ended = time.perf_counter()

    @property
    def timing(self) -> Timing:
        """Where the time went so far."""
        return Timing(
            self._ended - self._began,
            **self._spent,
            computing=self._batches.seconds + self._tile_seconds,
            images=self._batches.images + self._tiled,
            files=self._files,
        )

    def run(
        self,
        things: Iterable[T],
        start: Callable[[T], Job[R]],
        *,
        discard: Callable[[T], None] = lambda _: None,
    ) -> Generator[tuple[T, R | DataError], None, None]:
        """Do all things.

        Args:
            things: Gone through in a thread of its own, as far ahead as the budget allows.
            start: Says what is to be done with each, in the caller's thread, in order.
            discard: Closes what a thing holds open that is not read after all.

        Yields:
            Each thing with its result, or with the reason why it could not be read; in order.

        Raises:
            DivergedError: The network returned NaN or infinity.
            Exception: Whatever else goes through the threads raise.
        """
        self._began = time.perf_counter()
        with (
            ThreadPoolExecutor(self._threads, "finish") as pool,
            contextlib.closing(self._read_ahead(things, start, discard)) as reads,
        ):
            self._pool = pool
            while (read := self._timed("reading", lambda: next(reads, None))) is not None:
                thing, job, found = read
                if job.alone is not None:
                    yield from self._everything()
                    yield thing, self._alone(job.alone)
                    continue
                yield from self._take(thing, job, found)
                while self._slots and _is_done(self._slots[0]):
                    yield self._first()
            yield from self._everything()

    def rest(self) -> Iterator[tuple[T, R | DataError]]:
        """Give the results that came to a good end and were not given out, after an error."""
        while self._slots:
            slot = self._slots.popleft()
            if slot.result is not None and slot.result.exception() is None:
                yield slot.thing, slot.result.result()

    def _timed(self, what: str, work: Callable[[], A]) -> A:
        began = time.perf_counter()
        try:
            return work()
        finally:
            self._ended = time.perf_counter()
            self._spent[what] += self._ended - began

    def _read_ahead(
        self, things: Iterable[T], start: Callable[[T], Job[R]], discard: Callable[[T], None]
    ) -> Generator[tuple[T, Job[R], _Read], None, None]:
        """Yield things in their order, with what was read of them or why it could not be."""
        waiting: deque[tuple[T, Job[R], Future[_Read]]] = deque()
        held = 0
        started: tuple[T, Job[R]] | None = None
        with (
            ThreadPoolExecutor(1, "walk") as walker,
            ThreadPoolExecutor(self._threads, "read") as readers,
        ):
            remaining = ((thing,) for thing in things)
            following = walker.submit(next, remaining, None)
            try:
                while True:
                    while True:
                        if started is None and (found := following.result()) is not None:
                            started = found[0], start(found[0])
                        if started is None:
                            break
                        thing, job = started
                        if waiting and held + job.bytes_ahead > self._budget:
                            break
                        waiting.append((thing, job, self._begin(job, walker, readers)))
                        held += job.bytes_ahead
                        # one thread walks, so that a frame is decoded before it asks for the next
                        started, following = None, walker.submit(next, remaining, None)
                    if not waiting:
                        return
                    thing, job, read = waiting.popleft()
                    # What is handed on is the caller's: were it counted here, a batch could wait
                    # for images that wait for it
                    held -= job.bytes_ahead
                    error = read.exception()
                    if error is not None and not isinstance(error, DataError):
                        raise error
                    yield thing, job, error or read.result()
            finally:
                _cancel(waiting, discard)
                walker.shutdown()
                if following.exception() is None and (found := following.result()):
                    discard(found[0])

    def _begin(
        self, job: Job[R], walker: ThreadPoolExecutor, readers: ThreadPoolExecutor
    ) -> Future[_Read]:
        if job.result is not None or job.alone is not None:
            return _resolved(None)
        read = walker.submit(job.read).result if job.in_order else job.read
        return readers.submit(self._prepare, read)

    def _prepare(self, read: Callable[[], Image8]) -> _Read:
        image = read()
        return self._predictor.prepare(image) or image

    def _take(self, thing: T, job: Job[R], read: _Read) -> Iterator[tuple[T, R | DataError]]:
        """Take a thing into the order of results, and run a batch where one is full."""
        if isinstance(read, tuple):
            placed, inputs = read
            slot = _Slot[T, R](thing, _bytes_behind(placed.image, inputs))
            yield from self._make_room(slot.bytes_behind)
            group = slot.group = placed.placement.padded
            way = _Way(slot, placed, job.finish)
            self._waiting.setdefault(group, []).append((way, inputs))
            self._put(slot)
            if len(self._waiting[group]) >= self._batches.size:
                self._run(group)
            first = self._slots[0].group
            if first is not None and len(self._slots) > PATIENCE * self._batch_size:
                self._run(first)
        elif isinstance(read, np.ndarray):
            slot = _Slot[T, R](thing, _bytes_behind(read))
            yield from self._make_room(slot.bytes_behind)
            prediction = self._timed("network", lambda: self._in_tiles(read))
            slot.result = self._pool.submit(job.finish, read, prediction)
            self._put(slot)
        elif (result := job.result if read is None else read) is not None:
            self._put(_Slot(thing, 0, _resolved(result)))

    def _put(self, slot: _Slot[T, R]) -> None:
        self._slots.append(slot)
        self._held += slot.bytes_behind

    def _in_tiles(self, image: Image8) -> Prediction:
        began = time.perf_counter()
        prediction = self._predictor.predict_in_tiles(image, batch_size=self._batch_size)
        self._tile_seconds += time.perf_counter() - began
        self._tiled += 1
        return prediction

    def _run(self, group: Size) -> None:
        """Give what waits with one input size to the network."""
        batch = self._waiting.pop(group)
        for way, _ in batch:
            way.slot.group = None
        self._finish_all(self._batches.put(batch))
        if self._images is not None:
            self._batches.compile_if_it_pays(self._images - self._batches.images)

    def _finish_all(self, answers: Iterator[tuple[_Way[T, R], npt.NDArray[np.float32]]]) -> None:
        for way, logits in self._timed("network", lambda: list(answers)):
            way.slot.result = self._pool.submit(self._finish, way, logits)

    def _finish(self, way: _Way[T, R], logits: npt.NDArray[np.float32]) -> R:
        prediction = self._predictor.finish(way.placed, logits)
        return way.finish(way.placed.image, prediction)

    def _make_room(self, size: int) -> Iterator[tuple[T, R | DataError]]:
        while self._slots and self._held + size > self._budget:
            yield self._first()

    def _everything(self) -> Iterator[tuple[T, R | DataError]]:
        for group in list(self._waiting):
            self._run(group)
        while self._slots:
            yield self._first()

    def _first(self) -> tuple[T, R | DataError]:
        """Wait for the result of the thing that comes first, and give it out."""
        slot = self._slots[0]
        if slot.group is not None:
            self._run(slot.group)
        if slot.result is None:  # it is in the network
            self._finish_all(self._batches.rest())
        if slot.result is None:
            raise ShapeError("the network answered fewer images than it was given")
        self._slots.popleft()
        self._held -= slot.bytes_behind
        self._files += 1
        return slot.thing, self._timed("writing", slot.result.result)

    def _alone(self, work: Callable[[], R]) -> R | DataError:
        self._files += 1
        try:
            return work()
        except DataError as error:
            return error


def _cancel(
    waiting: Iterable[tuple[T, Job[R], Future[_Read]]], discard: Callable[[T], None]
) -> None:
    """Discard what has not begun to be read."""
    for thing, _, read in waiting:
        if read.cancel():
            discard(thing)


def _is_done(slot: _Slot[T, R]) -> bool:
    return slot.result is not None and slot.result.done()


def bytes_ahead(predictor: Predictor, size: Size) -> int:
    """Return what an image of a (height, width) counts as while it is read and made ready."""
    height, width = predictor.preprocessor.place(size).padded
    inputs = 0 if predictor.cuts(size) else VALUE * predictor.preprocessor.channels * height * width
    return max(LEAST_AHEAD, DECODING * size[0] * size[1] + inputs)


def _bytes_behind(image: Image8, inputs: ModelInput | None = None) -> int:
    """Return what an image counts as from there on: its input, its answer, what is made of it."""
    values = 0 if inputs is None else inputs.size + inputs[0].size
    return max(LEAST_BEHIND, int(WRITING * image.shape[0] * image.shape[1] + VALUE * values))


def _resolved(result: A) -> Future[A]:
    """Return a future that is there already."""
    future: Future[A] = Future()
    future.set_result(result)
    return future
