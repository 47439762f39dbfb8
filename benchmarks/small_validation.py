"""Measure what a choice of threshold on a few validation images is worth on other images.

Run by hand: python benchmarks/small_validation.py --data ../shared/data --keep FOLDER
Trains U-Nets on EfficientNet-Lite0 for a few steps on cell nuclei and on pets, and keeps what they
say of the images that they have not learned from, scaled down. Of these it draws some at random,
over and over, as if they were all of the validation images: by them it chooses how probabilities
become masks, and it scores the choice on the others. Writes
``benchmarks/results/small_validation.json`` and ``.md``. It takes a few minutes on a busy core;
more steps, counts of images and draws may be asked for.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from notan.config import load_run
from notan.data.folders import open_split
from notan.data.samples import Sample, Source
from notan.evaluation.calibrate import choose_postprocessing
from notan.metrics import Counts
from notan.modelfile.postprocess import Postprocessing, logit
from notan.modelfile.preprocess import Preprocessor
from notan.prediction.predictor import Predictor
from notan.run_folder import BEST
from notan.training import train
from results import write_results

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Rows = npt.NDArray[np.int64]
    Maps = npt.NDArray[np.float32]

SIDE = 64
BATCH = 8
DATA = ("nuclei", "oxford-iiit-pet")
FLAGS = {
    "preprocess.image_size": 96,
    "model.encoder": "efficientnet_lite0",
    "train.pretrained": True,
    "train.batch_size": BATCH,
    "train.learning_rate": 1e-3,
    "train.trackers": (),
    "train.log_images": 0,
    "data.validation_fraction": 0.3,
    "device": "cpu",
}
SHARPEST = 16
"""Of a logit; what is beyond is as sure in float32."""


class Saved(Source):
    """What a network has said of images, in the place of the images.

    Attributes:
        probability: float32, (images, ``SIDE``, ``SIDE``).
        masks: bool, likewise.
        rows: Which of the images this is.
    """

    def __init__(
        self, probability: Maps, masks: npt.NDArray[np.bool_], rows: Rows | None = None
    ) -> None:
        self.probability, self.masks = probability, masks
        self.rows = np.arange(len(masks)) if rows is None else rows

    @property
    def names(self) -> list[str]:
        """Return the numbers of the images."""
        return [str(row) for row in self.rows]

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        # three bytes hold a logit: the network below reads it from there
        level = np.round((logit(self.probability[row]) / SHARPEST + 1) * (2**23)).astype(np.int64)
        level = np.clip(level, 0, 2**24 - 1)
        image = np.stack([level >> 16, level >> 8 & 255, level & 255], axis=-1).astype(np.uint8)
        return Sample(self.names[index], image, self.masks[row])

    def dice(self, rule: Postprocessing) -> npt.NDArray[np.float64]:
        """Return the Dice of each image by a rule."""
        masks = (rule.mask(rule.calibrate(self.probability[row])) for row in self.rows)
        return np.array(
            [
                Counts.of(mask, self.masks[row]).dice
                for mask, row in zip(masks, self.rows, strict=True)
            ]
        )


def _logits(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Read logits out of the images of ``Saved``: a network without weights."""
    parts = np.rint(inputs.astype(np.float64) * 255)
    level = parts[:, :1] * 2**16 + parts[:, 1:2] * 2**8 + parts[:, 2:3]
    logits: Maps = ((level / 2**23 - 1) * SHARPEST).astype(np.float32)
    return logits


READER = Predictor(_logits, Preprocessor(image_size=None, mean=(0, 0, 0), std=(1, 1, 1), stride=1))


def learned(data: Path, steps: int, keep: Path) -> Saved:
    """Train a network and keep what it says of images that it has not learned from, or read it."""
    folder = keep / f"{data.name}-{steps}"
    saved = folder / "probability.npz"
    if not saved.exists():
        flags = {**FLAGS, "data.path": data}
        if data.name == "oxford-iiit-pet":
            flags["data.trimap_border"] = "background"
        count = len(open_split(load_run(flags=flags).data, "train", seed=0))
        run = load_run(flags={**flags, "train.epochs": max(1, round(steps * BATCH / count))})
        train(run, out=folder, overwrite=True)
        plain = Predictor.load(folder / BEST).with_postprocessing(Postprocessing())
        maps, masks = [], []
        for part in ("val", "test"):
            for sample, prediction in plain.predict_samples(open_split(run.data, part, seed=0)):
                size = (SIDE, SIDE)
                maps.append(cv2.resize(prediction.probability, size, interpolation=cv2.INTER_AREA))
                mask = sample.mask.astype(np.uint8)
                masks.append(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) > 0)
        np.savez_compressed(saved, probability=np.stack(maps), masks=np.stack(masks))
    with np.load(saved) as content:
        return Saved(content["probability"], content["masks"])


def greedy(source: Saved) -> Postprocessing:
    """Take the likeliest calibration and the best threshold as the images have them."""
    logits = logit(source.probability[source.rows]).astype(np.float64)
    masks = source.masks[source.rows]

    def cross_entropy(setting: Sequence[float]) -> float:
        scaled = logits * np.exp(-setting[0]) + setting[1]
        return float(np.logaddexp(0, np.where(masks, -scaled, scaled)).mean())

    bounds = ((np.log(0.25), np.log(8.0)), (-5.0, 5.0))
    found = minimize(cross_entropy, (0.0, 0.0), bounds=bounds, method="L-BFGS-B").x
    probability = expit(logits * np.exp(-found[0]) + found[1])
    thresholds = np.arange(5, 96) / 100
    whole = masks.sum(axis=(1, 2))
    mean = []
    for threshold in thresholds:
        called = probability >= threshold
        sums = called.sum(axis=(1, 2)) + whole
        shared = 2 * (called & masks).sum(axis=(1, 2)) / np.maximum(sums, 1)
        mean.append(np.where(sums, shared, 1.0).mean())
    as_good = thresholds[np.array(mean) >= max(mean) - 0.001]
    settings = {"temperature": float(np.exp(found[0])), "bias": float(found[1])}
    return Postprocessing(**settings, threshold=float(np.median(as_good)))


def row_of(saved: Saved, title: str, count: int, draws: int) -> dict[str, object]:
    """Draw so many validation images over and over, and return a row of the table."""
    rng = np.random.default_rng(0)
    plain = saved.dice(Postprocessing())
    gains: dict[str, list[float]] = {"greedy": [], "chosen": []}
    told = []
    for _ in range(draws):
        order = rng.permutation(len(plain))
        validation = Saved(saved.probability, saved.masks, np.sort(order[:count]))
        others = Saved(saved.probability, saved.masks, order[count:])
        choice = choose_postprocessing(READER, validation)
        told.append(choice.held_out_dice - choice.plain_dice)
        for name, rule in (("greedy", greedy(validation)), ("chosen", choice.postprocessing)):
            gains[name].append(float((others.dice(rule) - plain[others.rows]).mean()))
    row: dict[str, object] = {
        "model": title,
        "validation images": count,
        "plain": f"{plain.mean():.4f}",
    }
    for name, values in gains.items():
        row[name] = f"{np.mean(values):+.4f}"
        row[f"{name}, worst draw"] = f"{min(values):+.4f}"
        row[f"{name}, worse by 0.005"] = f"{np.mean(np.array(values) < -0.005):.0%}"
    return {**row, "the card says": f"{np.mean(told):+.4f}"}


def main() -> None:
    """Train what is missing, choose and score, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[20])
    parser.add_argument("--images", type=int, nargs="+", default=[8])
    parser.add_argument("--draws", type=int, default=40)
    words = parser.parse_args()
    rows = [
        row_of(saved, f"{name}, {steps} steps", count, words.draws)
        for name in DATA
        for steps in words.steps
        for saved in [learned(words.data / name, steps, words.keep)]
        for count in words.images
    ]
    write_results(
        "small_validation",
        "What is chosen on a few validation images",
        rows,
        [
            f"mean Dice on the images that were not drawn, over {words.draws} draws: plain, a "
            "threshold of 0.5; then what two ways to choose gain over it",
            "greedy: the likeliest calibration and the best threshold of the images drawn; chosen: "
            "what a training does",
            "the card says: what the choice is said to gain, by images left out of it",
        ],
    )


if __name__ == "__main__":
    main()
