r"""Writing files whole or not at all, and finding folders that nothing is in yet.

A file's name is bytes to the system, and need not be text: Python then holds lone surrogates, which
no encoding takes. They have one written form, in tables, pages and on terminals: ``caf\udce9``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from notan.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_NAME = 255
"""Bytes; the most that the usual file systems take."""

_SUFFIX = 10
"""Bytes that a temporary name has more: two dots and eight random characters."""

_LONGEST_PORTABLE, _LONGEST_SUFFIX = 120, 10
_DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for itself, whatever follows the dot."""

_ESCAPED = re.compile(r"\\ud[89a-f][0-9a-f]{2}")


def as_written(name: str) -> str:
    r"""Return a file's name as text that any file and terminal takes, readable as far as it can be.

    Example:
        >>> print(as_written("caf\udce9.png"), as_written("café.png"))
        caf\udce9.png café.png
    """
    return encoded(name).decode()


def as_named(written: str) -> str:
    r"""Return the file's name of its written form, as the system knows it.

    Example:
        >>> as_named(as_written("caf\udce9.png")) == "caf\udce9.png"
        True
    """
    return _ESCAPED.sub(lambda found: chr(int(found[0][2:], 16)), written)


def is_text(path: Path) -> bool:
    """Say whether a path is text; some libraries open no other."""
    return as_written(str(path)) == str(path)


def encoded(text: str) -> bytes:
    """Return text in UTF-8, in which the names of files have their written form."""
    return text.encode("utf-8", "backslashreplace")


def portable_name(name: str) -> str:
    r"""Return a name for a file that any usual system takes, of one that somebody else gave it.

    Folders before it are dropped, and so is what begins or ends with a dot or a space; letters of
    all scripts stay. It has at most 120 bytes.

    Example:
        >>> portable_name("../slide 1: left?.png"), portable_name(".."), portable_name("con.png")
        ('slide 1_ left_.png', 'unnamed', 'con_.png')
    """
    plain = unicodedata.normalize("NFC", name).replace("\\", "/").rpartition("/")[2]
    plain = "".join("_" if _is_awkward(letter) else letter for letter in plain).strip(". ")
    stem, dot, suffix = plain.rpartition(".")
    stem, suffix = (stem, dot + suffix) if dot and len(suffix) <= _LONGEST_SUFFIX else (plain, "")
    room = _LONGEST_PORTABLE - len(suffix.encode())
    stem = stem.encode()[:room].decode(errors="ignore").strip(". ") or "unnamed"
    return f"{stem}{'_' * bool(_DEVICES.fullmatch(stem))}{suffix}"


def _is_awkward(letter: str) -> bool:
    """Say whether a character means something to a system, or cannot be seen."""
    return letter in '<>:"|?*' or unicodedata.category(letter)[0] == "C"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of ``path`` only when it is complete.

    The data are flushed to the disk before the rename, so that a crash leaves either the old
    file or the new one, never a part of it. Missing parent folders are made.

    Args:
        path: The file to write.

    Yields:
        A binary file to write into.

    Raises:
        StorageError: The disk is full, or the place cannot be written; nothing is left behind.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name may be as long as the system allows, and the temporary one must not be longer
        start = os.fsdecode(os.fsencode(path.name)[: LONGEST_NAME - _SUFFIX])
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{start}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            set_usual_permissions(Path(temporary))
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or leave what was there.

    Raises:
        StorageError: The file could not be written.
    """
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def storage_errors(path: Path, *, chosen_by: str = "--out") -> Iterator[None]:
    """Turn the operating system's refusal to write ``path`` into a StorageError that names it.

    Args:
        path: What is written.
        chosen_by: The flag or variable that would choose another place.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"{path}: could not be written ({reason}); "
            f"free some space or choose another place with {chosen_by}"
        ) from error


def require_writable(path: Path) -> None:
    """Refuse a place that cannot be written, before the work whose result would go there.

    Raises:
        StorageError: A folder on the way to it is a file, or may not be written.
    """
    with storage_errors(path):
        place = next(each for each in path.absolute().parents if each.exists())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def fresh_folder(base: Path) -> Path:
    """Return ``base``, or ``base-2``, ``base-3`` ... : the first that holds nothing yet."""
    candidate, number = base, 1
    while holds_something(candidate):
        number += 1
        candidate = base.with_name(f"{base.name}-{number}")
    return candidate


def holds_something(folder: Path) -> bool:
    """Say whether a path is taken: a file, or a folder with anything in it."""
    if not folder.is_dir():
        return folder.exists()
    return any(folder.iterdir())


def set_usual_permissions(path: Path) -> None:
    """Undo the owner-only mode of a temporary file, so that it is as readable as any other."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
