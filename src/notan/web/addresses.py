"""Where a server listens, and by which names it may be asked."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notan.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

LOOPBACK = "127.0.0.1"

WAITING_CONNECTIONS = 128
"""That the system holds until they are taken."""

_HOST = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:\d{1,5})?")


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: An IP address; ``0.0.0.0`` and ``::`` stand for all of the machine's.
        port: Of TCP.
        named: What else it may be called in a request's Host header, exactly, such as the name
            that a proxy before it is known by.
    """

    host: str
    port: int
    named: tuple[str, ...] = ()

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can reach it."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def url(self) -> str:
        """What to open in a browser on this machine, without a slash at its end."""
        host = self.host
        if ipaddress.ip_address(host).is_unspecified:
            host = LOOPBACK if ":" not in host else "::1"
        return f"http://{_bracketed(host)}:{self.port}"

    def is_ours(self, host: str, reached: str | None) -> bool:
        """Say whether a Host header names this server.

        A name of somebody else's that leads here (DNS rebinding) is none of ours, so that no page
        of a website can talk to a server on its reader's machine.

        Args:
            host: The header, in lower case.
            reached: The IP address of this machine that the request came to.
        """
        names = {LOOPBACK, "localhost", "[::1]", _bracketed(self.host)}
        if reached is not None:
            names.add(_bracketed(reached))
        ours = {f"{name}:{self.port}" for name in names}
        return host in ours or host in self.named or (self.port == 80 and host in names)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int, named: Iterable[str] = ()) -> tuple[socket.socket, Address]:
    """Bind a port, before anything that takes long is loaded.

    Args:
        host: An IP address, or ``localhost``.
        port: Of TCP; 0: any that is free.
        named: See ``Address``.

    Returns:
        The socket, and where it listens.

    Raises:
        ConfigError: No such address or port, or the port is in use.
    """
    host = LOOPBACK if host == "localhost" else host
    names = tuple(map(_checked, named))
    try:
        version = ipaddress.ip_address(host).version
    except ValueError as error:
        raise ConfigError(
            f"--host {host}: is no IP address; wanted one of this machine's, such as {LOOPBACK} "
            "(this machine alone) or 0.0.0.0 (every machine that can reach it)"
        ) from error
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: a port of 0..65535 is wanted; 0 takes any free one")
    listener = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(WAITING_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise ConfigError(_why_not_bound(host, port, error)) from error
    found = listener.getsockname()
    return listener, Address(host, found[1], names)


def _checked(name: str) -> str:
    """Return a name for the Host header in lower case, or refuse what is none."""
    if not _HOST.fullmatch(name.lower()):
        raise ConfigError(
            f"'{name}': is no name that a Host header can hold; wanted one such as "
            "masks.example.org or 192.168.1.5:8420"
        )
    return name.lower()


def _why_not_bound(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is in use, perhaps by another notan; choose another with "
            "--port, or --port 0 for any that is free"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"--host {host}: is no address of this machine; wanted one of its own, such as "
            f"{LOOPBACK}, or 0.0.0.0 for all of them"
        )
    if isinstance(error, PermissionError):
        return f"port {port} of {host} is not allowed to you; choose one above 1023 with --port"
    return f"port {port} of {host} could not be taken ({error.strerror}); choose another"
