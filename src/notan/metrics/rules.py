"""ScoreRules: what a number means, and the words that a summary says it with."""

from __future__ import annotations

from dataclasses import dataclass, field

from notan.errors import ConfigError, nearest
from notan.metrics.surface import Tolerance

EMPTY_RULE = "an empty picture predicted empty scores 1, a false alarm on an empty picture scores 0"
"""How pictures without figure are scored, in words; printed with every mean."""

BORDER_WORDS = {
    "figure": "border counted as figure",
    "ground": "border counted as ground",
    "ignore": "border left out",
    "none": "no border class in the data",
}
"""The border rules, and how a summary says them."""


@dataclass(frozen=True)
class ScoreRules:
    """What a number means: without these two scores cannot be compared.

    Attributes:
        border: ``figure``, ``ground`` or ``ignore``; ``none`` for data without a border class.
        size: The size at which masks were compared, in words.
        threshold: Probability from which a pixel is figure, 0..1.
        split: Name of the split that was scored.
        weights: Where training began: ``from scratch``, or what the network was pretrained on.
        decision: How probabilities became masks, in words; None: by the threshold alone.
        tolerance: How far a boundary may lie off and still count as right.
        seen: What the model has seen of these pictures before, in words.
        trained_border: The border rule of the model's training; None: it had no border class, or
            is not known.
        augment: Which views of each picture the network was asked, in words; None: it alone.

    Raises:
        ConfigError: There is no such border rule, or the threshold is outside 0..1.
    """

    border: str
    threshold: float
    split: str
    size: str = "original size"
    weights: str = "from scratch"
    decision: str | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    seen: str = "whether the model has seen these pictures is not known"
    trained_border: str | None = None
    augment: str | None = None

    def border_in_words(self) -> str:
        """Say the border rule, and the model's own where it was trained by another."""
        words = BORDER_WORDS[self.border]
        if self.trained_border in (None, self.border) or self.border == "none":
            return words
        return f"{words} (UNLIKE IN TRAINING: {BORDER_WORDS[self.trained_border]} there)"

    def __post_init__(self) -> None:
        if self.border not in BORDER_WORDS:
            hint = nearest(self.border, BORDER_WORDS)
            raise ConfigError(f"there is no border rule '{self.border}'{hint}")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"the threshold is {self.threshold}; it must be in 0..1")
