"""Pixels of a predicted mask counted against the true one, and the scores made of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from notan.errors import ShapeError

if TYPE_CHECKING:
    from notan.types import Mask

COUNTED = ("dice", "iou", "precision", "recall", "specificity", "accuracy")
"""The measures that follow from the counts alone."""

MEASURES = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "accuracy": "accuracy",
    "boundary_f": "boundary F",
    "surface_dice": "surface Dice",
    "hausdorff95": "Hausdorff 95, pixels",
    "average_precision": "average precision",
    "brier": "Brier",
}
"""What is measured of each image, and how a summary names it."""


@dataclass(frozen=True)
class Counts:
    """How many pixels of one image, or of many pooled, fell on each side.

    Attributes:
        true_positive: Foreground, and predicted so.
        false_positive: Background, predicted as foreground.
        false_negative: Foreground, predicted as background.
        true_negative: Background, and predicted so.
    """

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @classmethod
    def of(cls, prediction: Mask, truth: Mask, ignore: Mask | None = None) -> Counts:
        """Count a predicted mask against the true one.

        Args:
            prediction: bool, (height, width), True = foreground.
            truth: bool, (height, width), True = foreground.
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
        """Pool two counts, as if their images were one."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return Counts(*(mine + theirs for mine, theirs in pairs))

    @property
    def pixels(self) -> int:
        """How many pixels were counted."""
        return self.foreground + self.false_positive + self.true_negative

    @property
    def foreground(self) -> int:
        """How many counted pixels are foreground in truth."""
        return self.true_positive + self.false_negative

    @property
    def truth_is_empty(self) -> bool:
        """Whether no counted pixel is foreground in truth."""
        return self.foreground == 0

    @property
    def prediction_is_empty(self) -> bool:
        """Whether no counted pixel is predicted as foreground."""
        return self.true_positive + self.false_positive == 0

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN), in 0..1; 1 when truth and prediction are both empty."""
        errors = self.false_positive + self.false_negative
        return _ratio(2 * self.true_positive, 2 * self.true_positive + errors, otherwise=1.0)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN), in 0..1; 1 when truth and prediction are both empty."""
        union = self.foreground + self.false_positive
        return _ratio(self.true_positive, union, otherwise=1.0)

    @property
    def precision(self) -> float:
        """TP / (TP + FP), in 0..1; with nothing predicted, 1 if truth is empty too, else 0."""
        predicted = self.true_positive + self.false_positive
        return _ratio(self.true_positive, predicted, otherwise=float(self.truth_is_empty))

    @property
    def recall(self) -> float:
        """TP / (TP + FN), in 0..1; of an empty mask, 1 if nothing was predicted, else 0."""
        alone = float(self.prediction_is_empty)
        return _ratio(self.true_positive, self.foreground, otherwise=alone)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP), in 0..1; 1 where no counted pixel is background."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive, otherwise=1.0)

    @property
    def accuracy(self) -> float:
        """(TP + TN) / all, in 0..1; 1 when every pixel is ignored. High on mostly empty data."""
        return _ratio(self.true_positive + self.true_negative, self.pixels, otherwise=1.0)


class ImageScore(BaseModel):
    """The scores of one image, at the size that was scored: a row of images.csv and score.json.

    Attributes:
        name: The sample's name.
        height: Of the scored masks, in pixels.
        width: Of the scored masks, in pixels.
        dice: Like the five after it, of ``Counts``.
        boundary_f: Like the two after it, of ``BoundaryScore``.
        average_precision: Of the probabilities, 0..1; None where there is no foreground.
        brier: Mean squared error of the probabilities, 0..1; None where every pixel is ignored.
        expected_dice: The Dice that the model itself expected, 0..1; None: it did not say.
        needs_review: Whether the model asked for a second look; None: it did not say.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    height: int
    width: int
    dice: float = Field(ge=0, le=1)
    iou: float
    precision: float
    recall: float
    specificity: float
    accuracy: float
    boundary_f: float
    surface_dice: float
    hausdorff95: float | None
    average_precision: float | None
    brier: float | None
    expected_dice: float | None
    needs_review: bool | None
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def counts(self) -> Counts:
        """The counted pixels, to be pooled."""
        return Counts(
            self.true_positive, self.false_positive, self.false_negative, self.true_negative
        )

    def numbers(self) -> dict[str, float | None]:
        """Return each of ``MEASURES``; None where it is undefined or was not taken."""
        return {measure: getattr(self, measure) for measure in MEASURES}


def _ratio(part: int, whole: int, *, otherwise: float) -> float:
    """Return part / whole, or the given value when there is nothing to divide by."""
    return part / whole if whole else otherwise


def _check_mask(name: str, mask: Mask, truth: Mask) -> None:
    """Raise ShapeError unless a mask is bool and of the truth's size."""
    if mask.dtype != np.bool_:
        raise ShapeError(
            f"the {name} holds {mask.dtype}; a mask is bool, True = foreground: "
            "compare it with a threshold first, for example probability >= 0.5"
        )
    if mask.shape != truth.shape:
        raise ShapeError(
            f"the {name} has shape {mask.shape} and the truth {truth.shape}; "
            "masks are compared at one size (height, width)"
        )
