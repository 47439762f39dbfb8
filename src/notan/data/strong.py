"""Strong variation of light, colour and sharpness, for views that must come to a known answer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from notan.config import Augment
from notan.data.transforms import Geometry, GridDropout, Light, Transform

if TYPE_CHECKING:
    from typing import Any

    from notan.data.sample import Sample
    from notan.data.transforms import Fit
    from notan.types import RGBImage, Size

STRENGTH = {
    "brightness": 0.4,
    "contrast": 0.5,
    "brightness_contrast_probability": 0.8,
    "grid_dropout_ratio": 0.5,
    "grid_dropout_probability": 0.5,
}
SATURATION, SATURATION_PROBABILITY, GREY_PROBABILITY = 0.8, 0.5, 0.2
WIDEST_BLUR, BLUR_PROBABILITY = 0.02, 0.5
STILL = {
    "scale_probability": 0.0,
    "flip_probability": 0.0,
    "affine_scale": 0.0,
    "translate": 0.0,
    "rotate_degrees": 0.0,
    "crop_probability": 0.0,
}


def build_geometry(settings: Augment, fit: Fit) -> Geometry:
    """Return the geometry of a training's augmentation; a mere resizing where that is off."""
    still = {} if settings.enabled else STILL
    return Geometry(settings.model_copy(update=still), fit)


def build_strong() -> tuple[Transform[Any], ...]:
    """Return what changes how an image looks and leaves alone where things are.

    Source:
        Yang, Qi, Feng, Zhang and Shi 2023, arXiv:2208.09910: jitter, grey and blur at such
        strengths. Here hue is left alone and holes on a grid are added (Chen et al. 2020,
        arXiv:2001.04086).
    """
    settings = Augment().model_copy(update=STRENGTH)
    return (Light(settings), Colour(), Blur(), GridDropout(settings))


class Colour(Transform["float | None"]):
    """Paler or stronger colours, or none; image only."""

    def draw(self, rng: np.random.Generator, size: Size) -> float | None:
        """Draw what the distance to grey is multiplied by, or None for no change."""
        del size
        grey, changed = rng.random(2)
        factor = 1 + rng.uniform(-SATURATION, SATURATION)
        if grey < GREY_PROBABILITY:
            return 0.0
        return factor if changed < SATURATION_PROBABILITY else None

    def apply(self, sample: Sample, draw: float | None) -> Sample:
        """Move every pixel's channels away from its grey level, or towards it."""
        if draw is None:
            return sample
        grey = cv2.cvtColor(sample.image, cv2.COLOR_RGB2GRAY)[..., None]
        levels = grey + draw * (sample.image.astype(np.float32) - grey)
        image = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return dataclasses.replace(sample, image=image)


class Blur(Transform["float | None"]):
    """Less sharpness; image only."""

    def draw(self, rng: np.random.Generator, size: Size) -> float | None:
        """Draw the standard deviation in pixels, or None for no change."""
        chance, share = rng.random(2)
        return max(0.1, share * WIDEST_BLUR * min(size)) if chance < BLUR_PROBABILITY else None

    def apply(self, sample: Sample, draw: float | None) -> Sample:
        """Blur by a Gaussian."""
        if draw is None:
            return sample
        blurred = cv2.GaussianBlur(sample.image, (0, 0), draw)
        return dataclasses.replace(sample, image=cast("RGBImage", blurred))
