"""Where results are published: a folder or a store; in either, a file is whole or it is not there.

A folder takes files by renaming them, a store by one question for each, several at a time. A store
is given a file "unless there is one" where it can do that (``If-None-Match: *``); where it cannot,
the file is replaced, which is right too wherever equal work gives equal bytes.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from notan.io import remote
from notan.io.digest import hash_file
from notan.io.write import storage_errors, write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

T = TypeVar("T")
R = TypeVar("R")

ABREAST = 8
"""Questions that a store is asked at once."""

WHOLE = 2**26
"""Bytes up to which a file is sent in one piece, from memory."""


class Destination(Protocol):
    """What can be done where results are published.

    What cannot be written raises StorageError; what cannot be read OSError, or DataError in a
    store.
    """

    def read(self, path: Path) -> bytes | None:
        """Return what a file holds; None: there is no such file."""

    def hash(self, path: Path) -> str:
        """Return the SHA-256 of what a file holds."""

    def write(self, path: Path, content: bytes) -> None:
        """Write a whole file."""

    def write_unless_there(self, path: Path, content: bytes) -> None:
        """Write a whole file, or leave the equal one that is there."""

    def take(self, files: Mapping[Path, Path]) -> None:
        """Publish finished files of this machine: each key becomes its value."""

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there."""

    def remove_folder(self, folder: Path) -> None:
        """Remove a folder with all that is in it, if it is there."""

    def names(self, folder: Path) -> list[str]:
        """Return the names of what is in a folder; none where it is not there."""

    def existing(self, paths: Iterable[Path]) -> set[Path]:
        """Return those of some files that are there."""

    def each(self, work: Callable[[T], R], things: Iterable[T]) -> list[R]:
        """Do some reading or writing for each thing, as many at a time as is quick here."""

    def private(self, folder: Path) -> AbstractContextManager[str]:
        """Return a temporary folder of this machine, from which ``take`` is quick."""


class _Folder:
    def read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def hash(self, path: Path) -> str:
        return hash_file(path)

    def write(self, path: Path, content: bytes) -> None:
        write_bytes(path, content)

    write_unless_there = write

    def take(self, files: Mapping[Path, Path]) -> None:
        for local, path in files.items():
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                local.replace(path)

    def remove(self, path: Path) -> None:
        with storage_errors(path):
            path.unlink(missing_ok=True)

    def remove_folder(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def names(self, folder: Path) -> list[str]:
        return sorted(path.name for path in folder.glob("*"))

    def existing(self, paths: Iterable[Path]) -> set[Path]:
        return {path for path in paths if path.is_file()}

    def each(self, work: Callable[[T], R], things: Iterable[T]) -> list[R]:
        return [work(thing) for thing in things]

    def private(self, folder: Path) -> AbstractContextManager[str]:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True)


class _Store:
    def read(self, path: Path) -> bytes | None:
        try:
            return remote.read_whole(path)
        except FileNotFoundError:
            return None

    def hash(self, path: Path) -> str:
        digest, start = hashlib.sha256(), 0
        while piece := remote.read_range(path, start, WHOLE):
            digest.update(piece)
            start += len(piece)
            if len(piece) < WHOLE:
                break
        return digest.hexdigest()

    def write(self, path: Path, content: bytes) -> None:
        remote.write_whole(path, content)

    def write_unless_there(self, path: Path, content: bytes) -> None:
        remote.write_whole(path, content, replaces=False)

    def take(self, files: Mapping[Path, Path]) -> None:
        def send(pair: tuple[Path, Path]) -> None:
            local, path = pair
            if local.stat().st_size > WHOLE:
                remote.write_file(local, path)
            else:
                remote.write_whole(path, local.read_bytes())

        self.each(send, files.items())

    def remove(self, path: Path) -> None:
        remote.remove(path)

    def remove_folder(self, folder: Path) -> None:
        remote.remove(folder, recursive=True)

    def names(self, folder: Path) -> list[str]:
        return sorted(remote.list_sizes(folder))

    def existing(self, paths: Iterable[Path]) -> set[Path]:
        wanted = list(paths)
        found = self.each(remote.exists, wanted)
        return {path for path, is_there in zip(wanted, found, strict=True) if is_there}

    def each(self, work: Callable[[T], R], things: Iterable[T]) -> list[R]:
        with ThreadPoolExecutor(ABREAST, "store") as pool:
            return list(pool.map(work, things))

    def private(self, folder: Path) -> AbstractContextManager[str]:
        del folder
        with storage_errors(Path(tempfile.gettempdir()), chosen_by="TMPDIR"):
            return tempfile.TemporaryDirectory(prefix="notan-", ignore_cleanup_errors=True)


_FOLDER, _STORE = _Folder(), _Store()


def destination_of(path: Path) -> Destination:
    """Return how results are published at a path or an address."""
    return _STORE if remote.is_remote(path) else _FOLDER
