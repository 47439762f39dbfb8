"""Measure how good a mask can be where the trimap's border counts as background.

Run by hand: python benchmarks/trimap_border_ceiling.py ../shared/data/oxford-iiit-pet
Takes each test image's true outline, border included, moves it inwards by a distance, and scores
the rest against the true foreground, for a range of distances. This is the score of a mask that
knows every outline to the pixel, and of the border only its usual width.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from notan.config import load_run
from notan.data.folders import open_split

if TYPE_CHECKING:
    import numpy.typing as npt

    from notan.types import Mask

REACH = 40
"""Pixels that the image is continued by, so that its edge is no outline."""

IN_PIXELS = [float(distance) for distance in range(2, 25)]
OF_IMAGE = [share / 1000 for share in range(10, 80, 2)]
"""Distances as shares of the side of a square of the image's area."""


def depths(outline: Mask) -> npt.NDArray[np.float32]:
    """Return how far each pixel lies inside an outline, in pixels."""
    wide = cv2.copyMakeBorder(
        outline.astype(np.uint8), REACH, REACH, REACH, REACH, cv2.BORDER_REPLICATE
    )
    inside = cv2.distanceTransform(wide, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return cast("npt.NDArray[np.float32]", inside[REACH:-REACH, REACH:-REACH])


def dice(mask: Mask, truth: Mask) -> float:
    """Return the Dice coefficient; 1 where both are empty."""
    whole = int(mask.sum() + truth.sum())
    return 2 * int((mask & truth).sum()) / whole if whole else 1.0


def main() -> None:
    """Print the best distance of each kind, and what choosing it anew for each image gives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    run = load_run(flags={"data.path": data, "data.trimap_border": "ignore"})
    scores: dict[str, list[list[float]]] = {"pixels": [], "of the side": []}
    for sample in open_split(run.data, "test", seed=0):
        trimap_border = np.zeros_like(sample.mask) if sample.ignore is None else sample.ignore
        depth, side = depths(sample.mask | trimap_border), float(np.sqrt(sample.mask.size))
        for kind, distances in (
            ("pixels", IN_PIXELS),
            ("of the side", [share * side for share in OF_IMAGE]),
        ):
            scores[kind].append([dice(depth > each, sample.mask) for each in distances])
    for kind, choices in (("pixels", IN_PIXELS), ("of the side", OF_IMAGE)):
        table = np.array(scores[kind])
        best = int(table.mean(axis=0).argmax())
        print(
            f"{len(table)} images, outline moved inwards by {choices[best]:g} {kind}: mean Dice "
            f"{table.mean(axis=0)[best]:.3f}; by each image's own best: "
            f"{table.max(axis=1).mean():.3f}"
        )


if __name__ == "__main__":
    main()
