"""A real S3 server in this process, moto's, and a proxy before it that fails as networks do."""

from __future__ import annotations

import gc
import http.client
import importlib.util
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Fault = Literal["busy", "broken", "lost", "silent", "cut"]
"""503 SlowDown; 500; the connection ends after the work is done; no answer comes after the work is
done; the answer ends half-way."""

BUCKET = "bucket"
PARTS = ("moto", "flask", "flask_cors", "s3fs", "boto3")
NEEDS_S3 = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, PARTS)),
    reason="an S3 server is absent: pip install 'moto[s3]' flask flask-cors s3fs",
)
SECRET = "c3VwZXItc2VjcmV0"  # noqa: S105 - moto takes any


class Proxy(ThreadingHTTPServer):
    """Passes requests on, and fails where it is told to.

    Attributes:
        fault: Is asked of each request, by method, path and how often the same came before.
        seen: Method and path of each.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = port
        self.fault: Callable[[str, str, int], Fault | None] = lambda *_: None
        self.seen: list[tuple[str, str]] = []
        self.counts: Counter[tuple[str, str, str | None]] = Counter()
        self.closed = threading.Event()

    def of(self, method: str, part: str = "") -> list[str]:
        """Return the paths of the requests of a method that hold a word."""
        return [path for each, path in self.seen if each == method and part in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = self.path.partition("?")[0]
        key = (self.command, self.path, self.headers.get("Range"))
        fault = self.server.fault(self.command, path, self.server.counts[key])
        self.server.counts[key] += 1
        self.server.seen.append((self.command, path))
        if fault in ("busy", "broken"):
            code, name = (503, "SlowDown") if fault == "busy" else (500, "InternalError")
            text = f"<Error><Code>{name}</Code><Message>a moment, please</Message></Error>"
            self._answer(code, {"Content-Type": "application/xml"}, text.encode())
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=20)
        headers = {name: value for name, value in self.headers.items() if name != "Connection"}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        if fault == "silent":
            self.server.closed.wait(20)
        if fault in ("lost", "silent"):
            self.close_connection = True
            return
        told = {name: value for name, value in answer.getheaders() if name != "Connection"}
        self._answer(answer.status, told, content, half=fault == "cut")
        upstream.close()

    def _answer(
        self, code: int, headers: dict[str, str], content: bytes, *, half: bool = False
    ) -> None:
        self.send_response_only(code)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = len(content)
        if self.command == "HEAD":
            length = next(
                (int(value) for name, value in headers.items() if name.lower() == "content-length"),
                0,
            )
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if half else content)
        if half:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on  # noqa: N815 - http.server's names


@contextmanager
def s3_server() -> Iterator[Proxy]:
    """Run a server with an empty bucket, to which the variables of this process lead."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    proxy = Proxy(port)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
            patch.setenv("AWS_ACCESS_KEY_ID", "testing")
            patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            patch.setattr(s3fs.S3FileSystem, "retries", 2)  # it waits between them
            s3fs.S3FileSystem.clear_instance_cache()
            client = boto3.client("s3")
            client.create_bucket(Bucket=BUCKET)
            client.close()
            yield proxy
            s3fs.S3FileSystem.clear_instance_cache()
            gc.collect()  # its sockets are closed here, not in somebody else's test
    finally:
        proxy.closed.set()
        proxy.shutdown()
        proxy.server_close()
        thread.join(10)
        server.stop()
