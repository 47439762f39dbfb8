"""Measure how much work it takes to correct a model's masks until it is as good as with all masks.

Run by hand: python benchmarks/corrections.py ../shared/data/nuclei --work FOLDER
A network is trained on ten masks and says where it sees foreground in the other 60 training images.
A simulated person takes some of these, corrects the masks, and the network is trained from its base
on all that there is; then the next images, with the new network's masks. Compared are three ways:
the images that the network is least sure of first, images at random, and the same images at random
with masks drawn from nothing, at last all 70. Each training is scored on the 30 test images, which
nobody trains on or corrects. All trainings take the same number of steps.

The person's seconds follow from a rule, not from a stopwatch: ``LOOK_SECONDS`` for each image,
``STROKE_SECONDS`` for each wrong region, and for each pixel of the true outline that has to be
traced as long as makes a whole nucleus, drawn from nothing, take ``NUCLEUS_SECONDS``. Errors
within ``TOLERANCE`` of the true outline are left as they are, also in the mask that is then trained
on, unless they are a whole object; and where drawing is quicker than correcting, the person draws.

Writes ``benchmarks/results/corrections.json`` and ``.md``. Give the command again to go on: what is
in the work folder is kept. A seed takes half an hour of one core; one alone writes no table, so
that several may be trained at once.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
import torch

from notan.config import load_run
from notan.data.folders import folder_source
from notan.data.samples import Subset
from notan.evaluation.evaluate import evaluate
from notan.io.masks import read_mask
from notan.io.write import write_bytes
from notan.prediction.predictor import Predictor
from notan.run_folder import BEST
from notan.studio.raster import encode_mask
from notan.training import train
from results import write_results

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from notan.data.samples import FileSource
    from notan.types import Mask

START = 10
STEPS = 300
"""Of each training. After a third of them a network on ten masks has not settled."""

ENOUGH = 0.01
"""As good as all masks is a mean Dice of at most so much less; chosen before the first training."""

BATCH = 8
VALIDATION = 3
"""Of the masks to begin with; the same in every training, so that none is luckier in its choice."""

FLAGS = {
    "preprocess.image_size": 128,
    "model.encoder": "efficientnet_lite0",
    "model.width": 8,
    "augment.grid_dropout_probability": 0.0,
    "train.pretrained": True,
    "train.batch_size": BATCH,
    "train.learning_rate": 2e-3,
    "train.schedule": "cosine",
    "train.ema_decay": 0.95,
    "train.trackers": (),
    "train.log_images": 0,
    "device": "cpu",
}

TOLERANCE = 1
"""Pixels; two people who outline the same nucleus are no closer to each other."""

LOOK_SECONDS = 5.0
"""To open an image, look it over and accept it: an assumption."""

STROKE_SECONDS = 0.9
"""To go to the next place and press there. Source: Bearman et al., "What's the Point", ECCV 2016:
each further click on an image."""

NUCLEUS_SECONDS = 8.4
"""To outline a nucleus. Source: Englbrecht et al., PLoS ONE 16(4), 2021, doi
10.1371/journal.pone.0250093: 6,409 nuclei by hand in about 15 hours."""

Way = Literal["least sure first", "at random", "drawn"]
WAYS: tuple[Way, ...] = ("least sure first", "at random", "drawn")


@dataclass(frozen=True)
class Effort:
    """What a person did.

    Attributes:
        images: Looked at.
        strokes: Begun: a wrong region mended, or an object drawn.
        traced: Pixels of true outline that were followed.
    """

    images: int = 0
    strokes: int = 0
    traced: int = 0

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.images + other.images, self.strokes + other.strokes, self.traced + other.traced
        )

    def seconds(self, pace: float) -> float:
        """Return how long it takes at a pace in seconds for each pixel of outline."""
        return LOOK_SECONDS * self.images + STROKE_SECONDS * self.strokes + pace * self.traced


def outline_of(mask: Mask) -> Mask:
    """Return the foreground pixels that touch background; the image's edge is none."""
    whole = mask.astype(np.uint8)
    inner = cv2.erode(whole, np.ones((3, 3), np.uint8), borderValue=1)
    outline: Mask = mask & (inner == 0)
    return outline


def count_regions(mask: Mask) -> int:
    """Return how many connected regions a mask has."""
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1


def grown(mask: Mask, pixels: int) -> Mask:
    """Return a mask with all that lies within so many pixels of it, along rows and columns."""
    side = 2 * pixels + 1
    return cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) > 0


def draw(truth: Mask) -> Effort:
    """Return what it takes to draw a mask from nothing: every object's whole outline."""
    return Effort(1, count_regions(truth), int(outline_of(truth).sum()))


def correct(model: Mask, truth: Mask, pace: float) -> tuple[Mask, Effort]:
    """Correct a model's mask as a person would.

    A wrong region that touches no true outline, such as a false object or a hole, takes a stroke
    alone; any other also the part of the true outline that it touches.

    Args:
        model: bool, (height, width).
        truth: Likewise.
        pace: Seconds for each pixel of outline.

    Returns:
        The corrected mask, and what it took.
    """
    wrong, outline = model != truth, outline_of(truth)
    _, objects = cv2.connectedComponents(truth.astype(np.uint8), connectivity=8)
    seen = wrong & ~grown(outline, TOLERANCE)
    seen |= truth & ~np.isin(objects, np.unique(objects[model]))  # missed, however small
    mended = wrong & grown(seen, TOLERANCE)
    effort = Effort(1, count_regions(mended), int((outline & grown(mended, 1)).sum()))
    drawn = draw(truth)
    if drawn.seconds(pace) < effort.seconds(pace):
        return truth, drawn
    return np.where(mended, truth, model), effort


def pace_of(source: FileSource) -> float:
    """Return the seconds for each pixel of outline at which the mean object takes as measured."""
    whole = sum((draw(sample.mask) for sample in source), Effort())
    return (NUCLEUS_SECONDS - STROKE_SECONDS) * whole.strokes / whole.traced


class Story:
    """One seed: the ten masks, the order of chance, and what was trained so far."""

    def __init__(self, data: Path, work: Path, seed: int, pace: float) -> None:
        self.data, self.folder, self.seed, self.pace = data, work / f"seed-{seed}", seed, pace
        self.images = folder_source(data / "train")
        order = np.random.default_rng(seed).permutation(len(self.images)).tolist()
        names = [self.images.names[place] for place in order]
        self.first, self.by_chance = names[:START], names[START:]

    def masks_in_data(self, names: Sequence[str]) -> dict[str, Path]:
        """Return the files of the data's own masks."""
        return {pair.name: pair.mask for pair in self.images.pairs if pair.name in names}

    def dice(self, folder: Path, masks: Mapping[str, Path]) -> float:
        """Train from the base on some masks and score on the test images, or read what was."""
        result = folder / "test.json"
        if not result.exists():
            steps_an_epoch = -(-(len(masks) - VALIDATION) // BATCH)
            run = load_run(
                flags={
                    **FLAGS,
                    "data.path": self._write_table(folder, masks),
                    "train.epochs": round(STEPS / steps_an_epoch),
                    "seed": self.seed,
                }
            )
            train(run, out=folder / "run", overwrite=True)
            test = folder_source(self.data / "test")
            score = evaluate(self._model(folder), test, split="test", batch_size=BATCH)
            write_bytes(result, json.dumps({"dice": score.mean_dice}).encode())
        return float(json.loads(result.read_text(encoding="utf-8"))["dice"])

    def _model(self, folder: Path) -> Predictor:
        return Predictor.load(folder / "run" / BEST, device="cpu")

    def _write_table(self, folder: Path, masks: Mapping[str, Path]) -> Path:
        """Write a data folder as the studio does: a table of images and masks."""
        folder.mkdir(parents=True, exist_ok=True)
        images = {pair.name: pair.image for pair in self.images.pairs}
        with (folder / "corrections.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["image", "mask", "split"])
            for name, mask in sorted(masks.items()):
                split = "val" if name in self.first[:VALIDATION] else "train"
                table.writerow([images[name].resolve(), mask.resolve(), split])
        return folder

    def work_on(
        self, way: Way, model: Path, taken: Mapping[str, Path], count: int, folder: Path
    ) -> tuple[dict[str, Path], Effort]:
        """Take the next images and make their masks, or read what was made.

        Args:
            way: How they are chosen and made.
            model: The folder of the training whose masks are corrected.
            taken: Images that have a mask already, and its file.
            count: How many images are to be taken.
            folder: Where corrected masks go.

        Returns:
            The files of all masks, and what the new ones took.
        """
        done = folder / "effort.json"
        if not done.exists():
            rest = frozenset(self.by_chance) - frozenset(taken)
            predictions = dict(self._predictions(model, rest)) if way != "drawn" else {}
            order = [name for name in self.by_chance if name in rest]
            if way == "least sure first":
                order.sort(key=lambda name: predictions[name][1])
            files, effort = self.masks_in_data(order[:count]), Effort()
            for name, path in files.items():
                truth = read_mask(path).mask
                mask, took = truth, draw(truth)
                if way != "drawn":
                    mask, took = correct(predictions[name][0], truth, self.pace)
                    files[name] = folder / "masks" / f"{name}.png"
                    write_bytes(files[name], encode_mask(mask))
                effort += took
            paths = {name: str(path) for name, path in files.items()}
            write_bytes(done, json.dumps({"masks": paths, "effort": asdict(effort)}).encode())
        kept = json.loads(done.read_text(encoding="utf-8"))
        new = {name: Path(path) for name, path in kept["masks"].items()}
        return {**taken, **new}, Effort(**kept["effort"])

    def _predictions(
        self, model: Path, names: frozenset[str]
    ) -> list[tuple[str, tuple[Mask, float]]]:
        pairs = self._model(model).predict_samples(Subset(self.images, names))
        return [(each.name, (found.mask, found.expected_dice)) for each, found in pairs]

    def play(self, counts: Sequence[int]) -> dict[tuple[Way, int], tuple[float, Effort]]:
        """Return the test Dice and the effort so far of each way after so many images."""
        base, masks = self.folder / "base", self.masks_in_data(self.first)
        start = self.dice(base, masks), Effort()
        found = {(way, 0): start for way in WAYS}
        models = dict.fromkeys(WAYS, base)
        taken = {way: dict(masks) for way in WAYS}
        everything = len(self.by_chance)
        counts = sorted({*counts, everything})
        for before, count in zip((0, *counts), counts, strict=False):
            for way in WAYS if count < everything else ("drawn",):
                folder = self.folder / f"{way.replace(' ', '-')}-{count}"
                new = count - before
                taken[way], took = self.work_on(way, models[way], taken[way], new, folder)
                effort = found[way, before][1] + took
                found[way, count] = self.dice(folder, taken[way]), effort
                models[way] = folder
                print(f"seed {self.seed}, {way}, {count}: {found[way, count]}", flush=True)
        return found


def rows_of(
    played: Sequence[Mapping[tuple[Way, int], tuple[float, Effort]]], pace: float
) -> tuple[list[dict[str, object]], list[float]]:
    """Return the table's rows, and each seed's Dice with all masks."""
    rows: list[dict[str, object]] = []
    keys = list(played[0])
    whole = [each[max(keys, key=lambda key: key[1])][0] for each in played]
    for way, count in sorted(keys, key=lambda key: (WAYS.index(key[0]), key[1])):
        dice = [each[way, count][0] for each in played]
        efforts = [each[way, count][1] for each in played]
        strokes, traced = (
            fmean(getattr(each, name) for each in efforts) for name in ("strokes", "traced")
        )
        rows.append(
            {
                "way": way,
                "images": count,
                "test Dice": f"{fmean(dice):.3f}",
                "of each seed": ", ".join(f"{value:.3f}" for value in dice),
                "strokes": f"{strokes:,.0f}",
                "outline, pixels": f"{traced:,.0f}",
                "seconds": f"{fmean(each.seconds(pace) for each in efforts):,.0f}",
                "as good as all masks": "yes" if fmean(dice) >= fmean(whole) - ENOUGH else "no",
            }
        )
    return rows, whole


def main() -> None:
    """Play what is missing and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--images", type=int, nargs="+", default=[10, 25, 40])
    words = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    source = folder_source(words.data / "train")
    pace = pace_of(source)
    played = [Story(words.data, words.work, seed, pace).play(words.images) for seed in words.seeds]
    if len(played) == 1:
        return
    rows, whole = rows_of(played, pace)
    write_results(
        "corrections",
        f"From {START} masks of nuclei to the Dice of {len(source)}",
        rows,
        [
            f"means over {len(played)} seeds, which also choose the {START} masks to begin with; "
            f"mean Dice of the test images at their own size; {STEPS} steps of {BATCH} images at "
            f"{FLAGS['preprocess.image_size']} pixels for every training, from ImageNet's weights",
            f"as good as all masks: the mean is at least {fmean(whole) - ENOUGH:.3f}, that of all "
            f"masks less {ENOUGH}, a rule set before the first training; with all masks seeds have "
            f"a standard deviation of {stdev(whole):.3f}",
            "least sure first, at random: the model's masks are corrected; drawn: the images of "
            "'at random', masks from nothing; the last row is training on all masks",
            f"seconds, by a rule and not by a clock: {LOOK_SECONDS:g} for each image, "
            f"{STROKE_SECONDS:g} for each stroke and {1000 * pace:.0f} ms for each pixel of true "
            f"outline to be traced, so that the mean nucleus takes {NUCLEUS_SECONDS:g}; errors "
            f"within {TOLERANCE} pixel of the true outline stay, in the training too",
        ],
    )


if __name__ == "__main__":
    main()
