"""Counts: how many pixels fell on each side, and the scores made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from notan.errors import ShapeError

if TYPE_CHECKING:
    from notan.types import Mask


@dataclass(frozen=True)
class Counts:
    """How many pixels of one image, or of many pooled, fell on each side.

    Attributes:
        true_positive: Foreground, and predicted so.
        false_positive: Ground, predicted as foreground.
        false_negative: Foreground, predicted as background.
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
        return Counts(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
            self.true_negative + other.true_negative,
        )

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
        errors = self.false_positive + self.false_negative
        return _ratio(self.true_positive, self.true_positive + errors, otherwise=1.0)

    @property
    def precision(self) -> float:
        """TP / (TP + FP), in 0..1; with nothing predicted, 1 if truth is empty too, else 0."""
        predicted = self.true_positive + self.false_positive
        return _ratio(self.true_positive, predicted, otherwise=float(self.truth_is_empty))

    @property
    def recall(self) -> float:
        """TP / (TP + FN), in 0..1; of an empty mask, 1 if nothing was predicted, else 0."""
        return _ratio(
            self.true_positive, self.foreground, otherwise=float(self.prediction_is_empty)
        )

    @property
    def specificity(self) -> float:
        """TN / (TN + FP), in 0..1; 1 where no counted pixel is background."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive, otherwise=1.0)

    @property
    def accuracy(self) -> float:
        """(TP + TN) / all, in 0..1; 1 when every pixel is ignored. High on mostly empty data."""
        right = self.true_positive + self.true_negative
        return _ratio(right, right + self.false_positive + self.false_negative, otherwise=1.0)


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
