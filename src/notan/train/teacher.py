"""Teacher: a finished model whose probabilities a student learns from, beside the true masks."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from notan.checkpoint import load_checkpoint
from notan.errors import ConfigError
from notan.models.base import stride_of
from notan.predict.backends import rebuild
from notan.train.provenance import require_unseen, seen_too

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import nn

    from notan.checkpoint import Card, DataCard
    from notan.config import Run
    from notan.data.batches import Batch
    from notan.data.sample import Source
    from notan.preprocess import Preprocessor
    from notan.runtime import Precision
    from notan.types import Images, Probabilities

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

    def mark(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches with the teacher's answers as their soft targets, on its device."""
        for batch in batches:
            images = batch.images.to(
                self.precision.device, memory_format=torch.channels_last, non_blocking=True
            )
            yield batch._replace(images=images, soft=self.answer(images))

    @torch.no_grad()
    def answer(self, images: Images) -> Probabilities:
        """Map (n, 3, h, w) to calibrated probabilities, float32 (n, 1, h, w)."""
        with self.precision.autocast():
            logits = self.model(images)
        postprocessing = self.card.postprocessing
        return torch.sigmoid(logits.float() / postprocessing.temperature + postprocessing.bias)

    @property
    def identity(self) -> str:
        """What tells this teacher from any that answers otherwise."""
        postprocessing, members = self.card.postprocessing, self.card.members
        told = f"{self.card.sha256} {postprocessing.temperature} {postprocessing.bias} {members!r}"
        return hashlib.sha256(told.encode()).hexdigest()

    def seen_too(self, data: DataCard) -> DataCard:
        """Add to a student's images those of its teacher, which it knows at second hand."""
        return seen_too(data, self.card.data)


def load_teacher(
    run: Run, preprocessor: Preprocessor, precision: Precision, *, trimap_border: str | None
) -> Teacher | None:
    """Open the teacher that a run names, and make sure that it can teach this student.

    Args:
        run: ``train.teacher`` and the weight of its term.
        preprocessor: The student's; the teacher sees the same inputs.
        precision: Device and arithmetic of the training.
        trimap_border: What the student takes the trimap's border for; None: there is none.

    Returns:
        None where the run names no teacher.

    Raises:
        ConfigError: It was trained on other inputs or by another rule, or its term weighs nothing.
        CheckpointError: The file is missing, damaged, foreign, or of a class of the user's own.
    """
    path = run.train.teacher
    if path is None:
        return None
    if run.loss.teacher == 0:
        raise ConfigError(f"{path}: a teacher whose loss.teacher is 0 teaches nothing; raise it")
    checkpoint = load_checkpoint(path)
    card = checkpoint.card
    model = rebuild(checkpoint, None)
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
            raise ConfigError(
                f"{path}: the teacher was trained with preprocess.{name} = {theirs[name]}, this "
                f"run has {value}; give the student the teacher's"
            )
    height, width = preprocessor.place(preprocessor.image_size or (stride, stride)).padded
    if height % stride or width % stride:
        raise ConfigError(
            f"{path}: the teacher takes inputs whose sides are multiples of {stride}, and the "
            f"student's are {height}x{width}; choose an --image-size that is one"
        )


def require_not_taught(teacher: Teacher, path: Path | None, validation: Source) -> None:
    """Refuse a teacher that has learned the images by which the student is chosen.

    Raises:
        DataError: It has.
    """
    require_unseen(teacher.card.data, validation, who=f"{path}: the teacher", whose="the student's")
