"""Run code in a process of its own that writes down whoever wants to reach the network."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

REFUSE = """
import os, sys

RECORD = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
NAMES = ("socket.getaddrinfo", "socket.gethostby", "socket.getnameinfo")
ADDRESSES = ("socket.connect", "socket.sendto", "socket.sendmsg")
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
FONTS = ("fc-list", "system_profiler")  # matplotlib asks them what fonts there are

def refuse(event, arguments):
    if event.startswith(ADDRESSES):
        wanted = isinstance(arguments[1], tuple)  # else a socket of this machine's file system
    elif event.startswith(PROGRAMS):
        wanted = arguments[0] not in FONTS
    else:
        wanted = event.startswith(NAMES)
    if wanted:
        os.write(RECORD, f"{event} {arguments}\\n".encode())
        raise OSError("the network is refused here")

sys.addaudithook(refuse)
"""
"""Python asks an audit hook before it connects, sends, looks a name up or starts a program,
whatever library wants it. Whoever reports unnoticed does so in a thread or a fork that swallows the
error: so each attempt is written down, and forks inherit hook and record. Compiled code that has
sockets of its own is not seen."""

NOT_OF_USERS = ("ci", "tf_build", "jenkins_url", "do_not_track", "http_proxy", "https_proxy")
"""Variables that stop some libraries from reporting, or hide whom they report to."""


def attempts(code: str, *arguments: str, home: Path) -> list[str]:
    """Run Python code that may not reach the network, and return what it tried.

    Args:
        code: Finds the arguments from ``sys.argv[1]`` on.
        arguments: Of the code.
        home: Of the process: what this machine's user has agreed to must not decide.
    """
    record = home.parent / f"{home.name}-attempts"
    settings = {
        name: value for name, value in os.environ.items() if name.lower() not in NOT_OF_USERS
    }
    homes = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    child = subprocess.run(
        [sys.executable, "-c", REFUSE + code, str(record), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**settings, **homes},
    )
    assert child.returncode == 0, child.stderr
    return record.read_text(encoding="utf-8").splitlines()
