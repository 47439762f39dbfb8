"""Measure what a good beginning is worth: a few dozen steps where little is foreground.

Run by hand: python benchmarks/first_steps.py --seeds 0 1
Trains a U-Net on EfficientNet-Lite0 on drawn cracks: as it is; with the batch norm momentum that
the encoder was published with; and without the first guess that a network makes of the
foreground's share. All take the same steps, so that the machine's speed says nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING
from unittest import mock

import cv2
import torch
from torch import nn

from notan.config import load_run
from notan.data.synthetic import DrawnSource
from notan.evaluation.evaluate import evaluate
from notan.models.base import SegmentationModel
from notan.prediction.predictor import Predictor
from notan.run_folder import BEST, HISTORY
from notan.training import train
from results import write_results

if TYPE_CHECKING:
    from collections.abc import Sequence

EPOCHS, SIDE, IMAGES = 9, 128, (52, 8, 40)
"""Of training, validation and test images; in steps of eight, 63 in all."""

SETTINGS = {
    "preprocess.image_size": SIDE,
    "model.encoder": "efficientnet_lite0",
    "model.width": 8,
    "train.pretrained": True,
    "train.epochs": EPOCHS,
    "train.batch_size": 8,
    "train.learning_rate": 2e-3,
    "train.schedule": "cosine",
    "train.encoder_lr_multiplier": 0.15,
    "train.ema_decay": 0.9999,
    "train.trackers": (),
    "augment.rotate_degrees": 180.0,
    "augment.crop_area": 0.5,
    "augment.grid_dropout_probability": 0.0,
    "device": "cpu",
}


class _Slow(nn.BatchNorm2d):
    """Batch norm as the encoder was published with it; the decoder's is a class of notan's."""

    def __init__(self, features: int, eps: float) -> None:
        super().__init__(features, eps=eps, momentum=0.01)


def changes(variant: str) -> ExitStack:
    """Return what makes a variant while it is entered."""
    stack = ExitStack()
    if variant == "momentum 0.01":
        stack.enter_context(mock.patch("notan.models.efficientnet_lite.nn.BatchNorm2d", _Slow))
    if variant == "no first guess":
        stack.enter_context(mock.patch.object(SegmentationModel, "expect", return_value=None))
    return stack


VARIANTS = ("as it is", "momentum 0.01", "no first guess")


def measure(variant: str, seed: int, folder: Path) -> dict[str, float]:
    """Train once; return losses of the last epoch and the Dice of the test images, cut at 0.5."""
    first, parts = 0, []
    for count in IMAGES:
        parts.append(DrawnSource(count, size=(SIDE, SIDE), first=first, kind="cracks"))
        first += count
    training, validation, test = parts
    with changes(variant):
        run = load_run(flags={**SETTINGS, "seed": seed})
        train(run, out=folder, training=training, validation=validation)
    last = json.loads((folder / HISTORY).read_text(encoding="utf-8").splitlines()[-1])
    score = evaluate(Predictor.load(folder / BEST, threshold=0.5), test, split="test")
    losses = {"training loss": last["train/loss"], "validation loss": last["validation/loss"]}
    return {**losses, "Dice": score.mean_dice}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train each variant with each seed, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--name", default="first_steps", help="of the files of results")
    words = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            found = [
                measure(variant, seed, Path(folder, f"{variant}-{seed}")) for seed in words.seeds
            ]
            means = {name: round(fmean(each[name] for each in found), 3) for name in found[0]}
            each = ", ".join(f"{one['Dice']:.3f}" for one in found)
            rows.append({"variant": variant, **means, "Dice of each seed": each})
            print(rows[-1], flush=True)
    write_results(
        words.name,
        f"A U-Net of width 8 on Lite0 after {EPOCHS} epochs of drawn cracks, {SIDE}x{SIDE}",
        rows,
        [
            f"{IMAGES[0]} training, {IMAGES[1]} validation and {IMAGES[2]} test images; means over "
            f"seeds {', '.join(map(str, words.seeds))}; Dice cut at 0.5",
        ],
    )


if __name__ == "__main__":
    main()
