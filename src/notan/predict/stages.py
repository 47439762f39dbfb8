"""The threads before and behind the network, and the bytes that may wait between them."""

from __future__ import annotations

import queue
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from notan.errors import DataError
from notan.predict.table import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    from notan.predict.items import Item
    from notan.predict.predictor import Prediction
    from notan.types import RGBImage

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
