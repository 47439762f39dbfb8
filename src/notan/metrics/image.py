"""ImageScore: everything that is measured of one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from notan.metrics.counts import Counts
    from notan.metrics.surface import BoundaryScore

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
"""What is measured of each image, and how a person reads it."""


@dataclass(frozen=True)
class ImageScore:
    """The scores of one image, at the size that was scored.

    Attributes:
        name: The sample's name.
        counts: Its pixels.
        height: Of the scored masks, in pixels.
        width: Of the scored masks, in pixels.
        boundary: How far the boundaries lie apart; None: not measured.
        average_precision: Of the probabilities, 0..1; None: not measured, or there is no
            foreground.
        brier: Mean squared error of the probabilities, 0..1; None: not measured, or every pixel
            is ignored.
        expected_dice: The Dice that the model itself expected, 0..1; None: it did not say.
        needs_review: Whether the model asked for a second look; None: it did not say.
    """

    name: str
    counts: Counts
    height: int
    width: int
    boundary: BoundaryScore | None = None
    average_precision: float | None = None
    brier: float | None = None
    expected_dice: float | None = None
    needs_review: bool | None = None

    @property
    def foreground_share(self) -> float | None:
        """The foreground's share of the counted pixels, 0..1; None where all are ignored."""
        counts = self.counts
        return counts.foreground / counts.pixels if counts.pixels else None

    def numbers(self) -> dict[str, float | None]:
        """Return each of ``MEASURES``; None where it is undefined or was not taken."""
        counts, boundary = self.counts, self.boundary
        return {
            "dice": counts.dice,
            "iou": counts.iou,
            "precision": counts.precision,
            "recall": counts.recall,
            "specificity": counts.specificity,
            "accuracy": counts.accuracy,
            "boundary_f": boundary.boundary_f if boundary else None,
            "surface_dice": boundary.surface_dice if boundary else None,
            "hausdorff95": boundary.hausdorff95 if boundary else None,
            "average_precision": self.average_precision,
            "brier": self.brier,
        }
