"""From the words of a command line to the command, ready to run, or one line on what is wrong."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import shutil
import textwrap
from typing import TYPE_CHECKING, Any

import tyro
from tyro import _errors as failures  # private, so pyproject.toml bounds tyro from above

from notan.config import Pretraining, Run
from notan.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from _typeshed import DataclassInstance
    from tyro._arguments import ArgumentDefinition

    Command = Callable[..., None]

SECTIONS = (*Run.model_fields, *Pretraining.model_fields)
OVERRIDE = re.compile(rf"({'|'.join(SECTIONS)})(\.\w+)*=")
ELSEWHERE = {
    "bs": "batch-size",
    "budget": "time-limit",
    "checkpoint": "model",
    "dataset": "data-path",
    "every": "frame-step",
    "imgsz": "image-size",
    "lr": "learning-rate",
    "max-time": "time-limit",
    "output": "out",
    "source": "data-path",
    "weights": "model",
}
"""What other tools call a flag -> what it is called here; no letters tell the two apart."""


def parse(words: Sequence[str], commands: Mapping[str, Command]) -> Callable[[], None]:
    """Return the command that the words ask for, ready to be called.

    Args:
        words: The command's name, then its flags; at least one.
        commands: Every command by its name.

    Raises:
        ConfigError: A command, flag or value does not exist or is missing.
        SystemExit: Help was asked for and has been printed.
    """
    name, *rest = words
    name = name.replace("_", "-")
    if name not in commands:
        raise ConfigError(f"'{name}': there is no such command{nearest(name, commands)}")
    command = commands[name]

    def refuse(event: failures.ParseErrorEvent) -> None:
        raise ConfigError(_in_words(event, name, command, rest))

    if {"-h", "--help"} & {*rest}:  # tyro would print a description as one endless line
        print(_wrapped(inspect.getdoc(command) or ""), end="\n\n")
    with failures.on_parse_error(refuse):
        prepared: Callable[[], None] = tyro.cli(
            _prepared(command),
            prog=f"notan {name}",
            description="",
            # words like model.width=16 go first: tyro wants them in one place, and takes the first
            # there is, so that a stray word elsewhere is named and not they
            args=sorted(rest, key=lambda word: not OVERRIDE.match(word)),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    return prepared


def _prepared(command: Command) -> Callable[..., Callable[[], None]]:
    """Let tyro fill in a command's arguments without running it yet."""

    @functools.wraps(command)
    def prepare(*arguments: Any, **flags: Any) -> Callable[[], None]:  # noqa: ANN401
        return functools.partial(command, *arguments, **flags)

    # tyro keeps a docstring's line breaks, which fall anywhere in a terminal of another width
    for documented in (command, *_groups(command)):
        documented.__doc__ = re.sub(r"\n {12}(?=\S)", " ", documented.__doc__ or "")
    return prepare


def _wrapped(doc: str) -> str:
    """Fold what a docstring says before its arguments to the terminal's width."""
    width = min(shutil.get_terminal_size().columns, 100)
    paragraphs = doc.partition("\nArgs:")[0].strip().split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(each.split()), width) for each in paragraphs)


def _in_words(
    event: failures.ParseErrorEvent, name: str, command: Command, words: Sequence[str]
) -> str:
    """Say in one line why tyro cannot take the words."""
    see = f"see notan {name} --help"
    if isinstance(event, failures.UnrecognizedArgs):
        tokens = event.tokens
        word = next((each for each in tokens if each.startswith("-")), tokens[0])
        return _unknown(word, name, command)
    if isinstance(event, failures.MissingArgs) and (wrong := _wrong_flag(words, command)):
        return _unknown(wrong, name, command)
    if isinstance(event, failures.MissingArgs):
        missing = ", ".join(_with_value(each.arg) for each in event.missing_arguments)
        return f"{missing}: needed; {see}"
    if isinstance(event, failures.InvalidChoice):
        choices = sorted({*event.choices} - {"None"})  # None stands for not given
        given = f"{event.argument.display_name()} {event.value}"
        return f"{given}: there is no such choice{nearest(event.value, choices)}"
    if isinstance(event, failures.BadValue):
        return f"{_with_value(event.argument)}: needs a value; {see}"
    if isinstance(event, failures.InstantiationFailure) and event.argument:
        shown = event.argument.display_name()
        kind = "a whole number" if "int" in str(event.argument.field.type_stripped) else "a number"
        return f"{shown} {_value_of(shown, words)}: {kind} is wanted"
    return f"notan {name} cannot take these words; {see}"


def _unknown(word: str, name: str, command: Command) -> str:
    """Say that a command takes no such word, and what was meant."""
    if "=" in word and word[0] != "-" and "overrides" in inspect.signature(command).parameters:
        section = word.partition("=")[0].partition(".")[0]
        return f"{section}: there is no such setting{nearest(section, SECTIONS)}"
    word = word.partition("=")[0]
    meant = _nearest_flag(word, _flags(command))
    return f"{word}: notan {name} takes no such {'flag' if word[0] == '-' else 'word'}" + (
        f"; did you mean '{meant}'?" if meant else f"; see notan {name} --help"
    )


def _wrong_flag(words: Sequence[str], command: Command) -> str | None:
    """Return the first flag that a command does not have; it may stand for one that is missing."""
    known = {"help", *_flags(command)}
    flags = (word for word in words if word.startswith("--") and word != "--")
    return next(
        (
            word
            for word in flags
            if word.partition("=")[0].removeprefix("--").replace("_", "-") not in known
        ),
        None,
    )


def _with_value(argument: ArgumentDefinition) -> str:
    """Show a flag with what stands for its value; a positional word is only that."""
    shown = argument.lowered.metavar or ""
    return shown if argument.is_positional() else f"{argument.display_name()} {shown}"


def _value_of(shown: str, words: Sequence[str]) -> str:
    """Return the last value that the words give to a flag."""
    value = ""
    for word, after in zip(words, (*words[1:], ""), strict=True):
        name, equals, joined = word.partition("=")
        if name.replace("_", "-") == shown:
            value = joined if equals else after
    return value


def _nearest_flag(word: str, names: Sequence[str]) -> str | None:
    """Return the flag that a wrong one most likely stands for: by its letters, a word, or sense."""
    wrong = word.lstrip("-").replace("_", "-")
    close = difflib.get_close_matches(wrong, names, n=1)
    alike = [name for name in names if {*name.split("-")} & {*wrong.split("-")}]
    sense = [name for name in names if name == ELSEWHERE.get(wrong)]
    return next((f"--{name}" for name in (*sense, *close, *alike)), None)


def _flags(command: Command) -> list[str]:
    """Name a command's flags, those in groups too; its positional words have none."""
    parameters = inspect.signature(command).parameters.values()
    alone = [
        each.name
        for each in parameters
        if each.kind is each.KEYWORD_ONLY and not dataclasses.is_dataclass(each.default)
    ]
    grouped = [each.name for group in _groups(command) for each in dataclasses.fields(group)]
    return [name.replace("_", "-") for name in (*alone, *grouped)]


def _groups(command: Command) -> list[type[DataclassInstance]]:
    """Return the groups of flags that a command takes: the dataclasses among its defaults."""
    kinds = (type(each.default) for each in inspect.signature(command).parameters.values())
    return [kind for kind in kinds if dataclasses.is_dataclass(kind)]
