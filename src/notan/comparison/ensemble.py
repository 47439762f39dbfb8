"""An ensemble: several model files become one, whose members are weighted on validation."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from notan.comparison.candidates import named_files
from notan.data.samples import Joined, fingerprint
from notan.errors import ConfigError, DataError
from notan.evaluation.calibrate import choose_on
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
from notan.runtime import describe_hardware, find_device
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from notan.data.samples import Sample, Source
    from notan.types import Probability

logger = logging.getLogger("notan")

EXAMPLE = "notan ensemble runs/unet runs/attention_unet --out ensemble.safetensors"

PIXELS = 2000
"""Of each image, drawn at random, to weigh the members on."""

Chances: TypeAlias = npt.NDArray[np.float64]
"""(members, pixels) of one image: the probability that each gave to what is true."""

FEWEST = 10
"""Validation images without which the members keep equal weights."""

OUT_OF_FOLD = (
    "out of fold: each of {} images was predicted by the one member that had not seen it, and what "
    "follows is chosen and scored on these answers; the ensemble answers with the mean of all"
)

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
        now.append(_cross_entropy(image, np.asarray(equal)))
        then.append(_cross_entropy(image, _fit(others)))
    gain = compare_paired(then, now).difference
    interval = f"[{-gain.high:+.4f}, {-gain.low:+.4f}]"
    text = f"mean cross-entropy of a pixel {-gain.mean:+.4f} {interval} nats"
    if not gain.low > 0:
        return equal, f"weights: all alike; fitted ones give {text} on images left out"
    fitted = _fit(images)
    kept = np.where(fitted < NEGLIGIBLE, 0, fitted)
    weights = tuple(round(float(weight), 3) for weight in kept / kept.sum())
    return weights, f"weights: fitted, {text} on images left out"


def _fit(images: Sequence[Chances]) -> npt.NDArray[np.float64]:
    """Return the convex weights under which the truth of all pixels is likeliest."""
    chances = np.maximum(np.concatenate(images, axis=1), SMALLEST_CHANCE)
    weights = np.full(len(chances), 1 / len(chances))
    for _ in range(ROUNDS):
        share = weights[:, None] * chances
        weights = (share / share.sum(axis=0)).mean(axis=1)
    return weights


def _cross_entropy(image: Chances, weights: npt.NDArray[np.float64]) -> float:
    """Return the mean cross-entropy of an image's pixels, in nats."""
    return float(-np.log(np.maximum(weights @ image, SMALLEST_CHANCE)).mean())


@dataclass(frozen=True)
class EnsembleResult:
    """What making an ensemble gave.

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


def make_ensemble(
    models: Sequence[Path],
    out: Path,
    *,
    data_path: Path | None = None,
    device: str = "auto",
    batch_size: int = 8,
) -> EnsembleResult:
    """Make one model file of several; weights, calibration and threshold come from validation.

    The result is a model file like any other, with the images of all members in its card, so that
    none of them can be scored on what another has learned. Members that are the folds of one
    cross-validation have no validation images in common: they weigh alike, and the rest is chosen
    on all their images, each predicted by the member that has not seen it.

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
    if batch_size < 1:
        raise ConfigError(f"--batch-size is {batch_size}; 1 or more is wanted")
    place = find_device(device)
    members = _open(models)
    folds = _open_folds(members, data_path)
    source = Joined(list(folds.values())) if folds else _validation(members, data_path)
    if folds:
        weights, reason = (1 / len(members),) * len(members), OUT_OF_FOLD.format(len(source))
    else:
        weights, reason = choose_weights(_ask(members, source, place, batch_size))
    logger.info("chosen on validation: %s", reason)
    weight_of = dict(zip(members, weights, strict=True))
    kept = {name: member for name, member in members.items() if weight_of[name] > 0}
    states = {
        f"members.{number}.{name}": tensor
        for number, member in enumerate(kept.values())
        for name, tensor in member.weights.items()
    }
    card = _card(kept, weight_of, source, place)
    network = rebuild(Checkpoint(card, states), None)
    stride = {"stride": stride_of(network)}
    card = card.model_copy(update={"preprocess": card.preprocess.model_copy(update=stride)})
    judged = [(_predictor(members[name], place), images) for name, images in folds.items()]
    whole = Predictor(TorchBackend(network, place), card.preprocess)
    choice = choose_on(judged or [(whole, source)], batch_size=batch_size)
    for chosen in choice.reasons:
        logger.info("chosen on validation: %s", chosen)
    unknown = (
        f"what {name} was trained on is not known"
        for name, member in members.items()
        if not member.card.data.training_hashes
    )
    decided = {
        "postprocessing": choice.postprocessing,
        "choices": (reason, *unknown, *choice.reasons),
        "scores": choice.scores(),
    }
    card = card.model_copy(update=decided)
    save_checkpoint(out, Checkpoint(card, states))
    scores = {name: member.card.scores for name, member in members.items()}
    dice = {name: score["dice"] for name, score in scores.items() if "dice" in score}
    return EnsembleResult(out, card, weight_of, {"ensemble": choice.dice, **dice})


def _open(models: Sequence[Path]) -> dict[str, Checkpoint]:
    """Read the members by name, and refuse those that do not fit each other."""
    files = named_files(models, "an ensemble", EXAMPLE)
    members: dict[str, Checkpoint] = {}
    for name, path in files.items():
        checkpoint = load_checkpoint(path)
        if checkpoint.card.members:
            raise ConfigError(f"{name} is an ensemble itself; give its members instead")
        if checkpoint.card.model is None:
            raise ConfigError(
                f"{name} is of {checkpoint.card.model_class}, a class of your own; an ensemble's "
                "file can only hold notan's own networks"
            )
        for earlier, member in members.items():
            _require_fit((earlier, name), member.card, checkpoint.card)
        rebuild(checkpoint, None, path=path)  # what does not fit is refused before all the work
        members[name] = checkpoint
    return members


def _require_fit(names: tuple[str, str], one: Card, other: Card) -> None:
    """Refuse two members that do not see the same input, or learned another rule."""
    if one.sha256 == other.sha256:
        raise ConfigError(
            f"{' and '.join(names)} hold the same weights; together they know no more"
        )
    ours, theirs = (card.preprocess.model_dump(exclude={"stride"}) for card in (one, other))
    for key, value in ours.items():
        if value != theirs[key]:
            section = "data" if key in ("white", "channels") else "preprocess"
            raise ConfigError(
                f"{section}.{key} is {value} in {names[0]} and {theirs[key]} in {names[1]}; "
                "members see the same input, so train them with the same"
            )
    if one.trimap_border != other.trimap_border:
        raise ConfigError(
            f"{names[0]} was trained with trimap_border = {one.trimap_border or 'none'} and "
            f"{names[1]} with trimap_border = {other.trimap_border or 'none'}; train them with "
            "one --trimap-border"
        )


def _validation(members: Mapping[str, Checkpoint], data_path: Path | None) -> Source:
    """Open the first member's validation images, which none may have been trained on."""
    first, card = next((name, member.card) for name, member in members.items())
    source = open_data(card, "val", data_path=data_path or card.run.data.path).source
    for name, member in members.items():
        trained = find_seen(member.card, source).trained
        if trained:
            more = ", ..." if len(trained) > 3 else ""
            raise DataError(
                f"{name} was trained on {len(trained)} of the {len(source)} validation "
                f"images of {first} ({', '.join(trained[:3])}{more}), so what is chosen "
                "on them would flatter it; train all members with one split: data.split_seed=0"
            )
    return source


def _open_folds(members: Mapping[str, Checkpoint], data_path: Path | None) -> dict[str, Source]:
    """Open the validation images of each member, where they are folds of one cross-validation."""
    cards = {name: member.card for name, member in members.items()}
    known = [frozenset(card.data.validation_hashes) for card in cards.values()]
    apart = sum(map(len, known)) == len(frozenset().union(*known))
    if not (apart and all(card.run.data.division for card in cards.values())):
        return {}
    return {
        name: open_data(card, "val", data_path=data_path or card.run.data.path).source
        for name, card in cards.items()
    }


def _predictor(member: Checkpoint, device: torch.device) -> Predictor:
    """Return what answers as a member does in an ensemble: calibrated, and no more."""
    chosen = member.card.postprocessing
    calibrated = Postprocessing(temperature=chosen.temperature, bias=chosen.bias)
    backend = TorchBackend(rebuild(member, None), device)
    return Predictor(backend, member.card.preprocess, postprocessing=calibrated)


def _ask(
    members: Mapping[str, Checkpoint], source: Source, device: torch.device, batch_size: int
) -> list[Chances]:
    """Return what each member gives to the truth of some pixels of each image."""
    asked: list[list[npt.NDArray[np.float64]]] = []
    for name, member in members.items():
        pairs = tqdm(
            _predictor(member, device).predict_samples(source, batch_size=batch_size),
            total=len(source),
            desc=name,
            unit="image",
            leave=False,
            disable=None,
        )
        chances = [
            _chances(sample, prediction.probability, number)
            for number, (sample, prediction) in enumerate(pairs)
        ]
        asked.append(chances)
    return [np.stack(image) for image in zip(*asked, strict=True) if image[0].size]


def _chances(sample: Sample, probability: Probability, number: int) -> npt.NDArray[np.float64]:
    """Return the probability of what is true at some pixels, the same for every member."""
    counted = np.ones(sample.size, np.bool_) if sample.ignore is None else ~sample.ignore
    foreground, chance = sample.mask[counted], probability[counted].astype(np.float64)
    if not chance.size:
        return chance
    some = np.random.default_rng(number).integers(0, chance.size, PIXELS)
    return np.where(foreground[some], chance[some], 1 - chance[some])


def _card(
    kept: Mapping[str, Checkpoint],
    weight_of: Mapping[str, float],
    source: Source,
    device: torch.device,
) -> Card:
    """Return the card of an ensemble that is not decided yet."""
    cards = [member.card for member in kept.values()]
    members = tuple(
        Member(
            name=name,
            model=member.card.model,
            weight=weight_of[name],
            temperature=member.card.postprocessing.temperature,
            bias=member.card.postprocessing.bias,
            sha256=member.card.sha256,
        )
        for name, member in kept.items()
        if member.card.model
    )
    counts = [card.parameters for card in cards]
    pretrained = dict.fromkeys(card.pretrained or "a member from scratch" for card in cards)
    return cards[0].model_copy(
        update={
            "model": None,
            "model_class": "Ensemble",
            "members": members,
            "postprocessing": Postprocessing(),
            "choices": (),
            "scores": {},
            "epoch": max(card.epoch for card in cards),
            "data": _data([card.data for card in cards], source),
            "versions": {
                "notan": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "parameters": None if None in counts else sum(count or 0 for count in counts),
            "hardware": describe_hardware(device),
            "pretrained": (
                "; ".join(pretrained) if any(card.pretrained for card in cards) else None
            ),
            "sha256": "",
        }
    )


def _data(data: Sequence[DataCard], source: Source) -> DataCard:
    """Join what the members were trained on, so that no image of any is taken for a new one."""
    trained = {each for one in data for each in one.training_hashes}
    chosen = {each for one in data for each in one.validation_hashes}
    unlabelled = {each for one in data for each in one.unlabelled_hashes}
    prints = sorted({one.training_fingerprint for one in data})
    all_prints = sha256("\n".join(prints))[:16]
    # one member that does not say is enough: nothing is known then
    known = all(one.training_hashes for one in data)
    return data[0].model_copy(
        update={
            "training_images": len(trained) if known else data[0].training_images,
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
