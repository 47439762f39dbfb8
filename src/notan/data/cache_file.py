"""Files of decoded images in the cache folder: bounded, and safe with several processes at once.

A file is read and written by place, not mapped into memory: where a disk or a network fails, or
somebody cuts the file short, a mapped page would kill the process, and here an error is raised.
The system keeps in memory what it has room for, either way. A file has its full length from the
start, and takes space only where something was written.

Whoever uses a file holds a shared lock on it, which ends with the process, however that ends; a
file that nobody locks may be removed. Windows has no such locks; there an open file stays.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger("notan")

SUFFIX = ".decoded"

MOST_BYTES = 50 * 2**30
"""Of all files in the folder."""

DISK_SHARE = 0.25
"""Of the space that the disk would have without them, what they may take."""

PATIENCE_SECONDS = 5.0
"""For whoever makes a file, which takes milliseconds."""


class CacheFile:
    """A file of a known length that several processes read and write, under a lock.

    Pickled, it is opened anew; where that fails it holds nothing and takes nothing.
    """

    is_ours = False

    def __init__(self, path: Path, header: bytes, length: int) -> None:
        """Open a file, or make it if it is not there; one that is something else is made anew.

        Args:
            path: Where it is.
            header: How it begins, which says what it is about.
            length: Of the whole file, in bytes.

        Raises:
            OSError: It cannot be opened or made; the folders hold too much, or the disk has too
                little space.
        """
        self.path, self.header, self.length = path, header, length
        self._descriptor = _open(path, header, length)
        weakref.finalize(self, os.close, self._descriptor)

    def __reduce__(self) -> tuple[object, ...]:
        return _opened_anew, (self.path, self.header, self.length)

    def read(self, start: int, count: int) -> bytes:
        """Return bytes; fewer where the file was cut short.

        Raises:
            OSError: The disk or the network fails.
        """
        content = _read(self._descriptor, start, count)
        while 0 < len(content) < count:  # the system gives 2 GiB at once
            more = _read(self._descriptor, start + len(content), count - len(content))
            if not more:
                break
            content += more
        return content

    def write(self, start: int, content: memoryview) -> None:
        """Write bytes.

        Raises:
            OSError: The disk is full, or fails.
        """
        done = 0
        while done < len(content):
            done += _write(self._descriptor, start + done, content[done:])


class NoFile:
    """What takes the place of a file that cannot be opened: it holds nothing and takes nothing."""

    is_ours = False

    def read(self, start: int, count: int) -> bytes:
        """Return nothing."""
        del start, count
        return b""

    def write(self, start: int, content: memoryview) -> None:
        """Write nothing."""
        del start, content


def _opened_anew(path: Path, header: bytes, length: int) -> CacheFile | NoFile:
    try:
        return CacheFile(path, header, length)
    except OSError:
        return NoFile()


def _read(descriptor: int, start: int, count: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, start)
    with _MOVING:
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.read(descriptor, count)


def _write(descriptor: int, start: int, content: memoryview) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, content, start)
    with _MOVING:
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.write(descriptor, content)


_MOVING = threading.Lock()
"""Held while a file's one place is moved, on Windows, whose calls take no place."""


def _open(path: Path, header: bytes, length: int) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        make_room(path.parent, length)
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags, 0o666)
        try:
            if _locks(descriptor, alone=True) and not _is_whole(descriptor, header, length):
                _begin(descriptor, header, length, path)
            # between the two locks, or before the first, somebody may have removed the file
            if _locks(descriptor, alone=False) and _is_at(descriptor, path):
                if not _is_whole(descriptor, header, length):
                    raise OSError("it is damaged, and in use by another process")
                with suppress(OSError):  # another's; then its time is when it was written
                    os.utime(path)
                return descriptor
            if time.monotonic() > end:
                raise OSError("another process holds it")
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(0.05)


def _locks(descriptor: int, *, alone: bool) -> bool:
    """Lock a file, and say whether that was possible."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    if fcntl is None:
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _is_whole(descriptor: int, header: bytes, length: int) -> bool:
    is_long = os.fstat(descriptor).st_size == length
    return is_long and _read(descriptor, 0, len(header)) == header


def _begin(descriptor: int, header: bytes, length: int, path: Path) -> None:
    """Make an empty file; the header comes last, so that half of it is none."""
    if os.fstat(descriptor).st_size:
        logger.warning("%s: damaged, or something else; its images are decoded anew", path)
    os.ftruncate(descriptor, 0)
    os.ftruncate(descriptor, length)
    _write(descriptor, 0, memoryview(header))


def make_room(folder: Path, wanted: int) -> None:
    """Remove the files that were not used for longest, until another one has room.

    Args:
        folder: Of such files.
        wanted: The length of the other one, in bytes.

    Raises:
        OSError: It has no room even so; then nothing is removed.
    """
    files = sorted(_files(folder), key=lambda each: each[1].st_mtime)
    taken = sum(getattr(about, "st_blocks", 0) * 512 for _, about in files)
    most = min(MOST_BYTES, int(DISK_SHARE * (shutil.disk_usage(folder).free + taken)))
    excess = sum(about.st_size for _, about in files) + wanted - most
    removed = []
    for path, about in files:
        if excess > 0 and not _in_use(path):
            removed.append(path)
            excess -= about.st_size
    if excess > 0:
        raise OSError(f"it may hold {in_words(most)} on this disk, what is in use included")
    for path in removed:
        with suppress(OSError):  # Windows: in use after all
            path.unlink()


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError):  # another process was quicker to remove it
            yield path, path.stat()


def _in_use(path: Path) -> bool:
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return True  # who may not write it may not remove it
    try:
        return not _locks(descriptor, alone=True)
    except OSError:  # a file system without locks
        return True
    finally:
        os.close(descriptor)


def in_words(count: int) -> str:
    """Return a number of bytes as people write it."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{-(-count // 2**20)} MiB"
