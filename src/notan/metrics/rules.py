"""ScoreRules: what a number means, and the words that a summary says it with."""

from __future__ import annotations

from dataclasses import dataclass, field

from notan.errors import ConfigError, nearest
from notan.metrics.surface import Tolerance

EMPTY_RULE = "an empty image predicted empty scores 1, a false alarm on an empty image scores 0"
"""How images without foreground are scored, in words; printed with every mean."""

BORDER_WORDS = {
    "foreground": "border counted as foreground",
    "background": "border counted as background",
    "ignore": "border left out",
    "none": "no border class in the data",
}
"""The border rules, and how a summary says them."""


@dataclass(frozen=True)
class ScoreRules:
    """What a number means: without these two scores cannot be compared.

    Attributes:
        trimap_border: ``foreground``, ``background`` or ``ignore``; ``none`` for data without a
            border class.
        size: The size at which masks were compared, in words.
        threshold: Probability from which a pixel is foreground, 0..1.
        split: Name of the split that was scored.
        weights: Where training began: ``from scratch``, or what the network was pretrained on.
        postprocessing: How probabilities became masks, in words; None: by the threshold alone.
        tolerance: How far a boundary may lie off and still count as right.
        seen: What the model has seen of these images before, in words.
        trained_trimap_border: The border rule of the model's training; None: it had no border
            class, or is not known.
        augment: Which views of each image the network was asked, in words; None: it alone.

    Raises:
        ConfigError: There is no such border rule, or the threshold is outside 0..1.
    """

    trimap_border: str
    threshold: float
    split: str
    size: str = "original size"
    weights: str = "from scratch"
    postprocessing: str | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    seen: str = "whether the model has seen these images is not known"
    trained_trimap_border: str | None = None
    augment: str | None = None

    def trimap_border_in_words(self) -> str:
        """Say the border rule, and the model's own where it was trained by another."""
        words = BORDER_WORDS[self.trimap_border]
        if self.trained_trimap_border in (None, self.trimap_border) or self.trimap_border == "none":
            return words
        return f"{words} (UNLIKE IN TRAINING: {BORDER_WORDS[self.trained_trimap_border]} there)"

    def __post_init__(self) -> None:
        if self.trimap_border not in BORDER_WORDS:
            hint = nearest(self.trimap_border, BORDER_WORDS)
            raise ConfigError(f"there is no border rule '{self.trimap_border}'{hint}")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"the threshold is {self.threshold}; it must be in 0..1")
