"""Many images: decoded ahead of the network and written behind it, in bounded memory.

A thread goes through the files and a few decode them; the caller's thread runs the network; a few
more write. Whatever is decoded and not written yet is counted in bytes, not in images, because
one image may weigh as much as ten thousand others. One that is too large even to be decoded is
predicted part by part, in its turn.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from notan.errors import DataError, StorageError
from notan.prediction.formats.writers import LARGE_DTYPES
from notan.prediction.large import predict_large
from notan.prediction.table import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from notan.io.tiff import TiffParts
    from notan.prediction.formats import Writers
    from notan.prediction.inputs import Item
    from notan.prediction.predictor import Prediction, Predictor
    from notan.prediction.table import PredictionTable
    from notan.types import Image8

    Read: TypeAlias = Image8 | DataError | Literal["done", "large"]

logger = logging.getLogger("notan")

_T = TypeVar("_T")

READERS, WRITERS = 2, 2
"""Threads; decoding and encoding leave Python's lock, so that they do run beside the network."""

BUDGET = 256 * 2**20
"""Bytes that may wait before the network, and again behind it; one larger image waits alone."""

LEAST = 2**22
"""Bytes that even the smallest image counts as, so that few of them wait: their files are open."""

DECODING, WRITING = 7, 8
"""Bytes a pixel: Pillow's four beside our three; an image, its probabilities and its mask."""

SAVE_SECONDS = 10.0
"""The tables are written so often, for a power cut must not cost more than that."""


class Pipeline:
    """Predicts items and writes what comes of them; what is done survives any end of it.

    Attributes:
        table: A row for each image whose outputs are whole, and what could not be read.
        progress: Called in the caller's thread as each image is done, kept or given up.
    """

    def __init__(
        self,
        predictor: Predictor,
        writers: Writers,
        table: PredictionTable,
        *,
        batch_size: int = 1,
        budget: int = BUDGET,
        progress: Callable[[Item], None] = lambda _: None,
    ) -> None:
        """Put the parts together.

        Args:
            predictor: The network.
            writers: Write the outputs.
            table: Has a row for every image that need not be predicted again.
            batch_size: Images predicted at once.
            budget: Bytes that may wait on either side of the network.
            progress: Called in the caller's thread as each image is done, kept or given up.
        """
        self.table = table
        self.progress = progress
        self._predictor = predictor
        self._writers = writers
        self._batch_size = batch_size
        self._budget = budget
        self._saved_at = time.monotonic()
        # what is being written, in the order of the items, with the bytes that it holds
        self._writing: deque[tuple[Item, Future[Row | None], int]] = deque()
        self._held = 0

    def run(self, items: Iterable[Item]) -> None:
        """Predict all items; one that cannot be read does not stop the others.

        However this ends, by an error or by Ctrl-C, every output is whole or absent, and the table
        names those that are whole.

        Raises:
            ConfigError: The scale makes a single tile too large.
            StorageError: Something could not be written.
            DivergedError: The network returned NaN or infinity.
        """
        try:
            with (
                ThreadPoolExecutor(WRITERS, "write") as pool,
                contextlib.closing(self._read_ahead(items)) as images,
            ):
                self._predict_all(images, pool)
            self._finish_all()
        except BaseException:
            with contextlib.suppress(Exception):  # what was predicted was written all the same
                self._finish_all()
            with contextlib.suppress(StorageError):  # the disk may be what ended it
                self.table.save()
            raise
        self.table.save()

    def _read_ahead(self, items: Iterable[Item]) -> Generator[tuple[Item, Read], None, None]:
        """Yield items in their order: decoded, too large to be, done already, or why not."""
        waiting: deque[tuple[Item, Future[Any], int]] = deque()
        held = 0
        taken: set[str] = set()
        with (
            ThreadPoolExecutor(1, "read") as walker,
            ThreadPoolExecutor(READERS, "decode") as decoders,
        ):
            remaining = iter(items)
            following = walker.submit(next, remaining, None)
            try:
                while True:
                    while (item := following.result()) is not None:
                        size = _decoding_bytes(item)
                        if waiting and held + size > self._budget:
                            break
                        # one thread walks, so that a frame is decoded before it asks for the next
                        read = self._start(item, walker if item.in_order else decoders, taken)
                        waiting.append((item, read, size))
                        held += size
                        following = walker.submit(next, remaining, None)
                    if not waiting:
                        return
                    item, read, size = waiting.popleft()
                    # What is handed on is the caller's: were it counted here, a batch could wait
                    # for images that wait for it
                    held -= size
                    error = read.exception()
                    if error is not None and not isinstance(error, DataError):
                        raise error
                    yield item, error or read.result()
            finally:
                for item, read, _ in waiting:
                    if read.cancel():
                        item.close()
                walker.shutdown()
                if following.exception() is None and (item := following.result()):
                    item.close()

    def _start(self, item: Item, pool: ThreadPoolExecutor, taken: set[str]) -> Future[Read]:
        """Begin to decode an item, unless it is done already or has the name of another."""
        name, is_large = item.name.casefold(), item.open_parts is not None
        is_done = self.table.has(item.name, item.path, item.digest) and self._writers.has(
            item.name, is_large=is_large
        )
        if not (is_done or is_large or name in taken):
            taken.add(name)
            return pool.submit(item.read)
        item.close()
        if is_done:
            return _resolved("done")
        if name not in taken:
            taken.add(name)
            return _resolved("large")
        return _resolved(
            DataError(
                f"{item.path}: its outputs would replace those of another image, {item.name}; "
                "predict it alone with another --out"
            )
        )

    def _predict_all(self, images: Iterator[tuple[Item, Read]], pool: ThreadPoolExecutor) -> None:
        """Predict what is read: as many images at once as a batch has or the budget allows."""
        chunk: list[tuple[Item, Image8]] = []
        filled = 0
        for item, read in images:
            if isinstance(read, np.ndarray):
                chunk.append((item, read))
                filled += WRITING * read.shape[0] * read.shape[1]
                if len(chunk) < self._batch_size and filled <= self._budget:
                    continue
            elif isinstance(read, DataError):
                self._fail(item, read)
                continue
            elif read == "done":
                self._put(item, _resolved(None), 0)
                continue
            self._predict(chunk, pool)
            chunk, filled = [], 0
            if item.open_parts is not None:
                self._predict_large(item, item.open_parts)
            if time.monotonic() - self._saved_at >= SAVE_SECONDS:
                self.table.save()
                self._saved_at = time.monotonic()
        if chunk:
            self._predict(chunk, pool)

    def _predict(self, chunk: list[tuple[Item, Image8]], pool: ThreadPoolExecutor) -> None:
        images = [image for _, image in chunk]
        predictions = self._predictor.predict_many(images, batch_size=self._batch_size)
        for (item, image), prediction in zip(chunk, predictions, strict=True):
            size = max(LEAST, WRITING * image.shape[0] * image.shape[1])
            while self._writing and self._held + size > self._budget:
                self._finish_first()
            self._put(item, pool.submit(self._write, item, image, prediction), size)

    def _write(self, item: Item, image: Image8, prediction: Prediction) -> Row:
        self._writers.add(item.name, item.path, image, prediction)
        return Row.of(item.name, item.path, prediction, item.digest)

    def _predict_large(self, item: Item, open_parts: Callable[[], TiffParts]) -> None:
        """Predict and write an image part by part, in this thread, when all before it is written.

        Its rows are the only ones that wait then, and the memory is its own.
        """
        self._finish_all()
        names = self._writers.large_names
        left_out = [name for name in self._writers.names if name not in names]
        possible = f"an image this large is written as {', '.join(LARGE_DTYPES)} only"
        try:
            if not names:
                raise DataError(f"{item.path}: {possible}; add --format mask")
            if left_out:
                logger.info("%s: no %s, %s", item.path, ", ".join(left_out), possible)
            with (
                open_parts() as parts,
                predict_large(
                    self._predictor,
                    parts,
                    self._writers.out,
                    with_probability=names != ("mask",),
                    batch_size=self._batch_size,
                ) as prediction,
            ):
                self._writers.add_large(item.name, prediction)
                self.table.put(Row.of(item.name, item.path, prediction, item.digest))
        except DataError as error:
            self._fail(item, error)
        else:
            self.progress(item)

    def _fail(self, item: Item, error: DataError) -> None:
        self.table.fail(item.name, item.path, error)
        self.progress(item)

    def _put(self, item: Item, written: Future[Row | None], size: int) -> None:
        """Note an item that is being written, and report those that are done, in their order."""
        self._writing.append((item, written, size))
        self._held += size
        while self._writing and self._writing[0][1].done():
            self._finish_first()

    def _finish_first(self) -> None:
        """Wait for the first of the items that are being written, and count it.

        Raises:
            StorageError: It could not be written.
        """
        item, written, size = self._writing.popleft()
        self._held -= size
        row = written.result()
        if row is None:
            self.table.keep(item.name)
        else:
            self.table.put(row)
        self.progress(item)

    def _finish_all(self) -> None:
        """Count all that came to a good end; then raise the first error, if there is one."""
        failed: Exception | None = None
        while self._writing:
            try:
                self._finish_first()
            except Exception as error:  # noqa: BLE001 - raised below
                failed = failed or error
        if failed is not None:
            raise failed


def _decoding_bytes(item: Item) -> int:
    height, width = item.size or (0, 0)
    return max(LEAST, DECODING * height * width)


def _resolved(result: _T) -> Future[_T]:
    """Return a future that is there already."""
    future: Future[_T] = Future()
    future.set_result(result)
    return future
