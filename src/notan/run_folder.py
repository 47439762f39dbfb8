"""The names in a run folder; claim, resume, refuse, lock.

The run folder: who may write into it, and what an earlier run left there.
"""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from notan.errors import ConfigError
from notan.io.write import storage_errors, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

BEST = "best.safetensors"
HISTORY = "history.jsonl"
SETTINGS = "run.toml"
RECIPE = "auto.toml"
"""What chose the settings, where notan train --auto did, with its reasons."""

SPLIT = "validation.txt"
EVENTS = "tensorboard"
PAGE, CONTENT, CHARTS = "report.html", "report.json", "report"
"""What notan.report adds when the training is over."""

INCIDENTS = "incidents.jsonl"
LOCK = ".lock"
STATES = "last"
FILES = (BEST, HISTORY, SETTINGS, SPLIT, INCIDENTS, PAGE, CONTENT)
"""What a training leaves, beside its states and folders."""


@contextlib.contextmanager
def locked(folder: Path, files: Sequence[str] = FILES) -> Iterator[None]:
    """Keep every other run out of a folder.

    The lock is the operating system's, so it ends with the process whatever ends that, and one
    left by a dead process is no hindrance.

    Args:
        folder: Is made where it is missing.
        files: What a run of this kind leaves there; halves of them that a killed one left go.

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
        _remove_unfinished(folder, files)
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # while it is still ours
        lock.release()


def is_in_use(folder: Path) -> bool:
    """Say whether a training is writing into a folder at this moment."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a folder that may only be read; whose lock it is cannot be told
        return False
    lock.release()
    return False


def _remove_unfinished(folder: Path, names: Sequence[str]) -> None:
    """Remove the temporary files that a killed run was writing when it ended."""
    with storage_errors(folder):
        for path in (
            *(path for name in (*names, RECIPE) for path in folder.glob(f".{name}.*")),
            *(folder / STATES).glob(".*.safetensors.*"),
            *(folder / CHARTS).glob(".*.png.*"),
        ):
            path.unlink(missing_ok=True)


def claim_folder(folder: Path, *, overwrite: bool) -> None:
    """Make sure that a run writes over no other run; nothing is removed yet.

    What a run leaves that was killed before it wrote its settings is nothing.

    Raises:
        ConfigError: The folder holds something and ``overwrite`` is False.
    """
    if _is_taken(folder) and not overwrite:
        raise ConfigError(
            f"{folder}: something is here already; choose another --out, --overwrite it, or go on "
            f"with it: --resume {folder}"
        )


def _is_taken(folder: Path) -> bool:
    if not folder.is_dir():
        return folder.exists()
    names = (path.name for path in folder.iterdir())
    return any(name != LOCK and not name.startswith(f".{SETTINGS}.") for name in names)


def clear_folder(folder: Path, files: Sequence[str] = FILES) -> None:
    """Remove what an earlier run left, so that nothing of it is taken for the new one's.

    Args:
        folder: The run folder.
        files: What a run of this kind leaves there.

    Raises:
        StorageError: The folder is a file, or may not be changed.
    """
    with storage_errors(folder):
        for name in files:
            (folder / name).unlink(missing_ok=True)
        for state in (folder / STATES).glob("[0-9]*.safetensors"):
            state.unlink(missing_ok=True)
    for inner in (EVENTS, CHARTS):
        shutil.rmtree(folder / inner, ignore_errors=True)


def put_recipe(folder: Path, recipe: str | None) -> None:
    """Write the recipe that chose a run's settings, or remove that of an earlier run.

    Raises:
        StorageError: The folder may not be changed.
    """
    if recipe is not None:
        write_bytes(folder / RECIPE, recipe.encode())
        return
    with storage_errors(folder):
        (folder / RECIPE).unlink(missing_ok=True)
