"""SHA-256 of text, bytes and files: how notan tells contents apart."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from notan.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def sha256(*parts: str | bytes | memoryview) -> str:
    """Return the SHA-256 of parts joined without a separator, as 64 hexadecimal digits.

    Args:
        parts: Text counts as UTF-8; of a contiguous array give ``array.data``, which counts by
            its values alone, without shape and type.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """Return the hash of a file's content as hexadecimal digits; it is read in pieces.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            # MD5 guards no secret here: it is what some publishers of data give
            begin = hashlib.new(algorithm, usedforsecurity=False)
            return hashlib.file_digest(file, begin.copy).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror or error})") from error
