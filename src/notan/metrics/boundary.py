"""How far two masks' boundaries lie apart: boundary F, surface Dice and Hausdorff 95.

A mask's boundary is its boundary pixels: foreground pixels of which at least one of the four
neighbours is background. What lies outside the image counts as background, so that a foreground
which the image's edge cuts off is closed by that edge, and a mask has a boundary exactly when it
has a foreground.
Distances are Euclidean, in pixels, between the centres of boundary pixels.

Ignored pixels: inside the ignored area the prediction is taken to be the truth, so that nothing
there counts as an error. Where the ignored area covers the foreground's whole outline (the pets
with ``trimap_border = "ignore"``) little is left to judge, and the scores are high for that reason
alone.

Source: Csurka, Larlus, Perronnin, BMVC 2013, doi:10.5244/C.27.32, and Martin, Fowlkes, Malik,
    PAMI 2004, doi:10.1109/TPAMI.2004.1273918 (boundary F; Martin matches boundary pixels one to
    one, Csurka and this code ask only that one is near); Nikolov et al. 2018, arXiv:1809.04430
    (surface Dice; there each surface element weighs by its length, here each boundary pixel weighs
    one, as in MONAI); Huttenlocher et al., PAMI 1993, doi:10.1109/34.232073 (partial Hausdorff
    distance; the larger of the two directions' 95th percentiles).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from notan.errors import ConfigError

if TYPE_CHECKING:
    import numpy.typing as npt

    from notan.types import Mask, Size

    Distances = npt.NDArray[np.float64]

PERCENTILE = 95
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


@dataclass(frozen=True)
class Tolerance:
    """How far a boundary may lie off and still count as right.

    A percentage that comes to less than a pixel is one pixel: masks cannot be finer.

    Attributes:
        amount: Pixels, or percent of the image's diagonal.
        percent: Whether the amount is a percentage.

    Raises:
        ConfigError: The amount is not above 0, is no number, or is more than the whole diagonal.
    """

    amount: float = 0.75
    percent: bool = True

    def __post_init__(self) -> None:
        most = 100.0 if self.percent else math.inf
        if not 0 < self.amount <= most or math.isinf(self.amount):
            raise ConfigError(f"the tolerance is {self}; {_WANTED}")

    @classmethod
    def parse(cls, words: str) -> Tolerance:
        """Read ``2`` (pixels) or ``0.75%`` (of the diagonal).

        Raises:
            ConfigError: The words are neither, or the amount is out of range.
        """
        number = words.strip()
        try:
            amount = float(number.removesuffix("%"))
        except ValueError:
            raise ConfigError(f"the tolerance is '{words}'; {_WANTED}") from None
        return cls(amount, percent=number.endswith("%"))

    def pixels(self, size: Size) -> float:
        """Return the tolerance in an image of (height, width): at least one pixel."""
        return max(1.0, self.amount / 100 * math.hypot(*size)) if self.percent else self.amount

    def __str__(self) -> str:
        """Return the words that ``parse`` reads back."""
        return f"{self.amount:.15g}{'%' if self.percent else ''}"

    def in_words(self) -> str:
        """Return the tolerance as a summary says it."""
        if self.percent:
            return f"{self} of the diagonal, at least 1 pixel"
        return f"{self} pixel{'' if self.amount == 1 else 's'}"


_WANTED = "pixels above 0 (2) or a part of the diagonal up to 100% (0.75%) were wanted"


@dataclass(frozen=True)
class BoundaryScore:
    """How well one predicted boundary follows the true one.

    Attributes:
        boundary_f: Harmonic mean of two fractions, 0..1: of the predicted boundary that lies near
            the true one, and of the true one that lies near the predicted one.
        surface_dice: Fraction of both boundaries together that lies near the other, 0..1.
        hausdorff95: The distance that 95 % of each boundary keeps to the other, in pixels; None
            where only one of them exists.
    """

    boundary_f: float
    surface_dice: float
    hausdorff95: float | None

    @classmethod
    def of(
        cls,
        prediction: Mask,
        truth: Mask,
        ignore: Mask | None = None,
        *,
        tolerance: Tolerance = Tolerance(),
    ) -> BoundaryScore:
        """Compare two masks' boundaries.

        Both masks empty is 1, 1 and a distance of 0; exactly one empty is 0, 0 and no distance.

        Args:
            prediction: bool, (height, width), True = foreground.
            truth: bool, of the same shape.
            ignore: bool, of the same shape, True = taken to be right; None: nothing is.
            tolerance: From how far a boundary pixel is near.
        """
        if ignore is not None:
            prediction = np.where(ignore, truth, prediction)
        if not prediction.any() or not truth.any():
            both_empty = not prediction.any() and not truth.any()
            return cls(1.0, 1.0, 0.0) if both_empty else cls(0.0, 0.0, None)
        predicted, actual = boundary_distances(prediction, truth)
        near = tolerance.pixels((truth.shape[0], truth.shape[1]))
        right, found = (int(np.count_nonzero(side <= near)) for side in (predicted, actual))
        precision, recall = right / len(predicted), found / len(actual)
        both = precision + recall
        return cls(
            boundary_f=2 * precision * recall / both if both else 0.0,
            surface_dice=(right + found) / (len(predicted) + len(actual)),
            hausdorff95=max(float(np.percentile(side, PERCENTILE)) for side in (predicted, actual)),
        )


def boundary_distances(prediction: Mask, truth: Mask) -> tuple[Distances, Distances]:
    """Return each boundary pixel's distance to the other mask's boundary.

    Args:
        prediction: bool, (height, width), with at least one foreground pixel.
        truth: bool, of the same shape, with at least one foreground pixel.

    Returns:
        float64 pixels: one for each boundary pixel of the prediction, one for each of the truth.
    """
    # all boundary pixels lie in the rectangle around both foregrounds: nothing outside it matters
    left, top, width, height = cv2.boundingRect((prediction | truth).view(np.uint8))
    box = slice(top, top + height), slice(left, left + width)
    predicted, actual = boundary_pixels(prediction[box]), boundary_pixels(truth[box])
    return _distances(predicted, actual), _distances(actual, predicted)


def boundary_pixels(mask: Mask) -> Mask:
    """Return the foreground pixels with background, or the image's edge, on one of four sides."""
    inside = cv2.erode(mask.astype(np.uint8), CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(mask & (inside == 0))


def _distances(points: Mask, others: Mask) -> Distances:
    distances = cv2.distanceTransform((~others).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # OpenCV answers in float32; squares of distances are whole, so rounding makes them exact
    return np.asarray(np.sqrt(np.rint(np.square(distances[points], dtype=np.float64))))
