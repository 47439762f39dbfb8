"""The entry point: finds the command, and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from notan.cli import BEGAN
from notan.cli.check import check, download
from notan.cli.compare import benchmark_models, compare, ensemble
from notan.cli.demo import demo
from notan.cli.evaluate import evaluate, inference, report
from notan.cli.export import export
from notan.cli.pack import pack
from notan.cli.parse import parse
from notan.cli.predict import predict, submit
from notan.cli.serve import serve
from notan.cli.studio import studio
from notan.cli.train import pretrain, train
from notan.errors import (
    ConfigError,
    NotanError,
    StoppedBySignal,
    explaining_extras,
    explaining_memory,
)
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

GROUPS = {
    "Train": (train, pretrain, benchmark_models),
    "Judge": (evaluate, inference, compare, report),
    "Use": (predict, serve, export, ensemble, submit),
    "Look after data": (studio, check, pack, download, demo),
}
COMMANDS = {
    command.__name__.replace("_", "-"): command
    for commands in GROUPS.values()
    for command in commands
}
INTERRUPTED = 130
ENDINGS = ("SIGTERM", "SIGHUP")
"""What Slurm and ``docker stop`` send, and a terminal that is closed; Windows has no SIGHUP."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code.

    Args:
        arguments: The words after ``notan``; None takes them from the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is not None:  # this process has been there for longer than the command
        BEGAN.set(time.monotonic())
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words == ["--version"]:
        print(__version__)
        return
    if words in ([], ["--help"], ["-h"], ["help"]):
        print(overview())
        return
    _let_no_name_end_a_command()
    # Threads that spin while they wait make training several times slower on a busy machine; the
    # OpenMP under torch reads this when torch is first imported, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        _refuse_to_be_many(words[0])
        command = parse(words, COMMANDS)
        extra = explaining_extras("training" if words[0] == "train" else f"notan {words[0]}")
        with explaining_memory(), extra, _ending_as_by_ctrl_c():
            command()
        if arguments is None:
            gc.freeze()  # the process ends: to look for garbage among PyTorch's takes a second
    except NotanError as error:
        if debug:
            raise
        print(f"notan: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        print(f"notan: {str(interrupt) or 'stopped by Ctrl-C'}", file=sys.stderr)
        sys.exit(getattr(interrupt, "exit_code", INTERRUPTED))
    except BrokenPipeError:  # somebody's `| head` has read enough
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - lives as long as the process


def _refuse_to_be_many(command: str) -> None:
    """Refuse torchrun in front of a command whose processes would all write the same files.

    Raises:
        ConfigError: It is there.
    """
    if "RANK" not in os.environ or command == "train":
        return
    from notan.runtime import processes

    if processes() > 1:
        raise ConfigError(
            f"torchrun has started {processes()} processes, and notan {command} is one: start it "
            "without; only notan train divides its work among several"
        )


def _let_no_name_end_a_command() -> None:
    """Write what the terminal's or the file's encoding lacks as an escape, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _ending_as_by_ctrl_c() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise what Ctrl-C does, so that a command tidies up behind itself.

    Further ones are ignored meanwhile, for a shell and its terminal send one each. What was told to
    ignore them (nohup) goes on doing so. Outside the main thread Python allows no handlers.
    """
    before: dict[int, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        name = signal.Signals(number).name
        raise StoppedBySignal(f"stopped by {name}; give the same command again", number)

    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ENDINGS if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
        for number in before:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def overview() -> str:
    """Return the help of ``notan`` itself: one screen, a line for each command."""
    lines = [f"notan {__version__}: two-class image segmentation, foreground against background."]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:"]
        for command in commands:
            summary = (command.__doc__ or "").partition("\n")[0]
            lines.append(f"  {command.__name__.replace('_', '-'):<17} {summary}")
    return "\n".join(
        (
            *lines,
            "",
            "Begin with: notan demo, then notan train --data-path FOLDER",
            "notan COMMAND --help explains a command; --debug shows an error's whole trace;",
            "--version prints the version.",
        )
    )
