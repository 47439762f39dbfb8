"""Errors as answers: a status, and JSON with the one line that the user needs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar

from notan.errors import (
    ConfigError,
    DataError,
    NotanError,
    OutOfMemoryError,
    ShapeError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import TypeAlias

    from starlette.requests import Request
    from starlette.responses import Response

    Handler: TypeAlias = Callable[[Request, Exception], Awaitable[Response]]

STATUSES: tuple[tuple[type[NotanError], int], ...] = (
    (UnsupportedError, 415),
    (DataError, 422),
    (ShapeError, 422),
    (ConfigError, 400),
    (OutOfMemoryError, 503),
)
"""The first that an error is one of; any other is a fault of ours or of the model: 500."""


class RefusedError(NotanError):
    """A request that is turned away.

    Attributes:
        status: Of HTTP, 400 to 599.
        headers: To send beside it, such as Retry-After.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


def status_of(error: NotanError) -> int:
    """Return the status of HTTP that says what kind of error it is."""
    if isinstance(error, RefusedError):
        return error.status
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def error_body(message: str) -> bytes:
    """Return the body of an answer that says what went wrong: ``{"error": "one line"}``."""
    return json.dumps({"error": " ".join(message.split())}, ensure_ascii=False).encode()


def error_handlers() -> dict[int | type[Exception], Handler]:
    """Return what makes an application answer with ``error_body``, for ``exception_handlers``."""
    from starlette.exceptions import HTTPException
    from starlette.responses import Response

    async def ours(request: Request, error: Exception) -> Response:
        del request
        headers = error.headers if isinstance(error, RefusedError) else None
        status = status_of(error) if isinstance(error, NotanError) else 500
        body = error_body(str(error))
        return Response(body, status, headers, media_type="application/json")

    async def theirs(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = error.headers if isinstance(error, HTTPException) else None
        known = {
            404: f"there is no {request.url.path} here",
            405: f"{request.url.path} does not take {request.method}",
        }
        said = known.get(status, str(getattr(error, "detail", error)))
        return Response(error_body(said), status, headers, media_type="application/json")

    return {NotanError: ours, HTTPException: theirs}
