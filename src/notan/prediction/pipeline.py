"""Many images: decoded ahead of the network and written behind it, in bounded memory.

What a folder of predictions was made by, so that a resumed one is made by nothing else.

The threads before and behind the network, and the bytes that may wait between them.

Many images: decoded ahead of the network and written behind it, in bounded memory.

One thread goes through the files and a few decode them; the caller's thread runs the network; a few
more write. Whatever is decoded and not written yet is counted in bytes, not in images, because
one image may weigh as much as ten thousand others.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from notan.errors import ConfigError, DataError, StorageError
from notan.io.write import storage_errors, write_bytes
from notan.prediction.table import FAILED, TABLE, Failure, PredictionTable, Row, write_failures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from notan.prediction.inputs import Item
    from notan.prediction.predictor import Prediction, Predictor
    from notan.types import RGBImage

JOB = "predict.json"


def begin(folder: Path, settings: Mapping[str, str], *, resume: bool) -> PredictionTable:
    """Begin a folder of predictions, or go on with one.

    Args:
        folder: Where the outputs go.
        settings: Everything beside the images that decides what the outputs are.
        resume: Keep what is done. Without it, the tables of an earlier run are removed; outputs
            are replaced one by one as their images are predicted again.

    Returns:
        A row for each image that is done.

    Raises:
        ConfigError: The folder was begun with other settings.
        DataError: What an earlier run left cannot be read.
        StorageError: The folder cannot be written.
    """
    path = folder / JOB
    if resume and path.exists():
        _refuse_others(path, settings)
        return PredictionTable.read(folder)
    # before the settings change, lest rows of other settings pass for these
    for name in (TABLE, FAILED):
        with storage_errors(folder / name):
            (folder / name).unlink(missing_ok=True)
    write_bytes(path, (json.dumps(dict(settings), indent=2) + "\n").encode())
    return PredictionTable()


def _refuse_others(path: Path, settings: Mapping[str, str]) -> None:
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}), so nobody knows how this folder was made; choose "
            "another --out, or leave out --resume"
        ) from error
    if before == dict(settings):
        return
    names = settings.keys() | (before.keys() if isinstance(before, dict) else set())
    there = before if isinstance(before, dict) else {}
    other = [
        f"{name} was {there.get(name, 'not said')}, is now {settings.get(name, 'not said')}"
        for name in sorted(names)
        if there.get(name) != settings.get(name)
    ]
    raise ConfigError(
        f"{path}: this folder was begun otherwise: {'; '.join(other) or 'it holds no settings'}; "
        "give the same settings, choose another --out, or leave out --resume to begin anew"
    )


_T = TypeVar("_T")

READERS, WRITERS = 2, 2
"""Threads; decoding and encoding leave Python's lock, so that they do run beside the network."""

BUDGET = 256 * 2**20
"""Bytes that may wait before the network, and again behind it; one larger image waits alone."""

LEAST = 2**20
"""Bytes that even the smallest image counts as, so that few of them wait."""

DECODING, WRITING = 7, 8
"""Bytes a pixel: Pillow's four beside our three; an image, its probabilities and its mask."""


class Writes(Protocol):
    """Where predictions go; used from several threads at once."""

    def add(self, name: str, path: Path, image: RGBImage, prediction: Prediction) -> None:
        """Write all outputs of one image."""

    def has(self, name: str) -> bool:
        """Say whether all outputs of a name are there already."""


class ByteBudget:
    """Lets so many bytes be held at once, by whoever takes and gives back; thread-safe."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, amount: int) -> bool:
        """Wait until there is room, or until nothing is held; False once it is closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self.held or self.held + amount <= self.limit
            )
            if not self._closed:
                self.held += amount
            return not self._closed

    def give(self, amount: int) -> None:
        """Give back what was taken."""
        with self._changed:
            self.held -= amount
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Waiting(NamedTuple):
    """An item on its way to the network; no image: it is done already."""

    item: Item
    image: Future[RGBImage] | None
    bytes: int


class Ahead:
    """Yields items in their order with their decoded images, DataErrors, or None if done."""

    def __init__(self, items: Iterable[Item], is_done: Callable[[Item], bool], budget: int) -> None:
        self._items = items
        self._is_done = is_done
        self._budget = ByteBudget(budget)
        self._waiting: queue.SimpleQueue[_Waiting | BaseException | None] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="decode")
        self._thread = threading.Thread(target=self._go_through, name="read", daemon=True)

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._budget.close()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[Item, RGBImage | DataError | None]]:
        while (entry := self._waiting.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            item, image, size = entry
            if image is None:
                yield item, None
                continue
            try:
                result: RGBImage | DataError = image.result()
            except DataError as error:
                result = error
            # What is handed on is the caller's: were it counted here, a batch could wait for
            # images that wait for it
            self._budget.give(size)
            yield item, result

    def _go_through(self) -> None:
        taken: set[str] = set()
        try:
            for item in self._items:
                if not self._send(item, taken):
                    break
            self._waiting.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self._waiting.put(error)

    def _send(self, item: Item, taken: set[str]) -> bool:
        """Send one item on its way; False if nobody waits for it any longer."""
        if self._is_done(item):
            self._waiting.put(_Waiting(item, None, 0))
            return True
        height, width = item.size or (0, 0)
        size = max(LEAST, DECODING * height * width)
        if not self._budget.take(size):
            return False
        image: Future[RGBImage]
        if item.name.casefold() in taken:
            image = Future()
            image.set_exception(_name_is_taken(item))
        elif item.in_order:
            image = _now(item.read)
        else:
            image = self._pool.submit(item.read)
        taken.add(item.name.casefold())
        self._waiting.put(_Waiting(item, image, size))
        return True


class Behind:
    """Writes in threads, and reports what is done in the order in which it was given."""

    def __init__(
        self, writers: Writes, finish: Callable[[Item, Row | None], None], budget: int
    ) -> None:
        self._writers = writers
        self._finish = finish
        self._budget = ByteBudget(budget)
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
        self._started: deque[tuple[Item, Future[Row | None]]] = deque()

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # after an error too: what waits was predicted already, and is no more than the budget
        self._pool.shutdown()
        failed: BaseException | None = None
        for item, row in self._started:  # keep what came to a good end
            if row.exception() is None:
                self._finish(item, row.result())
            failed = failed or row.exception()
        if error is None and failed is not None:
            raise failed

    def write(self, item: Item, image: RGBImage, prediction: Prediction) -> None:
        """Start to write one image's outputs; waits while too much waits to be written.

        Raises:
            StorageError: An earlier one could not be written.
        """
        size = max(LEAST, WRITING * image.shape[0] * image.shape[1])
        self._budget.take(size)
        written: Future[Row | None] = self._pool.submit(self._write, item, image, prediction, size)
        self._started.append((item, written))
        self._report()

    def keep(self, item: Item) -> None:
        """Report, in its turn, that an item was left out."""
        self._started.append((item, _now(lambda: None)))
        self._report()

    def _write(self, item: Item, image: RGBImage, prediction: Prediction, size: int) -> Row | None:
        try:
            self._writers.add(item.name, item.path, image, prediction)
            return Row.of(item.name, item.path, prediction)
        finally:
            self._budget.give(size)

    def _report(self) -> None:
        while self._started and self._started[0][1].done():
            item, row = self._started.popleft()
            self._finish(item, row.result())


def _now(work: Callable[[], _T]) -> Future[_T]:
    """Do something at once, and keep its result or error."""
    future: Future[_T] = Future()
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001 - kept, and raised where the result is asked for
        future.set_exception(error)
    return future


def _name_is_taken(item: Item) -> DataError:
    return DataError(
        f"{item.path}: its outputs would replace those of another image, {item.name}; predict it "
        "alone with another --out"
    )


SAVE_SECONDS = 10.0
"""The tables are written so often, for a power cut must not cost more than that."""


@dataclass(frozen=True)
class Outcome:
    """How it went.

    Attributes:
        predicted: Images whose outputs were written.
        kept: Images that were left out, because all of theirs was there.
        failures: What could not be read, and why.
    """

    predicted: int
    kept: int
    failures: tuple[Failure, ...]

    @property
    def total(self) -> int:
        """Every image that was asked for."""
        return self.predicted + self.kept + len(self.failures)


class Pipeline:
    """Predicts items and writes what comes of them; what is done survives any end of it.

    Attributes:
        table: A row for each image whose outputs are whole.
        failures: What could not be read so far.
    """

    def __init__(
        self,
        predictor: Predictor,
        writers: Writes,
        table: PredictionTable,
        *,
        folder: Path,
        batch_size: int = 1,
        budget: int = BUDGET,
        progress: Callable[[Item], None] = lambda _: None,
    ) -> None:
        """Put the parts together.

        Args:
            predictor: The network.
            writers: Write the outputs.
            table: Has a row for every image that need not be predicted again.
            folder: Where the tables go.
            batch_size: Images predicted at once.
            budget: Bytes that may wait on either side of the network.
            progress: Called in the caller's thread as each image is done, kept or given up.
        """
        self.predictor = predictor
        self.writers = writers
        self.table = table
        self.folder = folder
        self.batch_size = batch_size
        self.budget = budget
        self.progress = progress
        self.failures: list[Failure] = []
        self._predicted = self._kept = 0
        self._saved_at = time.monotonic()

    def run(self, items: Iterable[Item]) -> Outcome:
        """Predict all items; one that cannot be read does not stop the others.

        However this ends, by an error or by Ctrl-C, every output is whole or absent, and the table
        names those that are whole.

        Raises:
            StorageError: Something could not be written.
            DivergedError: The network returned NaN or infinity.
        """
        try:
            with (
                Behind(self.writers, self._finish, self.budget) as behind,
                Ahead(items, self._is_done, self.budget) as ahead,
            ):
                for chunk in self._chunks(ahead, behind):
                    images = [image for _, image in chunk]
                    predictions = self.predictor.predict_many(images, batch_size=self.batch_size)
                    for (item, image), prediction in zip(chunk, predictions, strict=True):
                        behind.write(item, image, prediction)
                        self._save_now_and_then()
        except BaseException:
            with contextlib.suppress(StorageError):  # the disk may be what ended it
                self._save()
            raise
        self._save()
        return Outcome(self._predicted, self._kept, tuple(self.failures))

    def _chunks(self, ahead: Ahead, behind: Behind) -> Iterator[list[tuple[Item, RGBImage]]]:
        """Gather what is predicted at once: a batch, or fewer images that fill the budget."""
        chunk: list[tuple[Item, RGBImage]] = []
        filled = 0
        for item, image in ahead:
            if image is None:
                behind.keep(item)
                continue
            if isinstance(image, DataError):
                self.failures.append(Failure(item.name, str(item.path), str(image)))
                self.progress(item)
                continue
            chunk.append((item, image))
            filled += WRITING * image.shape[0] * image.shape[1]
            if len(chunk) == self.batch_size or filled > self.budget:
                yield chunk
                chunk, filled = [], 0
        if chunk:
            yield chunk

    def _is_done(self, item: Item) -> bool:
        """Say whether an image has its row and its outputs; called in the reading thread."""
        return self.table.has(item.name, item.path) and self.writers.has(item.name)

    def _finish(self, item: Item, row: Row | None) -> None:
        """Count an image, in the order of the items; no row: what was there is kept."""
        if row is None:
            self.table.keep(item.name)
            self._kept += 1
        else:
            self.table.put(row)
            self._predicted += 1
        self.progress(item)

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        self.table.write(self.folder)
        write_failures(self.folder, self.failures)
        self._saved_at = time.monotonic()
