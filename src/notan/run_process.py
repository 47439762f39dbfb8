"""The process that trains: a real ``notan train``, begun, stopped and waited for."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from notan.io.write import storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

COMMAND = (sys.executable, "-m", "notan.cli.leashed")
SECONDS_TO_SAVE = 40.0
"""That a training has to save its state once it is told to stop."""

MOST_LOG_BYTES = 20_000
"""Of the end of a log that is searched for what went wrong."""


class TrainingProcess:
    """One training in a process of its own, which ends with this one whatever ends that."""

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        *,
        chosen_by: str = "--corrections",
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Begin it.

        Args:
            words: What stands after ``notan``.
            log: What it says goes to the end of this file.
            chosen_by: The flag that would choose another place for the log.
            variables: Of its environment, beside this process's.

        Raises:
            StorageError: The log cannot be written, or no process can be begun.
        """
        self._log = log
        with storage_errors(log, chosen_by=chosen_by):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as file:
                self._said_before = file.tell()
                self._process = subprocess.Popen(  # noqa: S603 - our own words
                    [*COMMAND, *words],
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(variables or {})},
                    # a terminal's Ctrl-C is for the beginner, who then tells it to stop, once
                    start_new_session=True,
                )

    def stop(self) -> None:
        """Tell it to save its state and end; it takes a moment."""
        with contextlib.suppress(OSError):
            self._process.terminate()

    def wait(self) -> int:
        """Wait until it ends of itself; return its exit code."""
        code = self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        return code

    def end(self) -> None:
        """Stop it, and end it where it does not stop."""
        self.stop()
        try:
            self._process.wait(SECONDS_TO_SAVE)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def fault(self) -> str:
        """Return the line in which it said why it ended."""
        try:
            with self._log.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(self._said_before, size - MOST_LOG_BYTES))
                said = file.read().decode("utf-8", "replace")
        except OSError as error:
            return f"its log cannot be read ({error})"
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        named = [line for line in lines if line.startswith("notan: ")]
        if named or lines:
            return (named or lines)[-1].removeprefix("notan: ")
        return f"the training ended without a word (exit code {self._process.returncode})"
