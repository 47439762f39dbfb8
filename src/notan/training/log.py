"""What a run leaves behind while it goes on: run.toml, history.jsonl, and what trackers keep."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from notan.config import run_to_toml, settings_by_name
from notan.io.write import storage_errors, write_bytes
from notan.run_folder import HISTORY, SETTINGS
from notan.training.trackers import Trackers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from notan.config import Run
    from notan.training.trackers import Tracker
    from notan.types import RGBImage


class RunLog:
    """Writes a run's folder; a context manager, so that trackers are closed whatever happens."""

    def __init__(
        self,
        folder: Path,
        run: Run,
        *,
        first_epoch: int = 1,
        own: Tracker | None = None,
        writes: bool = True,
    ) -> None:
        """Write the settings and open the logs.

        Args:
            folder: The run folder.
            run: All settings.
            first_epoch: The epoch that is written next; what a stopped run wrote of it and of
                later ones is dropped.
            own: The user's tracker, beside those that the settings name.
            writes: Of several processes that train together, one writes, and the others nothing.

        Raises:
            StorageError: The folder cannot be written.
        """
        self.folder = folder
        self._writes = writes
        self._run, self._first_epoch = run, first_epoch
        self._trackers = Trackers(run.train.trackers if writes else (), own if writes else None)
        if not writes:
            return
        write_bytes(folder / SETTINGS, run_to_toml(run).encode())
        keep_lines(folder / HISTORY, lambda line: line["epoch"] < first_epoch)

    def __enter__(self) -> RunLog:
        self._trackers.begin(settings_by_name(self._run), self.folder, self._first_epoch)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        self._trackers.end("finished" if kind is None else "stopped" if stopped else "failed")

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """Append one epoch's values to the history, and tell the trackers.

        Raises:
            StorageError: The disk is full.
        """
        if not self._writes:
            return
        append_line(self.folder / HISTORY, {"epoch": number, **values})
        self._trackers.epoch(number, values)

    def overlays(self, number: int, named: Iterable[tuple[str, RGBImage]]) -> None:
        """Show trackers images, uint8 (height, width, 3); where none wants any, none is drawn."""
        if self._trackers.want_images:
            for name, image in named:
                self._trackers.image(number, name, image)

    def card(self, text: str) -> None:
        """Give the trackers the card of the finished model, as JSON."""
        self._trackers.document("card.json", text)


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
