"""What a run leaves behind while it goes on: run.toml, history.jsonl, TensorBoard events."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from typing import TYPE_CHECKING, Any

from notan.config import run_to_toml
from notan.errors import ConfigError
from notan.files import holds_something, storage_errors, write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from notan.config import Run
    from notan.types import Picture

logger = logging.getLogger("notan")

BEST = "best.safetensors"
HISTORY = "history.jsonl"
SETTINGS = "run.toml"
SPLIT = "validation.txt"
EVENTS = "tensorboard"


class RunLog:
    """Writes a run's folder; a context manager, so that events are flushed whatever happens."""

    def __init__(self, folder: Path, run: Run) -> None:
        """Write the settings and open the logs.

        Raises:
            StorageError: The folder cannot be written.
        """
        self.folder = folder
        write_bytes(folder / SETTINGS, run_to_toml(run).encode())
        self._events = _open_events(folder / EVENTS) if run.train.tensorboard else None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._events:
            self._events.close()

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """Append one epoch's values to the history and to TensorBoard.

        Raises:
            StorageError: The disk is full.
        """
        path = self.folder / HISTORY
        with storage_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": number, **values}) + "\n")
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, number)

    def overlays(self, number: int, named: Sequence[tuple[str, Picture]]) -> None:
        """Show pictures, uint8 (height, width, 3), in TensorBoard."""
        if self._events:
            for name, picture in named:
                self._events.add_image(f"validation/{name}", picture, number, dataformats="HWC")


def claim_folder(folder: Path, *, overwrite: bool) -> None:
    """Make sure that a run writes over no other run; nothing is removed yet.

    Raises:
        ConfigError: The folder holds something and ``overwrite`` is False.
    """
    if holds_something(folder) and not overwrite:
        raise ConfigError(
            f"{folder}: something is here already; choose another --out, or --overwrite it"
        )


def clear_folder(folder: Path) -> None:
    """Remove what an earlier run left, so that nothing of it is taken for the new one's.

    Raises:
        StorageError: The folder is a file, or may not be changed.
    """
    with storage_errors(folder):
        for name in (BEST, HISTORY, SETTINGS, SPLIT):
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / EVENTS, ignore_errors=True)


def _open_events(folder: Path) -> Any:  # noqa: ANN401 - SummaryWriter is of an optional package
    if importlib.util.find_spec("tensorboard") is None:
        logger.info("TensorBoard is not installed, so no events: pip install 'notan[tensorboard]'")
        return None
    from torch.utils.tensorboard import SummaryWriter

    with storage_errors(folder):
        return SummaryWriter(str(folder))
