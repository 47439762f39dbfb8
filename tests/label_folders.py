"""A folder that the smallest network learns in seconds: bright ellipses on dark background."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from notan.data.samples import Sample, Source
from notan.data.synthetic import write_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.types import Mask

EASY: dict[str, object] = {
    "model.width": 4,
    "preprocess.image_size": 32,
    "train.epochs": 12,
    "train.batch_size": 4,
    "train.learning_rate": 0.01,
    "train.trackers": (),
    "augment.enabled": False,
}


class Ellipses(Source):
    """Images ``e00``, ``e01`` and so on, 32x40, with exact masks."""

    def __init__(self, count: int) -> None:
        self.count = count

    @property
    def names(self) -> Sequence[str]:
        return [f"e{place:02d}" for place in range(self.count)]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng((7, index))
        canvas = np.zeros((32, 40), np.uint8)
        centre = int(rng.integers(12, 28)), int(rng.integers(10, 22))
        axes = int(rng.integers(6, 10)), int(rng.integers(5, 8))
        cv2.ellipse(canvas, centre, axes, 0, 0, 360, 1, -1)
        mask: Mask = np.asarray(canvas, bool)
        image = rng.normal(70, 12, (32, 40, 3)) + 110 * mask[..., None]
        return Sample(self.names[index], np.clip(image, 0, 255).astype(np.uint8), mask)


def write_ellipses(folder: Path, *, train: int = 14, val: int = 4) -> Path:
    """Write train/ and val/; ``e00`` is the first of train."""
    samples = list(Ellipses(train + val))
    for part, chosen in (("train", samples[:train]), ("val", samples[train:])):
        write_folder(_Listed(chosen), folder / part)
    return folder


class _Listed(Source):
    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    @property
    def names(self) -> Sequence[str]:
        return [sample.name for sample in self.samples]

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]
