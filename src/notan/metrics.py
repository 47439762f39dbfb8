"""Scores of masks against masks: counts of pixels, and the scores made of them. NumPy only.

One rule holds for every score here: where truth and prediction are both empty the score is 1,
and a false alarm on an empty picture scores 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from notan.errors import ConfigError, DataError, ShapeError, nearest

if TYPE_CHECKING:
    from notan.types import Mask

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
class Counts:
    """How many pixels of one picture, or of many pooled, fell on each side.

    Attributes:
        true_positive: Figure, and predicted so.
        false_positive: Ground, predicted as figure.
        false_negative: Figure, predicted as ground.
        true_negative: Ground, and predicted so.
    """

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @classmethod
    def of(cls, prediction: Mask, truth: Mask, ignore: Mask | None = None) -> Counts:
        """Count a predicted mask against the true one.

        Args:
            prediction: bool, (height, width), True = figure.
            truth: bool, (height, width), True = figure.
            ignore: bool, (height, width), True = not counted; None = every pixel counts.

        Returns:
            Counts that sum to the number of pixels not ignored.

        Raises:
            ShapeError: The masks are not all of one size, or one of them is not bool.
        """
        _check_mask("prediction", prediction, truth)
        _check_mask("truth", truth, truth)
        pixels = truth.size
        if ignore is not None:
            _check_mask("ignored area", ignore, truth)
            counted = ~ignore
            prediction, truth = prediction & counted, truth & counted
            pixels = int(np.count_nonzero(counted))
        predicted = int(np.count_nonzero(prediction))
        actual = int(np.count_nonzero(truth))
        both = int(np.count_nonzero(prediction & truth))
        return cls(both, predicted - both, actual - both, pixels - predicted - actual + both)

    def __add__(self, other: Counts) -> Counts:
        """Pool two counts, as if their pictures were one."""
        return Counts(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
            self.true_negative + other.true_negative,
        )

    @property
    def truth_is_empty(self) -> bool:
        """Whether no counted pixel is figure in truth."""
        return self.true_positive + self.false_negative == 0

    @property
    def prediction_is_empty(self) -> bool:
        """Whether no counted pixel is predicted as figure."""
        return self.true_positive + self.false_positive == 0

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN), in 0..1; 1 when truth and prediction are both empty."""
        errors = self.false_positive + self.false_negative
        return _ratio(2 * self.true_positive, 2 * self.true_positive + errors, otherwise=1.0)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN), in 0..1; 1 when truth and prediction are both empty."""
        errors = self.false_positive + self.false_negative
        return _ratio(self.true_positive, self.true_positive + errors, otherwise=1.0)

    @property
    def precision(self) -> float:
        """TP / (TP + FP), in 0..1; with nothing predicted, 1 if truth is empty too, else 0."""
        predicted = self.true_positive + self.false_positive
        return _ratio(self.true_positive, predicted, otherwise=float(self.truth_is_empty))

    @property
    def recall(self) -> float:
        """TP / (TP + FN), in 0..1; with no figure, 1 if nothing was predicted either, else 0."""
        actual = self.true_positive + self.false_negative
        return _ratio(self.true_positive, actual, otherwise=float(self.prediction_is_empty))

    @property
    def accuracy(self) -> float:
        """(TP + TN) / all, in 0..1; 1 when every pixel is ignored. High on mostly-ground data."""
        right = self.true_positive + self.true_negative
        return _ratio(right, right + self.false_positive + self.false_negative, otherwise=1.0)


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


def _ratio(part: int, whole: int, *, otherwise: float) -> float:
    """Return part / whole, or the given value when there is nothing to divide by."""
    return part / whole if whole else otherwise


def _check_mask(name: str, mask: Mask, truth: Mask) -> None:
    """Raise ShapeError unless a mask is bool and of the truth's size."""
    if mask.dtype != np.bool_:
        raise ShapeError(
            f"the {name} holds {mask.dtype}; a mask is bool, True = figure: "
            "compare it with a threshold first, for example probability >= 0.5"
        )
    if mask.shape != truth.shape:
        raise ShapeError(
            f"the {name} has shape {mask.shape} and the truth {truth.shape}; "
            "masks are compared at one size (height, width)"
        )
