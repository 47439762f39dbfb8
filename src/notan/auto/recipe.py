"""``train --auto``: look at the data and the machine, choose, and write the recipe as TOML."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tomli_w

from notan.auto.choose import choose
from notan.auto.look import look_at_machine, take_fingerprint
from notan.config import NONE, Run, asked_settings, load_run
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from notan.auto.choose import ChosenSetting, ChosenSettings

LINE = 98


def recipe_to_toml(choice: ChosenSettings, header: Sequence[str]) -> str:
    """Write a choice as TOML that ``load_run`` reads, with each reason above its setting.

    Args:
        choice: The settings.
        header: Lines that stand at the top as comments.
    """
    choices = choice.choices
    lines = [comment for line in header for comment in _comment(line)]
    # settings of no section come first: below a [section] they would belong to it
    there = {_section(each) for each in choices}
    for section in (section for section in ("", *Run.model_fields) if section in there):
        lines += ["", f"[{section}]"] if section else [""]
        for each in choices:
            if _section(each) == section:
                lines += _setting(each)
    return "\n".join(lines) + "\n"


def _section(choice: ChosenSetting) -> str:
    return choice.setting.rpartition(".")[0]


def _setting(choice: ChosenSetting) -> Iterator[str]:
    yield from _comment(choice.why)
    name = choice.setting.rpartition(".")[2]
    yield f"{name} = {_value(choice.value)}"


def _value(value: Any) -> str:  # noqa: ANN401 - whatever a setting holds
    """Write a value on one line; what is no TOML type, a path for example, becomes text."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(each) for each in value)}]"
    plain = value if isinstance(value, bool | int | float | str) else str(value or NONE)
    return tomli_w.dumps({"value": plain}).removeprefix("value = ").rstrip("\n")


def _comment(text: str) -> Iterator[str]:
    for line in textwrap.wrap(text, LINE) or [""]:
        yield f"# {line}".rstrip()


@dataclass(frozen=True)
class Suggestion:
    """Settings that were chosen, and why.

    Attributes:
        run: All settings, those that were asked for among them.
        recipe: TOML with a sentence above each; ``load_run`` reads it back to the same run.
        sentences: What was seen, and each choice in a line.
    """

    run: Run
    recipe: str
    sentences: str


def suggest(
    *, flags: Mapping[str, object] | None = None, overrides: Sequence[str] = ()
) -> Suggestion:
    """Look at a data folder and this machine, and choose how to train.

    Only training images are opened. What is asked for stands, and the other choices follow it.

    Args:
        flags: As for ``load_run``; ``data.path`` is needed, here or among the overrides.
        overrides: As for ``load_run``.

    Raises:
        ConfigError: No data folder was given, or a setting does not exist or fit.
        DataError: The data are missing or unreadable, or every mask is empty or all foreground.
    """
    from notan.auto.measure import StepTimer  # brings torch

    wanted = load_run(flags=flags, overrides=overrides)
    timer = StepTimer(wanted)
    machine = look_at_machine(wanted.device, timer)
    time_limit = wanted.train.time_limit_seconds
    images = take_fingerprint(wanted.data, seed=wanted.seed, time_limit=time_limit)
    choice = choose(images, machine, asked_settings(flags=flags, overrides=overrides))
    seen = (
        f"The data: {images.in_words()}.",
        f"The machine: {machine.in_words()}; {timer.in_words()}.",
    )
    header = (
        f"Chosen by notan {__version__}, train --auto. Change what you like, and train it with:",
        "notan train --recipe THIS_FILE",
        "",
        *seen,
    )
    return Suggestion(
        run=load_run(flags=choice.settings, overrides=overrides),
        recipe=recipe_to_toml(choice, header),
        sentences="\n".join((*seen, choice.sentences())),
    )
