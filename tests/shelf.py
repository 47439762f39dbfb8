"""A server on this machine that answers, breaks off and misbehaves to order."""

from __future__ import annotations

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class Shelf(ThreadingHTTPServer):
    """A server of a few files in memory, and a list of what was asked of it."""

    daemon_threads = False  # closing waits for every answer, so that no socket outlives its test

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.drops = 0  # how many answers break off half-way
        self.errors: list[int] = []  # statuses to answer with first
        self.knows_ranges = True
        self.shift = 0  # send a range that begins this much too late
        self.redirect: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data/"

    @property
    def ranges(self) -> list[str | None]:
        return [span for _, span in self.requests]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay quiet when a client leaves in the middle of an answer."""


class Answer(BaseHTTPRequestHandler):
    server: Shelf

    def do_GET(self) -> None:
        shelf, span = self.server, self.headers.get("Range")
        shelf.requests.append((self.path, span))
        content = shelf.files.get(self.path.removeprefix("/data/"))
        if shelf.redirect:
            self.send_response(302)
            self.send_header("Location", shelf.redirect)
            self.end_headers()
        elif shelf.errors:
            self.send_error(shelf.errors.pop(0))
        elif content is None:
            self.send_error(404)
        elif span is None or not shelf.knows_ranges:
            self._send(200, content, {})
        else:
            self._send_from(int(re.findall(r"bytes=(\d+)-$", span)[0]), content)

    def _send_from(self, start: int, content: bytes) -> None:
        if start >= len(content):
            self.send_error(416)
            return
        start += self.server.shift
        stated = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206, content[start:], {"Content-Range": stated})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.server.drops:
            self.server.drops -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Stay quiet."""


@contextlib.contextmanager
def serving() -> Iterator[Shelf]:
    """Serve an empty shelf."""
    with Shelf() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
