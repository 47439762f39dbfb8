"""Several model files become one, weighted on validation.

The weights of an ensemble's members, from what each says of validation pixels.

Join: from the model files of the members to the file of an ensemble.
"""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from notan.comparison.candidates import distinct_names, model_file
from notan.data.samples import fingerprint
from notan.errors import ConfigError, DataError
from notan.evaluation.calibrate import choose_postprocessing
from notan.evaluation.evaluate import find_seen, open_data
from notan.io.digest import sha256
from notan.metrics.statistics import compare_paired
from notan.modelfile.card import (
    Card,
    Checkpoint,
    DataCard,
    Member,
    load_checkpoint,
    save_checkpoint,
)
from notan.modelfile.postprocess import Postprocessing
from notan.models.base import stride_of
from notan.prediction.backends import TorchBackend, rebuild
from notan.prediction.predictor import Predictor
from notan.run_folder import BEST
from notan.runtime import describe_hardware, find_device
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.data.samples import Sample, Source
    from notan.evaluation.calibrate import Choice
    from notan.types import Probability

Chances: TypeAlias = npt.NDArray[np.float64]
"""(members, pixels) of one image: the probability that each gave to what is true."""

FEWEST = 10
"""Validation images without which the members keep equal weights."""

FOLDS, ROUNDS = 5, 200
SMALLEST_CHANCE = 1e-6
NEGLIGIBLE = 0.01
"""A member of less weight is left out: it would cost its time for nothing."""


def choose_weights(images: Sequence[Chances]) -> tuple[tuple[float, ...], str]:
    """Choose the members' weights, equal ones unless others are better beyond noise.

    Args:
        images: What the members gave to the truth of the same pixels, as many in each.

    Returns:
        One weight for each member, summing to 1, 0 for one that is not worth its time; and what
        was done and why.

    Source: Smyth and Wolpert 1999, "Linearly combining density estimators via stacking": the convex
        weights under which the truth is likeliest, found by expectation maximisation. Whether they
        are better is judged on images that were left out of the fit, five parts in turn, by the
        bootstrap interval of the gain.
    """
    members = len(images[0])
    equal = (1 / members,) * members
    if len(images) < FEWEST:
        return equal, f"{len(images)} validation images are too few to weigh members: all alike"
    now, then = [], []
    for number, image in enumerate(images):
        others = [each for place, each in enumerate(images) if place % FOLDS != number % FOLDS]
        now.append(_surprise(image, np.asarray(equal)))
        then.append(_surprise(image, _likeliest(others)))
    gain = compare_paired(then, now).difference
    interval = f"[{-gain.high:+.4f}, {-gain.low:+.4f}]"
    text = f"mean cross-entropy of a pixel {-gain.mean:+.4f} {interval} nats"
    if not gain.low > 0:
        return equal, f"weights: all alike; fitted ones give {text} on images left out"
    fitted = _likeliest(images)
    kept = np.where(fitted < NEGLIGIBLE, 0, fitted)
    weights = tuple(round(float(weight), 3) for weight in kept / kept.sum())
    return weights, f"weights: fitted, {text} on images left out"


def _likeliest(images: Sequence[Chances]) -> npt.NDArray[np.float64]:
    """Return the convex weights under which the truth of all pixels is likeliest."""
    chances = np.maximum(np.concatenate(images, axis=1), SMALLEST_CHANCE)
    weights = np.full(len(chances), 1 / len(chances))
    for _ in range(ROUNDS):
        share = weights[:, None] * chances
        weights = (share / share.sum(axis=0)).mean(axis=1)
    return weights


def _surprise(image: Chances, weights: npt.NDArray[np.float64]) -> float:
    """Return the mean cross-entropy of an image's pixels, in nats."""
    return float(-np.log(np.maximum(weights @ image, SMALLEST_CHANCE)).mean())


logger = logging.getLogger("notan")

FEWEST_MEMBERS = 2
PIXELS = 2000
"""Of each image, drawn at random, to weigh the members on."""


@dataclass(frozen=True)
class Part:
    """A model file that takes part.

    Attributes:
        name: Short, and its own among the parts.
        checkpoint: Card and weights.
    """

    name: str
    checkpoint: Checkpoint

    @property
    def card(self) -> Card:
        """What the file says of itself."""
        return self.checkpoint.card


@dataclass(frozen=True)
class Joined:
    """What joining gave.

    Attributes:
        path: The ensemble's file.
        card: Its card.
        weights: Of each member that was given, by name; 0 where it was left out.
        dice: Mean Dice on the validation images of the ensemble and of each member, by name;
            a member's is as its own card says.
    """

    path: Path
    card: Card
    weights: dict[str, float]
    dice: dict[str, float]


def join(
    models: Sequence[Path],
    out: Path,
    *,
    data_path: Path | None = None,
    device: str = "auto",
    batch_size: int = 8,
) -> Joined:
    """Make one model file of several; weights, calibration and threshold come from validation.

    The result is a model file like any other, with the images of all members in its card, so that
    none of them can be scored on what another has learned.

    Args:
        models: Run folders or model files, two or more, of any of notan's networks.
        out: The file to write; nothing may be there yet.
        data_path: The data folder with the validation images; None: the first member's own.
        device: Where to compute, for ``find_device``.
        batch_size: Images predicted at once.

    Raises:
        ConfigError: Fewer than two models, members that do not fit each other, or ``out`` is taken.
        CheckpointError: A model is missing, damaged or foreign.
        DataError: A validation image cannot be read, or a member was trained on it.
        StorageError: The file could not be written.
    """
    if out.exists():
        raise ConfigError(f"{out}: something is here already; choose another --out")
    parts = _open(models)
    card = parts[0].card
    place = find_device(device)
    source = _validation(parts, data_path)
    weights, reason = choose_weights(_ask(parts, source, place, batch_size))
    logger.info("chosen on validation: %s", reason)
    taken = [(part, weight) for part, weight in zip(parts, weights, strict=True) if weight > 0]
    states = {
        f"members.{number}.{name}": tensor
        for number, (part, _) in enumerate(taken)
        for name, tensor in part.checkpoint.weights.items()
    }
    card = _card(taken, source, place)
    network = rebuild(Checkpoint(card, states), None)
    stride = {"stride": stride_of(network)}
    card = card.model_copy(update={"preprocess": card.preprocess.model_copy(update=stride)})
    predictor = Predictor(TorchBackend(network, place), card.preprocess)
    choice = choose_postprocessing(predictor, source, batch_size=batch_size)
    card = _decided(card, choice, (reason, *_unknown(parts)))
    save_checkpoint(out, Checkpoint(card, states))
    names = [part.name for part in parts]
    dice = {part.name: part.card.scores["dice"] for part in parts if "dice" in part.card.scores}
    return Joined(
        out,
        card,
        weights=dict(zip(names, weights, strict=True)),
        dice={"ensemble": choice.dice, **dice},
    )


def _open(models: Sequence[Path]) -> list[Part]:
    """Read the members, and refuse those that do not fit each other."""
    if len(models) < FEWEST_MEMBERS:
        given = f"only {models[0]} was" if models else "none was"
        raise ConfigError(
            f"an ensemble wants two or more runs or model files; {given} given: "
            "notan ensemble runs/unet runs/attention_unet --out ensemble.safetensors"
        )
    paths = [model_file(model) for model in models]
    names = distinct_names([path.parent if path.name == BEST else path for path in paths])
    parts: list[Part] = []
    for name, path in zip(names, paths, strict=True):
        part = Part(name, load_checkpoint(path))
        _require_own_network(part)
        for earlier in parts:
            _require_fit(earlier, part)
        parts.append(part)
    return parts


def _require_own_network(part: Part) -> None:
    if part.card.members:
        raise ConfigError(f"{part.name} is an ensemble itself; give its members instead")
    if part.card.model is None:
        raise ConfigError(
            f"{part.name} is of {part.card.model_class}, a class of your own; an ensemble's file "
            "can only hold notan's own networks"
        )


def _require_fit(one: Part, other: Part) -> None:
    """Refuse two members that do not see the same input, or learned another rule."""
    if one.card.sha256 == other.card.sha256:
        raise ConfigError(
            f"{one.name} and {other.name} hold the same weights; together they know no more"
        )
    theirs = [part.card.preprocess.model_dump(exclude={"stride"}) for part in (one, other)]
    for name, value in theirs[0].items():
        if value != theirs[1][name]:
            raise ConfigError(
                f"preprocess.{name} is {value} in {one.name} and {theirs[1][name]} in {other.name}"
                "; members see the same input, so train them with the same"
            )
    if one.card.trimap_border != other.card.trimap_border:
        raise ConfigError(
            f"{one.name} was trained with trimap_border = {one.card.trimap_border or 'none'} and "
            f"{other.name} "
            f"with trimap_border = {other.card.trimap_border or 'none'}; train them with one "
            "--trimap-border"
        )


def _validation(parts: Sequence[Part], data_path: Path | None) -> Source:
    """Open the first member's validation images, which none may have been trained on."""
    card = parts[0].card
    path = data_path or card.run.data.path
    source = open_data(card, "val", data_path=path).source
    for part in parts:
        trained = find_seen(part.card, source).trained
        if trained:
            more = ", ..." if len(trained) > 3 else ""
            raise DataError(
                f"{part.name} was trained on {len(trained)} of the {len(source)} validation "
                f"images of {parts[0].name} ({', '.join(trained[:3])}{more}), so what is chosen "
                "on them would flatter it; train all members with one split: data.split_seed=0"
            )
    return source


def _unknown(parts: Sequence[Part]) -> tuple[str, ...]:
    return tuple(
        f"what {part.name} was trained on is not known"
        for part in parts
        if not part.card.data.training_hashes
    )


def _ask(
    parts: Sequence[Part], source: Source, device: torch.device, batch_size: int
) -> list[Chances]:
    """Return what each member gives to the truth of some pixels of each image."""
    asked: list[list[npt.NDArray[np.float64]]] = []
    for part in parts:
        card = part.card
        calibrated = Postprocessing(
            temperature=card.postprocessing.temperature, bias=card.postprocessing.bias
        )
        backend = TorchBackend(rebuild(part.checkpoint, None), device)
        predictor = Predictor(backend, card.preprocess, postprocessing=calibrated)
        pairs = tqdm(
            predictor.predict_samples(source, batch_size=batch_size),
            total=len(source),
            desc=part.name,
            unit="image",
            leave=False,
            disable=None,
        )
        asked.append(
            [
                _chances(sample, prediction.probability, number)
                for number, (sample, prediction) in enumerate(pairs)
            ]
        )
    return [np.stack(image) for image in zip(*asked, strict=True) if image[0].size]


def _chances(sample: Sample, probability: Probability, number: int) -> npt.NDArray[np.float64]:
    """Return the probability of what is true at some pixels, the same for every member."""
    counted = np.ones(sample.size, np.bool_) if sample.ignore is None else ~sample.ignore
    foreground, chance = sample.mask[counted], probability[counted].astype(np.float64)
    if not chance.size:
        return chance
    some = np.random.default_rng(number).integers(0, chance.size, PIXELS)
    return np.where(foreground[some], chance[some], 1 - chance[some])


def _card(taken: Sequence[tuple[Part, float]], source: Source, device: torch.device) -> Card:
    """Return the card of an ensemble that is not decided yet."""
    cards = [part.card for part, _ in taken]
    members = tuple(
        Member(
            name=part.name,
            model=part.card.model,
            weight=weight,
            temperature=part.card.postprocessing.temperature,
            bias=part.card.postprocessing.bias,
            sha256=part.card.sha256,
        )
        for part, weight in taken
        if part.card.model
    )
    counts = [card.parameters for card in cards]
    return cards[0].model_copy(
        update={
            "model": None,
            "model_class": "Ensemble",
            "members": members,
            "postprocessing": Postprocessing(),
            "choices": (),
            "scores": {},
            "epoch": max(card.epoch for card in cards),
            "data": _data(cards, source),
            "versions": {
                "notan": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "parameters": None if None in counts else sum(count or 0 for count in counts),
            "hardware": describe_hardware(device),
            "pretrained": _pretrained(cards),
            "sha256": "",
        }
    )


def _pretrained(cards: Sequence[Card]) -> str | None:
    """Say what members were pretrained on, where any was."""
    if not any(card.pretrained for card in cards):
        return None
    words = dict.fromkeys(card.pretrained or "a member from scratch" for card in cards)
    return "; ".join(words)


def _data(cards: Sequence[Card], source: Source) -> DataCard:
    """Join what the members were trained on, so that no image of any is taken for a new one."""
    first = cards[0].data
    trained = {each for card in cards for each in card.data.training_hashes}
    chosen = {each for card in cards for each in card.data.validation_hashes}
    unlabelled = {each for card in cards for each in card.data.unlabelled_hashes}
    prints = sorted({card.data.training_fingerprint for card in cards})
    all_prints = sha256("\n".join(prints))[:16]
    # one member that does not say is enough: nothing is known then
    known = all(card.data.training_hashes for card in cards)
    return first.model_copy(
        update={
            "training_images": len(trained) if known else first.training_images,
            "training_fingerprint": prints[0] if len(prints) == 1 else all_prints,
            "training_hashes": tuple(sorted(trained)) if known else (),
            "unlabelled_images": len(unlabelled),
            "unlabelled_fingerprint": None,  # perhaps of several folders
            "unlabelled_hashes": tuple(sorted(unlabelled)),
            "validation_images": len(source),
            "validation_fingerprint": fingerprint(source),
            "validation_hashes": tuple(sorted(chosen | set(source.hashes()))),
        }
    )


def _decided(card: Card, choice: Choice, reasons: tuple[str, ...]) -> Card:
    """Put into a card what validation chose."""
    for reason in choice.reasons:
        logger.info("chosen on validation: %s", reason)
    return card.model_copy(
        update={
            "postprocessing": choice.postprocessing,
            "choices": (*reasons, *choice.reasons),
            "scores": {"dice": choice.dice, "iou": choice.iou, "plain_dice": choice.plain_dice},
        }
    )
