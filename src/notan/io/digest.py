"""SHA-256 of text, bytes and files: how notan tells contents apart."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from notan.errors import DataError
from notan.io.packed import open_file, stamp_of
from notan.io.write import encoded

WHOLE, END = 2**26, 2**16
"""Bytes up to which a whole file is hashed, and of either end of a larger one."""

if TYPE_CHECKING:
    from pathlib import Path


def sha256(*parts: str | bytes | memoryview) -> str:
    """Return the SHA-256 of parts joined without a separator, as 64 hexadecimal digits.

    Args:
        parts: Text counts as ``io.write`` encodes it; of a contiguous array give ``array.data``,
            which counts by its values alone, without shape and type.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(encoded(part) if isinstance(part, str) else part)
    return digest.hexdigest()


def hash_content(path: Path) -> str:
    """Return 16 hexadecimal digits that tell whether a file is still what it was.

    Of up to 64 MiB every byte counts. Of a larger file, which would take longer to hash than it may
    take to predict, its size, its two ends and the time of its last change do.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with open_file(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if size <= WHOLE:
                return sha256(file.read(WHOLE))[:16]
            time, _ = stamp_of(path) or (0, 0)
            start = file.read(END)
            file.seek(-END, os.SEEK_END)
            return sha256(f"{size} {time} ", start, file.read(END))[:16]
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror or error})") from error


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """Return the hash of a file's content as hexadecimal digits; it is read in pieces.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with open_file(path) as file:
            # MD5 guards no secret here: it is what some publishers of data give
            begin = hashlib.new(algorithm, usedforsecurity=False)
            return hashlib.file_digest(file, begin.copy).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror or error})") from error
