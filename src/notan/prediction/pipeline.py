"""Files to files: what is predicted of many images is written, and what is done is noted.

How they pass is ``Flow``'s. Here it is decided what becomes of each: done already, decoded and
predicted, or, where it is too large even to be decoded, predicted part by part, in its turn.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from typing import TYPE_CHECKING, Literal, TypeAlias

from notan.errors import DataError, StorageError
from notan.io.remote import shown
from notan.prediction.flow import BUDGET, LEAST_AHEAD, Flow, Job, bytes_ahead
from notan.prediction.formats.writers import LARGE_DTYPES
from notan.prediction.large import predict_large
from notan.prediction.table import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from notan.io.tiff import TiffParts
    from notan.prediction.flow import Timing
    from notan.prediction.formats import Writers
    from notan.prediction.items import Item
    from notan.prediction.predictor import Prediction, Predictor
    from notan.prediction.table import PredictionTable
    from notan.types import Image8

    Done: TypeAlias = Row | Literal["done"]

logger = logging.getLogger("notan")

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
        images: int | None = None,
        threads: int | None = None,
        progress: Callable[[Item], None] = lambda _: None,
    ) -> None:
        """Put the parts together.

        Args:
            predictor: The network.
            writers: Write the outputs.
            table: Has a row for every image that need not be predicted again.
            batch_size: Images predicted at once.
            budget: Bytes that may wait on either side of the network.
            images: How many there are about; None: not known.
            threads: That read, and as many that write; None: chosen by the cores.
            progress: Called in the caller's thread as each image is done, kept or given up.
        """
        self.table = table
        self.progress = progress
        self._predictor = predictor
        self._writers = writers
        self._batch_size = batch_size
        self._flow: Flow[Item, Done] = Flow(
            predictor, batch_size=batch_size, budget=budget, images=images, threads=threads
        )
        self._saved_at = time.monotonic()
        self._taken: set[str] = set()

    @property
    def timing(self) -> Timing:
        """Where the time of the run went, so far."""
        return self._flow.timing

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
            with contextlib.closing(
                self._flow.run(items, self._job, discard=lambda item: item.close())
            ) as results:
                for item, result in results:
                    self._note(item, result)
        except BaseException:
            with contextlib.suppress(Exception):  # what was predicted was written all the same
                for item, result in self._flow.rest():
                    self._note(item, result)
            with contextlib.suppress(StorageError):  # the disk may be what ended it
                self.table.save()
            raise
        self.table.save()

    def _job(self, item: Item) -> Job[Done]:
        """Say what is to be done with an item, which may be done or have the name of another."""
        name, is_large = item.name.casefold(), item.open_parts is not None
        is_done = self.table.has(item.name, item.path, item.digest) and self._writers.has(
            item.name, is_large=is_large
        )
        result: Done | DataError | None = None
        if is_done:
            result = "done"
        elif name in self._taken:
            result = DataError(
                f"{shown(item.path)}: its outputs would replace those of another image, "
                f"{item.name}; predict it alone with another --out"
            )
        else:
            self._taken.add(name)
        if result is not None or is_large:
            item.close()
        alone = None
        if item.open_parts is not None and result is None:
            alone = functools.partial(self._predict_large, item, item.open_parts)
        size = LEAST_AHEAD if item.size is None else bytes_ahead(self._predictor, item.size)
        write = functools.partial(self._write, item)
        return Job(item.read, write, size, item.in_order, result, alone)

    def _write(self, item: Item, image: Image8, prediction: Prediction) -> Row:
        self._writers.add(item.name, item.path, image, prediction)
        return Row.of(item.name, item.path, prediction, item.digest)

    def _note(self, item: Item, result: Done | DataError) -> None:
        """Put into the tables what became of an item."""
        if isinstance(result, DataError):
            self.table.fail(item.name, item.path, result)
        elif result == "done":
            self.table.keep(item.name)
        else:
            self.table.put(result)
        self.progress(item)
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.table.save()
            self._saved_at = time.monotonic()

    def _predict_large(
        self, item: Item, open_parts: Callable[[], AbstractContextManager[TiffParts]]
    ) -> Row:
        """Predict and write an image part by part, in this thread, when all before it is written.

        Its rows are the only ones that wait then, and the memory is its own.
        """
        names = self._writers.large_names
        left_out = [name for name in self._writers.names if name not in names]
        possible = f"an image this large is written as {', '.join(LARGE_DTYPES)} only"
        if not names:
            raise DataError(f"{shown(item.path)}: {possible}; add --format mask")
        if left_out:
            logger.info("%s: no %s, %s", shown(item.path), ", ".join(left_out), possible)
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
            return Row.of(item.name, item.path, prediction, item.digest)
