"""Cross-validation: every image is predicted by a network that was trained without it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notan.data.sample import Part
from notan.data.splits import choose_folds, choose_validation
from notan.errors import ConfigError, DataError, StoppedBySignal
from notan.predict.predictor import Predictor
from notan.runtime import find_device
from notan.train import resume, train
from notan.train.log import SETTINGS
from notan.train.parts import prepare
from notan.train.steps import train_epoch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from notan.config import Run
    from notan.data.batches import Batch
    from notan.data.sample import Sample, Source
    from notan.losses import LossValue
    from notan.predict.predictor import Prediction

logger = logging.getLogger("notan")

FEWEST_FOLDS = 2
FEWEST_OTHERS = 2
"""One to train on and one to choose the best epoch."""

TIMED_BATCHES = 2


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


def divide(names: Sequence[str], folds: int, *, run: Run) -> tuple[Fold, ...]:
    """Divide images into folds by the seed of a run.

    Args:
        names: Of all images, each once.
        folds: How many parts, at least 2.
        run: Its seed and validation fraction are used.

    Raises:
        ConfigError: Fewer than two folds.
        DataError: Too few images for so many folds.
    """
    require_folds(folds)
    largest = -(-len(names) // folds)
    if len(names) < folds or len(names) - largest < FEWEST_OTHERS:
        raise DataError(
            f"{len(names)} readable images with masks for {folds} folds; every fold needs one to "
            f"judge and {FEWEST_OTHERS} others to train on: give more images or fewer --folds"
        )
    parts = choose_folds(names, folds, seed=run.seed)
    return tuple(_fold(names, held_out, run) for held_out in parts)


def require_folds(folds: int) -> None:
    """Refuse a number of folds that leaves nothing to train on.

    Raises:
        ConfigError: Fewer than two.
    """
    if folds < FEWEST_FOLDS:
        raise ConfigError(
            f"--folds {folds}: at least {FEWEST_FOLDS} are wanted, so that every image is judged "
            "by a network that did not see it"
        )


def _fold(names: Sequence[str], held_out: frozenset[str], run: Run) -> Fold:
    others = [name for name in names if name not in held_out]
    chosen = choose_validation(others, fraction=run.data.validation_fraction, seed=run.seed)
    return Fold(held_out, frozenset(others) - chosen, chosen)


def predict_held_out(
    run: Run, source: Source, *, folds: int, folder: Path
) -> Iterator[tuple[Sample, Prediction]]:
    """Train a network for each fold, and predict what was held out of it.

    A fold that was finished in an earlier call is not trained again, and one that was stopped goes
    on where it was.

    Args:
        run: Settings of every fold's training.
        source: The images with the masks to be judged; names are unique.
        folds: How many parts.
        folder: Where the folds' run folders are, as ``1``, ``2`` and so on.

    Yields:
        Each sample once, with its prediction, fold after fold.

    Raises:
        ConfigError: Fewer than two folds, or the folder holds folds of other settings.
        DataError: Too few images, or one cannot be read.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
    """
    for number, fold in enumerate(divide(source.names, folds, run=run), start=1):
        logger.info("fold %d of %d: %d images held out", number, folds, len(fold.held_out))
        predictor = _train_fold(run, source, fold, folder / str(number))
        yield from predictor.predict_samples(Part(source, fold.held_out))


def _train_fold(run: Run, source: Source, fold: Fold, folder: Path) -> Predictor:
    training, validation = Part(source, fold.training), Part(source, fold.validation)
    try:
        if (folder / SETTINGS).is_file():
            result = resume(folder, run=run, training=training, validation=validation)
        else:
            result = train(run, out=folder, training=training, validation=validation)
    except StoppedBySignal as stop:
        message = "stopped and saved; give the same command and the same --out again to go on"
        raise StoppedBySignal(message, stop.exit_code - 128) from stop
    return Predictor.load(result.checkpoint, device=find_device(run.device))


class _Permissive:
    """Lets every step of a timing pass."""

    def allows(self, batch: Batch, value: LossValue, gradient_norm: float) -> bool:
        del batch, value, gradient_norm
        return True

    def after_step(self, batch: Batch, value: LossValue, *, taken: bool) -> None:
        """Nothing is kept."""


def estimate_seconds(run: Run, source: Source, *, folds: int) -> float:
    """Time a few steps of training, and return about how long all folds will take.

    Raises:
        DataError: One of the first images cannot be read.
    """
    few = Part(source, frozenset(source.names[: TIMED_BATCHES * run.train.batch_size]))
    parts = prepare(run, training=few, validation=few)
    try:
        for epoch in (1, 2):  # the first pays for what is only done once
            began = time.perf_counter()
            parts.training_batches.set_epoch(epoch)
            train_epoch(
                parts.model, parts.training_batches, parts.loss, parts.optimization, _Permissive()
            )
    finally:
        parts.training_batches.close()
    a_image = (time.perf_counter() - began) / len(few)
    return a_image * len(source) * (folds - 1) * run.train.epochs
