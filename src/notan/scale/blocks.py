"""Prediction in blocks: parts of a job that any worker may do, and do again, with the same result.

A block is a few hundred files. A worker predicts it with the pipeline of one process into a private
folder, then publishes: first the outputs, each whole, and last the block's manifest, which says
what they are. Nothing counts but what a manifest tells of, so a worker may die at any moment. Two
workers at one block write equal bytes, for a block's outputs follow from its files and the job's
settings alone; whoever comes second replaces them by the same.

No engine is named here: whatever hands out blocks at least once gives every image exactly once.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from notan.config.sections import Section
from notan.errors import ConfigError, DataError
from notan.io.destinations import destination_of
from notan.io.digest import hash_file, sha256
from notan.io.write import as_named, as_written
from notan.prediction.flow import choose_threads
from notan.prediction.formats import FORMATS, Writers
from notan.prediction.items import items_of_all
from notan.prediction.pipeline import SAVE_SECONDS, Pipeline
from notan.prediction.table import Failure, PredictionTable, Row, image_of, output_settings
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from notan.prediction.inputs import Found
    from notan.prediction.items import Item
    from notan.prediction.predictor import Predictor

IMAGES_IN_BLOCK = 256
"""Files; so many are soon done again, and what it costs to hand them out is nothing beside them."""

BLOCKS_EACH = 4
"""For a worker, at the least, where there are few files."""

FOLDER = ".blocks"
"""Where manifests and what is not yet published lie, within the folder of outputs."""

MOST_DEATHS = 3
"""A file that ended so many processes alone is given up: machines die for other reasons too."""

SAVING_SHARE = 20
"""The tables are saved so rarely that it takes no more than one part in so many of the time."""


@dataclass(frozen=True)
class BlockJob:
    """What is the same for all blocks of a job.

    Attributes:
        out: The folder of outputs, or an address, which every worker sees under this name.
        formats: What is written of each image; those of one file for all images have no place here.
        frame_step: Of a video, the first frame and every so-many-th after it.
        settings: What ``predict.json`` says.
    """

    out: Path
    formats: tuple[str, ...]
    frame_step: int
    settings: Mapping[str, str]

    @functools.cached_property
    def place(self) -> Path:
        """The folder of this job's manifests; a job of other settings has another."""
        what = [self.formats, self.frame_step, sorted(self.settings.items())]
        return self.out / FOLDER / sha256(json.dumps(what))[:16]

    def refuse_others(self, settings: Mapping[str, str]) -> None:
        """Refuse a worker whose masks would be others.

        Raises:
            ConfigError: Its settings are not the job's.
        """
        other = [name for name, value in self.settings.items() if settings.get(name) != value]
        if other:
            raise ConfigError(
                f"{os.uname().nodename} predicts with another {other[0]} ({settings[other[0]]}) "
                f"than the machine that was asked first ({self.settings[other[0]]}); give the same "
                "to all with --precision, --device and --backend"
            )

    def manifest_of(self, block: Block) -> Path:
        """Return where the manifest of a block is, or will be."""
        names = [part for file in block.files for part in (file.name, str(file.path))]
        return self.place / f"{sha256(chr(0).join(names))[:32]}.json"


@dataclass(frozen=True)
class Block:
    """Files that one worker predicts in one go.

    Attributes:
        start: Where in the list of all files the first of them stands.
        files: One or more.
        known: The rows that an earlier run left of them.
        deaths: How many processes have ended at it.
        is_suspect: Whether it is a part of one that ended several.
    """

    start: int
    files: tuple[Found, ...]
    known: tuple[Row, ...] = ()
    deaths: int = 0
    is_suspect: bool = False

    def after_death(self) -> list[Block]:
        """Return what is to be done instead when a process has ended at it.

        The same again; if that happens time and again, its halves; of a single file nothing. A
        suspect of several files is halved at once, for that costs less than one more process.
        """
        again = replace(self, deaths=self.deaths + 1)
        half = len(self.files) // 2
        if again.deaths < MOST_DEATHS and not (self.is_suspect and half):
            return [again]
        if not half:
            return []
        return [
            Block(self.start + start, files, _rows_of(files, self.known), is_suspect=True)
            for start, files in ((0, self.files[:half]), (half, self.files[half:]))
        ]


class Manifest(Section):
    """What became of a block; its being there says that all of it is published.

    Attributes:
        rows: Of the images whose outputs are whole, in order.
        kept: The names of those that an earlier run had made.
        failures: What could not be read, in order.
        digests: File -> what tells its content from another.
        outputs: Path of a published file, from the folder of outputs -> its SHA-256.
        choices: What reading chose among several readings -> of how many images.
    """

    rows: tuple[Row, ...] = ()
    kept: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    digests: dict[str, str] = Field(default_factory=dict)
    outputs: dict[str, str] = Field(default_factory=dict)
    choices: dict[str, int] = Field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many images it tells of."""
        return len(self.rows) + len(self.failures)

    def is_published(self, out: Path) -> bool:
        """Say whether its outputs are there and as they were written."""
        place = destination_of(out)
        try:
            return all(
                place.hash(out / as_named(name)) == digest for name, digest in self.outputs.items()
            )
        except (DataError, FileNotFoundError):
            return False


def block_size(files: int, workers: int) -> int:
    """Return how many files to put into a block, so that no worker waits long for the last one."""
    return min(IMAGES_IN_BLOCK, -(-files // (BLOCKS_EACH * workers)))


def cut(found: Sequence[Found], known: Iterable[Row], size: int) -> list[Block]:
    """Cut a list of files into blocks.

    Args:
        found: The files.
        known: The rows of an earlier run.
        size: Files in a block.
    """
    rows: dict[str, list[Row]] = {}
    for row in known:
        rows.setdefault(row.image, []).append(row)
    blocks = []
    for start in range(0, len(found), size):
        files = tuple(found[start : start + size])
        there = [row for file in files for row in rows.get(image_of(file.path), ())]
        blocks.append(Block(start, files, tuple(there)))
    return blocks


def _rows_of(files: Iterable[Found], rows: Iterable[Row]) -> tuple[Row, ...]:
    images = {image_of(file.path) for file in files}
    return tuple(row for row in rows if row.image in images)


def refuse_shared_files(formats: Iterable[str]) -> None:
    """Refuse formats of which all images share a file.

    Raises:
        ConfigError: One of them is such a format.
    """
    shared = {name for name, each in FORMATS.items() if not hasattr(each, "folder")}
    if wrong := [name for name in formats if name in shared]:
        raise ConfigError(
            f"--format {','.join(wrong)}: one file of all images, which blocks do not write; with "
            "--engine ray, and where --out is in a store, choose among "
            f"{', '.join(sorted(FORMATS.keys() - shared))}"
        )


def read_manifest(path: Path) -> Manifest | None:
    """Read what a worker has published; None: there is no manifest, or none that can be read.

    A damaged one is as good as none: its block is done again, which replaces it.
    """
    try:
        return Manifest.model_validate_json(destination_of(path).read(path) or b"")
    except (OSError, ValueError):
        return None


def begin_job(job: BlockJob, *, resume: bool) -> PredictionTable:
    """Begin a folder of predictions, or go on with one, by whichever engine it was begun.

    What is known of it then stands in predictions.csv, and no manifest is left.

    Args:
        job: The job.
        resume: Keep what is done, also what blocks have published for a job that ended without a
            word.

    Raises:
        ConfigError: The folder was begun with other settings.
        DataError: What an earlier run left cannot be read.
        StorageError: The folder cannot be written.
    """
    table = PredictionTable.begin(job.out, job.settings, resume=resume)
    place = destination_of(job.out)
    names = [name for name in place.names(job.place) if name.endswith(".json")]
    manifests = place.each(read_manifest, [job.place / name for name in names])
    rows = [row for manifest in manifests if manifest is not None for row in manifest.rows]
    if resume and rows:
        table = PredictionTable(job.out, [*table.rows, *rows])
        table.save()
    remove_blocks(job.out)
    return table


def remove_blocks(out: Path) -> None:
    """Remove manifests and what was not published; a worker that still ends may be at it too."""
    destination_of(out).remove_folder(out / FOLDER)


def predict_block(
    job: BlockJob, block: Block, predictor: Predictor, *, batch_size: int, threads: int
) -> Manifest:
    """Predict a block and publish it; if it is published already, say so.

    Args:
        job: What all blocks have in common.
        block: The files.
        predictor: The network.
        batch_size: Images predicted at once.
        threads: That read, and as many that write.

    Raises:
        ConfigError: The scale makes a single tile too large.
        StorageError: Something could not be written.
        DivergedError: The network returned NaN or infinity.
    """
    path, place = job.manifest_of(block), destination_of(job.out)
    if place.existing([path]):
        done = read_manifest(path)
        if done is not None and done.is_published(job.out):
            return done
        place.remove(path)  # what it says is not so, and a store would keep it
    with place.private(job.place) as folder:
        manifest = _predict(job, block, predictor, Path(folder), (batch_size, threads))
        publish(Path(folder), job.out, manifest, path)
    return manifest


def publish(private: Path, out: Path, manifest: Manifest, path: Path) -> None:
    """Put the outputs of a block where they belong, and then say that they are there.

    The order is what counts. Of two workers at one block both put equal bytes.

    Args:
        private: The folder that holds them so far.
        out: The folder that they belong into, or an address.
        manifest: What they are.
        path: The manifest's file.

    Raises:
        StorageError: Something could not be written.
    """
    place = destination_of(out)
    place.take({private / name: out / name for name in map(as_named, manifest.outputs)})
    place.write_unless_there(path, manifest.model_dump_json().encode())


class _PrivateWriters(Writers):
    """Writes into a private folder; what is published of known rows counts as done."""

    def __init__(self, job: BlockJob, private: Path, known: Iterable[Row]) -> None:
        super().__init__(job.formats, private)
        self._published = Writers(job.formats, job.out)
        paths = [path for row in known for path in self._published.paths(as_named(row.name))]
        self._there = destination_of(job.out).existing(paths)

    def has(self, name: str, *, is_large: bool = False) -> bool:
        return self._there.issuperset(self._published.paths(name, is_large=is_large))


def _predict(
    job: BlockJob, block: Block, predictor: Predictor, private: Path, pace: tuple[int, int]
) -> Manifest:
    """Predict a block into a private folder."""
    names: set[str] = set()
    digests: dict[str, str] = {}
    choices: Counter[str] = Counter()

    def note(item: Item) -> None:
        names.add(as_written(item.name))
        digests[image_of(item.path)] = item.digest
        choices.update(item.choices)

    table = PredictionTable(private / "tables", block.known)
    batch_size, threads = pace
    pipeline = Pipeline(
        predictor,
        _PrivateWriters(job, private, block.known),
        table,
        batch_size=batch_size,
        images=len(block.files),
        threads=threads,
        progress=note,
    )
    reading = predictor.preprocessor.reading
    pipeline.run(items_of_all(block.files, frame_step=job.frame_step, reading=reading))
    known = {id(row) for row in block.known}
    rows = [row for row in table.rows if row.name in names]
    files = [path for path in sorted(private.rglob("*")) if path.is_file()]
    return Manifest(
        rows=tuple(rows),
        kept=tuple(row.name for row in rows if id(row) in known),
        failures=tuple(table.failures),
        digests=digests,
        outputs={
            as_written(path.relative_to(private).as_posix()): hash_file(path)
            for path in files
            if path.parent != table.folder
        },
        choices=dict(choices),
    )


def given_up(block: Block) -> Manifest:
    """Return the manifest of a block of one file that no process survives."""
    [file] = block.files
    path = image_of(file.path)
    reason = (
        f"{path}: the process that predicted it ended without a word, {MOST_DEATHS} times; try it "
        "alone on one machine, or leave it out"
    )
    failure = Failure(name=as_written(file.name), image=path, reason=reason)
    return Manifest(failures=(failure,))


class BlockWorker:
    """What a process of a worker holds: the model, once it is asked for.

    Whatever it raises of notan's errors ends the job, as it would end one process.
    """

    def __init__(
        self,
        load: Callable[[], Predictor],
        folder: Path,
        *,
        cores: int,
        batch_size: int | None,
        version: str,
    ) -> None:
        """Remember what is to be done; the work begins with ``open``.

        Args:
            load: Opens the model.
            folder: Where relative paths begin.
            cores: That are this worker's.
            batch_size: Images predicted at once; None: chosen.
            version: Of the notan that began the job.
        """
        self._load = load
        self._folder = folder
        self._cores = cores
        self._batch_size = batch_size
        self._version = version
        self._predictor: Predictor | None = None

    def open(self) -> dict[str, str]:
        """Load the model, and return what decides here how a mask comes out.

        Raises:
            ConfigError: This machine has another notan, or does not see the folder.
            CheckpointError: The model cannot be read.
        """
        return output_settings(self._opened())

    def _opened(self) -> Predictor:
        """Return the model, which is loaded once."""
        if self._predictor is not None:
            return self._predictor
        where = os.uname().nodename
        if self._version != __version__:
            raise ConfigError(
                f"{where} has notan {__version__}, the job was begun with {self._version}; install "
                "the same version on all machines"
            )
        try:
            os.chdir(self._folder)
        except OSError as error:
            raise ConfigError(
                f"{where} does not see the folder {self._folder} ({error.strerror}); begin the job "
                "in a folder that all machines share"
            ) from error
        self._predictor = self._load()
        return self._predictor

    def predict(self, job: BlockJob, block: Block) -> Manifest:
        """Predict and publish a block.

        Raises:
            ConfigError: This machine computes otherwise than the one that was asked first.
            StorageError: Something could not be written.
        """
        predictor = self._opened()  # again, where this process took the place of one that died
        job.refuse_others(output_settings(predictor))
        return predict_block(
            job,
            block,
            predictor,
            batch_size=predictor.choose_batch_size(self._batch_size),
            threads=choose_threads(
                self._cores, leaves_processor_free=predictor.leaves_processor_free
            ),
        )


class Merged:
    """The tables that one process would have written, made of manifests in whatever order.

    Attributes:
        table: As it was saved last.
    """

    def __init__(self, earlier: PredictionTable) -> None:
        """Begin with what an earlier run left."""
        self.table = earlier
        self._earlier = earlier.rows
        self._manifests: dict[int, Manifest] = {}
        self._next_save = time.monotonic() + SAVE_SECONDS

    def note(self, block: Block, manifest: Manifest) -> None:
        """Take a block's manifest in; from time to time all tables are written.

        Raises:
            StorageError: A table could not be written.
        """
        self._manifests[block.start] = manifest
        begun = time.monotonic()
        if begun >= self._next_save:
            self.save()
            ended = time.monotonic()
            self._next_save = ended + max(SAVE_SECONDS, SAVING_SHARE * (ended - begun))

    def save(self) -> PredictionTable:
        """Write predictions.csv and failed.csv, in the order of the files, and return them.

        Raises:
            StorageError: A table could not be written.
        """
        table = PredictionTable(self.table.folder, self._earlier)
        manifests = [manifest for _, manifest in sorted(self._manifests.items())]
        images: dict[str, set[str]] = {}
        for row in (row for manifest in manifests for row in manifest.rows):
            images.setdefault(row.name.casefold(), set()).add(row.image)
        contested = {name for name, several in images.items() if len(several) > 1}
        for manifest in manifests:
            _merge(table, manifest, contested)
        table.save()
        self.table = table
        return table


def _merge(table: PredictionTable, manifest: Manifest, contested: set[str]) -> None:
    """Note in a table what the pipeline would have noted.

    Names that images of two blocks turned out to have, once they were opened, are nobody's: which
    of them wrote its outputs last is chance.
    """
    kept = set(manifest.kept)
    for image, digest in manifest.digests.items():  # lets rows of what a file held before go
        table.has("", Path(image), digest)
    for row in manifest.rows:
        if row.name.casefold() in contested:
            words = f"{row.image}: another image's outputs have its name, {row.name}; predict each"
            error = DataError(f"{words} alone, with an --out of its own")
            table.fail(row.name, Path(row.image), error)
        elif row.name in kept:
            table.keep(row.name)
        else:
            table.put(row)
    table.failures += manifest.failures
