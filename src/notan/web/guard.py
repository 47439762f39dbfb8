"""What stands before an application: only then is a request read, and only so much of it.

In this order: the Host header names this server, so no foreign name leads here (DNS rebinding); a
browser says that no other site asks (Origin, Sec-Fetch-Site); the client knows the token, where
there is one; the body is whole, within its limit and in time. Whatever goes wrong behind it ends in
an answer, and every answer has the headers that keep a browser from making more of it than it is.
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode

from notan.errors import NotanError
from notan.web.answers import RefusedError, error_body, status_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from notan.web.addresses import Address
    from notan.web.keys import Keys

logger = logging.getLogger("notan")

CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""What a page of ours may load: our own files, and images that it made itself."""

HEADERS = (
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("x-frame-options", "DENY"),
)
"""On every answer; there is never one that lets another origin read it (CORS)."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_SITES = ("same-origin", "none")
"""Values of Sec-Fetch-Site: a page of ours, or somebody who typed the address."""

ONE_TIME = "t"
"""The query's name of a one-time token."""

LINGER_SECONDS, LINGER_PAUSE_SECONDS = 5.0, 1.0
"""How long the rest of a refused body is passed by, in all and without a single byte."""


@dataclass(frozen=True)
class BodyLimits:
    """How much may come in.

    Attributes:
        most_bytes: Of one body.
        most_bytes_together: Of all bodies that are held at once.
        pause_seconds: At most between two pieces of a body.
        seconds: At most for the whole of it.
    """

    most_bytes: int = 25_000_000
    most_bytes_together: int = 250_000_000
    pause_seconds: float = 10.0
    seconds: float = 60.0


class Guard:
    """Wraps an application of ASGI."""

    def __init__(
        self,
        app: ASGIApp,
        address: Address,
        *,
        keys: Keys | None = None,
        open_paths: Collection[str] = (),
        limits: BodyLimits | None = None,
        larger_bodies: Mapping[str, int] | None = None,
        content_policy: str = CONTENT_POLICY,
    ) -> None:
        """Stand before an application.

        Args:
            app: What answers the requests that are let through; it finds their bodies whole.
            address: Where the server listens.
            keys: Who is let in; None: every program on this machine.
            open_paths: What is answered without a token, for programs that only ask whether the
                server lives.
            limits: Of bodies.
            larger_bodies: Bytes of a body for paths that begin so, instead of the limit.
            content_policy: The Content-Security-Policy of every answer.
        """
        self.app, self.address, self.keys = app, address, keys
        self.open_paths = frozenset(open_paths)
        self.limits = limits or BodyLimits()
        self.larger_bodies = dict(larger_bodies or {})
        self.headers = [
            (name.encode(), value.encode())
            for name, value in (*HEADERS, ("content-security-policy", content_policy))
        ]
        self.held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket: nothing of ours speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = _Answer(send, self.headers)
        body = _Body(self, scope, receive)
        try:
            request = _Request(scope)
            self._refuse_foreign(request, scope)
            if (location := self._let_in(request, scope)) is not None:
                await answer.redirect(*location)
                return
            await body.read()
            await self.app(scope, body.replay, answer.send)
        except NotanError as error:
            await answer.refuse(error, body)
        except asyncio.CancelledError:  # the server ends, and nothing waits for this task but that
            await answer.refuse(RefusedError(503, "the server was stopped before this was done"))
        except Exception:
            logger.exception("a request to %r ended in an error of notan's", scope["path"])
            await answer.refuse(RefusedError(500, "notan failed; its log says where"))
        finally:
            body.release()

    def _refuse_foreign(self, request: _Request, scope: Scope) -> None:
        """Refuse what a page of another site made a browser send.

        Raises:
            RefusedError: It is so, or no browser or honest client would send it.
        """
        if len(request.hosts) != 1:
            raise RefusedError(400, f"{len(request.hosts)} Host headers; one is wanted")
        host = request.hosts[0].lower()
        server = scope.get("server") or (None,)
        if not self.address.is_ours(host, server[0]):
            raise RefusedError(
                403,
                "the Host header does not name this server; ask for it as "
                f"{self.address.url}, or name what else it is called when you start it",
            )
        origin = request.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise RefusedError(403, "a page of another origin sent this; only our own may")
        site = request.get("sec-fetch-site")
        is_link = scope["method"] == "GET" and request.get("sec-fetch-mode") == "navigate"
        if site is not None and site not in OWN_SITES and not is_link:
            raise RefusedError(403, "a page of another site sent this; only our own may")

    def _let_in(self, request: _Request, scope: Scope) -> tuple[str, str] | None:
        """Let in who has a key.

        Returns:
            Where to go instead and the cookie to take there, of who came with a one-time token.

        Raises:
            RefusedError: No key, or a wrong one.
        """
        if self.keys is None or scope["path"] in self.open_paths:
            return None
        port = self.address.port
        has_token = self.keys.knows_bearer(request.get("authorization"))
        has_cookie = self.keys.knows_cookie(request.get("cookie"), port)
        if scope["method"] == "GET" and not has_token and ONE_TIME in request.query:
            if self.keys.spend(request.query[ONE_TIME]) or has_cookie:
                return _without_token(scope, request), self.keys.set_cookie(port)
        elif has_token:
            return None
        elif has_cookie:
            is_told = request.get("origin") or request.get("sec-fetch-site")
            if scope["method"] in SAFE_METHODS or is_told:
                return None
            raise RefusedError(403, "a browser must say which page sends this (Origin); none did")
        raise RefusedError(
            401,
            "a token is wanted: send the header 'Authorization: Bearer TOKEN', or open the "
            "address that was printed when the server began, which is good for one time",
            {"www-authenticate": "Bearer"},
        )

    def limit_of(self, path: str) -> int:
        """Return how many bytes a body to a path may have."""
        larger = (most for start, most in self.larger_bodies.items() if path.startswith(start))
        return next(larger, self.limits.most_bytes)


def _without_token(scope: Scope, request: _Request) -> str:
    """Return the same address without its one-time token; always one of this server's."""
    path = "/" + quote(scope["path"].lstrip("/\\"))
    rest = urlencode({name: each for name, each in request.query.items() if name != ONE_TIME})
    return f"{path}?{rest}" if rest else path


class _Request:
    """The headers and the query of a request."""

    def __init__(self, scope: Scope) -> None:
        self._headers = [(name.decode("latin-1"), value) for name, value in scope["headers"]]
        self.hosts = [value.decode("latin-1") for name, value in self._headers if name == "host"]
        query = scope.get("query_string", b"").decode("latin-1")
        try:
            self.query = dict(parse_qsl(query, max_num_fields=100))
        except ValueError as error:
            raise RefusedError(400, "more than 100 things in the query") from error

    def get(self, name: str) -> str | None:
        """Return a header, the first of several; None: there is none."""
        found = (value.decode("latin-1") for key, value in self._headers if key == name)
        return next(found, None)


class _Body:
    """Reads the body of a request before anything else is done about it."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive) -> None:
        self._guard, self._receive = guard, receive
        self._most = guard.limit_of(scope["path"])
        self._request = scope
        self._content: bytes | None = b""
        self._pieces: list[bytes] = []
        self._held = 0
        self.is_at_end = False

    async def read(self) -> None:
        """Read it to its end.

        Raises:
            RefusedError: It is too large, too slow, or there is no room for it now.
        """
        self._refuse_claim()
        limits = self._guard.limits
        loop = asyncio.get_running_loop()
        until = loop.time() + limits.seconds
        while True:
            patience = min(limits.pause_seconds, until - loop.time())
            try:
                message = await asyncio.wait_for(self._receive(), max(patience, 0))
            except TimeoutError as error:
                raise RefusedError(408, "the body came too slowly; send it again") from error
            if message["type"] == "http.disconnect":
                raise RefusedError(400, "the client went away before its body was there")
            piece = message.get("body", b"")
            self.is_at_end = not message.get("more_body", False)
            self._hold(len(piece))
            self._pieces.append(piece)
            if self.is_at_end:
                break
        self._content = b"".join(self._pieces)
        self._pieces.clear()

    def _refuse_claim(self) -> None:
        """Refuse by its header alone what would be too large."""
        for name, value in self._request["headers"]:
            if name == b"content-length":
                if not re.fullmatch(rb"\d{1,18}", value):
                    raise RefusedError(400, "the Content-Length header is no number of bytes")
                self._refuse_size(int(value))

    def _refuse_size(self, size: int) -> None:
        if size > self._most:
            raise RefusedError(413, f"the body has more than {self._most:,} bytes; send less")

    def _hold(self, size: int) -> None:
        self._held += size
        self._guard.held_bytes += size
        self._refuse_size(self._held)
        if self._guard.held_bytes > self._guard.limits.most_bytes_together:
            raise RefusedError(
                429, "the server holds all the bodies that it has room for", {"retry-after": "1"}
            )

    async def pass_by(self) -> None:
        """Throw away what else of it comes, for a while.

        A connection that is closed while its client still sends is reset, and the client loses the
        answer that says why.
        """
        self.release()
        loop = asyncio.get_running_loop()
        until = loop.time() + LINGER_SECONDS
        while not self.is_at_end and (left := until - loop.time()) > 0:
            try:
                message = await asyncio.wait_for(self._receive(), min(LINGER_PAUSE_SECONDS, left))
            except TimeoutError:
                return
            self.is_at_end = not message.get("more_body", False)

    def release(self) -> None:
        """Give the room back."""
        self._guard.held_bytes -= self._held
        self._held, self._content = 0, None
        self._pieces.clear()

    async def replay(self) -> Message:
        """Give the body to the application, and after it what else comes: the client's leaving."""
        if self._content is None:
            return await self._receive()
        content, self._content = self._content, None
        return {"type": "http.request", "body": content, "more_body": False}


class _Answer:
    """Sends an answer with the headers that each one has, and no second one."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send, self._headers = send, headers
        self._has_begun = False

    async def send(self, message: Message) -> None:
        """Pass a message of the application's on."""
        if message["type"] == "http.response.start":
            self._has_begun = True
            given = list(message.get("headers", []))
            names = {name.lower() for name, _ in given}
            if b"cache-control" not in names:
                given.append((b"cache-control", b"no-store"))
            message = {**message, "headers": given + self._headers}
        await self._send(message)

    async def refuse(self, error: NotanError, body: _Body | None = None) -> None:
        """Answer with an error, unless an answer has begun; then pass by the body it came with."""
        if self._has_begun:
            return
        more = error.headers if isinstance(error, RefusedError) else {}
        headers = {"content-type": "application/json", **more}
        # what is left of a refused body would be taken for the next request
        headers["connection"] = "close"
        await self._whole(status_of(error), headers, error_body(str(error)), body)

    async def redirect(self, location: str, cookie: str) -> None:
        """Send a browser to an address of ours, with a cookie."""
        headers = {"location": location, "set-cookie": cookie}
        await self._whole(HTTPStatus.SEE_OTHER, headers, b"")

    async def _whole(
        self, status: int, headers: Mapping[str, str], content: bytes, body: _Body | None = None
    ) -> None:
        given: list[tuple[bytes, bytes]] = [(b"content-length", str(len(content)).encode())]
        given += [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": given}
        await self.send(start)
        rest = None if body is None or body.is_at_end else body
        more = rest is not None
        await self.send({"type": "http.response.body", "body": content, "more_body": more})
        if rest is not None:
            await rest.pass_by()
            await self.send({"type": "http.response.body", "body": b""})
