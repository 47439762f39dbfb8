"""Samples like photographs, of many sizes, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from notan.data.samples import Sample, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notan.types import Image8, Size

SIZES = [(61, 83), (120, 45), (40, 40), (1, 1), (7, 90), (80, 80), (37, 2), (150, 211), (1, 50)]


class Kept(Source):
    """Samples that are in memory already."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    @property
    def names(self) -> list[str]:
        return [sample.name for sample in self.samples]

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def photograph(rng: np.random.Generator, size: Size, channels: int) -> Image8:
    """Soft areas with noise on them."""
    coarse = rng.integers(0, 256, (-(-size[0] // 6), -(-size[1] // 6), channels)).astype(np.uint8)
    soft = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, channels)
    noisy = soft.astype(int) + rng.integers(-20, 20, soft.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def photographs(
    sizes: Sequence[Size] = SIZES, channels: int = 3, *, ignores: bool = True, seed: int = 0
) -> Kept:
    rng = np.random.default_rng(seed)
    return Kept(
        [
            Sample(
                f"photograph-{number}",
                photograph(rng, size, channels),
                photograph(rng, size, 1)[..., 0] > 128,
                # one of them says nothing of ignored areas, as in a folder of both
                photograph(rng, size, 1)[..., 0] > 190 if ignores and number != 1 else None,
            )
            for number, size in enumerate(sizes)
        ]
    )
