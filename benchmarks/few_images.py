"""Measure trainings on few images: from scratch, pretrained, two stages, self-, semi-supervised.

Run by hand: python benchmarks/few_images.py ../shared/data/oxford-iiit-pet --keep FOLDER
Trains the same U-Net on EfficientNet-Lite0 in each way on 30, 100 and 270 images, for the same
number of steps, and prints the mean Dice on the test images at their own size, over seeds. The
self-supervised encoders and the semi-supervised networks see all 270 training images without
their masks. Give the command again to go on: finished trainings are kept, a stopped one is
resumed. Each training takes about 2 minutes on one core, each pretraining 5.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from notan.config import Pretrain, load_run
from notan.data.folders import open_split
from notan.evaluation.evaluate import evaluate
from notan.io.write import write_bytes
from notan.prediction.predictor import Predictor
from notan.pretraining import pretrain
from notan.pretraining import resume as resume_pretraining
from notan.pretraining.pretrainer import ENCODER
from notan.pretraining.pretrainer import SETTINGS as PRETRAIN_SETTINGS
from notan.run_folder import BEST, SETTINGS
from notan.runtime import describe_hardware, find_device
from notan.training import resume, train

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from notan.config import Run
    from notan.data.samples import FileSource

STEPS = 400
BATCH = 8
FEWEST_TO_VALIDATE = 10
FLAGS: Mapping[str, Any] = {
    "data.trimap_border": "background",
    "preprocess.image_size": 128,
    "model.encoder": "efficientnet_lite0",
    "model.width": 8,
    "augment.scale_probability": 0.0,
    "augment.crop_probability": 0.0,
    "augment.grid_dropout_probability": 0.0,
    "augment.rotate_degrees": 15.0,
    "train.batch_size": BATCH,
    "train.learning_rate": 1e-3,
    "train.schedule": "cosine",
    "train.ema_decay": 0.99,
    "train.trackers": (),
    "train.log_images": 0,
    "device": "cpu",
}


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        title: What the table calls it.
        counts: Of how many images.
        seeds: With which seeds, which also choose the images.
        flags: What it changes in ``FLAGS``.
        frozen: Share of the epochs in which the encoder stays as it came.
        self_supervised: Whether the encoder was pretrained on the training images.
        semi_supervised: Whether the training images are seen without masks too.
    """

    title: str
    counts: tuple[int, ...] = (30, 100, 270)
    seeds: tuple[int, ...] = (0, 1, 2)
    flags: Mapping[str, Any] = field(default_factory=dict)
    frozen: float = 0.0
    self_supervised: bool = False
    semi_supervised: bool = False


PRETRAINING: Mapping[str, Any] = {
    "image_size": 128,
    "patch": 16,
    "width": 4,
    "train": {"epochs": 30, "warmup_epochs": 2, "batch_size": BATCH},
    "device": "cpu",
}
PRETRAINED = {"train.pretrained": True}
METHODS = {
    "scratch": Method("from scratch"),
    "pretrained": Method("pretrained", flags=PRETRAINED),
    "two-stage": Method(
        "pretrained, two stages",
        flags={**PRETRAINED, "train.encoder_lr_multiplier": 0.3, "train.layer_lr_decay": 0.8},
        frozen=0.15,
    ),
    "self": Method("self-supervised", counts=(30, 270), seeds=(0, 1), self_supervised=True),
    "semi": Method(
        "pretrained, semi-supervised",
        counts=(30, 270),
        seeds=(0, 1),
        flags={**PRETRAINED, "train.ema_decay": 0.98},
        semi_supervised=True,
    ),
}


@dataclass(frozen=True)
class Job:
    """One training of the table."""

    method: str
    count: int
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.method}-{self.count}-s{self.seed}"

    def run(self, data: Path, keep: Path) -> Run:
        """Return its settings: as many steps as any other, whole epochs of them."""
        method = METHODS[self.method]
        epochs = round(STEPS / -(-self.count // BATCH))
        flags = {**FLAGS, **method.flags, "data.path": data, "seed": self.seed}
        flags["train.epochs"] = epochs
        if method.frozen:
            flags["train.freeze_epochs"] = max(1, round(method.frozen * epochs))
        if method.self_supervised:
            flags["train.encoder_weights"] = learned_encoder(self.seed, data, keep)
        if method.semi_supervised:
            flags["train.unlabelled"] = without_masks(self.seed, data, keep)
        return load_run(flags=flags)

    def images(self, run: Run) -> tuple[FileSource, FileSource]:
        """Open the images to train on, the same for every method, and those to validate on."""
        parts = [open_split(run.data, part, seed=self.seed) for part in ("train", "validation")]
        counts = (self.count, max(FEWEST_TO_VALIDATE, self.count // 9))
        rng = np.random.default_rng(self.seed)
        training, validation = (
            part.only(frozenset(rng.choice(part.names, size=count, replace=False).tolist()))
            for part, count in zip(parts, counts, strict=True)
        )
        return training, validation


def learned_encoder(seed: int, data: Path, keep: Path) -> Path:
    """Pretrain an encoder on the training images that a seed leaves, or find the finished one."""
    folder = keep / f"pretraining-s{seed}"
    finished = folder / "finished"
    if not finished.exists():
        settings = Pretrain.model_validate({"path": data, "seed": seed, **PRETRAINING})
        if (folder / PRETRAIN_SETTINGS).exists():
            resume_pretraining(folder, settings=settings)
        else:
            pretrain(settings, out=folder)
        finished.touch()
    return folder / ENCODER


def without_masks(seed: int, data: Path, keep: Path) -> Path:
    """Copy the training images that a seed leaves into a folder, once."""
    folder = keep / f"images-s{seed}"
    training = open_split(load_run(flags={**FLAGS, "data.path": data}).data, "train", seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    for pair in training.pairs:
        if not (folder / pair.image.name).exists():
            shutil.copy(pair.image, folder)
    return folder


def jobs() -> Iterator[Job]:
    """Name every training, one seed after the other, so that an early table has all methods."""
    for seed in range(3):
        for name, method in METHODS.items():
            for count in method.counts if seed in method.seeds else ():
                yield Job(name, count, seed)


def settle(job: Job, data: Path, keep: Path) -> float:
    """Train and score one, or read what was scored; return the mean Dice on the test images."""
    folder = keep / job.name
    result = folder / "test.json"
    if result.exists():
        return float(json.loads(result.read_text(encoding="utf-8"))["dice"])
    run = job.run(data, keep)
    training, validation = job.images(run)
    if (folder / SETTINGS).exists():
        resume(folder, run=run, training=training, validation=validation)
    else:
        train(run, out=folder, training=training, validation=validation)
    predictor = Predictor.load(folder / BEST, device="cpu")
    test = open_split(run.data, "test", seed=0)
    score = evaluate(predictor, test, split="test", trimap_border="background", batch_size=BATCH)
    write_bytes(result, json.dumps({"dice": score.mean_dice}).encode())
    return score.mean_dice


def show(scores: Mapping[Job, float]) -> None:
    """Print the table: a row for each method, a column for each number of images."""
    counts = sorted({job.count for job in scores})
    print(f"| {'images':<28} |" + "".join(f" {count:<18} |" for count in counts))
    print(f"|{'-' * 30}|" + f"{'-' * 20}|" * len(counts))
    for name, method in METHODS.items():
        cells = []
        for count in counts:
            dice = [
                score for job, score in scores.items() if (job.method, job.count) == (name, count)
            ]
            spread = f" +- {stdev(dice):.3f}" if len(dice) > 1 else ""
            cells.append(f"{fmean(dice):.3f}{spread} ({len(dice)})" if dice else "")
        print(f"| {method.title:<28} |" + "".join(f" {cell:<18} |" for cell in cells))


def main() -> None:
    """Train and score what is missing; print the table, also after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--keep", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    words = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(describe_hardware(find_device("cpu")))
    scores: dict[Job, float] = {}
    try:
        for job in jobs():
            if job.method in words.methods:
                scores[job] = settle(job, words.data, words.keep)
                print(f"{job.name}: {scores[job]:.4f}", flush=True)
    finally:
        show(scores)


if __name__ == "__main__":
    main()
