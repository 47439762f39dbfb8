"""What a run leaves behind while it goes on: run.toml, history.jsonl, TensorBoard events."""

from __future__ import annotations

import importlib.util
import json
import logging
from typing import TYPE_CHECKING, Any

from notan.config import run_to_toml
from notan.io.write import storage_errors, write_bytes
from notan.run_folder import EVENTS, HISTORY, SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from notan.config import Run
    from notan.types import RGBImage

logger = logging.getLogger("notan")


class RunLog:
    """Writes a run's folder; a context manager, so that events are flushed whatever happens."""

    def __init__(
        self,
        folder: Path,
        run: Run,
        *,
        first_epoch: int = 1,
        own: Callable[[Mapping[str, float]], object] | None = None,
    ) -> None:
        """Write the settings and open the logs.

        Args:
            folder: The run folder.
            run: All settings.
            first_epoch: The epoch that is written next; what a stopped run wrote of it and of
                later ones is dropped.
            own: Called with each epoch's line of the history; what it raises ends the training.

        Raises:
            StorageError: The folder cannot be written.
        """
        self.folder = folder
        self._own = own
        write_bytes(folder / SETTINGS, run_to_toml(run).encode())
        keep_lines(folder / HISTORY, lambda line: line["epoch"] < first_epoch)
        self._events = _open_events(folder / EVENTS, first_epoch) if run.train.tensorboard else None

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
        append_line(self.folder / HISTORY, {"epoch": number, **values})
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, number)
        if self._own:
            self._own({"epoch": number, **values})

    def overlays(self, number: int, named: Iterable[tuple[str, RGBImage]]) -> None:
        """Show images, uint8 (height, width, 3), in TensorBoard; without it none is asked for."""
        if self._events:
            for name, image in named:
                self._events.add_image(f"validation/{name}", image, number, dataformats="HWC")


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add a line of JSON to a .jsonl file.

    Raises:
        StorageError: The disk is full.
    """
    with storage_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines of a .jsonl file that are not wanted, and a last line that was cut short."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    kept = [line for line in whole if wanted(json.loads(line))]
    write_bytes(path, "".join(kept).encode())


def _open_events(folder: Path, first_epoch: int) -> Any:  # noqa: ANN401 - of an optional package
    if importlib.util.find_spec("tensorboard") is None:
        logger.info("TensorBoard is not installed, so no events: pip install 'notan[tensorboard]'")
        return None
    from torch.utils.tensorboard import SummaryWriter

    try:
        with storage_errors(folder):
            return SummaryWriter(str(folder), purge_step=first_epoch)
    except UnicodeEncodeError:  # TensorBoard wants names that are text; the training does not
        logger.warning("%s: no TensorBoard events, for this folder's name is no text", folder)
        return None
