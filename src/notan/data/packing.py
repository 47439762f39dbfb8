"""Packing: a data set is written as a few large tar files, which disks and networks read quickly.

A shard is a plain tar without compression: ``KEY.jpg`` and ``KEY.mask.png``, one sample after the
other, so that WebDataset and every other program read it. Files are copied byte for byte; masks
that stand in annotations are drawn. The same data give the same bytes, and the index, which is
written last, holds the checksums of all: its own tells one set from every other.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
import tempfile
import unicodedata
import zlib
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np
from PIL import Image
from tqdm import tqdm

from notan.data.folders import find_layout, open_divided, told_groups
from notan.data.samples import PairFacts
from notan.data.shards import IGNORED
from notan.errors import ConfigError, DataError
from notan.io import packed, remote
from notan.io.headers import read_contents
from notan.io.write import holds_something, storage_errors, write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from notan.config import Data
    from notan.data.samples import FileSource, Labels, Pair
    from notan.io.packed import Pack, PackedFile, PackedSample

Parts: TypeAlias = "Sequence[tuple[FileSource, Sequence[str]]]"
"""Of a data set, with the split of each sample."""

SHARD_BYTES = 256_000_000
"""Large enough that a disk or a network reads it at its full rate, small enough to copy again."""

LONGEST_KEY = 60
"""Bytes; with the longest suffix a name stays within the 100 of the oldest kind of tar."""

END_BYTES = 2 * tarfile.BLOCKSIZE
"""Zeros, by which every tar ends."""

_UNSAFE = re.compile(r"[^\w-]+")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


def pack(data: Data, out: Path, *, shard_bytes: int = SHARD_BYTES, overwrite: bool = False) -> Pack:
    """Write a data set as shards with an index; whole, or not at all.

    Args:
        data: Where it is and how its masks are read. Masks that are files are copied as they are,
            and what is said of their values has to be said again by whoever reads the shards.
        out: A folder that is not there yet, or is empty.
        shard_bytes: What a shard has at most, unless one sample alone has more.
        overwrite: Replace packed data that are in ``out`` already.

    Returns:
        What was written.

    Raises:
        ConfigError: Something is in ``out`` that must not be replaced.
        DataError: An image or mask is missing or no image, or annotations are ambiguous.
        StorageError: The disk is full, or the place cannot be written; nothing is left behind.
    """
    remote.require_plain(out)
    is_far = remote.is_remote(out)
    before = _refuse_taken(out, remote.list_sizes(out) if is_far else None, overwrite=overwrite)
    sources = open_divided(data)
    if is_far:
        _send(data, sources, out, shard_bytes, before)
    else:
        _place(data, sources, out, shard_bytes)
    found = packed.find_pack(out)
    if found is None:
        raise DataError(
            f"{remote.shown(out)}: the packed data are gone; another program took them away"
        )
    return found


def _refuse_taken(out: Path, names: Collection[str] | None, *, overwrite: bool) -> Collection[str]:
    """Refuse a place that holds what must not be replaced; return what will be.

    Args:
        out: Where the shards go.
        names: What is there, in a store; None: it is a folder.
        overwrite: Whether packed data may be replaced.
    """
    if names is None and out.is_dir():
        names = [each.name for each in out.iterdir()]
    elif names is None:
        names = [out.name] if out.exists() else []
    if names and not overwrite:
        raise ConfigError(
            f"{remote.shown(out)}: something is here already; choose another, or --overwrite it"
        )
    if any(name != packed.INDEX and not packed.is_shard(name) for name in names):
        raise ConfigError(
            f"{remote.shown(out)}: holds more than packed data, and --overwrite replaces nothing "
            "else; choose another --out"
        )
    return names


def _place(data: Data, sources: Parts, out: Path, most: int) -> None:
    """Write into a folder beside the place, which takes its name when it is whole."""
    with storage_errors(out):
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
        try:
            index = _write(data, sources, _Shards(staged, most))
            write_bytes(staged / packed.INDEX, index)
            _publish(staged, out.absolute())
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise


def _send(data: Data, sources: Parts, out: Path, most: int, before: Collection[str]) -> None:
    """Write into a store: each shard when it is full, the index when all are there.

    Of packed data that were there the index goes first: what is half replaced is no set.
    """

    def send(shard: Path) -> None:
        remote.write_file(shard, out / shard.name)
        shard.unlink()

    packed.forget(out)
    if packed.INDEX in before:
        remote.remove(out / packed.INDEX)
    with tempfile.TemporaryDirectory(prefix="notan-pack-") as folder:
        shards = _Shards(Path(folder), most, send)
        index = _write(data, sources, shards)
    for name in sorted({*before} - {*shards.finished, packed.INDEX}):
        remote.remove(out / name)
    remote.write_whole(out / packed.INDEX, index)


def _publish(staged: Path, out: Path) -> None:
    """Give a finished folder its name; packed data that have it give way."""
    mask = os.umask(0)
    os.umask(mask)
    staged.chmod(0o777 & ~mask)
    if not holds_something(out):
        if out.is_dir():
            out.rmdir()
        staged.replace(out)
        return
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as old:
        out.replace(Path(old) / out.name)
        staged.replace(out)


def _write(data: Data, sources: Parts, shards: _Shards) -> bytes:
    """Write all shards, and return the index."""
    known = packed.find_pack(data.path) if data.path else None
    layout = find_layout(data)
    is_kept = known is not None or layout in ("folder", "pets")
    drawn = packed.Resolved(masks=data.masks, exif_orientation=data.exif_orientation, layout=layout)
    groups = told_groups(data)
    lines: list[bytes] = []
    total = sum(len(source) for source, _ in sources)
    bar = tqdm(total=total, desc="packing", unit="image", leave=False, delay=1, disable=None)
    with bar, shards:
        for pair, split, read_labels in _known_pairs(sources):
            labels = None if is_kept else read_labels(pair.mask)
            sample = shards.add(pair, split, groups.get(pair.name), labels)
            lines.append(sample.model_dump_json(exclude_defaults=True).encode() + b"\n")
            bar.update()
    header = packed.PackHeader(
        layout="pets" if layout == "pets" else "folder",
        mask_folder=None if data.masks.folder is None else str(data.masks.folder),
        resolved=known.header.resolved if known else None if is_kept else drawn,
        samples=len(lines),
        shards=shards.finished,
        sha256=hashlib.sha256(b"".join(lines)).hexdigest(),
    )
    return b"".join([header.model_dump_json().encode(), b"\n", *lines])


def _known_pairs(
    sources: Parts,
) -> Iterator[tuple[Pair, str, Callable[[Path], Labels]]]:
    """Give each pair with its facts, its split, and how its mask is read."""
    for source, splits in sources:
        upright = source.images.upright
        hashes = zip(source.hashes(), source.content_hashes(), strict=True)
        for pair, split, of_files in zip(source.pairs, splits, hashes, strict=True):
            contents = read_contents(pair.image, upright=upright)
            (height, width), sideways = contents.size, contents.orientation >= 5
            size = (width, height) if sideways and not upright else (height, width)
            facts = PairFacts(*of_files, size, sideways)
            yield replace(pair, facts=facts), split, source.read_labels


def _files_of(pair: Pair, key: str, labels: Labels | None) -> Iterator[tuple[str, bytes]]:
    """Give the files of a sample by their names in the shard, the mask last.

    Args:
        pair: The sample.
        key: What WebDataset calls it.
        labels: The mask, to be drawn; None: its file is copied.
    """
    for number, path in enumerate(pair.files):
        channel = f".channel{number}" if number else ""
        yield f"{key}{channel}{_suffix(path)}", _content(path)
    if labels is None:
        yield f"{key}.mask{_suffix(pair.mask)}", _content(pair.mask)
        return
    levels = np.where(labels.mask, np.uint8(255), np.uint8(0))
    if labels.ignore is not None:
        levels[labels.ignore] = IGNORED
    drawn = io.BytesIO()
    Image.fromarray(levels).save(drawn, "PNG")
    yield f"{key}.mask.png", drawn.getvalue()


def _content(path: Path) -> bytes:
    try:
        with packed.open_file(path) as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror or error})") from error


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) else ".image"


class _Keys:
    """Names that WebDataset takes for one sample's files, of which no two are the same.

    It parts a file's name at its first dot. Letters of all scripts stay; upper and lower case do
    not tell two keys apart, for some systems do not either.
    """

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    def of(self, name: str) -> str:
        """Return the key of the next sample."""
        plain = _UNSAFE.sub("_", unicodedata.normalize("NFC", name)).encode()[:LONGEST_KEY]
        base = plain.decode(errors="ignore") or "unnamed"
        key = base
        while key.casefold() in self._taken:
            self._taken[base.casefold()] += 1
            key = f"{base}_{self._taken[base.casefold()]}"
        self._taken[key.casefold()] = 1
        return key


class _Shards:
    """The shards of all splits while they are written, one of each open at a time."""

    def __init__(self, folder: Path, most: int, send: Callable[[Path], None] | None = None) -> None:
        """Begin with none.

        Args:
            folder: Where they are written.
            most: Bytes of one.
            send: Is given each that is finished, and may take it away.
        """
        self._send = send
        self.finished: dict[str, packed.Shard] = {}
        self._folder, self._most = folder, most
        self._open: dict[str, _OpenShard] = {}
        self._counts: Counter[str] = Counter()
        self._keys = _Keys()

    def add(self, pair: Pair, split: str, group: str | None, labels: Labels | None) -> PackedSample:
        """Write the files of a sample, which stay in one shard, and return its line.

        Args:
            pair: With its facts.
            split: Its own.
            group: What the data set says that it belongs to.
            labels: As for ``_files_of``.
        """
        if pair.facts is None:
            raise ValueError(f"nothing is known of {pair.name}")
        files = list(_files_of(pair, self._keys.of(pair.name), labels))
        shard = self._shard_for(split, files)
        *images, mask = (shard.add(name, content) for name, content in files)
        return packed.PackedSample(
            name=pair.name,
            split=split,
            group=group,
            shard=shard.path.name,
            images=tuple(images),
            mask=mask,
            **asdict(pair.facts),
        )

    def _shard_for(self, split: str, files: Sequence[tuple[str, bytes]]) -> _OpenShard:
        length = END_BYTES + sum(tarfile.BLOCKSIZE + _padded(len(content)) for _, content in files)
        current = self._open.get(split)
        if current is None or (current.size and current.size + length > self._most):
            self._finish(split)
            current = _OpenShard(self._folder / packed.shard_name(split, self._counts[split]))
            self._open[split] = current
            self._counts[split] += 1
        return current

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Finish all shards; after an error, only let their files go."""
        try:
            for split in [] if error else list(self._open):
                self._finish(split)
        finally:
            for current in self._open.values():
                current.close()

    def _finish(self, split: str) -> None:
        current = self._open.pop(split, None)
        if current is not None:
            self.finished[current.path.name] = current.finish()
            if self._send is not None:
                self._send(current.path)


class _OpenShard:
    """A tar that is being written: owner, time and order never differ."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._digest = hashlib.sha256()
        self._file = path.open("wb")

    def add(self, name: str, content: bytes) -> PackedFile:
        about = tarfile.TarInfo(name)
        about.size = len(content)
        self._put(about.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape"))
        member = packed.PackedFile(name, self.size, len(content), zlib.crc32(content))
        self._put(content)
        self._put(bytes(_padded(len(content)) - len(content)))
        return member

    def finish(self) -> packed.Shard:
        self._put(bytes(END_BYTES))
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        return packed.Shard(size=self.size, sha256=self._digest.hexdigest())

    def close(self) -> None:
        self._file.close()

    def _put(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self.size += len(content)


def _padded(length: int) -> int:
    return -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
