"""The way of a job that is done in blocks: cut, handed out, done again where need be, merged.

Who does the blocks is a crew. Here is the smallest: this process itself, one block after another,
for outputs that go into a store. Ray's is in ``notan.scale.ray_engine``.
"""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from notan.errors import DataError, StorageError
from notan.runtime import count_cores
from notan.scale import blocks
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from notan.prediction.inputs import Found
    from notan.prediction.predictor import Predictor
    from notan.prediction.table import PredictionTable
    from notan.scale.blocks import Block, BlockJob, Manifest

    Ended: TypeAlias = tuple[Block, Manifest | None]
    """A block, and what became of it; None where its process died."""


class Crew(Protocol):
    """Who does blocks."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def idle(self) -> Sequence[object]:
        """Those that have the model and nothing to do."""

    @property
    def blocks(self) -> Sequence[Block]:
        """What is being predicted."""

    def first_settings(self) -> dict[str, str]:
        """Wait until one has loaded the model, and return what it says of it."""

    def give(self, job: BlockJob, block: Block) -> None:
        """Hand a block to an idle one."""

    def wait(self) -> list[Ended]:
        """Wait a moment, and return the blocks that ended."""

    def dismiss(self) -> None:
        """End all of them at once."""


class BlockPrediction:
    """Predicts files in blocks, as ``Pipeline`` does one by one; who does them, its kinds say.

    Attributes:
        table: What is done and what failed; None before the first worker has loaded the model.
        workers: How many there are.
        progress: Called as a block is done with what became of it, and of how many files.
    """

    def __init__(
        self,
        load: Callable[[], Predictor],
        out: Path,
        formats: Sequence[str],
        *,
        frame_step: int = 1,
        batch_size: int | None = None,
        resume: bool = False,
        images_in_block: int | None = None,
        progress: Callable[[Manifest, int], None] = lambda *_: None,
    ) -> None:
        """Put the settings together; nothing is started yet.

        Args:
            load: Opens the model, on whichever machine it is called.
            out: The folder of outputs, or an address; all workers see it, the inputs and the model.
            formats: Names of what is written of each image.
            frame_step: Of a video, take the first frame and every so-many-th after it.
            batch_size: Images predicted at once; None: each worker chooses.
            resume: Keep what an earlier run has done.
            images_in_block: Files that one worker does in one go; None: chosen.
            progress: Called as a block is done with what became of it, and of how many files.

        Raises:
            ConfigError: A format has one file for all images.
        """
        blocks.refuse_shared_files(formats)
        self.table: PredictionTable | None = None
        self.workers = 0
        self.progress = progress
        self._load = load
        self._out = out
        self._formats = tuple(formats)
        self._frame_step = frame_step
        self._batch_size = batch_size
        self._resume = resume
        self._images_in_block = images_in_block

    def _predict(self, crew: Crew, found: Sequence[Found]) -> PredictionTable:
        """Hand out all blocks until every one is done."""
        job = blocks.BlockJob(self._out, self._formats, self._frame_step, crew.first_settings())
        self.table = blocks.begin_job(job, resume=self._resume)
        merged = blocks.Merged(self.table)
        size = self._images_in_block or blocks.block_size(len(found), crew.size)
        waiting = deque(blocks.cut(found, self.table.rows, size))
        try:
            while waiting or crew.blocks:
                while waiting and crew.idle:
                    crew.give(job, waiting.popleft())
                for block, manifest in crew.wait():
                    parts = block.after_death() if manifest is None else []
                    if parts:
                        waiting.extendleft(reversed(parts))
                        continue
                    what = blocks.given_up(block) if manifest is None else manifest
                    merged.note(block, what)
                    self.progress(what, len(block.files))
        except BaseException:
            crew.dismiss()
            with contextlib.suppress(DataError, StorageError):  # the disk may be what ended it
                # one may be published already, and its worker's word on the way
                for block in crew.blocks:
                    if there := blocks.read_manifest(job.manifest_of(block)):
                        merged.note(block, there)
            with contextlib.suppress(StorageError):
                self._finish(merged)
            raise
        return self._finish(merged)

    def _finish(self, merged: blocks.Merged) -> PredictionTable:
        """Write the tables of what is done; then nobody needs the manifests."""
        self.table = merged.save()
        with contextlib.suppress(StorageError):  # all is there without it
            blocks.remove_blocks(self._out)
        return self.table


class OneProcessPrediction(BlockPrediction):
    """Does all blocks in this process, one after another."""

    def run(self, found: Sequence[Found]) -> PredictionTable:
        """Predict all files; one that cannot be read is noted.

        However this ends, by an error or by Ctrl-C, every output is whole or absent, and
        predictions.csv names those that are done.

        Args:
            found: The files.

        Returns:
            What is done and what failed.

        Raises:
            StorageError: Something could not be written.
            NotanError: Whatever else ends a prediction.
        """
        worker = blocks.BlockWorker(
            self._load,
            Path.cwd(),
            cores=count_cores(),
            batch_size=self._batch_size,
            version=__version__,
        )
        self.workers = 1
        return self._predict(_Alone(worker), found)


class _Alone:
    """A crew of one, which does a block while it is waited for."""

    size = 1

    def __init__(self, worker: blocks.BlockWorker) -> None:
        self._worker = worker
        self._given: list[tuple[BlockJob, Block]] = []

    @property
    def idle(self) -> list[blocks.BlockWorker]:
        return [] if self._given else [self._worker]

    @property
    def blocks(self) -> list[Block]:
        return [block for _, block in self._given]

    def first_settings(self) -> dict[str, str]:
        return self._worker.open()

    def give(self, job: BlockJob, block: Block) -> None:
        self._given.append((job, block))

    def wait(self) -> list[Ended]:
        done = [(block, self._worker.predict(job, block)) for job, block in self._given]
        self._given.clear()
        return [*done]

    def dismiss(self) -> None:
        """There is nobody else to end."""
