"""Case: what a rule decides on; ChosenSetting: what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from notan.config import Run

if TYPE_CHECKING:
    from notan.auto.fingerprint import Fingerprint
    from notan.auto.machine import Machine

DEFAULTS = Run()


@dataclass(frozen=True)
class ChosenSetting:
    """One setting of a recipe.

    Attributes:
        setting: Its dotted name, such as ``"train.epochs"``.
        value: What the run gets.
        why: A sentence for the user, without a full stop.
    """

    setting: str
    value: Any
    why: str


@dataclass(frozen=True)
class Case:
    """What a rule decides on.

    Attributes:
        images: What the training images are like.
        machine: What there is to train with.
        settings: What was asked for, and what earlier rules have decided, by dotted name.
    """

    images: Fingerprint
    machine: Machine
    settings: Mapping[str, Any]

    def get(self, setting: str) -> Any:  # noqa: ANN401 - settings are of many types
        """Return a setting as it stands: asked for, decided, or the default of Run."""
        if setting in self.settings:
            return self.settings[setting]
        value: Any = DEFAULTS
        for part in setting.split("."):
            value = getattr(value, part)
        return value


Rule: TypeAlias = Callable[[Case], Iterator[ChosenSetting]]
"""Decides no setting, one, or several that belong together."""
