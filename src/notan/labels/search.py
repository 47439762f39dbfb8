"""The search for wrong masks in a data folder: gather, cross-validate, rank."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, cast

from tqdm import tqdm

from notan.checkpoint import read_card
from notan.data.doctor.collect import WHOLE, collect
from notan.data.files import FileSource, Pair
from notan.data.folder import mask_labels
from notan.data.pets import trimap_labels
from notan.errors import CheckpointError, ConfigError, DataError
from notan.files import write_bytes
from notan.labels.crossvalidate import (
    divide,
    estimate_seconds,
    predict_held_out,
    require_folds,
)
from notan.labels.suspicion import Ranking, judge_all, rank
from notan.predict.formats import mask_image, write_png

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from notan.checkpoint import Card
    from notan.config import Run, TrimapBorder
    from notan.data.doctor import Diagnosis
    from notan.data.sample import Sample
    from notan.predict.predictor import Prediction

logger = logging.getLogger("notan")

FOLDS = 3
JUDGED = (WHOLE, "train", "validation")
"""The splits whose masks are judged: the test part is for evaluate alone."""

FOLDERS, PREDICTIONS, PLAN = "folds", "held-out", "plan.json"


@dataclass(frozen=True)
class Plan:
    """What networks the masks are judged by.

    Attributes:
        model: Where the settings of every fold's training come from.
        weights: The SHA-256 of that model's weights.
        run: These settings.
        folds: How many parts the images are divided into.
    """

    model: Path
    weights: str
    run: Run
    folds: int


@dataclass(frozen=True)
class LabelSearch:
    """A ranking of a data folder's masks.

    Attributes:
        plan: By what networks.
        ranking: The masks, the most suspicious first.
        source: The images with the masks that are ranked.
        left_out: Why the masks that are not ranked could not be read.
        predictions: The folder of held-out predictions, ``NAME.png``, foreground 255.
    """

    plan: Plan
    ranking: Ranking
    source: FileSource
    left_out: tuple[str, ...]
    predictions: Path

    @cached_property
    def pairs(self) -> Mapping[str, Pair]:
        """The files of each name in the ranking."""
        return {pair.name: pair for pair in self.source.pairs}

    def sample(self, name: str) -> Sample:
        """Read one of the images with its mask; see ``Source`` for the errors."""
        return self.source[self.source.names.index(name)]


def plan_search(model: Path, *, folds: int | None = None, epochs: int | None = None) -> Plan:
    """Take the settings of a model for networks that judge masks; nothing is trained yet.

    Args:
        model: A ``best.safetensors`` that ``train`` wrote.
        folds: How many parts, at least 2; None: 3.
        epochs: Of every fold's training, at least 1; None: the model's own, or as many as its best
            took where a time limit decided.

    Raises:
        CheckpointError: Missing, damaged, foreign, or of a network that notan cannot build.
        ConfigError: Too few folds or epochs.
    """
    card = read_card(model)
    if card.model is None:
        raise CheckpointError(
            f"{model}: this model is {_kind(card)}, of which no fresh one can be built for each "
            "fold; train one of notan's models and give that"
        )
    folds = FOLDS if folds is None else folds
    require_folds(folds)
    train = card.run.train
    if epochs is None:
        epochs = card.epoch if train.time_limit_seconds else train.epochs
    if epochs < 1:
        raise ConfigError(f"--epochs {epochs}: at least 1 is wanted")
    # no teacher and no file of weights: they may have learned the very masks that are judged; nor
    # images without masks: each fold would see the held-out ones among them
    settings: dict[str, object] = {"epochs": epochs, "tensorboard": False, "overlays": 0}
    settings |= {
        "teacher": None,
        "encoder_weights": None,
        "unlabelled": None,
        "time_limit_seconds": None,
    }
    run = card.run.model_copy(
        update={"train": train.model_copy(update=settings), "device": "auto"},
    )
    return Plan(model, card.sha256, run, folds)


def search_labels(plan: Plan, diagnosis: Diagnosis, *, out: Path) -> LabelSearch:
    """Rank the masks of a data folder's training and validation images by suspicion.

    Args:
        plan: By what networks.
        diagnosis: What the data doctor said of the folder; its layout and border rule are used.
        out: Receives the folds' runs (``folds/1`` ...) and predictions (``held-out/NAME.png``).
            What an interrupted search of the same plan left here is not done again.

    Raises:
        ConfigError: ``out`` holds folds of another plan or of other images or masks.
        DataError: Too few images can be read.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
        StorageError: The disk is full.
    """
    source, left_out = gather(
        diagnosis.folder, diagnosis.layout, cast("TrimapBorder", diagnosis.trimap_border)
    )
    divide(source.names, plan.folds, run=plan.run)
    claim(out / FOLDERS / PLAN, plan, source)
    epochs = plan.run.train.epochs
    seconds = estimate_seconds(plan.run, source, folds=plan.folds)
    logger.info(
        "judging %d masks by %d networks with the settings of %s, %d epochs each: roughly %s",
        *(len(source), plan.folds, plan.model, epochs, in_words(seconds)),
    )
    predictions = out / PREDICTIONS
    pairs = predict_held_out(plan.run, source, folds=plan.folds, folder=out / FOLDERS)
    ranking = rank(judge_all(_kept(pairs, predictions)))
    return LabelSearch(plan, ranking, source, left_out, predictions)


def gather(
    folder: Path, layout: str, trimap_border: TrimapBorder
) -> tuple[FileSource, tuple[str, ...]]:
    """Return the images whose masks are to be judged, and why others cannot be.

    Args:
        folder: A data folder.
        layout: ``"pets"`` or ``"folder"``.
        trimap_border: What the border of trimaps counts as.
    """
    entries = [each for each in collect(folder, layout).entries if each.split in JUDGED]
    counts = Counter(each.name for each in entries if each.image and each.mask)
    pairs = [
        Pair(
            each.name if counts[each.name] == 1 else f"{each.split}/{each.image.name}",
            each.image,
            each.mask,
        )
        for each in entries
        if each.image and each.mask
    ]
    read = partial(trimap_labels, trimap_border=trimap_border) if layout == "pets" else mask_labels
    whole = FileSource(pairs, read)
    unreadable = dict(_unreadable(whole))
    readable = frozenset(whole.names) - frozenset(unreadable)
    return whole.only(readable), tuple(unreadable.values())


def _unreadable(source: FileSource) -> Iterator[tuple[str, str]]:
    places = range(len(source))
    for place in tqdm(places, desc="reading", unit="image", leave=False, delay=1, disable=None):
        try:
            source[place]
        except DataError as error:
            yield source.names[place], str(error)


def claim(path: Path, plan: Plan, source: FileSource) -> None:
    """Write down what the folds of a folder are of, or refuse a folder whose folds are of others.

    Raises:
        ConfigError: They are of another model, number of folds or epochs, images or masks.
        StorageError: The folder cannot be written.
    """
    here = {
        "model": plan.weights,
        "folds": plan.folds,
        "epochs": plan.run.train.epochs,
        "images and masks": _digest(source),
    }
    if not path.is_file():
        write_bytes(path, (json.dumps(here, indent=2) + "\n").encode())
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        there = {}
    other = [name for name, value in here.items() if there.get(name) != value]
    if other:
        raise ConfigError(
            f"{path.parent}: the networks here were trained with another {', another '.join(other)}"
            "; choose a new --out"
        )


def _digest(source: FileSource) -> str:
    digest = hashlib.sha256()
    for pair in source.pairs:
        for path in (pair.image, pair.mask):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        digest.update(pair.name.encode())
    return digest.hexdigest()


def _kept(
    pairs: Iterator[tuple[Sample, Prediction]], folder: Path
) -> Iterator[tuple[Sample, Prediction]]:
    for sample, prediction in pairs:
        write_png(folder / f"{sample.name}.png", mask_image(prediction.mask))
        yield sample, prediction


def in_words(seconds: float) -> str:
    """Say roughly how long something takes."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def _kind(card: Card) -> str:
    return "an ensemble" if card.members else f"of {card.model_class}, a class of your own"
