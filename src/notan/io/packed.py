"""Packed data: images and masks in plain tar files, the shards, beside one index that finds them.

A member of a shard has a path like any file, ``shards/train-000000.tar/NAME.jpg``, and is opened by
it; from the index come its place and its checksum, which every reading checks. The index is a file
of JSON lines: first ``PackHeader``, then a ``PackedSample`` for each image with its mask.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
import zlib
from collections import Counter, OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from notan.config import Layout, Masks
from notan.errors import DataError
from notan.io import remote
from notan.io.remote import shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

INDEX = "index.jsonl"
PACK_SPLITS = ("train", "validation", "test", "all")
BLOCK = tarfile.BLOCKSIZE

_BEGINNING = b'{"format":"notan pack '
_SHARD = re.compile(rf"({'|'.join(PACK_SPLITS)})-\d{{6}}\.tar")
_MEMBER = re.compile(r"[^./\\\0]+\.[^/\\\0]+")
"""A key and, behind its first dot, a suffix: as WebDataset parts them."""
_MOST_INDEX_BYTES = 2**32
_AGAIN = "copy it again from where it was packed, or pack the data anew (notan pack)"


def shard_name(split: str, number: int) -> str:
    """Return what the shard of a split, counted from 0, is called."""
    return f"{split}-{number:06}.tar"


class PackedFile(NamedTuple):
    """Where a file lies in its shard.

    Attributes:
        name: Its own there.
        offset: Where its bytes begin in the shard.
        size: How many there are.
        crc32: Their checksum.
    """

    name: str
    offset: int
    size: int
    crc32: int


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Resolved(_Stored):
    """How masks were read that were drawn anew for the pack, because no file held them."""

    layout: Layout
    """Of the data set."""
    masks: Masks
    exif_orientation: Literal["apply", "ignore"]


class Shard(_Stored):
    """A shard as a whole."""

    size: int
    sha256: str


class PackHeader(_Stored):
    """The first line of an index."""

    format: Literal["notan pack 1"] = "notan pack 1"
    layout: Literal["folder", "pets"]
    """How the masks' values are meant: as in a folder of images and masks, or as Oxford's trimaps.
    """
    mask_folder: str | None = None
    """The name that the owner gave of the folder with the masks."""
    resolved: Resolved | None = None
    """None: masks are the data set's own files, byte for byte."""
    samples: int
    shards: dict[str, Shard]
    sha256: str
    """Of all lines below."""


class PackedSample(_Stored):
    """A line of an index: one image with its mask."""

    name: str
    split: Annotated[str, Field(pattern=f"^({'|'.join(PACK_SPLITS)})$")]
    group: str | None = None
    """What the data set says of images that belong together."""
    shard: str
    images: tuple[PackedFile, ...]
    """One for each channel where the image lies in several files."""
    mask: PackedFile
    size: tuple[int, int]
    """(height, width) of the image, upright."""
    sideways: bool = False
    """Whether EXIF turns it by a quarter."""
    image_hash: str
    content_hash: str
    """Both as ``FileSource`` takes them of the files that were packed."""


@dataclass(frozen=True)
class Pack:
    """An index that was read.

    Attributes:
        folder: Where it lies.
        header: Its first line.
        samples: In the data set's order.
        members: Of each file, by ``SHARD/MEMBER``.
        sha256: Of the whole index, which tells one set from every other.
    """

    folder: Path
    header: PackHeader
    samples: tuple[PackedSample, ...]
    members: Mapping[str, PackedFile]
    sha256: str

    def path_of(self, sample: PackedSample, member: PackedFile) -> Path:
        """Return the path that a file of a sample is opened by."""
        return self.folder / sample.shard / member.name

    def in_words(self) -> str:
        """Say what it is."""
        counts = Counter(sample.split for sample in self.samples)
        parts = ", ".join(f"{split} {counts[split]}" for split in PACK_SPLITS if counts[split])
        count = len(self.header.shards)
        return (
            f"packed data: {parts} images in {count} shard{'s' * (count > 1)}, "
            f"sha256 {self.sha256[:16]}"
        )


def find_pack(folder: Path) -> Pack | None:
    """Return the packed data of a folder, whose shards are all there; None where it holds none.

    Raises:
        DataError: The index is missing, damaged, or of another version; or a shard is missing or
            cut short.
    """
    pack = _index_in(folder)
    if pack and not remote.is_remote(folder):  # there it was seen to when the index was read
        for name, shard in pack.header.shards.items():
            _require_whole(folder / name, shard.size)
    return pack


def _index_in(folder: Path) -> Pack | None:
    """Read the index of a folder, if it was not read before, and leave the shards alone."""
    if remote.is_remote(folder):
        return _FAR.get(folder) or _load_far(folder)
    index = folder / INDEX
    try:
        with index.open("rb") as file:
            is_ours = file.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        is_ours = False
    if is_ours:
        return _load(folder, stamp_of(index))
    if not any((folder / shard_name(split, 0)).is_file() for split in PACK_SPLITS):
        return None
    raise _no_index(index, is_there=index.exists())


def _no_index(index: Path, *, is_there: bool) -> DataError:
    """Return the refusal of a folder of shards whose index is missing, or is something else."""
    if not is_there:
        return DataError(f"{shown(index)}: there is no index beside the shards here; {_AGAIN}")
    return DataError(
        f"{shown(index)}: is no index of packed data, though shards lie beside it; "
        f"wanted what notan pack wrote; {_AGAIN}"
    )


_FAR: dict[Path, Pack] = {}
"""Packed data in stores, whose index is read once; by their address."""


def forget(folder: Path) -> None:
    """Read the index of a store anew, when it is asked for."""
    _FAR.pop(folder, None)


def _load_far(folder: Path) -> Pack | None:
    try:
        content = remote.read_whole(folder / INDEX)
    except FileNotFoundError:
        if any(map(is_shard, remote.list_sizes(folder))):
            raise _no_index(folder / INDEX, is_there=False) from None
        return None
    if not content.startswith(_BEGINNING):
        raise _no_index(folder / INDEX, is_there=True)
    pack = _parse(folder, content)
    sizes = remote.list_sizes(folder)
    for name, shard in pack.header.shards.items():
        _require_whole(folder / name, shard.size, sizes.get(name))
    return _FAR.setdefault(folder, pack)


@lru_cache(8)
def _load(folder: Path, stamp: tuple[int, int] | None) -> Pack:
    del stamp
    index = folder / INDEX
    try:
        with index.open("rb") as file:
            content = file.read(_MOST_INDEX_BYTES)
    except OSError as error:
        raise DataError(f"{index}: could not be read ({error.strerror or error})") from error
    return _parse(folder, content)


def _parse(folder: Path, content: bytes) -> Pack:
    index = folder / INDEX
    first, _, rest = content.partition(b"\n")
    version = first[len(_BEGINNING) :].partition(b'"')[0].decode("ascii", "replace")
    if version != "1":
        raise DataError(
            f"{shown(index)}: is of version {version} of packed data; this notan reads version 1; "
            "update notan, or pack the data anew (notan pack)"
        )
    try:
        header = PackHeader.model_validate_json(first)
        if hashlib.sha256(rest).hexdigest() != header.sha256:
            raise ValueError("its checksum is another")
        samples = tuple(map(PackedSample.model_validate_json, rest.splitlines()))
        _require_sound(header, samples)
        members = {
            f"{sample.shard}/{member.name}": member
            for sample in samples
            for member in (*sample.images, sample.mask)
        }
    except (ValidationError, ValueError) as error:
        what = str(error).partition("\n")[0]
        raise DataError(f"{shown(index)}: is cut short or damaged ({what}); {_AGAIN}") from error
    return Pack(folder, header, samples, members, hashlib.sha256(content).hexdigest())


def _require_sound(header: PackHeader, samples: tuple[PackedSample, ...]) -> None:
    """Refuse an index that does not agree with itself, or whose names lead elsewhere."""
    if len(samples) != header.samples:
        raise ValueError(f"{len(samples)} samples, not {header.samples}")
    for sample in samples:
        for member in (*sample.images, sample.mask):
            if not is_shard(sample.shard) or sample.shard not in header.shards:
                raise ValueError(f"{sample.shard} is no shard of it")
            if not _MEMBER.fullmatch(member.name):
                raise ValueError(f"{member.name} is no name of a file in a shard")


def _require_whole(shard: Path, size: int, found: int | None = None) -> None:
    """Refuse a shard that is missing, or of another length than the index says."""
    try:
        if found is None:
            is_far = remote.is_remote(shard)
            found = remote.read_size(shard) if is_far else shard.stat().st_size
    except OSError as error:
        raise _missing(shard, error) from error
    if found != size:
        raise DataError(
            f"{shown(shard)}: has {found:,} bytes, and the index says {size:,}: it is cut "
            f"short, or of another pack; {_AGAIN}"
        )


def _missing(shard: Path, error: OSError) -> DataError:
    what = f"could not be read ({error.strerror or error})"
    if isinstance(error, FileNotFoundError):
        what = "this shard is missing, and the index counts on it"
    return DataError(f"{shown(shard)}: {what}; {_AGAIN}")


def is_shard(name: str) -> bool:
    """Say whether a file's name is that of a shard."""
    return _SHARD.fullmatch(name) is not None


def is_member(path: Path) -> bool:
    """Say by its name whether a path is that of a file in a shard."""
    return is_shard(path.parent.name)


def _find(path: Path) -> PackedFile | None:
    if not is_member(path):
        return None
    pack = _index_in(path.parent.parent)
    return pack.members.get(f"{path.parent.name}/{path.name}") if pack else None


def open_file(path: Path) -> io.BufferedReader | io.BytesIO:
    """Open a file for reading, which may lie in a shard; then all of it is in memory, and right.

    Raises:
        DataError: Its shard is missing or damaged.
        OSError: It is no such file, and cannot be opened.
    """
    member = _find(path)
    if member is None:
        return path.open("rb")
    return io.BytesIO(_read(path, member))


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file does, its size last; None where it is missing."""
    try:
        member = _find(path)
        if member is not None:
            return member.crc32, member.size
        facts = path.stat()
    except (OSError, DataError):
        return None
    return facts.st_mtime_ns, facts.st_size


class _Kept:
    """Files of stores that were read, as many as fit; those not asked for longest go first."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._files: OrderedDict[tuple[Path, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, crc32: int) -> bytes | None:
        """Return a file, if it is there."""
        with self._lock:
            content = self._files.get((path, crc32))
            if content is not None:
                self._files.move_to_end((path, crc32))
            return content

    def keep(self, path: Path, crc32: int, content: bytes) -> None:
        """Keep a file, unless it alone is too large."""
        with self._lock:
            if len(content) > self._most or (path, crc32) in self._files:
                return
            self._files[path, crc32] = content
            self._held += len(content)
            while self._held > self._most:
                self._held -= len(self._files.popitem(last=False)[1])


MOST_KEPT = 2**28
"""Bytes of files of stores that each process keeps."""

_KEPT = _Kept(MOST_KEPT)


def _read(path: Path, member: PackedFile) -> bytes:
    """Read a file out of its shard, and compare its checksum."""
    shard, is_far = path.parent, remote.is_remote(path)
    if is_far and (known := _KEPT.get(path, member.crc32)):
        return known
    content = _range(shard, member.offset, member.size)
    if len(content) == member.size and zlib.crc32(content) == member.crc32:
        if is_far:
            _KEPT.keep(path, member.crc32, content)
        return content
    found = _name_before(shard, member.offset)
    what = "its checksum is not the one in the index"
    if len(content) < member.size:
        what = f"the shard ends within it, {member.size - len(content):,} bytes too early"
    elif found != path.name:
        what = f"{f'{found} lies' if found else 'something else lies'} in its place"
    raise DataError(
        f"{shown(path)}: {what}: the shard {shard.name} is damaged, or of another pack; {_AGAIN}"
    )


def _range(shard: Path, start: int, count: int) -> bytes:
    try:
        if remote.is_remote(shard):
            return remote.read_range(shard, start, count)
        with shard.open("rb") as file:
            file.seek(start)
            return file.read(count)
    except OSError as error:
        raise _missing(shard, error) from error


def _name_before(shard: Path, offset: int) -> str | None:
    """Return which file the tar itself says begins at a place."""
    head = _range(shard, offset - BLOCK, BLOCK)
    try:
        return tarfile.TarInfo.frombuf(head, "utf-8", "replace").name
    except tarfile.HeaderError:
        return None
