"""A stand-in for Label Studio: keeps files, exchanges a token, exports a project, notes requests.

Its answers have the shapes that Label Studio 1.23.2 gave (benchmarks/label_studio.py asks a real
one).
"""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

PERSONAL, ACCESS, OLDER = "head.body.signature", "an-access-token", "0123456789abcdef0123"
"""A personal access token, what it is exchanged for, and a token of the older kind."""


class StandIn:
    """What there is to fetch, and what was asked.

    Attributes:
        files: Content by path and query; a text is a redirect to it, a number a status.
        tasks: Of every project.
        asked: Method, path and Authorization header of every request.
        accepted: What an Authorization header may be.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes | str | int] = {}
        self.tasks: list[Any] = []
        self.asked: list[tuple[str, str, str]] = []
        self.accepted = {f"Token {OLDER}", f"Bearer {ACCESS}"}
        self.url = ""

    def answer(self, method: str, path: str, authorization: str) -> bytes | str | int:
        self.asked.append((method, path, authorization))
        if (method, path) == ("POST", "/api/token/refresh/"):
            self.accepted.add(f"Bearer {ACCESS}")
            return json.dumps({"access": ACCESS}).encode()
        if authorization not in self.accepted:
            return 401
        if path.endswith("/export?exportType=JSON"):
            return json.dumps(self.tasks).encode()
        return self.files.get(path, 404)

    @property
    def paths(self) -> list[str]:
        return [path for _, path, _ in self.asked]


@contextlib.contextmanager
def stand_in() -> Iterator[StandIn]:
    """Serve it on this machine."""
    studio = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = studio.answer(self.command, self.path, self.headers.get("Authorization", ""))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            moved = 302 if isinstance(found, str) else 200
            content = found if isinstance(found, bytes) else b""
            self.send_response(found if isinstance(found, int) else moved)
            self.send_header("Content-Length", str(len(content)))
            if isinstance(found, str):
                self.send_header("Location", found)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    studio.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield studio
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
