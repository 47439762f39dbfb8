"""Tokens: what a client must know to be let in, and how a browser is given it.

A program sends ``Authorization: Bearer TOKEN``. A browser is opened at an address with a one-time
token in it and gets a cookie, so that no token stays in its history, in a log or in a page.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import logging
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING

from notan.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("notan")

SHORTEST_TOKEN, LONGEST_TOKEN = 16, 512
"""Characters. A shorter one could be guessed."""

READABLE_BY_OTHERS = 0o004


class Keys:
    """What lets clients in: one token, one cookie, and one-time tokens that buy the cookie."""

    def __init__(self, token: str | None = None) -> None:
        """Choose secrets that nobody has seen.

        Args:
            token: That programs send; None: a fresh one.
        """
        self.token = token or secrets.token_urlsafe(32)
        self._cookie = secrets.token_urlsafe(32)
        self._once: set[str] = set()

    def one_time(self) -> str:
        """Return a new token that is good for one opening of an address: ``URL/?t=TOKEN``."""
        token = secrets.token_urlsafe(32)
        self._once.add(token)
        return token

    def spend(self, token: str) -> bool:
        """Say whether it is a one-time token that was not used yet; from now on it is."""
        found = next((known for known in self._once if _same(known, token)), None)
        if found is not None:
            self._once.discard(found)
        return found is not None

    def knows_bearer(self, authorization: str | None) -> bool:
        """Say whether an Authorization header holds the token.

        It may be the password of Basic too, under any name: Label Studio can send no other header.
        """
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() == "basic":
            with contextlib.suppress(ValueError):  # no base64, or no text
                decoded = base64.b64decode(given.strip(), validate=True).decode()
                return _same(decoded.partition(":")[2], self.token)
        return scheme.lower() == "bearer" and _same(given.strip(), self.token)

    def knows_cookie(self, header: str | None, port: int) -> bool:
        """Say whether a Cookie header holds the cookie."""
        try:
            morsel = SimpleCookie(header or "").get(_cookie_name(port))
        except CookieError:
            return False
        return morsel is not None and _same(morsel.value, self._cookie)

    def set_cookie(self, port: int) -> str:
        """Return the Set-Cookie header: not for scripts, not for requests from other sites."""
        return f"{_cookie_name(port)}={self._cookie}; Path=/; HttpOnly; SameSite=Strict"


def _cookie_name(port: int) -> str:
    # browsers do not tell ports apart, so two servers would take each other's cookies away
    return f"notan-{port}"


def _same(one: str, other: str) -> bool:
    """Compare in a time that does not tell how much is right."""
    return hmac.compare_digest(one.encode(), other.encode())


def read_token(path: Path) -> str:
    """Read a token from a file, so that it stands in no list of processes.

    Raises:
        ConfigError: The file cannot be read, or its one line is no token.
    """
    wanted = (
        f"wanted one line of {SHORTEST_TOKEN} to {LONGEST_TOKEN} printable characters without "
        "spaces; make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
    )
    try:
        token = path.read_text(encoding="ascii").strip()
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no plain text"
        raise ConfigError(f"{path}: could not be read as a token ({reason}); {wanted}") from error
    if not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN or not token.isprintable() or " " in token:
        raise ConfigError(f"{path}: holds {len(token)} characters, no such token; {wanted}")
    if mode & READABLE_BY_OTHERS:
        logger.warning("%s: every user of this machine can read the token; chmod 600 it", path)
    return token
