"""choose: from a fingerprint and a machine to a recipe, a rule and a sentence for each setting.

Nothing is read and nothing is tried out here: the same numbers give the same recipe. The rules
stand in files of their own, each with what was measured for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from notan.auto.case import Case, ChosenSetting
from notan.auto.rules_augment import AUGMENT_RULES
from notan.auto.rules_input import INPUT_RULES
from notan.auto.rules_model import MODEL_RULES
from notan.auto.rules_training import TRAINING_RULES
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from notan.auto.case import Rule
    from notan.auto.fingerprint import Fingerprint
    from notan.auto.machine import Machine

AS_ASKED = "as asked"
RULES: tuple[Rule, ...] = (*MODEL_RULES, *INPUT_RULES, *TRAINING_RULES, *AUGMENT_RULES)
"""In the order in which they build on each other."""


@dataclass(frozen=True)
class Choice:
    """A recipe with its reasons.

    Attributes:
        choices: One for each setting that differs from the defaults or was asked for.
    """

    choices: tuple[ChosenSetting, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The values by dotted name, as ``load_run`` takes them for flags."""
        return {each.setting: each.value for each in self.choices}

    def sentences(self) -> str:
        """Say each choice in a line."""
        return "\n".join(f"{each.setting} = {each.value}: {each.why}" for each in self.choices)


def choose(images: Fingerprint, machine: Machine, asked: Mapping[str, Any]) -> Choice:
    """Decide how to train.

    Args:
        images: What the training images are like.
        machine: What there is to train with.
        asked: Settings that stand, by dotted name; a time limit among them is
            ``train.time_limit_seconds``. The rules for other settings follow them.

    Raises:
        DataError: No mask has foreground, or none has background: there is nothing to learn.
    """
    _require_two_classes(images)
    settings = dict(asked)
    choices: dict[str, ChosenSetting] = {}
    for rule in RULES:
        for choice in rule(Case(images, machine, settings)):
            name = choice.setting
            settings.setdefault(name, choice.value)
            choices[name] = ChosenSetting(name, asked[name], AS_ASKED) if name in asked else choice
    for name, value in asked.items():
        choices.setdefault(name, ChosenSetting(name, value, AS_ASKED))
    return Choice(tuple(choices.values()))


def _require_two_classes(images: Fingerprint) -> None:
    for share, what, other in (
        (images.empty, "foreground", "empty"),
        (images.full, "background", "all foreground"),
    ):
        if share == 1:
            raise DataError(
                f"no mask of the {images.opened} training images looked at has any {what}: "
                f"all are {other}, so there is nothing to learn; look at them with notan check"
            )
