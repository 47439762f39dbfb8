"""Inputs in stores: each is fetched by who predicts it, when it is needed, and then is as a file.

A few are asked for at once and ahead of their turn, for a store answers late and many at a time.
What is small comes into memory; what is large, and what only opens as a file, gets a copy on the
disk for as long as it is read.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from notan.errors import DataError
from notan.io import remote
from notan.io.digest import WHOLE
from notan.io.packed import is_member
from notan.io.remote import is_remote, shown
from notan.io.write import portable_name, storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from concurrent.futures import Future

T = TypeVar("T")

AHEAD = 8
"""Files that are fetched at once, or wait for their turn."""


def is_fetched(path: Path) -> bool:
    """Say whether a path must be fetched; files in shards are read by their own way."""
    return is_remote(path) and not is_member(path)


def fetch(path: Path) -> bytes | None:
    """Return the content of a file in a store; None: it is too large for the memory.

    Raises:
        DataError: There is none, or the store does not answer.
    """
    with _missing_said(path):
        content = remote.read_start(path, WHOLE + 1)
    return content if len(content) <= WHOLE else None


def ahead(things: Iterable[T], work: Callable[[T], T]) -> Generator[T, None, None]:
    """Yield what becomes of each, in order; a few are worked on before their turn."""
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(AHEAD, "fetch")
    try:
        for thing in things:
            waiting.append(pool.submit(work, thing))
            if len(waiting) == AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def local_copy(path: Path, content: bytes | None = None) -> Iterator[Path]:
    """Put a file of a store on the disk while it is read; what is said of it names its address.

    Args:
        path: Its address.
        content: What it holds, where that is known.

    Yields:
        The file.

    Raises:
        DataError: There is none, or the store does not answer.
        StorageError: The disk is full.
    """
    with contextlib.ExitStack() as stack:
        with storage_errors(Path(tempfile.gettempdir()), chosen_by="TMPDIR"):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="notan-"))
        local = Path(folder, portable_name(path.name))
        if content is None:
            with _missing_said(path):
                remote.copy_file(path, local)
        else:
            with storage_errors(local, chosen_by="TMPDIR"):
                local.write_bytes(content)
        with naming(path, local):
            yield local


@contextlib.contextmanager
def naming(path: Path, local: Path) -> Iterator[None]:
    """Have an error say the address of a file, not where its copy lies."""
    try:
        yield
    except DataError as error:
        error.args = (str(error).replace(str(local), shown(path)),)
        raise


@contextlib.contextmanager
def _missing_said(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            f"{shown(path)}: there is no such file in the store; check the address"
        ) from error
