"""Measure what a model of the pets is worth on close-ups, which few of its images are.

Run by hand: python benchmarks/close_ups.py ../shared/data/oxford-iiit-pet MODEL [MODEL ...]
Cuts each test image down to the middle of its foreground, enlarges it and scores the model's
mask. Besides Dice it counts the holes in a mask: parts of the background that foreground
surrounds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from notan.config import load_run
from notan.data.folders import open_split
from notan.metrics.counts import Counts
from notan.metrics.statistics import compare_paired, mean_interval
from notan.modelfile.default import DEFAULT_MODEL
from notan.modelfile.preprocess import resize, resize_mask
from notan.prediction.predictor import Predictor

if TYPE_CHECKING:
    import numpy.typing as npt

    from notan.metrics.statistics import Interval
    from notan.types import Mask, RGBImage

SHARES = (None, 0.8, 0.55)
"""Sides of what is cut out, as shares of the box around the foreground; None is the whole image."""

LONG_SIDE = 480
"""Pixels of the long side of what was cut out, once it is enlarged."""


def close_up(image: RGBImage, mask: Mask, share: float | None) -> tuple[RGBImage, Mask]:
    """Return the middle of the foreground, enlarged, with its mask."""
    if share is None or not mask.any():
        return image, mask
    rows, columns = (_middle(np.asarray(mask.any(axis=axis)), share) for axis in (1, 0))
    image, mask = image[rows, columns], mask[rows, columns]
    enlarging = LONG_SIDE / max(mask.shape)
    size = round(mask.shape[0] * enlarging), round(mask.shape[1] * enlarging)
    return resize(image, size), resize_mask(mask, size)


def _middle(taken: npt.NDArray[np.bool_], share: float) -> slice:
    first, last = np.flatnonzero(taken)[[0, -1]]
    away = round((last - first + 1) * (1 - share) / 2)
    return slice(first + away, max(first + away, last - away) + 1)


def holes(mask: Mask) -> int:
    """Count the connected parts of the background that do not touch the image's edge."""
    around = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    return cv2.connectedComponents(around, connectivity=4)[0] - 2


def ends(interval: Interval) -> str:
    """Write a mean with its interval."""
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def main() -> None:
    """Print each model's scores at each share, and its difference from the first model's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path, nargs="*", default=[DEFAULT_MODEL])
    arguments = parser.parse_args()
    run = load_run(flags={"data.path": arguments.data, "data.trimap_border": "background"})
    samples = list(open_split(run.data, "test", seed=0))
    predictors = {model: Predictor.load(model) for model in arguments.models}
    for share in SHARES:
        views = [close_up(sample.image, sample.mask, share) for sample in samples]
        print(f"{share or 'whole'}: {np.mean([holes(mask) for _, mask in views]):.2f} true holes")
        first: list[float] = []
        for model, predictor in predictors.items():
            masks = [predictor(image).mask for image, _ in views]
            dice = [
                Counts.of(*pair).dice for pair in zip(masks, (t for _, t in views), strict=True)
            ]
            first = first or dice
            print(
                f"  {model}: Dice {ends(mean_interval(dice))}, "
                f"{ends(compare_paired(first, dice).difference)} from the first; "
                f"{np.mean([holes(mask) for mask in masks]):.2f} holes in an image"
            )


if __name__ == "__main__":
    main()
