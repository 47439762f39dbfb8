"""Label errors: masks that networks which never saw them disagree with.

The images are divided into folds; a network is trained without each, with the settings of a model
that the user has, and predicts what was held out of it. Masks are ranked by these predictions.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from notan.checking.diagnosis import Diagnosis, Finding, number_of, worst_first
from notan.checking.reading import WHOLE, collect
from notan.checking.suspicion import SuspectRanking, judge_all, rank
from notan.data.folders import groups_of, image_reading, label_reader
from notan.data.samples import (
    FileSource,
    Pair,
    Subset,
    choose_folds,
    choose_validation,
    stored_in,
)
from notan.errors import CheckpointError, ConfigError, DataError, StoppedBySignal
from notan.io.digest import hash_file, sha256
from notan.io.write import write_bytes
from notan.modelfile.card import read_card
from notan.prediction.formats import mask_image, write_png
from notan.prediction.predictor import Predictor
from notan.run_folder import SETTINGS
from notan.runtime import find_device
from notan.training import OwnParts, resume, train
from notan.training.build import FREEZING, prepare
from notan.training.steps import train_step

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from notan.checking.suspicion import Suspect
    from notan.config import Data, Run
    from notan.data.samples import ImageReading, Sample, Source
    from notan.modelfile.card import Card
    from notan.prediction.predictor import Prediction

logger = logging.getLogger("notan")

FOLDS, FEWEST_FOLDS = 3, 2
FEWEST_OTHERS = 2
"""One to train on and one to choose the best epoch."""

TIMED_BATCHES = 2

JUDGED = (WHOLE, "train", "validation")
"""The splits whose masks are judged: the test part is for evaluate alone."""

FOLDERS, PREDICTIONS, PLAN = "folds", "held-out", "plan.json"

MOST_LINES = 20
SHOWN = 3
"""Unreadable files that the finding about them names."""


@dataclass(frozen=True)
class Fold:
    """One part of the images, and what the network that judges it learns from.

    Attributes:
        held_out: Names of the images that are predicted; the network never sees them.
        training: Names of those it is trained on.
        validation: Names of those that choose its best epoch, none of them held out.
    """

    held_out: frozenset[str]
    training: frozenset[str]
    validation: frozenset[str]


def divide(
    names: Sequence[str], folds: int, *, run: Run, groups: Mapping[str, str] | None = None
) -> tuple[Fold, ...]:
    """Divide images into folds by the seed of a run.

    Args:
        names: Of all images, each once.
        folds: How many parts, at least 2.
        run: Its seed and validation fraction are used.
        groups: Images that stay together, as ``groups_of`` says; None: none do.

    Raises:
        ConfigError: Fewer than two folds.
        DataError: Too few images for so many folds.
    """
    _require_folds(folds)
    largest = -(-len(names) // folds)
    if len(names) < folds or len(names) - largest < FEWEST_OTHERS:
        raise DataError(
            f"{len(names)} readable images with masks for {folds} folds; every fold needs one to "
            f"judge and {FEWEST_OTHERS} others to train on: give more images or fewer --folds"
        )
    divided = []
    for held_out in choose_folds(names, folds, seed=run.seed, groups=groups):
        others = [name for name in names if name not in held_out]
        chosen = choose_validation(
            others, fraction=run.data.validation_fraction, seed=run.seed, groups=groups
        )
        divided.append(Fold(held_out, frozenset(others) - chosen, chosen))
    return tuple(divided)


def _require_folds(folds: int) -> None:
    """Refuse a number of folds that leaves nothing to train on."""
    if folds < FEWEST_FOLDS:
        raise ConfigError(
            f"--folds {folds}: at least {FEWEST_FOLDS} are wanted, so that every image is judged "
            "by a network that did not see it"
        )


def predict_held_out(
    run: Run, source: Source, *, folds: int, folder: Path, network: str | None = None
) -> Iterator[tuple[Sample, Prediction]]:
    """Train a network for each fold, and predict what was held out of it.

    A fold that was finished in an earlier call is not trained again, and one that was stopped goes
    on where it was.

    Args:
        run: Settings of every fold's training.
        source: The images with the masks to be judged; names are unique.
        folds: How many parts.
        folder: Where the folds' run folders are, as ``1``, ``2`` and so on.
        network: ``package:Class``, where the settings are of a class of the user's own.

    Yields:
        Each sample once, with its prediction, fold after fold.

    Raises:
        ConfigError: Fewer than two folds, or the folder holds folds of other settings.
        DataError: Too few images, or one cannot be read.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
    """
    groups = None
    if isinstance(source, FileSource):
        groups, _ = groups_of(source, run.data.group_by)
    divided = divide(source.names, folds, run=run, groups=groups)
    for number, fold in enumerate(divided, start=1):
        logger.info("fold %d of %d: %d images held out", number, folds, len(fold.held_out))
        predictor = _train_fold(run, source, fold, folder / str(number), network)
        yield from predictor.predict_samples(Subset(source, fold.held_out))


def _train_fold(
    run: Run, source: Source, fold: Fold, folder: Path, network: str | None
) -> Predictor:
    training, validation = Subset(source, fold.training), Subset(source, fold.validation)
    try:
        if (folder / SETTINGS).is_file():
            result = resume(
                folder, run=run, training=training, validation=validation, model=network
            )
        else:
            result = train(run, out=folder, training=training, validation=validation, model=network)
    except StoppedBySignal as stop:
        message = "stopped and saved; give the same command and the same --out again to go on"
        raise StoppedBySignal(message, stop.exit_code - 128) from stop
    return Predictor.load(result.checkpoint, device=find_device(run.device), model=network)


def estimate_seconds(run: Run, source: Source, *, folds: int, network: str | None = None) -> float:
    """Time a few steps of training, and return about how long all folds will take.

    Raises:
        ConfigError: The user's network cannot be built, or does not keep the contract.
        DataError: One of the first images cannot be read.
    """
    few = Subset(source, frozenset(source.names[: TIMED_BATCHES * run.train.batch_size]))
    parts = prepare(run, training=few, validation=few, own=OwnParts(model=network))
    try:
        for epoch in (1, 2):  # the first pays for what is only done once
            began = time.perf_counter()
            parts.training_batches.set_epoch(epoch)
            for batch in parts.training_batches:
                train_step(parts.model, batch, parts.loss, parts.optimization)
    finally:
        parts.training_batches.close()
    a_image = (time.perf_counter() - began) / len(few)
    return a_image * len(source) * (folds - 1) * run.train.epochs


@dataclass(frozen=True)
class LabelPlan:
    """What networks the masks are judged by.

    Attributes:
        model: Where the settings of every fold's training come from.
        weights: The SHA-256 of that model's weights.
        run: These settings.
        folds: How many parts the images are divided into.
        network: ``package:Class``, where that model is of a class of the user's own.
    """

    model: Path
    weights: str
    run: Run
    folds: int
    network: str | None = None


@dataclass(frozen=True)
class LabelSearch:
    """A ranking of a data folder's masks.

    Attributes:
        plan: By what networks.
        ranking: The masks, the most suspicious first.
        source: The images with the masks that are ranked.
        pairs: The files of each name in the ranking.
        left_out: Why the masks that are not ranked could not be read.
        predictions: The folder of held-out predictions, ``NAME.png``, foreground 255.
    """

    plan: LabelPlan
    ranking: SuspectRanking
    source: FileSource
    pairs: Mapping[str, Pair]
    left_out: tuple[str, ...]
    predictions: Path

    def sample(self, name: str) -> Sample:
        """Read one of the images with its mask; see ``Source`` for the errors."""
        return self.source[self.source.names.index(name)]

    def caveats(self) -> Iterator[str]:
        """Say which masks were not judged, and whether the networks are fit to judge any."""
        if self.left_out:
            more = f"; and {len(self.left_out) - SHOWN} more" if len(self.left_out) > SHOWN else ""
            few = "; ".join(self.left_out[:SHOWN])
            images = number_of(len(self.left_out), "image")
            yield f"{images} left out of the ranking: {few}{more}"
        if not self.ranking.typical.is_sound:
            yield (
                f"the networks have learned too little to judge masks (typical Dice "
                f"{self.ranking.typical.dice:.2f} with the settings of {self.plan.model}, "
                f"{self.plan.run.train.epochs} epochs); give more --epochs or a better --model"
            )
        for kind in self.ranking.lost_kinds:
            names = [each.name for each in kind.suspects]
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield (
                f"the networks disagree with most masks of {len(names)} images that look alike "
                f"({', '.join(names[:SHOWN])}{more}; Dice {kind.dice:.2f} in the middle): doubt "
                "the networks, not these masks, which are not judged; give more images of this "
                "kind, more --epochs or a better --model"
            )

    def findings(self) -> Iterator[Finding]:
        """Give a finding for each mask above the threshold, and for those that are not judged.

        A mask whose fault can be told is a warning, a mere disagreement a note.
        """
        for suspect in self.ranking.above_threshold:
            mask = self.pairs[suspect.name].mask
            message = f"{mask}: {suspect.in_words()}; look at it"
            if suspect.explanation:
                kind = f"label-{suspect.explanation.kind}"
                yield Finding(kind, "warning", message, (mask,))
            else:
                yield Finding("label-disagreement", "note", message, (mask,))
        for words in self.caveats():
            yield Finding("label-unjudged", "note", words)

    def add_to(self, diagnosis: Diagnosis) -> Diagnosis:
        """Return a diagnosis with the findings about masks among its own."""
        findings = worst_first([*diagnosis.findings, *self.findings()])
        named = {path for finding in findings for path in finding.files}
        pairs = [(pair.image, pair.mask) for pair in self.pairs.values()]
        more = [pair for pair in pairs if named & set(pair) and pair not in diagnosis.pairs]
        update = {"findings": findings, "pairs": (*diagnosis.pairs, *more), "is_final": True}
        return diagnosis.model_copy(update=update)

    def describe(self) -> str:
        """Return the masks above the threshold as lines of text, the most suspicious first."""
        suspects = self.ranking.above_threshold
        judged = number_of(self.ranking.judged, "mask")
        threshold = self.ranking.typical.threshold
        lines = [f"{len(suspects)} of {judged} look wrong (score {threshold:.2f} or more):"]
        lines += [
            f"{suspect.score:6.2f}  {suspect.name}: {suspect.in_words()}"
            for suspect in suspects[:MOST_LINES]
        ]
        if len(suspects) > MOST_LINES:
            more = len(suspects) - MOST_LINES
            lines.append(f"        ... and {more} more, all of them in check.json")
        return "\n".join([*lines, *self.caveats()])

    def to_json(self) -> dict[str, Any]:
        """Return the whole ranking as plain values, with what it was made by."""
        typical = self.ranking.typical
        return {
            "model": str(self.plan.model),
            "folds": self.plan.folds,
            "epochs": self.plan.run.train.epochs,
            "threshold": round(typical.threshold, 4),
            "typical_dice": round(typical.dice, 4),
            "left_out": list(self.left_out),
            "ranking": [self._row(suspect) for suspect in self.ranking.suspects],
        }

    def _row(self, suspect: Suspect) -> dict[str, Any]:
        pair = self.pairs[suspect.name]
        return {
            "name": suspect.name,
            "image": str(pair.image),
            "mask": str(pair.mask),
            "score": round(suspect.score, 4),
            "dice": round(suspect.dice, 4),
            "expected_dice": round(suspect.expected_dice, 4),
            "message": suspect.in_words(),
            "is_judged": not suspect.is_of_lost_kind,
            "explanation": asdict(suspect.explanation) if suspect.explanation else None,
        }


def plan_search(
    model: Path,
    *,
    folds: int | None = None,
    epochs: int | None = None,
    network: str | None = None,
) -> LabelPlan:
    """Take the settings of a model for networks that judge masks; nothing is trained yet.

    Args:
        model: A ``best.safetensors`` that ``train`` wrote.
        folds: How many parts, at least 2; None: 3.
        epochs: Of every fold's training, at least 1; None: the model's own, or as many as its best
            took where a time limit decided.
        network: ``package:Class``, where the model is of a class of the user's own.

    Raises:
        CheckpointError: Missing, damaged, foreign, or of a network that notan cannot build.
        ConfigError: Too few folds or epochs.
    """
    card = read_card(model)
    if card.members:
        raise CheckpointError(
            f"{model}: this model is an ensemble, of which no fresh one can be built for each "
            "fold; give one of its members"
        )
    _require_class(model, card, network)
    folds = FOLDS if folds is None else folds
    _require_folds(folds)
    train = card.run.train
    if epochs is None:
        epochs = card.epoch if train.time_limit_seconds else train.epochs
    if epochs < 1:
        raise ConfigError(f"--epochs {epochs}: at least 1 is wanted")
    # no teacher and no file of weights: they may have learned the very masks that are judged; nor
    # images without masks: each fold would see the held-out ones among them
    settings: dict[str, object] = {
        "epochs": epochs,
        "trackers": (),
        "log_images": 0,
        "time_limit_seconds": None,
        **dict.fromkeys(("teacher", "encoder_weights", "weights", "unlabelled")),
    }
    if not train.pretrained:  # frozen, an encoder would stay as random as it begins
        settings |= {name: type(train).model_fields[name].default for name in FREEZING}
    changed = {"train": train.model_copy(update=settings), "device": "auto"}
    run = card.run.model_copy(update=changed)
    return LabelPlan(model, card.sha256, run, folds, network)


def _require_class(model: Path, card: Card, network: str | None) -> None:
    """Refuse a class that is not needed, or one that is and was not given."""
    if (card.model is None) == (network is not None):
        return
    if network is not None:
        raise ConfigError(f"{model}: this is one of notan's networks; leave --model-class out")
    where = card.run.model.class_path or f"PACKAGE:{card.model_class}"
    raise CheckpointError(
        f"{model}: this model is of {card.model_class}, a class of your own; no file makes notan "
        f"import code, so add --model-class {where}"
    )


def search_labels(plan: LabelPlan, diagnosis: Diagnosis, *, out: Path) -> LabelSearch:
    """Rank the masks of a data folder's training and validation images by suspicion.

    Args:
        plan: By what networks.
        diagnosis: What the data doctor said of the folder; its layout and trimap border are used.
        out: Receives the folds' runs (``folds/1`` ...) and predictions (``held-out/NAME.png``).
            What an interrupted search of the same plan left here is not done again.

    Raises:
        ConfigError: ``out`` holds folds of another plan or of other images or masks.
        DataError: Too few images can be read.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
        StorageError: The disk is full.
    """
    masks = {"folder": diagnosis.data.masks.folder}
    here = {
        "path": diagnosis.folder,
        "trimap_border": diagnosis.trimap_border,
        "masks": plan.run.data.masks.model_copy(update=masks),
    }
    data = plan.run.data.model_copy(update=here)
    source, left_out = gather(diagnosis.folder, diagnosis.layout, data, diagnosis.reading)
    divide(source.names, plan.folds, run=plan.run)
    claim(out / FOLDERS / PLAN, plan, source)
    seconds = estimate_seconds(plan.run, source, folds=plan.folds, network=plan.network)
    logger.info(
        "judging %d masks by %d networks with the settings of %s, %d epochs each: roughly %s",
        *(len(source), plan.folds, plan.model, plan.run.train.epochs, in_words(seconds)),
    )

    def predicted() -> Iterator[tuple[Sample, Prediction]]:
        folder = out / FOLDERS
        for sample, prediction in predict_held_out(
            plan.run, source, folds=plan.folds, folder=folder, network=plan.network
        ):
            write_png(out / PREDICTIONS / f"{sample.name}.png", mask_image(prediction.mask))
            yield sample, prediction

    ranking = rank(judge_all(predicted()))
    pairs = {pair.name: pair for pair in source.pairs}
    return LabelSearch(plan, ranking, source, pairs, left_out, out / PREDICTIONS)


def gather(
    folder: Path, layout: str, data: Data, images: ImageReading | None = None
) -> tuple[FileSource, tuple[str, ...]]:
    """Return the images whose masks are to be judged, and why others cannot be.

    Args:
        folder: A data folder.
        layout: As ``find_layout`` names it.
        data: How images and masks are read.
        images: How images are read instead, as the data set as a whole tells.
    """
    found, _ = collect(folder, layout, data.masks.folder)
    entries = [each for each in found if each.split in JUDGED]
    counts = Counter(each.name for each in entries if each.image and each.mask)
    pairs = [
        Pair(
            each.name if counts[each.name] == 1 else f"{each.split}/{each.image.name}",
            each.image,
            each.mask,
            each.channels,
        )
        for each in entries
        if each.image and each.mask
    ]
    upright = image_reading(data).upright
    reading = replace(images or image_reading(data), upright=upright)
    whole = FileSource(pairs, label_reader(layout, data), reading)
    unreadable: dict[str, str] = {}
    places = range(len(whole))
    for place in tqdm(places, desc="reading", unit="image", leave=False, delay=1, disable=None):
        try:
            whole[place]
        except DataError as error:
            unreadable[whole.names[place]] = str(error)
    readable = frozenset(whole.names) - frozenset(unreadable)
    return whole.only(readable), tuple(unreadable.values())


def claim(path: Path, plan: LabelPlan, source: FileSource) -> None:
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
    hash_once = cache(hash_file)  # one file of annotations may be about all images
    files = (
        (*map(hash_once, pair.files), hash_once(stored_in(pair.mask)), pair.name)
        for pair in source.pairs
    )
    return sha256(*(" ".join(file) for file in files))


def in_words(seconds: float) -> str:
    """Say roughly how long something takes."""
    if seconds < 90:
        return number_of(max(1, round(seconds)), "second")
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
