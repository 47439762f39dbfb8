"""Measure what more time buys: test-time views, ensembles, and students of an ensemble.

Run by hand: python benchmarks/more_time.py ../shared/data/nuclei --keep FOLDER
Trains three U-Nets of width 16 and an Attention U-Net, joins them, and trains students of width 8
with and without the ensemble as their teacher. Prints for each the mean Dice on the test split,
its spread over seeds, and its time for an image relative to a plain U-Net of width 16. Trainings
that are already in the folder are kept. It takes about 20 minutes on one busy core.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from notan.comparison import make_ensemble
from notan.config import load_run
from notan.data.folders import open_split
from notan.metrics import Counts
from notan.prediction.predictor import Predictor
from notan.prediction.tta import AugmentedBackend, parse_augment, views_of
from notan.run_folder import BEST
from notan.runtime import describe_hardware, find_device
from notan.training import train

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notan.data.samples import Sample
    from notan.prediction.backends import Array, Backend

SEEDS = (0, 1, 2)
TTA = (
    "hflip",
    "hflip,vflip",
    "rot90",
    "hflip,vflip,rot90",
    "scale",
    "hflip,vflip,rot90,scale",
)
SETTINGS = {
    "preprocess.image_size": 128,
    "train.epochs": 24,
    "train.batch_size": 8,
    "train.learning_rate": 3e-3,
    "train.schedule": "cosine",
    "train.trackers": (),
    "train.log_images": 0,
    "data.split_seed": 0,
    "data.validation_fraction": 0.3,
    "device": "cpu",
}


class MeanOfLogits:
    """What test-time augmentation would be with the mean of logits instead of probabilities."""

    def __init__(self, backend: Backend, names: Sequence[str], *, stride: int) -> None:
        self.backend, self.views, self.stride = backend, views_of(names), stride

    def __call__(self, inputs: Array) -> Array:
        """Map float32 (n, 3, h, w) to logits, float32 (n, 1, h, w)."""
        size = (inputs.shape[2], inputs.shape[3])
        answers = [
            view.undo(self.backend(view.apply(inputs, self.stride)), size) for view in self.views
        ]
        mean: Array = np.mean(answers, axis=0, dtype=np.float32)
        return mean


def settle(data: Path, folder: Path, name: str, seed: int, **more: object) -> Path:
    """Train a model of a name, unless it is there; return its file."""
    path = folder / f"{name}-s{seed}" / BEST
    if not path.exists():
        flags = {**SETTINGS, "data.path": data, "seed": seed}
        flags |= {setting.replace("__", "."): value for setting, value in more.items()}
        train(load_run(flags=flags), out=path.parent)
    return path


@dataclass(frozen=True)
class Result:
    """What a predictor scored on the test images.

    Attributes:
        dice: Mean over the images.
        seconds: Processor time for one image, which a busy machine does not change.
    """

    dice: float
    seconds: float


def score(predictor: Predictor, samples: Sequence[Sample]) -> Result:
    """Predict every image and score its mask."""
    predictor(samples[0].image)  # the first image pays for what is only done once
    began = time.process_time()
    masks = [predictor(sample.image).mask for sample in samples]
    seconds = (time.process_time() - began) / len(samples)
    counts = [
        Counts.of(mask, sample.mask, sample.ignore)
        for mask, sample in zip(masks, samples, strict=True)
    ]
    return Result(fmean(count.dice for count in counts), seconds)


def show(name: str, found: Sequence[Result], plain: Sequence[Result], second: float) -> None:
    """Print the mean Dice, its spread over seeds, the gain of each seed, and the relative time."""
    dice = [each.dice for each in found]
    spread = f"± {stdev(dice):.4f}" if len(dice) > 1 else ""
    gains = [each.dice - before.dice for each, before in zip(found, plain, strict=False)]
    listed = " ".join(f"{gain:+.4f}" for gain in gains)
    times = fmean(each.seconds for each in found) / second
    print(f"{name:<40} {fmean(dice):.4f} {spread:<9} x{times:5.2f}  {listed}", flush=True)


def with_backend(predictor: Predictor, backend: Backend) -> Predictor:
    """Return a predictor with another backend, all else as it was."""
    return Predictor(
        backend,
        predictor.preprocessor,
        postprocessing=predictor.postprocessing,
        card=predictor.card,
    )


def measure(data: Path, folder: Path) -> None:
    """Train what is missing, score everything on the test split, print a line for each."""
    wide = [settle(data, folder, "unet-w16", seed, model__width=16) for seed in SEEDS]
    gated = settle(data, folder, "attention-w16", 0, model__width=16, model__name="attention_unet")
    joined = {name: folder / f"{name}.safetensors" for name in ("unets", "ensemble")}
    for path, models in zip(joined.values(), (wide, [*wide, gated]), strict=True):
        if not path.exists():
            make_ensemble(models, path, data_path=data, device="cpu")
    teacher = {"model__width": 8, "train__teacher": joined["ensemble"]}
    alone = [settle(data, folder, "unet-w8", seed, model__width=8) for seed in SEEDS]
    taught = [settle(data, folder, "taught-w8", seed, **teacher) for seed in SEEDS]

    samples = list(open_split(load_run(flags={"data.path": data}).data, "test", seed=0))
    predictors = [Predictor.load(path) for path in wide]
    plain = [score(predictor, samples) for predictor in predictors]
    second = fmean(result.seconds for result in plain)
    print(f"{len(samples)} test images; {second * 1000:.0f} ms of processor time for one, plain")
    show("U-Net of width 16", plain, [], second)
    for text in TTA:
        names = parse_augment(text)
        stride = predictors[0].preprocessor.stride
        found = [
            [score(with_backend(each, kind(each.backend, names, stride=stride)), samples)]
            for kind in (AugmentedBackend, MeanOfLogits)
            for each in predictors
        ]
        half = len(predictors)
        show(f"  --tta {text}", [each for (each,) in found[:half]], plain, second)
        show("    with the mean of logits", [each for (each,) in found[half:]], plain, second)
    show("Attention U-Net of width 16", [score(Predictor.load(gated), samples)], [], second)
    show(
        "ensemble of the three U-Nets",
        [score(Predictor.load(joined["unets"]), samples)],
        [],
        second,
    )
    whole = Predictor.load(joined["ensemble"])
    show("ensemble with the Attention U-Net", [score(whole, samples)], [], second)
    turning = Predictor.load(joined["ensemble"], augment=("hflip", "vflip", "rot90"))
    show("  --tta hflip,vflip,rot90", [score(turning, samples)], [], second)
    small = [score(Predictor.load(path), samples) for path in alone]
    show("student of width 8, alone", small, [], second)
    show(
        "student of width 8, taught by the latter",
        [score(Predictor.load(path), samples) for path in taught],
        small,
        second,
    )


def main() -> None:
    """Train, join, teach and score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--keep", type=Path, required=True, metavar="FOLDER")
    words = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(describe_hardware(find_device("cpu")))
    measure(words.data, words.keep)


if __name__ == "__main__":
    main()
