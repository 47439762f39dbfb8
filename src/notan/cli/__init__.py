"""The command line: one file for each command."""

import time
from contextvars import ContextVar

BEGAN: ContextVar[float] = ContextVar("BEGAN", default=time.monotonic())  # noqa: B039 - no list
"""The moment at which the command began, by ``time.monotonic()``; time limits count from there."""
