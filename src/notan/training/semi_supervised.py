"""Learning from a teacher's probabilities, and from images without masks."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from notan.data.batches import UnlabelledImages, find_unlabelled
from notan.data.folders import has_test, open_split
from notan.data.transforms import build_geometry, build_strong
from notan.errors import CheckpointError, ConfigError, DataError
from notan.io.digest import sha256
from notan.losses import LossValue, bce
from notan.modelfile.card import load_checkpoint
from notan.models.base import stride_of
from notan.prediction.backends import rebuild

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from notan.config import Run
    from notan.data.batches import Batch, Unlabelled
    from notan.data.samples import Source
    from notan.modelfile.card import Card
    from notan.modelfile.preprocess import Preprocessor
    from notan.runtime import Precision
    from notan.training.optim import WeightAverage
    from notan.types import Images, Logits, Probabilities

logger = logging.getLogger("notan")


@dataclass(frozen=True)
class Teacher:
    """A network that answers the very images that the student sees, varied as they are.

    Attributes:
        model: On the device of the training, in evaluation mode; never changed.
        card: What its file says of it.
        precision: The arithmetic that it answers in.

    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531. There both networks' logits are
        softened by one temperature, raised by hand; here the teacher's are divided by the one that
        made it calibrated on validation images, and the student's are left alone, so that what it
        learns to say are probabilities.
    """

    model: nn.Module
    card: Card
    precision: Precision

    def mark(self, batch: Batch) -> Batch:
        """Return a batch with the teacher's answers as its soft targets, on its device."""
        images = batch.images.to(self.precision.device, non_blocking=True)
        return batch._replace(images=images, soft=self.answer(images))

    def answer(self, images: Images) -> Probabilities:
        """Map (n, channels, h, w) to calibrated probabilities, float32 (n, 1, h, w)."""
        chosen = self.card.postprocessing
        return predict(
            self.model, self.precision, images, temperature=chosen.temperature, bias=chosen.bias
        )

    @property
    def identity(self) -> str:
        """What tells this teacher from any that answers otherwise."""
        postprocessing, members = self.card.postprocessing, self.card.members
        told = f"{self.card.sha256} {postprocessing.temperature} {postprocessing.bias} {members!r}"
        return sha256(told)


def load_teacher(
    path: Path | None,
    preprocessor: Preprocessor,
    precision: Precision,
    *,
    trimap_border: str | None,
    weight: float,
) -> Teacher | None:
    """Open a teacher, and make sure that it can teach this student.

    Args:
        path: Its model file; None: there is no teacher.
        preprocessor: The student's; the teacher sees the same inputs.
        precision: Device and arithmetic of the training.
        trimap_border: What the student takes the trimap's border for; None: there is none.
        weight: Of the teacher's term in the loss.

    Returns:
        None where there is none.

    Raises:
        ConfigError: It was trained on other inputs or by another rule, or its term weighs nothing.
        CheckpointError: The file is missing, damaged, foreign, or of a class of the user's own.
    """
    if path is None:
        return None
    if weight == 0:
        raise ConfigError(f"{path}: a teacher whose loss.teacher is 0 teaches nothing; raise it")
    checkpoint = load_checkpoint(path)
    card = checkpoint.card
    if card.model is None and not card.members:
        raise CheckpointError(
            f"{path}: the teacher is of {card.model_class}, a class of your own, and only notan's "
            "own networks and ensembles of them can teach"
        )
    model = rebuild(checkpoint, None, path=path)
    _require_same_input(path, card, preprocessor, stride_of(model))
    if card.trimap_border != trimap_border:
        raise ConfigError(
            f"{path}: the teacher was trained with trimap_border = "
            f"{card.trimap_border or 'none'}, this run has "
            f"trimap_border = {trimap_border or 'none'}; give both one rule, by --trimap-border "
            "or another teacher"
        )
    model = model.to(precision.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not card.data.training_hashes:
        logger.warning("%s: the card does not say what the teacher was trained on", path)
    return Teacher(model.eval().requires_grad_(requires_grad=False), card, precision)


def _require_same_input(path: Path, card: Card, preprocessor: Preprocessor, stride: int) -> None:
    theirs = card.preprocess.model_dump(exclude={"stride"})
    for name, value in preprocessor.model_dump(exclude={"stride"}).items():
        if theirs[name] != value:
            setting = f"data.{name}" if name in ("white", "channels") else f"preprocess.{name}"
            raise ConfigError(
                f"{path}: the teacher was trained with {setting} = {theirs[name]}, this "
                f"run has {value}; give the student the teacher's, or choose another teacher"
            )
    height, width = preprocessor.place(preprocessor.image_size or (stride, stride)).padded
    if height % stride or width % stride:
        raise ConfigError(
            f"{path}: the teacher takes inputs whose sides are multiples of {stride}, and the "
            f"student's are {height}x{width}; choose an --image-size that is one"
        )


def open_unlabelled(
    run: Run, preprocessor: Preprocessor, validation: Source, *, own_source: bool, workers: int
) -> UnlabelledImages | None:
    """Open the images without masks that a run names, less those that it is judged by.

    Left out are copies of validation images, or the best epoch would be chosen on what was
    learned, and of the data's test part, of which no image is decoded: its files are compared.
    Training images stay: Tarvainen and Valpola ask for agreement on all images, with masks and
    without.

    Args:
        run: ``train.unlabelled``, the weight of the agreement, and where the test part lies.
        preprocessor: The training's.
        validation: The images that choose the best epoch.
        own_source: Whether the images with masks lie in no folder; there is no test part then.
        workers: Data workers that will read them.

    Returns:
        None where the run names none.

    Raises:
        ConfigError: Agreement with their answers weighs nothing.
        DataError: There is no such folder, or no image is left in it.
    """
    folder = run.train.unlabelled
    if folder is None:
        return None
    if run.loss.consistency == 0:
        raise ConfigError(
            f"{folder}: images without masks teach nothing where loss.consistency is 0; raise it"
        )
    found = find_unlabelled(folder, preprocessor.reading)
    test = set[str]()
    if not own_source and has_test(run.data):
        test = {*open_split(run.data, "test", seed=run.seed).hashes()}
    left_out = {"test": test, "validation": {*validation.hashes()}}
    files, counts = found, []
    for part, hashes in left_out.items():
        others = [file for file in files if not file.is_among(hashes)]
        if len(others) < len(files):
            counts.append(f"{len(files) - len(others)} {part}")
        files = others
    what = f"copies of {' and '.join(counts)} images"
    if not files:
        raise DataError(f"{folder}: all {len(found)} images are {what}; give some others")
    if counts:
        logger.info("%s: left out %s", folder, what)
    return UnlabelledImages(
        files,
        preprocessor,
        geometry=build_geometry(run.augment, preprocessor.fit),
        light=build_strong(),
        seed=run.seed,
        cache=run.data.cache,
        workers=workers,
    )


@dataclass(frozen=True)
class Consistency:
    """Has images without masks answered, and says how much coming to the answers counts.

    Attributes:
        answer: Maps (n, channels, h, w) to probabilities, (n, 1, h, w).
        precision: Device and arithmetic of the training.
        weight: Of the term in the loss, once it has risen.
        ramp_steps: Steps over which it rises; 0: none.

    Source:
        Tarvainen and Valpola 2017, arXiv:1703.01780: an average of the weights is the teacher, and
        the weight of its term rises as there. There the images with masks are answered too, and
        the distance is the squared one of probabilities; here it is the cross entropy, as against
        any teacher of ours.
    """

    answer: Callable[[Images], Probabilities]
    precision: Precision
    weight: float
    ramp_steps: int

    def mark(self, batch: Batch, step: int) -> Batch:
        """Return a batch whose images without masks are answered, by the present weights.

        Args:
            batch: Of the training.
            step: Steps of the run before it.
        """
        unlabelled = batch.unlabelled
        if unlabelled is None:
            return batch
        plain = unlabelled.plain.to(self.precision.device, non_blocking=True)
        answered = unlabelled._replace(answers=self.answer(plain), weight=self.weight_at(step))
        return batch._replace(unlabelled=answered)

    def weight_at(self, step: int) -> float:
        """Return the term's weight at a step, counted from 0: at first next to nothing.

        An untrained network's answers are worth nothing.
        """
        missing = max(0.0, 1 - step / self.ramp_steps) if self.ramp_steps else 0.0
        return self.weight * math.exp(-5 * missing**2)


def build_consistency(
    precision: Precision,
    teacher: Callable[[Images], Probabilities] | None,
    average: WeightAverage | None,
    *,
    weight: float,
    ramp_steps: int,
) -> Consistency:
    """Choose who answers images without masks: the teacher where there is one, else the EMA.

    Raises:
        ConfigError: There is neither.
    """
    if teacher is not None:
        answer = teacher
    elif average is not None:
        answer = partial(predict, average, precision)
    else:
        raise ConfigError(
            "train.ema_decay = none: it is the average of the weights that answers images "
            "without masks; leave the setting out, or give 0.99"
        )
    return Consistency(answer, precision, weight, ramp_steps)


@torch.no_grad()
def predict(
    model: nn.Module,
    precision: Precision,
    images: Images,
    *,
    temperature: float = 1.0,
    bias: float = 0.0,
) -> Probabilities:
    """Map (n, channels, h, w) to probabilities, float32 (n, 1, h, w), perhaps calibrated ones."""
    with precision.autocast():
        logits = model(images)
    return torch.sigmoid(logits.float() / temperature + bias)


def add_agreement(value: LossValue, logits: Logits, unlabelled: Unlabelled) -> LossValue:
    """Add to a loss the cross entropy against what images without masks were answered with.

    Args:
        value: Of the images with masks.
        logits: (n, 1, h, w), of the varied views.
        unlabelled: With its answers; without them nothing is added.
    """
    if unlabelled.answers is None:
        return value
    inside = unlabelled.inside.to(logits.device, non_blocking=True)
    term = bce(logits, unlabelled.answers, inside)
    return LossValue(value.total + unlabelled.weight * term, {**value.terms, "consistency": term})
