"""Runs a command on a leash: ``python -m notan.cli.leashed train ...`` ends with whoever began it.

Its standard input is a pipe of which its beginner alone holds the other end, so that it closes
whatever ends that one, ``kill -9`` too. The command is then told to end as by SIGTERM, and a
training saves its state before it does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from notan.cli.main import main

SECONDS_TO_END = 30.0
"""What takes longer than that to save its state ends without; the last saved one is whole."""

NICENESS = 5
"""The beginner shows a page, and somebody is waiting for that."""


def _end_with_the_leash() -> None:
    descriptor = sys.stdin.fileno()
    while os.read(descriptor, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_END)
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    if hasattr(os, "nice"):  # Windows has none
        os.nice(NICENESS)
    threading.Thread(target=_end_with_the_leash, name="leash", daemon=True).start()
    main()
