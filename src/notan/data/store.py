"""Decoded images and masks: each file is decoded once for all epochs, or for several trainings.

Decoding takes most of the time that a sample takes. What comes of it is kept, 8 bits a channel and
a byte for mask and ignored area, in one piece of memory or one file, as each sample is first asked
for. Data workers, and other trainings of the same images, find it there.

A file that changes while a training runs is read as it was: what a sample is does not change
between epochs. The next training sees the change, because the file in the cache folder is named
by the contents of all images and masks.
"""

from __future__ import annotations

import logging
import mmap
import multiprocessing
import pickle
import struct
import uuid
import weakref
import zlib
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import features

from notan.data.annotations.labels import AnnotationReader
from notan.data.cache_file import SUFFIX, CacheFile, NoFile, in_words
from notan.data.samples import FileSource, Sample, stored_in
from notan.data.survey import stamp_of
from notan.io.digest import sha256
from notan.io.download import cache_folder
from notan.runtime import free_memory
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from notan.config import Cache
    from notan.data.samples import Labels
    from notan.types import Image8, Mask, Size

logger = logging.getLogger("notan")

FORMAT = b"notan decoded 1\n"
"""How a file begins. Raise the number with the layout below; a change of what our readers make of
a file counts with notan's version, and while you work on a reader, set ``data.cache`` to ``off``.
"""

DECODERS = ("pillow", "pillow-heif", "tifffile", "numpy", "scipy", "pycocotools")
CODECS = ("jpg", "libjpeg_turbo", "jpg_2000", "webp", "libtiff")
"""Whose versions may change a pixel."""

MEMORY_SHARE = {"auto": 0.25, "memory": 0.75}
"""Of the free memory, how much decoded images may take, by setting."""

RECORD = struct.Struct("<II")
"""Of each sample, ahead of all pixels: a checksum, and its state."""

EMPTY, PLAIN, WITH_IGNORED = range(3)
FOREGROUND, IGNORED = 1, 2
"""Bits of the byte that a pixel has for mask and ignored area."""

Shapes: TypeAlias = npt.NDArray[np.int64]
"""(n, 3): height, width and channels of each image."""


class Bytes(Protocol):
    """Where samples are kept.

    Attributes:
        is_ours: Whether nobody else can reach them; others may cut a file short at any time, and
            where it is written to thereafter, zeros lie in between.
    """

    is_ours: bool

    def read(self, start: int, count: int) -> bytes | memoryview:
        """Return bytes, or fewer where there are no more."""

    def write(self, start: int, content: memoryview) -> None:
        """Write bytes."""


class SharedMemory:
    """Memory that this process and those it forks share; pages take room once written to.

    It is no file, so that Docker's 64 MB of /dev/shm do not bound it. Pickled, it holds nothing.
    """

    is_ours = True

    def __init__(self, length: int) -> None:
        self.length = length
        self._map = mmap.mmap(-1, length)
        self._all = memoryview(self._map)
        _LIVING.add(self)

    def __reduce__(self) -> tuple[object, ...]:
        return NoFile, ()

    def read(self, start: int, count: int) -> memoryview:
        """Return a view that cannot be written through."""
        return self._all[start : start + count].toreadonly()

    def write(self, start: int, content: memoryview) -> None:
        """Write bytes."""
        self._all[start : start + len(content)] = content


_LIVING: weakref.WeakSet[SharedMemory] = weakref.WeakSet()
"""All of it is promised, though little may be written yet."""


class Kept(NamedTuple):
    """A sample without its name; see there. Its arrays cannot be written to."""

    image: Image8
    mask: Mask
    ignore: Mask | None


class Store:
    """Samples of known sizes, one after the other, each whole or not there."""

    def __init__(self, shapes: Shapes, place: Bytes, where: str) -> None:
        """Begin with what the place holds.

        Args:
            shapes: Of the images.
            place: Of ``length_of(shapes)`` bytes.
            where: What to call it in messages.
        """
        self._shapes = shapes
        self._starts = _starts_of(shapes)
        self._place = place
        self._where = where
        self._known = bytearray(len(shapes))
        """The states of samples that this process need not look at the checksum of again."""
        self._is_told = self._is_closed = False

    def count(self) -> int:
        """Return how many samples are there."""
        table = self._place.read(len(FORMAT) + DIGEST, RECORD.size * len(self._shapes))
        return int(np.count_nonzero(np.frombuffer(table, "<u4")[1::2]))

    def read(self, number: int) -> Kept | None:
        """Return a sample; None where it is not there, or is not what was written."""
        height, width, channels = map(int, self._shapes[number])
        start, length = int(self._starts[number]), height * width * (channels + 1)
        state, checksum = self._known[number], None
        try:
            if not state:
                record = self._place.read(_record_at(number), RECORD.size)
                if len(record) < RECORD.size or not any(record):
                    return None
                checksum, state = RECORD.unpack(record)
            content = self._place.read(start, length)
        except OSError as error:
            self._tell(f"cannot be read ({error.strerror or error})")
            return None
        is_right = checksum is None or checksum == self._sum(number, state, content)
        if len(content) < length or not is_right:
            self._tell("is damaged")
            return None
        self._know(number, state)
        values = np.frombuffer(content, np.uint8)
        image = values[: height * width * channels].reshape(height, width, channels)
        codes = values[height * width * channels :].reshape(height, width)
        ignore = _bit(codes, IGNORED) if state == WITH_IGNORED else None
        return Kept(image, _bit(codes, FOREGROUND), ignore)

    def keep(self, number: int, sample: Sample) -> None:
        """Write a sample, if it is of the size that was told; a full disk ends all writing."""
        fits = sample.image.shape == tuple(self._shapes[number])
        if self._is_closed or not fits or sample.image.dtype != np.uint8:
            return
        codes = sample.mask.astype(np.uint8) * np.uint8(FOREGROUND)
        if sample.ignore is not None:
            codes |= sample.ignore.astype(np.uint8) * np.uint8(IGNORED)
        state = PLAIN if sample.ignore is None else WITH_IGNORED
        content = np.concatenate([sample.image.ravel(), codes.ravel()]).data
        record = RECORD.pack(self._sum(number, state, content), state)
        try:
            self._place.write(int(self._starts[number]), content)
            self._place.write(_record_at(number), memoryview(record))
        except OSError as error:
            self._is_closed = True
            logger.warning(
                "%s: cannot be written (%s); what it lacks is decoded in each epoch",
                self._where,
                error.strerror or error,
            )
            return
        self._know(number, state)

    def _know(self, number: int, state: int) -> None:
        if self._place.is_ours:
            self._known[number] = state

    def _sum(self, number: int, state: int, content: bytes | memoryview) -> int:
        about = np.append(self._shapes[number], state)
        return zlib.crc32(content, zlib.crc32(about.astype("<i8").tobytes()))

    def _tell(self, what: str) -> None:
        if not self._is_told:
            logger.warning("%s: an image there %s; such ones are decoded anew", self._where, what)
        self._is_told = True


DIGEST = 32
"""Bytes that name, behind the beginning, what a file is about."""


def _record_at(number: int) -> int:
    return len(FORMAT) + DIGEST + RECORD.size * number


def _starts_of(shapes: Shapes) -> npt.NDArray[np.int64]:
    """Return where each sample begins, and where the last one ends."""
    height, width, channels = shapes.T
    lengths = height * width * (channels + 1)
    return _record_at(len(shapes)) + np.concatenate([[0], np.cumsum(lengths)])


def _bit(codes: npt.NDArray[np.uint8], bit: int) -> Mask:
    mask: Mask = (codes & bit) != 0
    mask.setflags(write=False)
    return mask


class StoredSource(FileSource):
    """Pairs of files of which each is decoded once; the samples are the same, byte for byte.

    Their arrays cannot be written to.
    """

    def __init__(
        self,
        source: FileSource,
        sizes: Sequence[Size],
        store: Store,
        numbers: Sequence[int],
        named_by: Named | None = None,
    ) -> None:
        """Keep what is read of a source.

        Args:
            source: The pairs, and how they are read.
            sizes: Of the images.
            store: Where samples are kept.
            numbers: Theirs, in the store.
            named_by: What the store goes by, if it lasts longer than this process.
        """
        super().__init__(source.pairs, source.read_labels, source.images)
        self._sizes, self._store, self._numbers = list(sizes), store, list(numbers)
        self._named_by = named_by

    def __getitem__(self, index: int) -> Sample:
        """Return one sample, decoded if it was not; see ``FileSource`` for the errors."""
        number = self._numbers[index]
        kept = self._store.read(number)
        if kept:
            return Sample(self.pairs[index].name, *kept)
        sample = super().__getitem__(index)
        # it would be found under the name of what it was
        if not self._named_by or self._named_by.stamps[index] == _stamps(self, index):
            self._store.keep(number, sample)
        for array in (sample.image, sample.mask, sample.ignore):
            if array is not None:
                array.setflags(write=False)
        return sample

    def sizes(self) -> list[Size]:
        """Return the (height, width) of each image, as their headers were."""
        return list(self._sizes)

    def content_hashes(self) -> list[str]:
        """Return a short hash of each image with its mask, as they were if that is known."""
        return list(self._named_by.hashes) if self._named_by else super().content_hashes()


def keep_decoded(
    sources: Sequence[FileSource], cache: Cache, *, workers: int = 0
) -> list[FileSource]:
    """Return sources of the same samples that decode each file once, and say where these stay.

    Args:
        sources: They share one place: another split of the same images finds all of them.
        cache: ``data.cache``.
        workers: Data workers that will read them.

    Raises:
        DataError: A file cannot be read.
    """
    count = sum(map(len, sources))
    if cache == "off" or not count:
        return list(sources)
    sizes = [source.sizes() for source in sources]
    shapes = np.array(
        [
            (*size, source.images.channels)
            for source, each in zip(sources, sizes, strict=True)
            for size in each
        ],
        np.int64,
    )
    length = int(_starts_of(shapes)[-1])
    what = f"{count:,} decoded images, {in_words(length)}"
    names = {"auto": (_in_memory, _in_file), "memory": (_in_memory,), "disk": (_in_file,)}
    faults = []
    for open_there in names[cache]:
        try:
            place = open_there(sources, shapes, length, cache, workers)
        except OSError as error:
            faults.append(error.strerror or str(error))
            continue
        logger.info("%s, %s", what, place.words)
        numbers = np.argsort(place.order)  # the sample's number, by its place among all
        parts = np.split(numbers, np.cumsum([len(source) for source in sources])[:-1])
        named: Sequence[Named | None] = place.named_by or [None] * len(sources)
        return [
            StoredSource(source, each, place.store, part.tolist(), told)
            for source, each, part, told in zip(sources, sizes, parts, named, strict=True)
        ]
    say = logger.info if cache == "auto" else logger.warning
    say("%s, are not kept but decoded in each epoch: %s (data.cache)", what, "; ".join(faults))
    return list(sources)


class Named(NamedTuple):
    """What the samples of a source are known by.

    Attributes:
        stamps: What changes when a file of a sample does, from before its content was looked at.
        hashes: ``FileSource.content_hashes``.
    """

    stamps: Sequence[tuple[object, ...]]
    hashes: Sequence[str]


class Place(NamedTuple):
    """Where samples are kept.

    Attributes:
        store: Of samples in some order.
        order: Which of all samples, in the order of the sources, is the store's first and so on.
        words: Where it is.
        named_by: What the samples of each source are known by; None: the store dies with this
            process.
    """

    store: Store
    order: npt.NDArray[np.int64]
    words: str
    named_by: list[Named] | None = None


def _in_memory(
    sources: Sequence[FileSource], shapes: Shapes, length: int, cache: Cache, workers: int
) -> Place:
    """Return memory for samples.

    Raises:
        OSError: There is too little, or it would not be shared.
    """
    del sources
    started = multiprocessing.get_start_method(allow_none=True)
    if workers and (started or multiprocessing.get_all_start_methods()[0]) != "fork":
        raise OSError("data workers share no memory here (data.workers=0 needs none)")
    free = free_memory()
    if free is None:
        raise OSError("nobody tells how much memory is free")
    free = max(0, free - sum(each.length for each in _LIVING))
    share = MEMORY_SHARE[cache]
    if length > share * free:
        raise OSError(f"they may take {share:.0%} of the free memory, {in_words(free)}")
    try:
        place = SharedMemory(length)
    except (ValueError, OverflowError) as error:
        raise OSError(f"so much memory cannot be had ({error})") from error
    store = Store(shapes, place, "decoded images in memory")
    return Place(store, np.arange(len(shapes)), f"stay in memory of which {in_words(free)} is free")


def _in_file(
    sources: Sequence[FileSource], shapes: Shapes, length: int, cache: Cache, workers: int
) -> Place:
    """Return a file for samples, which may hold them already.

    Raises:
        OSError: It cannot be opened, or has no room.
    """
    del cache, workers
    named, keys = [], []
    for source in sources:
        stamps = [_stamps(source, index) for index in range(len(source))]
        named.append(Named(stamps, source.content_hashes()))
        keys += list(_keys(source, named[-1]))
    keys = [f"{key} {shape}" for key, shape in zip(keys, shapes.tolist(), strict=True)]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    name = sha256("\n".join((*_versions(), *sorted(keys))))
    path = cache_folder() / "decoded" / f"{name[:32]}{SUFFIX}"
    try:
        place = CacheFile(path, FORMAT + bytes.fromhex(name), length)
        store = Store(shapes[order], place, str(path))
        words = f"stay in {path}, which holds {store.count():,} of them"
    except OSError as error:
        raise OSError(f"{path.parent}: {error.strerror or error}") from error
    return Place(store, order, words, named)


def _stamps(source: FileSource, index: int) -> tuple[object, ...]:
    pair = source.pairs[index]
    return tuple(map(stamp_of, (*pair.files, stored_in(pair.mask))))


def _keys(source: FileSource, named: Named) -> Iterator[str]:
    """Give for each sample what decides its pixels.

    The hash of an image's content may be of its two ends alone; its time tells the rest.
    """
    for pair, stamps, content in zip(source.pairs, named.stamps, named.hashes, strict=True):
        times, rule = stamps[: len(pair.files)], _rule(source.read_labels, pair.mask)
        yield sha256(f"{content} {times} {source.images} {rule}")


def _rule(read_labels: Callable[[Path], Labels], mask: Path) -> str:
    """Say how a mask is read, in words that are the same in every process."""
    if isinstance(read_labels, partial):
        given: list[Any] = sorted(read_labels.keywords.items())
        return f"{_rule(read_labels.func, mask)} {read_labels.args} {given}"
    if isinstance(read_labels, AnnotationReader):
        chosen, annotation = read_labels.choice, read_labels.annotations.get(mask)
        shapes = pickle.dumps(annotation and replace(annotation, image=Path()))
        return (
            f"{chosen.foreground} {sorted(chosen.ignored)} {chosen.crowd} {read_labels.rule} "
            f"{read_labels.upright} {sha256(shapes)}"
        )
    if isinstance(read_labels, FunctionType):
        return f"{read_labels.__module__}.{read_labels.__qualname__}"
    return uuid.uuid4().hex  # whatever it does, nobody else may do the same


def _versions() -> Iterator[str]:
    yield f"notan {__version__}"
    for name in DECODERS:
        with suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"
    for name in CODECS:
        yield f"{name} {features.version(name)}"
