"""Score: the numbers of many images, and how they are told to people and to programs."""

from __future__ import annotations

from dataclasses import dataclass

from notan.metrics.document import score_document
from notan.metrics.measurements import Measurements
from notan.metrics.summary import score_summary
from notan.metrics.undefined import find_undefined


@dataclass(frozen=True)
class Score(Measurements):
    """The scores of many images, with the rules they were taken by."""

    @property
    def undefined(self) -> tuple[str, ...]:
        """What could not be computed, and why: one line for each."""
        return find_undefined(self)

    def summary(self) -> str:
        """Return the card that a person reads: the scores, then every rule behind them."""
        return score_summary(self)

    def to_json(self) -> dict[str, object]:
        """Return everything as plain dicts, lists, numbers and None."""
        return score_document(self)
