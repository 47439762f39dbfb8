"""Plant wrong masks among real ones, rank all masks by suspicion, and count what is found.

Run by hand: python benchmarks/planted_labels.py ../shared/data/nuclei --seeds 6 7 8 9
Spoils a tenth of the training masks (shifted, eroded, inverted, a pair swapped) and judges all by
cross-validation. Prints which share of the top tenth was planted, which share of the planted
masks is there, how often the fault was named correctly, and what simpler rankings of the same
predictions find. A seed decides faults, folds and weights; it takes three to six minutes on one
core. --keep FOLDER keeps the networks, and another call only ranks.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import cv2
import numpy as np
import torch

from notan.checking.label_errors import predict_held_out
from notan.checking.suspicion import judge_all, rank
from notan.config import Data, load_run
from notan.data.folders import open_split
from notan.data.samples import Sample, Source
from notan.metrics import Counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from notan.config import Run
    from notan.prediction.predictor import Prediction
    from notan.types import Mask

Kind = Literal["shifted", "eroded", "inverted", "swapped"]
SINGLE: tuple[Kind, ...] = ("shifted", "eroded", "inverted")

SHARE, FOLDS = 0.1, 3
SCORES = ("precision", "recall", "threshold_precision", "threshold_recall", "by_dice", "by_softmin")
SHIFT = (0.05, 0.12)
"""Of the short side."""

ERODED_DICE = 0.75
SWAPPED_DICE = 0.7
"""Masks that agree as well as this are no fault when they are swapped."""


class Planted(Source):
    """Samples in memory, some of their masks wrong."""

    def __init__(self, samples: Sequence[Sample], kinds: dict[str, Kind]) -> None:
        self._samples = tuple(samples)
        self.kinds = kinds

    @property
    def names(self) -> Sequence[str]:
        """The samples' names, in order."""
        return [sample.name for sample in self._samples]

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        return self._samples[index]


def plant(source: Source, seed: int) -> Planted:
    """Spoil a tenth of the masks: one pair swapped, the others in turn."""
    rng = np.random.default_rng(seed)
    samples = {sample.name: sample for sample in source}
    order = [str(name) for name in rng.permutation(list(samples))]
    usable = [name for name in order if 0.01 < samples[name].mask.mean() < 0.9]
    count = round(SHARE * len(samples))
    first, second = swappable_pair(usable, samples)
    kinds: dict[str, Kind] = {first: "swapped", second: "swapped"}
    masks = {first: samples[second].mask, second: samples[first].mask}
    rest = [name for name in usable if name not in kinds][: count - 2]
    for place, name in enumerate(rest):
        kinds[name] = SINGLE[(place + seed) % len(SINGLE)]
        masks[name] = spoil(samples[name].mask, kinds[name], rng)
    given = [
        Sample(name, sample.image, masks.get(name, sample.mask)) for name, sample in samples.items()
    ]
    return Planted(given, kinds)


def swappable_pair(names: Sequence[str], samples: dict[str, Sample]) -> tuple[str, str]:
    """Return the first two images of one size whose masks differ."""
    for place, first in enumerate(names):
        for second in names[:place]:
            one, other = samples[first].mask, samples[second].mask
            if one.shape == other.shape and Counts.of(one, other).dice < SWAPPED_DICE:
                return first, second
    raise SystemExit("no two images are of one size")


def spoil(mask: Mask, kind: Kind, rng: np.random.Generator) -> Mask:
    """Return a mask with one fault."""
    if kind == "inverted":
        return ~mask
    if kind == "shifted":
        distance = rng.uniform(*SHIFT) * min(mask.shape)
        angle = rng.uniform(0, 2 * math.pi)
        down, right = round(distance * math.sin(angle)), round(distance * math.cos(angle))
        matrix = np.array([[1, 0, right], [0, 1, down]], np.float32)
        moved = cv2.warpAffine(mask.astype(np.uint8), matrix, mask.shape[::-1])
        return np.asarray(moved, bool)
    eroded = mask
    while Counts.of(eroded, mask).dice > ERODED_DICE:
        eroded = np.asarray(cv2.erode(eroded.astype(np.uint8), np.ones((3, 3), np.uint8)), bool)
    return eroded


def settings(seed: int) -> Run:
    """Return a small U-Net's settings."""
    return load_run(
        flags={
            "model.width": 12,
            "preprocess.image_size": 128,
            "train.epochs": 25,
            "train.batch_size": 8,
            "train.learning_rate": 2e-3,
            "train.schedule": "cosine",
            "train.trackers": (),
            "train.log_images": 0,
            "seed": seed,
            "device": "cpu",
        }
    )


class Found(NamedTuple):
    """What was found of the faults of one seed.

    Attributes:
        precision: The share of the top tenth that was planted.
        recall: The share of the planted in the top tenth.
        by_kind: Planted, in the top tenth, and named rightly there, of each kind.
        threshold_precision: The share of the masks above the threshold that was planted.
        threshold_recall: The share of the planted above the threshold.
        by_dice: Recall of a ranking by Dice alone.
        by_softmin: Recall of a ranking by the soft minimum of the pixels' self-confidence.
    """

    precision: float
    recall: float
    by_kind: dict[Kind, tuple[int, int, int]]
    threshold_precision: float
    threshold_recall: float
    by_dice: float
    by_softmin: float


def search(planted: Planted, seed: int, folder: Path) -> Found:
    """Rank the masks of one seed, and count."""
    softmin: dict[str, float] = {}

    def noted() -> Iterator[tuple[Sample, Prediction]]:
        run = settings(seed)
        for sample, prediction in predict_held_out(run, planted, folds=FOLDS, folder=folder):
            softmin[sample.name] = soft_minimum(sample.mask, prediction)
            yield sample, prediction

    judgements = judge_all(noted())
    ranking, kinds = rank(judgements), planted.kinds
    count = round(SHARE * len(judgements))
    top = ranking.suspects[:count]
    above = {suspect.name for suspect in ranking.above_threshold}
    named = {
        suspect.name: suspect.explanation.kind if suspect.explanation else None for suspect in top
    }
    hits = set(named) & set(kinds)

    def recall(scores: dict[str, float]) -> float:
        lowest = sorted(scores, key=lambda name: scores[name])[:count]
        return len(set(lowest) & set(kinds)) / len(kinds)

    by_kind = {kind: [name for name in kinds if kinds[name] == kind] for kind in get_args(Kind)}
    return Found(
        precision=len(hits) / count,
        recall=len(hits) / len(kinds),
        by_kind={
            kind: (
                len(names),
                len(hits & set(names)),
                sum(named[name] == kind for name in names if name in hits),
            )
            for kind, names in by_kind.items()
        },
        threshold_precision=len(above & set(kinds)) / max(1, len(above)),
        threshold_recall=len(above & set(kinds)) / len(kinds),
        by_dice=recall({each.name: each.dice for each in judgements}),
        by_softmin=recall(softmin),
    )


def soft_minimum(mask: Mask, prediction: Prediction, temperature: float = 0.1) -> float:
    """Return the soft minimum of the pixels' self-confidence.

    Source: Lad and Mueller 2023, arXiv:2307.05080.
    """
    confidence = np.where(mask, prediction.probability, 1 - prediction.probability)
    weight = np.exp((1 - confidence.astype(np.float64)) / temperature)
    return float((confidence * weight).sum() / weight.sum())


def main() -> None:
    """Plant, rank and count for each seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path, help="a folder with train/images and train/masks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[6, 7, 8, 9])
    parser.add_argument("--keep", type=Path, help="where the networks are kept")
    words = parser.parse_args()
    torch.set_num_threads(1)
    source = open_split(Data(path=words.data / "train", layout="folder"), "all", seed=0)
    found = []
    with tempfile.TemporaryDirectory() as place:
        for seed in words.seeds:
            folder = (words.keep or Path(place)) / str(seed)
            found.append(search(plant(source, seed), seed, folder))
            print(f"seed {seed}:", *(line(found[-1:], name) for name in SCORES), sep="  ")
    report(found)


def line(found: Sequence[Found], name: str) -> str:
    """Return the mean of one score, with its spread where there are several seeds."""
    values = [float(getattr(each, name)) for each in found]
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{name} {fmean(values):.2f}{spread}"


def report(found: Sequence[Found]) -> None:
    """Print the means over the seeds, and what was found of each kind."""
    print(f"mean and standard deviation over {len(found)} seeds:")
    print(*(f"    {line(found, name)}" for name in SCORES), sep="\n")
    for kind in get_args(Kind):
        planted, top, named = (sum(each.by_kind[kind][i] for each in found) for i in range(3))
        print(f"    {kind}: {top} of {planted} in the top tenth, {named} of them named rightly")


if __name__ == "__main__":
    main()
