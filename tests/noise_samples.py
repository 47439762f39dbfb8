"""Samples of noise, and transforms that end at one small size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from notan.data.samples import Sample
from notan.data.transforms import augment
from notan.modelfile.preprocess import Preprocessor

if TYPE_CHECKING:
    from notan.data.transforms import Fit, Transform
    from notan.types import Size

OUT = (32, 40)


def to(size: Size) -> Fit:
    return Preprocessor(image_size=size).fit


FIT = to(OUT)


def random_sample(size: Size, seed: int = 0, *, ignore: bool = False) -> Sample:
    """Noise, white wherever the mask is and dark elsewhere."""
    rng = np.random.default_rng(seed)
    mask = rng.random(size) > 0.5
    image = np.where(mask[..., None], 255, rng.integers(0, 60, (*size, 3))).astype(np.uint8)
    return Sample("cat", image, mask, rng.random(size) > 0.7 if ignore else None)


def once(transform: Transform[Any], sample: Sample, seed: int = 0) -> Sample:
    return augment(sample, [transform], np.random.default_rng(seed))
