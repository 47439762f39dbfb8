"""Score: what many pictures scored, with the rules that the numbers were taken by."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean

from notan.errors import ConfigError, DataError, nearest
from notan.metrics.counts import Counts

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
class PictureScore:
    """The counts of one picture.

    Attributes:
        name: The sample's name.
        counts: Its pixels, at the size that was scored.
        height: Of the scored masks, in pixels.
        width: Of the scored masks, in pixels.
    """

    name: str
    counts: Counts
    height: int
    width: int


@dataclass(frozen=True)
class ScoreRules:
    """What a number means: without these two scores cannot be compared.

    Attributes:
        border: ``figure``, ``ground`` or ``ignore``; ``none`` for data without a border class.
        size: The size at which masks were compared, in words.
        threshold: Probability from which a pixel is figure, 0..1.
        split: Name of the split that was scored.
        weights: Where training began: ``from scratch``, or what the network was pretrained on.

    Raises:
        ConfigError: There is no such border rule, or the threshold is outside 0..1.
    """

    border: str
    threshold: float
    split: str
    size: str = "original size"
    weights: str = "from scratch"

    def __post_init__(self) -> None:
        if self.border not in BORDER_WORDS:
            hint = nearest(self.border, BORDER_WORDS)
            raise ConfigError(f"there is no border rule '{self.border}'{hint}")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"the threshold is {self.threshold}; it must be in 0..1")


@dataclass(frozen=True)
class Score:
    """The scores of many pictures, with the rules they were taken by.

    Attributes:
        pictures: One entry for each picture, in the order of the source.
        rules: What the numbers mean.

    Raises:
        DataError: There is no picture.
    """

    pictures: tuple[PictureScore, ...]
    rules: ScoreRules

    def __post_init__(self) -> None:
        if not self.pictures:
            raise DataError(
                f"nothing to score: split '{self.rules.split}' holds no picture; "
                "check the data folder and the split"
            )

    @property
    def mean_dice(self) -> float:
        """Mean of the pictures' Dice, each picture alike whatever its size."""
        return fmean(picture.counts.dice for picture in self.pictures)

    @property
    def mean_iou(self) -> float:
        """Mean of the pictures' IoU, each picture alike whatever its size."""
        return fmean(picture.counts.iou for picture in self.pictures)

    @property
    def pooled(self) -> Counts:
        """All pictures' counts, added up."""
        return sum((picture.counts for picture in self.pictures), start=Counts(0, 0, 0, 0))

    @property
    def pooled_dice(self) -> float:
        """Dice over the pixels of all pictures at once, each pixel alike."""
        return self.pooled.dice

    @property
    def pooled_iou(self) -> float:
        """IoU over the pixels of all pictures at once, each pixel alike."""
        return self.pooled.iou

    @property
    def empty_pictures(self) -> int:
        """How many pictures have no figure in truth."""
        return sum(picture.counts.truth_is_empty for picture in self.pictures)

    def summary(self) -> str:
        """Return the few lines that a person reads: the scores, then every rule behind them."""
        rules, number = self.rules, len(self.pictures)
        mean_of = f"mean of {number} picture{'' if number == 1 else 's'}"
        return "\n".join(
            (
                f"Dice {self.mean_dice:.4f} ({mean_of}), {self.pooled_dice:.4f} (pooled pixels)",
                f"IoU  {self.mean_iou:.4f} ({mean_of}), {self.pooled_iou:.4f} (pooled pixels)",
                f"split {rules.split}, threshold {rules.threshold:g}, weights {rules.weights}",
                f"scored at {rules.size}, {BORDER_WORDS[rules.border]}",
                f"empty pictures: {self.empty_pictures} of {number}; {EMPTY_RULE}",
            )
        )

    def to_json(self) -> dict[str, object]:
        """Return the scores, the rules and every picture as plain dicts, lists and numbers."""
        return {
            "mean_dice": self.mean_dice,
            "mean_iou": self.mean_iou,
            "pooled_dice": self.pooled_dice,
            "pooled_iou": self.pooled_iou,
            "empty_pictures": self.empty_pictures,
            "rules": {**asdict(self.rules), "empty": EMPTY_RULE},
            "pictures": [_picture_to_json(picture) for picture in self.pictures],
        }


def _picture_to_json(picture: PictureScore) -> dict[str, object]:
    """Return one picture's row: its name and size, its scores, its counts."""
    counts = picture.counts
    return {
        "name": picture.name,
        "height": picture.height,
        "width": picture.width,
        "dice": counts.dice,
        "iou": counts.iou,
        "precision": counts.precision,
        "recall": counts.recall,
        "accuracy": counts.accuracy,
        **asdict(counts),
    }
