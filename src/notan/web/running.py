"""A server from its start to its end: what it has begun it finishes, within a bound."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from types import FrameType

    from starlette.types import ASGIApp

logger = logging.getLogger("notan")

SECONDS_TO_FINISH = 10
MOST_CONNECTIONS = 512
"""Beyond them the answer is 503 at once: each takes memory, even one that sends nothing."""

ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP")


class WebServer(uvicorn.Server):
    """Serves an application on a socket until it is told to stop.

    The first signal lets what was begun finish, for at most so many seconds; a second one ends it
    at once. Either way the process then ends of itself, with exit code 0: to be stopped is how a
    server ends.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        seconds_to_finish: int = SECONDS_TO_FINISH,
        on_stop: Callable[[], object] | None = None,
    ) -> None:
        """Make it ready.

        Args:
            app: The application, a ``Guard`` before it.
            seconds_to_finish: What was begun has so long.
            on_stop: Called with the first signal, in the middle of anything.
        """
        settings = uvicorn.Config(
            app,
            # one event loop and one parser on every machine: the tests know no others. h11 bounds
            # the headers, 64 KiB of them, and nothing of ours speaks WebSocket
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="on",
            interface="asgi3",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the address that a client claims is believed nowhere
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=seconds_to_finish,
        )
        super().__init__(settings)
        self._on_stop = on_stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end a server, and give them back afterwards.

        uvicorn's own raises them again at the end, as if nobody had heeded them.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [getattr(signal, name) for name in ENDINGS if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
        for number in before:
            signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop: at first when what was begun is done, then at once."""
        del frame
        if self.should_exit:
            self.force_exit = True
            return
        logger.info("%s: finishing what was begun", signal.Signals(sig).name)
        self.stop()

    def stop(self) -> None:
        """Take nothing new, finish what was begun and end; from any thread."""
        self.should_exit = True
        if self._on_stop is not None:
            self._on_stop()

    def run_on(self, listener: socket.socket) -> None:
        """Serve on a socket that ``listen`` bound, until it is told to stop."""
        with listener:
            self.run(sockets=[listener])
