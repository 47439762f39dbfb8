"""The run folder: the names in it, who may write into it, and what an earlier run left there."""

from __future__ import annotations

import contextlib
import logging
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from notan.config import changed_settings
from notan.errors import CheckpointError, ConfigError
from notan.io.write import storage_errors

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from pydantic import BaseModel

logger = logging.getLogger("notan")

BEST = "best.safetensors"
HISTORY = "history.jsonl"
SETTINGS = "run.toml"
RECIPE = "auto.toml"
"""What chose the settings, where notan train --auto did, with its reasons."""

FOLD_SETTINGS = "folds.toml"
"""Of a cross-validation, in a folder that holds a run folder for each fold."""

SPLIT = "validation.txt"
EVENTS, MLFLOW, WANDB = "tensorboard", "mlflow", "wandb"
TRACKED = "trackers.json"
"""What trackers call the run, so that it goes on there too."""

PAGE, CONTENT, CHARTS = "report.html", "report.json", "report"
"""What notan.report adds when the training is over."""

PROFILE, PROFILE_PAGE = "profile.json", "profile.md"
"""What --profile adds."""

INCIDENTS = "incidents.jsonl"
LOCK = ".lock"
STATES = "last"
STATE_FILES = "[0-9]*.safetensors"
FILES = (
    *(BEST, HISTORY, SETTINGS, SPLIT, INCIDENTS, PAGE, CONTENT, RECIPE),
    *(PROFILE, PROFILE_PAGE, TRACKED),
)
"""What a training leaves, beside its states and folders."""


@dataclass(frozen=True)
class RunFolder:
    """A folder that one kind of run keeps its files in, and that one run at a time writes into.

    A new run claims the folder, is built, and clears it under the lock; one that goes on reads its
    settings, refuses others, and begins again where it was stopped before its first state.

    Attributes:
        path: The folder.
        noun: What such a run is called.
        again: The command that begins it anew.
        settings: The file of its settings.
        result: The file that is of worth even where the run cannot go on.
        files: All files that it leaves, beside its states and folders.
    """

    path: Path
    noun: str = "run"
    again: str = "notan train --recipe {settings} --out {path}-again"
    settings: str = SETTINGS
    result: str = BEST
    files: tuple[str, ...] = FILES

    def claim(self, *, overwrite: bool) -> None:
        """Make sure that a run writes over no other run; nothing is removed yet.

        What a run leaves that was killed before it wrote its settings is nothing.

        Raises:
            ConfigError: The folder holds something and ``overwrite`` is False.
        """
        if self._is_taken() and not overwrite:
            raise ConfigError(
                f"{self.path}: something is here already; choose another --out, --overwrite it, "
                f"or go on with it: --resume {self.path}"
            )

    def _is_taken(self) -> bool:
        if not self.path.is_dir():
            return self.path.exists()
        names = (path.name for path in self.path.iterdir())
        return any(name != LOCK and not name.startswith(f".{self.settings}.") for name in names)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other run out, and remove the halves of files that a killed one left.

        The lock is the operating system's, so it ends with the process whatever ends that, and one
        left by a dead process is no hindrance. The folder is made where it is missing.

        Raises:
            ConfigError: Another run is writing here.
            StorageError: The folder cannot be written.
        """
        folder = self.path
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / LOCK)
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise ConfigError(
                    f"{folder}: another training is writing into this folder at this moment; wait "
                    "for it, stop it, or choose another --out"
                ) from error
        try:
            halves = (*(f".{name}.*" for name in self.files), f"{STATES}/.*.safetensors.*")
            self._remove(*halves, f"{CHARTS}/.*.png.*")
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)  # while it is still ours
            lock.release()

    def clear(self, *, keep: tuple[str, ...] = ()) -> None:
        """Remove what an earlier run left, so that nothing of it is taken for the new one's.

        Args:
            keep: Files that are left.

        Raises:
            StorageError: The folder is a file, or may not be changed.
        """
        self._remove(*{*self.files} - {*keep}, f"{STATES}/{STATE_FILES}")
        for inner in (EVENTS, MLFLOW, WANDB, CHARTS):
            shutil.rmtree(self.path / inner, ignore_errors=True)

    def _remove(self, *patterns: str) -> None:
        with storage_errors(self.path):
            for pattern in patterns:
                for path in self.path.glob(pattern):
                    path.unlink(missing_ok=True)

    def find_settings(self) -> Path:
        """Return the file with a run's settings.

        Raises:
            ConfigError: There is no such run in the folder.
        """
        path = self.path / self.settings
        if not path.is_file():
            raise ConfigError(
                f"{self.path}: there is no {self.noun} here to go on with "
                f"({self.settings} is missing)"
            )
        return path

    def begin_again(self) -> None:
        """Clear the folder of a run that was stopped before its first state.

        Raises:
            CheckpointError: It has states, and all are damaged: its result may still be of worth.
        """
        if any((self.path / STATES).glob(STATE_FILES)):
            kept = (self.path / self.result).exists()
            best = f" {self.result} is kept and can still be used;" if kept else ""
            raise CheckpointError(
                f"{self.path}: no saved state in {STATES}/ can be read, so the run cannot go on;"
                f"{best} train it anew with: "
                + self.again.format(settings=self.path / self.settings, path=self.path)
            )
        logger.info("%s was stopped before its first state: beginning again", self.path)
        self.clear(keep=(RECIPE,))


def refuse_changes(
    stored: BaseModel, now: BaseModel, *, harmless: Collection[str] | None, hint: str = ""
) -> None:
    """Refuse settings that make a run another one; say which others have changed.

    Args:
        stored: What the run was started with.
        now: What it is to go on with.
        harmless: Dotted names of settings that may differ: they decide where and how long;
            None: all may.
        hint: What else can be done, after "start a new one".

    Raises:
        ConfigError: Other settings differ.
    """
    changed = changed_settings(stored, now)
    for name, (before, after) in changed.items():
        logger.info("changed since the run began: %s, %s -> %s", name, before, after)
    if harmless is None:
        return
    other = [
        f"{name} ({before} -> {after})"
        for name, (before, after) in changed.items()
        if name not in harmless
    ]
    if other:
        raise ConfigError(f"{', '.join(other)} would make it another run; start a new one{hint}")


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
