"""The recipe as a file that its user reads, changes and keeps."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import tomli_w

from notan.config import NONE, Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from notan.auto.case import ChosenSetting
    from notan.auto.choose import Choice

LINE = 98


def recipe_to_toml(choice: Choice, header: Sequence[str]) -> str:
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
