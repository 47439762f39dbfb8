"""The end of a training: what validation decides is written into the best checkpoint."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING

from notan.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from notan.data.sample import Part
from notan.errors import DivergedError
from notan.predict.backends import TorchBackend, rebuild
from notan.predict.calibrate import choose_postprocessing
from notan.predict.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from notan.predict.calibrate import Choice
    from notan.train.parts import Parts

logger = logging.getLogger("notan")

REHEARSED = 2
"""Images that the choice is rehearsed on."""

UNDECIDED = "the time limit left no time to choose a threshold: 0.5, and nothing else"


def decide(path: Path, parts: Parts, between: Callable[[], None]) -> Choice:
    """Choose how the best checkpoint's probabilities become masks, and store it in its card.

    Args:
        path: The checkpoint, which is written anew.
        parts: Of the training that made it; its model receives the checkpoint's weights.
        between: Called between images; what it raises ends the choice and leaves the file.

    Raises:
        CheckpointError: The checkpoint was changed since it was written.
        StorageError: It could not be written; the old one is whole.
    """
    checkpoint = load_checkpoint(path)
    backend = TorchBackend(rebuild(checkpoint, parts.model), parts.device)
    choice = choose_postprocessing(
        Predictor(backend, parts.preprocessor),
        parts.validation,
        batch_size=parts.run.train.batch_size,
        between=between,
    )
    scores = {"dice": choice.dice, "iou": choice.iou, "plain_dice": choice.plain_dice}
    told = {"postprocessing": choice.postprocessing, "choices": choice.reasons, "scores": scores}
    card = checkpoint.card.model_copy(update=told)
    save_checkpoint(path, Checkpoint(card, checkpoint.weights))
    for reason in choice.reasons:
        logger.info("chosen on validation: %s", reason)
    return choice


def leave_undecided(path: Path) -> None:
    """Write into the best checkpoint's card that nothing was chosen, for want of time.

    Raises:
        CheckpointError: The checkpoint was changed since it was written.
        StorageError: It could not be written; the old one is whole.
    """
    checkpoint = load_checkpoint(path)
    card = checkpoint.card.model_copy(update={"choices": (UNDECIDED,)})
    save_checkpoint(path, Checkpoint(card, checkpoint.weights))
    logger.warning("%s", UNDECIDED)


def rehearse(parts: Parts, between: Callable[[], None]) -> float:
    """Make the choice on an image or two before the training, which it leaves as it was.

    Args:
        parts: Of the training that is to come.
        between: Called between images; what it raises ends the rehearsal.

    Returns:
        Seconds that the choice on all validation images will take, going by that.
    """
    names = parts.validation.names
    few = Part(parts.validation, frozenset(names[:: -(-len(names) // REHEARSED)]))
    began = time.monotonic()
    with contextlib.suppress(DivergedError):  # it took its time all the same
        choose_postprocessing(
            Predictor(TorchBackend(parts.model, parts.device), parts.preprocessor),
            few,
            batch_size=parts.run.train.batch_size,
            between=between,
        )
    return (time.monotonic() - began) * len(names) / len(few)
