"""What has a name in the file system and is no file: pipes are read, devices are refused."""

from __future__ import annotations

import os
import select
import stat
import time
from typing import TYPE_CHECKING

from notan.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 2**30
"""Of a pipe, a file object or an address: more than any image that is decoded."""

UNFED, SILENT = 10.0, 30.0
"""Seconds to wait for somebody to open a pipe's other end, and for its next bytes."""

_PIECE = 2**20


def read_pipe(path: Path) -> bytes | None:
    """Read a named pipe, ``/dev/stdin`` or a shell's ``<(command)`` to its end.

    Args:
        path: Anything that exists.

    Returns:
        All its bytes; None where it is a file or a folder, which can be opened as usual.

    Raises:
        DataError: It is a device or a socket, or a pipe that nobody feeds, that has no bytes or too
            many.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None  # whoever opens it says why
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    if not stat.S_ISFIFO(mode):
        what = "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise DataError(
            f"{path}: is {what}, which has no end; wanted a file, or a pipe such as <(cat a.png)"
        )
    try:
        # a blocking open would wait for the other end for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise DataError(f"{path}: could not be opened ({error.strerror or error})") from error
    try:
        return _read_all(descriptor, path)
    finally:
        os.close(descriptor)


def _read_all(descriptor: int, path: Path) -> bytes:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    content, is_fed, heard = bytearray(), False, time.monotonic()
    while len(content) <= MAX_BYTES:
        piece = _read_some(descriptor, path)
        if piece:
            content += piece
            heard = time.monotonic()
        elif piece == b"" and (content or is_fed):  # the other end was there, and is gone
            if not content:
                raise DataError(f"{path}: this pipe was empty; wanted the bytes of one image")
            return bytes(content)
        else:
            is_fed = piece is None
            limit = SILENT if is_fed else UNFED
            if time.monotonic() - heard > limit:
                raise DataError(
                    f"{path}: nothing came through this pipe for {limit:g} seconds; start what "
                    "feeds it, or name a file instead"
                )
            # in short pieces, for an end that was never opened tells nothing when it is
            if poll.poll(100) and not is_fed:
                time.sleep(0.01)
    raise DataError(
        f"{path}: more than {MAX_BYTES:,} bytes came through this pipe; name a file instead"
    )


def _read_some(descriptor: int, path: Path) -> bytes | None:
    """Return what there is: nothing where the other end is not open, None where it is silent."""
    try:
        return os.read(descriptor, _PIECE)
    except BlockingIOError:
        return None
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror or error})") from error
