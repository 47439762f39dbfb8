"""The data doctor's process: ``python -m notan.cli.examining FILE`` writes a check.json.

Its standard input holds the settings of the data in a line, and then stays open for as long as
whoever began it lives: the process ends with that one.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from notan.checking.examine import examine
from notan.config import Data
from notan.errors import NotanError
from notan.io.write import encoded, write_bytes

NICENESS = 19
"""The page and the predictions that it waits for come before it."""


def main() -> int:
    """Examine a data folder; return the exit code."""
    if hasattr(os, "nice"):  # Windows has none
        os.nice(NICENESS)
    data = Data.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_the_beginner, name="leash", daemon=True).start()
    if data.path is None:
        return 2
    try:
        diagnosis = examine(data.path, data, progress=False)
        write_bytes(Path(sys.argv[1]), encoded(diagnosis.to_json()))
    except NotanError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _end_with_the_beginner() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
