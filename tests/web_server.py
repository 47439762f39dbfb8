"""A server of the tests: an application behind its guard, on a socket, in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from notan.web.addresses import listen
from notan.web.guard import Guard
from notan.web.running import WebServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import ASGIApp

    from notan.web.addresses import Address

PATIENCE = 20.0
"""Seconds until a server that does not begin or end fails its test."""


class Running(NamedTuple):
    """A server that runs."""

    address: Address
    server: WebServer
    thread: threading.Thread

    @property
    def url(self) -> str:
        return self.address.url

    def raw(self, request: bytes, *, patience: float = PATIENCE) -> bytes:
        """Send bytes that no honest client would, and return all that comes back."""
        answer = b""
        where = (self.address.host, self.address.port)
        with socket.create_connection(where, timeout=patience) as client:
            client.sendall(request)
            with contextlib.suppress(ConnectionError):
                while piece := client.recv(65536):
                    answer += piece
        return answer


@contextlib.contextmanager
def running(
    make: Callable[[Address], ASGIApp], *, host: str = "127.0.0.1", seconds_to_finish: int = 5
) -> Iterator[Running]:
    """Serve what is made for an address, and stop it at the end."""
    listener, address = listen(host, 0)
    server = WebServer(make(address), seconds_to_finish=seconds_to_finish)
    thread = threading.Thread(target=server.run_on, args=(listener,), daemon=True)
    thread.start()
    until = time.monotonic() + PATIENCE
    while not server.started:
        assert time.monotonic() < until
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Running(address, server, thread)
    finally:
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def guarded(app: ASGIApp, **settings: object) -> Callable[[Address], Guard]:
    """Return what puts a guard before an application."""
    return lambda address: Guard(app, address, **settings)  # type: ignore[arg-type]
