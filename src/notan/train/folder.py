"""The run folder: who may write into it, and what an earlier run left there."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from notan.errors import ConfigError
from notan.files import holds_something, storage_errors
from notan.train.log import BEST, EVENTS, HISTORY, SETTINGS, SPLIT
from notan.train.recovery import INCIDENTS
from notan.train.state import StateFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK = ".lock"
STATES = "last"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other run out of a folder.

    The lock is the operating system's, so it ends with the process whatever ends that, and one
    left by a dead process is no hindrance.

    Raises:
        ConfigError: Another run is writing here.
        StorageError: The folder cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(
                f"{folder}: another training is writing into this folder at this moment; wait for "
                "it, stop it, or choose another --out"
            ) from error
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # while it is still ours
        lock.release()


def claim_folder(folder: Path, *, overwrite: bool) -> None:
    """Make sure that a run writes over no other run; nothing is removed yet.

    Raises:
        ConfigError: The folder holds something and ``overwrite`` is False.
    """
    if holds_something(folder) and not overwrite:
        raise ConfigError(
            f"{folder}: something is here already; choose another --out, --overwrite it, or go on "
            f"with it: --resume {folder}"
        )


def clear_folder(folder: Path) -> None:
    """Remove what an earlier run left, so that nothing of it is taken for the new one's.

    Raises:
        StorageError: The folder is a file, or may not be changed.
    """
    with storage_errors(folder):
        for name in (BEST, HISTORY, SETTINGS, SPLIT, INCIDENTS):
            (folder / name).unlink(missing_ok=True)
    StateFolder(folder / STATES).clear()
    shutil.rmtree(folder / EVENTS, ignore_errors=True)
