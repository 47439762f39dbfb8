"""choose: from a fingerprint and a machine to a recipe, a rule and a sentence for each setting.

Nothing is read and nothing is tried out here: the same numbers give the same recipe. The rules
stand in files of their own, each with what was measured for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from notan.auto.case import Case, Decision
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
        decisions: One for each setting that differs from the defaults or was asked for.
    """

    decisions: tuple[Decision, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The values by dotted name, as ``load_run`` takes them for flags."""
        return {each.setting: each.value for each in self.decisions}

    def sentences(self) -> str:
        """Say each choice in a line."""
        return "\n".join(f"{each.setting} = {each.value}: {each.why}" for each in self.decisions)


def choose(pictures: Fingerprint, machine: Machine, asked: Mapping[str, Any]) -> Choice:
    """Decide how to train.

    Args:
        pictures: What the training pictures are like.
        machine: What there is to train with.
        asked: Settings that stand, by dotted name; a budget of time among them is
            ``train.budget_seconds``. The rules for other settings follow them.

    Raises:
        DataError: No mask has figure, or none has ground: there is nothing to learn.
    """
    _require_two_classes(pictures)
    settings = dict(asked)
    decisions: dict[str, Decision] = {}
    for rule in RULES:
        for decision in rule(Case(pictures, machine, settings)):
            name = decision.setting
            settings.setdefault(name, decision.value)
            decisions[name] = Decision(name, asked[name], AS_ASKED) if name in asked else decision
    for name, value in asked.items():
        decisions.setdefault(name, Decision(name, value, AS_ASKED))
    return Choice(tuple(decisions.values()))


def _require_two_classes(pictures: Fingerprint) -> None:
    for share, what, other in (
        (pictures.empty, "figure", "empty"),
        (pictures.full, "ground", "all figure"),
    ):
        if share == 1:
            raise DataError(
                f"no mask of the {pictures.opened} training pictures looked at has any {what}: "
                f"all are {other}, so there is nothing to learn; look at them with notan check"
            )
