"""Compare notan's boundary scores with two other libraries' on moved masks: values and speed.

Run by hand, from a folder with the Oxford pets:

    pip install --no-deps --target refs monai surface-distance
    PYTHONPATH=refs python benchmarks/boundary_scores.py --data-path ../dataset/oxford-iiit-pet

MONAI uses the same boundary pixels, so its numbers should be equal up to float32. DeepMind's
surface-distance (Nikolov et al. 2018) weighs the outline by its length; the script prints how
much that changes. The prediction is each true mask, turned and shifted by a few pixels.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from surface_distance import (
    compute_robust_hausdorff,
    compute_surface_dice_at_tolerance,
    compute_surface_distances,
)

from notan.config import Data
from notan.data.folders import open_split
from notan.metrics import BoundaryScore, Tolerance

if TYPE_CHECKING:
    from collections.abc import Callable

    from notan.types import Mask

Pair = tuple[float, float]
"""Surface Dice and Hausdorff 95."""

TOLERANCE = 4.0
WARP = np.array([[1.03, 0.02, -3], [0.01, 0.98, 4]], np.float32)


def ours(prediction: Mask, truth: Mask) -> Pair:
    """Ask notan."""
    score = BoundaryScore.of(prediction, truth, tolerance=Tolerance(TOLERANCE, percent=False))
    return score.surface_dice, float(score.hausdorff95 or 0)


def monai(prediction: Mask, truth: Mask) -> Pair:
    """Ask MONAI."""
    masks = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (prediction, truth)]
    dice = compute_surface_dice(*masks, [TOLERANCE], include_background=True)
    distance = compute_hausdorff_distance(*masks, include_background=True, percentile=95)
    return float(dice), float(distance)


def surface_distance(prediction: Mask, truth: Mask) -> Pair:
    """Ask DeepMind's surface-distance."""
    distances = compute_surface_distances(truth, prediction, (1, 1))
    dice = compute_surface_dice_at_tolerance(distances, TOLERANCE)
    return float(dice), float(compute_robust_hausdorff(distances, 95))


LIBRARIES: dict[str, Callable[[Mask, Mask], Pair]] = {
    "notan": ours,
    "MONAI": monai,
    "surface-distance": surface_distance,
}


def main() -> None:
    """Compare on the first images of the test split."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--images", type=int, default=60)
    wanted = parser.parse_args()
    source = open_split(Data(path=wanted.data_path, trimap_border="foreground"), "test", seed=0)
    seconds = dict.fromkeys(LIBRARIES, 0.0)
    found: dict[str, list[Pair]] = {name: [] for name in LIBRARIES}
    for index in range(min(wanted.images, len(source))):
        truth = source[index].mask
        size = (truth.shape[1], truth.shape[0])
        moved = np.asarray(cv2.warpAffine(truth.astype(np.uint8), WARP, size) > 0)
        for name, score in LIBRARIES.items():
            began = time.perf_counter()
            found[name].append(score(moved, truth))
            seconds[name] += time.perf_counter() - began
    number = len(found["notan"])
    reference = np.array(found["notan"])
    print(f"{number} images, tolerance {TOLERANCE:g} pixels, difference from notan's")
    for name in LIBRARIES:
        dice, distance = np.abs(np.array(found[name]) - reference).T
        print(
            f"{name:<17} surface Dice mean {dice.mean():.2g} most {dice.max():.2g}; "
            f"Hausdorff 95 mean {distance.mean():.2g} most {distance.max():.2g} pixels; "
            f"{1000 * seconds[name] / number:.1f} ms an image"
        )


if __name__ == "__main__":
    main()
