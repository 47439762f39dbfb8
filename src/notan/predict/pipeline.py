"""Many images: decoded ahead of the network and written behind it, in bounded memory.

One thread goes through the files and a few decode them; the caller's thread runs the network; a few
more write. Whatever is decoded and not written yet is counted in bytes, not in images, because
one image may weigh as much as ten thousand others.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notan.errors import DataError, StorageError
from notan.predict.stages import BUDGET, WRITING, Ahead, Behind
from notan.predict.table import Failure, write_failures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from notan.predict.items import Item
    from notan.predict.predictor import Predictor
    from notan.predict.stages import Writes
    from notan.predict.table import PredictionTable, Row
    from notan.types import RGBImage

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
