"""Label Studio's address: the only one that the server ever asks, and only for what it needs.

What a request says never decides where the server connects. The host comes from the command line;
of what a task names as its image only the path is taken, and of paths only those under which Label
Studio keeps files of its own. Redirects are not followed and no proxy is asked.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from notan.errors import ConfigError
from notan.web.answers import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

SECONDS = 10.0
"""Without a single byte."""

MOST_SECONDS = 60.0
"""For the whole of an answer."""

MOST_JSON_BYTES = 500_000_000
"""Of the annotations of a project; a brush takes some tens of kilobytes."""

CHUNK = 2**16
PORTS = {"http": 80, "https": 443}
LONGEST_REFERENCE = 4096

UPLOADS = ("", "data", "upload")
LOCAL_FILES = "/data/local-files/"


class Origin:
    """One Label Studio, and the token that it lets us in with."""

    def __init__(self, url: str, token: str, most_bytes: int) -> None:
        """Note where it is; nothing is asked yet.

        Args:
            url: Scheme, host and port, such as ``http://localhost:8080``.
            token: A personal access token, or one of the older kind.
            most_bytes: Of one image.

        Raises:
            ConfigError: The address is none.
        """
        self._parts = _parts_of(url)
        self.url = f"{self._parts.scheme}://{self._parts.netloc}"
        self.most_bytes = most_bytes
        self._token = token
        self._access: str | None = None
        self._lock = threading.Lock()

    def image(self, reference: object) -> bytes:
        """Return the file of a task's image.

        Args:
            reference: What the task says; see ``path_of``.

        Raises:
            RefusedError: It is no file of Label Studio's, is too large, or cannot be had.
        """
        return self._get(self.path_of(reference), self.most_bytes, "the image")

    def tasks(self, project: int) -> list[Any]:
        """Return the annotated tasks of a project as Label Studio exports them.

        Raises:
            RefusedError: They cannot be had.
        """
        path = f"/api/projects/{project}/export?exportType=JSON"
        what = f"the annotations of project {project}"
        content = self._get(path, MOST_JSON_BYTES, what)
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RefusedError(502, f"{self.url}: {what} came as no JSON ({error})") from error
        if not isinstance(found, list):
            raise RefusedError(502, f"{self.url}: {what} came as no list of tasks")
        return found

    def path_of(self, reference: object) -> str:
        """Return the path and query to ask for, of what a task names as its image.

        Raises:
            RefusedError: It lies elsewhere, or is no file that Label Studio keeps.
        """
        wanted = (
            f"wanted a file that {self.url} keeps: /data/upload/... or /data/local-files/?d=..."
        )
        if not isinstance(reference, str) or len(reference) > LONGEST_REFERENCE:
            raise RefusedError(422, f"a task's image is no text of a path; {wanted}")
        try:
            found = urlsplit(reference)
            is_here = not (found.scheme or found.netloc) or _is_same(found, self._parts)
        except ValueError:
            is_here = False
        if not is_here:
            raise RefusedError(422, f"a task's image lies at another address; {wanted}")
        if (path := _kept_path(found)) is None:
            raise RefusedError(422, f"a task's image has a path that is not fetched; {wanted}")
        return path

    def _get(self, path: str, most: int, what: str) -> bytes:
        status, content = self._ask("GET", path, most, what)
        if status == http.client.UNAUTHORIZED and self._is_personal:
            self._access = None  # it is good for minutes only
            status, content = self._ask("GET", path, most, what)
        if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            raise RefusedError(
                502,
                f"{self.url} refuses {what} to this token ({status}); make a personal access "
                "token in Label Studio under Account & Settings, and start the server with it",
            )
        if status != http.client.OK:
            raise RefusedError(502, f"{self.url} answered {status} for {what}; wanted 200")
        return content

    @property
    def _is_personal(self) -> bool:
        """Whether the token must be exchanged: it is a JSON web token."""
        return self._token.count(".") == 2

    def _authorization(self) -> str:
        if not self._is_personal:
            return f"Token {self._token}"
        with self._lock:
            if self._access is None:
                asked = json.dumps({"refresh": self._token}).encode()
                what = "the exchange of the token"
                status, content = self._send("POST", "/api/token/refresh/", {}, CHUNK, what, asked)
                self._access = _access_of(content) if status == http.client.OK else None
            if self._access is None:
                raise RefusedError(
                    502, f"{self.url} does not know the personal access token; make another"
                )
            return f"Bearer {self._access}"

    def _ask(self, method: str, path: str, most: int, what: str) -> tuple[int, bytes]:
        return self._send(method, path, {"Authorization": self._authorization()}, most, what)

    def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        most: int,
        what: str,
        body: bytes | None = None,
    ) -> tuple[int, bytes]:
        """Send one request; return the status and the content of its answer."""
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        host, port = str(self._parts.hostname), self._parts.port
        connection = kinds[self._parts.scheme](host, port, timeout=SECONDS)
        usual = {"User-Agent": "notan", "Accept-Encoding": "identity"}
        if body is not None:
            usual["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body, {**usual, **headers})
            answer = connection.getresponse()
            return answer.status, self._read(answer, most, what)
        except (OSError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RefusedError(502, f"{self.url} did not send {what} ({reason})") from error
        finally:
            connection.close()

    def _read(self, answer: http.client.HTTPResponse, most: int, what: str) -> bytes:
        until, pieces, held = time.monotonic() + MOST_SECONDS, [], 0
        while piece := answer.read1(CHUNK):
            pieces.append(piece)
            held += len(piece)
            if held > most:
                raise RefusedError(413, f"{what} has more than {most:,} bytes")
            if time.monotonic() > until:
                raise RefusedError(504, f"{self.url} sends {what} too slowly")
        if answer.length:  # fewer bytes than it said
            raise RefusedError(502, f"{self.url} sent only a part of {what}")
        return b"".join(pieces)


def _parts_of(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one or parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(
            f"--label-studio {url}: is no address of a Label Studio; wanted scheme, host and port "
            "alone, such as http://localhost:8080"
        )
    return parts


def _is_same(one: SplitResult, other: SplitResult) -> bool:
    return "@" not in one.netloc and _place(one) == _place(other)


def _place(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or PORTS.get(parts.scheme)


def _kept_path(parts: SplitResult) -> str | None:
    """Return a path and query, written anew from their parts; None: it is none that is fetched."""
    path = unquote(parts.path)
    if path == LOCAL_FILES:
        query = parse_qsl(parts.query, keep_blank_values=True)
        if len(query) != 1 or query[0][0] != "d" or not _is_plain(query[0][1].split("/")):
            return None
        return f"{LOCAL_FILES}?d={quote(query[0][1])}"
    pieces = path.split("/")
    is_kept = tuple(pieces[:3]) == UPLOADS and len(pieces) == 5 and _is_plain(pieces[3:])
    return quote(path) if is_kept and not parts.query else None


def _is_plain(pieces: list[str]) -> bool:
    """Say whether each piece of a path is a name."""
    return all(
        piece not in ("", ".", "..") and piece.isprintable() and "\\" not in piece
        for piece in pieces
    )


def _access_of(content: bytes) -> str | None:
    """Return the token that a personal one was exchanged for; it stands in a header later."""
    try:
        found = json.loads(content).get("access")
    except (ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) and found.isascii() and found.isprintable() else None
