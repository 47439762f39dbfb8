"""The entry point: finds the command, and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import logging
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

import tyro

from notan.cli import BEGAN
from notan.cli.benchmark import benchmark_models
from notan.cli.check import check
from notan.cli.compare import compare
from notan.cli.demo import demo
from notan.cli.download import download
from notan.cli.ensemble import ensemble
from notan.cli.evaluate import evaluate, inference
from notan.cli.export import export
from notan.cli.predict import predict
from notan.cli.pretrain import pretrain
from notan.cli.report import report
from notan.cli.submit import submit
from notan.cli.train import train
from notan.config import Pretraining, Run
from notan.errors import ConfigError, NotanError, explaining_extras, nearest
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _typeshed import DataclassInstance

COMMANDS = {
    command.__name__.replace("_", "-"): command
    for command in (
        train,
        pretrain,
        evaluate,
        inference,
        predict,
        submit,
        export,
        compare,
        benchmark_models,
        ensemble,
        report,
        check,
        download,
        demo,
    )
}
INTERRUPTED = 130
SECTIONS = (*Run.model_fields, *Pretraining.model_fields)
OVERRIDE = re.compile(rf"({'|'.join(SECTIONS)})(\.\w+)?=")
DESCRIPTION = f"""notan {__version__}: two-class image segmentation, foreground against background.

Start with: notan demo
Then, on images of your own: notan train --data-path FOLDER
Each command explains itself: notan train --help
With --debug an error shows its whole trace; --version prints the version."""


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
    # Threads that spin while they wait make training several times slower on a busy machine; the
    # OpenMP under torch reads this when torch is first imported, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        command = parse(words)
        with explaining_extras():
            command()
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


def parse(words: Sequence[str]) -> Callable[[], None]:
    """Return the command that the words ask for, ready to be called.

    Raises:
        ConfigError: A command, flag or value does not exist or is missing.
        SystemExit: Help was asked for and has been printed.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
                {name: _prepared(command) for name, command in COMMANDS.items()},
                prog="notan",
                description=DESCRIPTION,
                args=_overrides_last(words) or ["--help"],
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_in_one_line(complaint.getvalue(), words)) from None
    return command


def _overrides_last(words: Sequence[str]) -> list[str]:
    """Move words like model.width=16 behind the flags: tyro wants them in one place."""
    return sorted(words, key=lambda word: bool(OVERRIDE.match(word)))


def _prepared(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Let tyro fill in a command's arguments without running it yet."""

    @functools.wraps(command)
    def prepare(*arguments: Any, **flags: Any) -> Callable[[], None]:  # noqa: ANN401
        return functools.partial(command, *arguments, **flags)

    # tyro reads the command's own docstring and keeps its line breaks, which fall anywhere in a
    # terminal of another width
    for documented in (command, *_groups(command)):
        documented.__doc__ = re.sub(r"\n {12}(?=\S)", " ", documented.__doc__ or "")
    return prepare


def _in_one_line(complaint: str, words: Sequence[str]) -> str:
    """Take the message out of tyro's box, and offer the nearest flag or command."""
    lines = [line.strip("│ ") for line in complaint.splitlines() if not line.startswith(("╭", "╰"))]
    text = " ".join(lines).split("───")[0].split("Got errors:")[0].strip().rstrip(".")
    text = re.sub(r"Expected one of \((.*)\)", _sorted_choices, text)
    command = next((word for word in words if not word.startswith("-")), "")
    command = command.replace("_", "-")
    if command not in COMMANDS:
        return f"{text}{nearest(command, COMMANDS)}"
    unknown = re.search(r"Unrecognized options: (-[\w-]+)", text)
    hint = f"; see notan {command} --help"
    if unknown:
        hint = nearest(unknown[1].replace("_", "-"), _flags(COMMANDS[command])) or hint
    return f"{text}{hint}"


def _sorted_choices(found: re.Match[str]) -> str:
    """Give the choices of a flag an order, without the None that stands for not given."""
    choices = sorted(set(re.findall(r"'(.*?)'", found[1])) - {"None"})
    return f"choose one of {', '.join(choices)}"


def _flags(command: Callable[..., None]) -> list[str]:
    """Name a command's flags, those in groups too; its positional words have none."""
    parameters = inspect.signature(command).parameters.values()
    alone = [
        parameter.name
        for parameter in parameters
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and not dataclasses.is_dataclass(parameter.default)
    ]
    grouped = [field.name for group in _groups(command) for field in dataclasses.fields(group)]
    return [f"--{name.replace('_', '-')}" for name in (*alone, *grouped)]


def _groups(command: Callable[..., None]) -> list[type[DataclassInstance]]:
    """Return the groups of flags that a command takes: the dataclasses among its defaults."""
    kinds = (type(each.default) for each in inspect.signature(command).parameters.values())
    return [kind for kind in kinds if dataclasses.is_dataclass(kind)]
