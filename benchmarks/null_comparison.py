"""Measure how often `notan compare` claims a difference where there is none, on a real model.

Run by hand: python benchmarks/null_comparison.py RUN --data-path DATA
Prints the share of 200 comparisons that claim one; 5 % is what the verdict states.

One model plays both sides, so that there is no difference by construction. It scores every test
image under eight disturbances that leave the image's meaning alone (sensor noise, brightness, a
shift by a few pixels), each drawn by one rule. A comparison takes 100 of the images without
replacement and gives each side one of the eight scores at random, never the same to both. On
every image the two sides can be exchanged, as the tests assume, and the scores keep the skew, the
hard images and the heavy tails of real ones. The 200 comparisons share one table of scores, so
the result scatters somewhat more than 200 independent ones would.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.stats import binom
from tqdm import tqdm

from notan.comparison.candidates import open_candidates
from notan.comparison.comparison import SIGNIFICANCE, decide
from notan.config import load_run
from notan.data.folders import open_split
from notan.metrics import Counts
from notan.metrics.statistics import compare_paired
from notan.prediction.predictor import Predictor

if TYPE_CHECKING:
    from notan.types import Mask, RGBImage

DISTURBANCES, IMAGES, REPETITIONS = 8, 100, 200
NOISE, BRIGHTNESS, SHIFT = 6.0, 0.08, 4
"""Grey levels of noise, share of brightness, pixels of shift."""


def disturb(image: RGBImage, mask: Mask, random: np.random.Generator) -> tuple[RGBImage, Mask]:
    """Return image and mask as another exposure would have shown them."""
    down, across = random.integers(-SHIFT, SHIFT + 1, 2)
    shifted = np.roll(image, (down, across), axis=(0, 1)).astype(np.float64)
    bright = shifted * random.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS)
    noisy = bright + random.normal(0, NOISE, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), np.roll(mask, (down, across), axis=(0, 1))


def score_disturbed(run: Path, data_path: Path) -> npt.NDArray[np.float64]:
    """Return the Dice of every test image (rows) under every disturbance (columns)."""
    candidate = open_candidates([run, run])[0]
    flags = {"data.path": data_path, "data.trimap_border": candidate.card.trimap_border}
    source = open_split(load_run(flags=flags).data, "test", seed=0)
    predictor = Predictor.load(candidate.path)
    random = np.random.default_rng(0)
    rows = []
    for sample in tqdm(source, total=len(source), unit="image"):
        row = []
        for _ in range(DISTURBANCES):
            image, mask = disturb(sample.image, sample.mask, random)
            row.append(Counts.of(predictor(image).mask, mask).dice)
        rows.append(row)
    return np.array(rows)


def main() -> None:
    """Compare the model with itself, 200 times, and count what is claimed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-path", type=Path, required=True)
    words = parser.parse_args()
    scores = score_disturbed(words.run, words.data_path)
    random = np.random.default_rng(1)
    outcomes: Counter[str] = Counter()
    below = 0
    for _ in range(REPETITIONS):
        rows = random.choice(len(scores), min(IMAGES, len(scores)), replace=False)
        columns = np.array([random.choice(DISTURBANCES, 2, replace=False) for _ in rows])
        first, second = scores[rows, columns[:, 0]], scores[rows, columns[:, 1]]
        compared = compare_paired(first.tolist(), second.tolist())
        below += compared.p_value < SIGNIFICANCE
        outcomes[decide(compared, compared.p_value)] += 1
    low, high = binom.ppf([0.025, 0.975], REPETITIONS, SIGNIFICANCE) / REPETITIONS
    named = outcomes["first"] + outcomes["second"]
    print(f"spread of one image's Dice: {scores.std(axis=1).mean():.4f}, {len(scores)} images")
    print(f"p < {SIGNIFICANCE}: {below / REPETITIONS:.1%} of {REPETITIONS} comparisons")
    print(f"a model was called better: {named / REPETITIONS:.1%}")
    print(f"at a rate of {SIGNIFICANCE:.0%}, 95 % of such experiments give {low:.1%} to {high:.1%}")


if __name__ == "__main__":
    main()
