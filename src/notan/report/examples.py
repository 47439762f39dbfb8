"""The worst, middling and best images of a score, each with truth, prediction and errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from notan.io.images import shown
from notan.metrics import Counts
from notan.prediction.formats import PREDICTION, TRUTH, mask_image
from notan.report.page import fitted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notan.data.samples import Source
    from notan.metrics import ImageScore
    from notan.prediction.predictor import Predictor
    from notan.types import Image8, Mask, RGBImage

Place = Literal["worst", "median", "best"]

OF_EACH = 3
SIDE = 400
"""The longer side of a panel in pixels: sharp at the size that a page shows it in."""

LEAST_SIDE = 160
"""Smaller images are magnified to this, pixel by pixel."""

GAP = 8
DIMMED = 0.45
"""How bright the image stands behind its errors, beside white."""


@dataclass(frozen=True)
class Example:
    """An image with what was made of it.

    Attributes:
        place: Why it is shown.
        name: The sample's name.
        dice: Its Dice in the score.
        dice_now: Of the prediction that is shown; another where the weights have changed since.
        panels: By what they show: image, truth, prediction, errors; all of one size.
    """

    place: Place
    name: str
    dice: float
    dice_now: float
    panels: dict[str, RGBImage]

    def sheet(self) -> RGBImage:
        """Return the panels side by side, white between them."""
        first, *others = self.panels.values()
        gap = np.full((first.shape[0], GAP, 3), 255, np.uint8)
        return np.hstack([first, *(part for panel in others for part in (gap, panel))])


def choose(images: Sequence[ImageScore]) -> list[tuple[Place, ImageScore]]:
    """Choose three images of each place by Dice, none of them twice.

    Where there are fewer than nine, the best come before the median ones.
    """
    ranked = sorted(images, key=lambda image: (image.dice, image.name))
    worst, rest = ranked[:OF_EACH], ranked[OF_EACH:]
    best, rest = rest[-OF_EACH:][::-1], rest[:-OF_EACH]
    start = max(0, (len(rest) - OF_EACH + 1) // 2)
    places: dict[Place, list[ImageScore]] = {
        "worst": worst,
        "median": rest[start : start + OF_EACH],
        "best": best,
    }
    return [(place, image) for place, chosen in places.items() for image in chosen]


def find_examples(
    images: Sequence[ImageScore], source: Source, predictor: Predictor
) -> list[Example]:
    """Predict the worst, median and best images that are in a source, and draw their panels.

    Raises:
        DataError: An image or mask cannot be read.
    """
    number_of = {name: number for number, name in enumerate(source.names)}
    examples = []
    for place, scored in choose(images):
        if scored.name not in number_of:
            continue
        sample = source[number_of[scored.name]]
        mask = predictor(sample.image).mask
        panels = {
            "image": shown(sample.image),
            "truth": _black_and_white(sample.mask, sample.ignore),
            "prediction": _black_and_white(mask, None),
            "errors": error_map(sample.image, mask, sample.mask, sample.ignore),
        }
        small = {
            name: fitted(panel, side=SIDE, least_side=LEAST_SIDE) for name, panel in panels.items()
        }
        now = Counts.of(mask, sample.mask, sample.ignore).dice
        examples.append(Example(place, scored.name, scored.dice, now, small))
    return examples


def error_map(image: Image8, mask: Mask, truth: Mask, ignore: Mask | None = None) -> RGBImage:
    """Colour the pixels that are wrong on a dimmed, grey image.

    Args:
        image: uint8, (height, width, channels); of other channels than RGB the first are shown.
        mask: The predicted foreground, of the same size.
        truth: The true foreground.
        ignore: Pixels that do not count.

    Returns:
        uint8, (height, width, 3), RGB: predicted only (false positive) in orange, missed (false
        negative) in sky blue, the two colours that every page gives to prediction and truth.
    """
    grey = cv2.cvtColor(shown(image), cv2.COLOR_RGB2GRAY)[..., None].repeat(3, axis=2)
    result = (DIMMED * grey + (1 - DIMMED) * 255).astype(np.uint8)
    result[mask & truth] = (0.75 * result[mask & truth]).astype(np.uint8)
    counted = np.ones_like(truth) if ignore is None else ~ignore
    result[mask & ~truth & counted] = PREDICTION
    result[truth & ~mask & counted] = TRUTH
    return result


def _black_and_white(mask: Mask, ignore: Mask | None) -> RGBImage:
    """Show a mask, with ignored pixels in grey."""
    grey = mask_image(mask)
    if ignore is not None:
        grey[ignore] = 128
    return grey[..., None].repeat(3, axis=2)
