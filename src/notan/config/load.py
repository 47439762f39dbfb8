"""A recipe, flags and ``section.key=value`` overrides become one Run; the later one wins."""

from __future__ import annotations

import math
import re
import tomllib
from typing import TYPE_CHECKING, Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from notan.config.sections import Run, with_trackers
from notan.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


Settings = TypeVar("Settings", bound=BaseModel)

NONE = "none"
"""How recipes and overrides say None, for which TOML has no word."""

NUMBER = r"(\d+(?:\.\d+)?)"
DURATION = re.compile(rf"(?:{NUMBER}h)?(?:{NUMBER}m)?(?:{NUMBER}s)?", re.ASCII)
UNITS = (3600, 60, 1)


def load_run(
    recipe: Path | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    overrides: Sequence[str] = (),
) -> Run:
    """Build the settings of a run; see ``load_settings``.

    Raises:
        ConfigError: The recipe is missing or not TOML, or a name or value does not exist or fit.
    """
    return load_settings(Run, recipe, flags=flags, overrides=overrides)


def load_settings(
    kind: type[Settings],
    recipe: Path | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    overrides: Sequence[str] = (),
) -> Settings:
    """Build settings: defaults, then the recipe, then flags, then overrides.

    Args:
        kind: Which settings: Run, or another root of sections.
        recipe: A TOML file with some of its sections, or None.
        flags: Dotted names (``"train.epochs"``) and values; None values count as not given.
        overrides: Words such as ``"model.width=16"``; the value is read as TOML, else as text.

    Returns:
        Whole and checked.

    Raises:
        ConfigError: The recipe is missing or not TOML, or a name or value does not exist or fit.
    """
    settings = _read_recipe(recipe) if recipe else {}
    _add(settings, flags or {}, overrides)
    return _checked(kind, settings)


def asked_settings(
    *, flags: Mapping[str, object] | None = None, overrides: Sequence[str] = ()
) -> dict[str, object]:
    """Return only the settings that flags and overrides give: dotted name -> checked value.

    Args:
        flags: As for ``load_run``.
        overrides: As for ``load_run``.

    Raises:
        ConfigError: A name or value does not exist or fit.
    """
    settings: dict[str, Any] = {}
    _add(settings, flags or {}, overrides)
    if isinstance(settings.get("train"), dict):
        settings["train"] = with_trackers(settings["train"])
    values = _flat(_checked(Run, settings).model_dump())
    return {name: values[name] for name in _flat(settings)}


def _add(settings: dict[str, Any], flags: Mapping[str, object], overrides: Sequence[str]) -> None:
    for name, value in flags.items():
        if value is not None:
            _put(settings, name, value)
    for word in overrides:
        name, value = _split_override(word)
        _put(settings, name, value)


def _checked(kind: type[Settings], settings: dict[str, Any]) -> Settings:
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(first_problem(error, kind)) from error


def run_to_toml(run: BaseModel) -> str:
    """Write a Run, or other settings, as TOML that ``load_settings`` reads back to the same.

    What is None is left out, or written as NONE where leaving it out would bring a default back.
    """
    settings = run.model_dump(mode="json", exclude_none=True)
    for name in changed_settings(run, type(run).model_validate(settings)):
        _put(settings, name, NONE)
    return tomli_w.dumps(settings)


def changed_settings(before: BaseModel, now: BaseModel) -> dict[str, tuple[object, object]]:
    """Return the settings in which two differ: dotted name -> (before, now)."""
    old, new = _flat(before.model_dump()), _flat(now.model_dump())
    names = dict.fromkeys((*old, *new))  # of a table, such as model.arguments, one may lack some
    both = {name: (old.get(name), new.get(name)) for name in names}
    return {name: (before, now) for name, (before, now) in both.items() if before != now}


def settings_by_name(run: BaseModel) -> dict[str, object]:
    """Return all settings by dotted name, as plain values."""
    return _flat(run.model_dump(mode="json"))


def _flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value, f"{before}{name}.") if isinstance(value, dict) else None
        flat.update(inner if inner is not None else {f"{before}{name}": value})
    return flat


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        return _with_nones(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such recipe") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the recipe cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _with_nones(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _with_nones(value) if isinstance(value, dict) else _none_or(value)
        for name, value in settings.items()
    }


def _none_or(value: object) -> object:
    return None if isinstance(value, str) and value.lower() == NONE else value


def _split_override(word: str) -> tuple[str, object]:
    name, equals, text = word.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"'{word}': an override looks like section.key=value, say model.width=16")
    return name.strip(), _parse_value(text.strip())


def _parse_value(text: str) -> object:
    """Read a value as TOML; a bare word that is not TOML is text."""
    try:
        return _none_or(tomllib.loads(f"value = {text}")["value"])
    except tomllib.TOMLDecodeError:
        return _none_or(text)


def _put(settings: dict[str, Any], dotted: str, value: object) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        inner = settings.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{dotted}: '{section}' is a value, not a section of settings")
        settings = inner
    settings[key] = value


def first_problem(error: ValidationError, root: type[BaseModel]) -> str:
    """Say in one line what is wrong with the first of the fields that do not fit.

    Args:
        error: What pydantic raised.
        root: The model that was being built, to offer its nearest valid name.
    """
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"]]
    dotted = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return (
            f"{dotted}: there is no such setting{nearest(location[-1], _siblings(root, location))}"
        )
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{dotted}: {reason} (found {problem['input']!r})"


def _siblings(section: type[BaseModel], location: list[str]) -> list[str]:
    """Names that would have been valid in the place of an unknown one."""
    for part in location[:-1]:
        inner = section.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        section = inner
    return list(section.model_fields)


def seconds_of(time_limit: str | float) -> float:
    """Return the seconds of a time such as 90s, 10m, 1.5h, 1h30m or 600.

    Raises:
        ConfigError: It is no time, or none at all.

    Example:
        >>> seconds_of("1h30m")
        5400.0
    """
    text = str(time_limit).strip()
    alone = re.fullmatch(NUMBER, text, re.ASCII)
    found = DURATION.fullmatch(f"{text}s" if alone else text)
    parts = found.groups(default="0") if found else ()
    seconds = sum(float(part) * unit for part, unit in zip(parts, UNITS, strict=False))
    if not 0 < seconds < math.inf:
        raise ConfigError(
            f"--time-limit {time_limit}: a time above zero is wanted, such as 90s, 10m, 1.5h or "
            "1h30m; a number alone is seconds"
        )
    return seconds
