"""How long and how fast to train, on what, and with which loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from notan.auto.case import Decision
from notan.auto.effort import computes_in_bf16, passes_within, pictures_in_memory, seconds_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.auto.case import Case

USUAL_BATCH = 8
PRETRAINED_RATE, SCRATCH_RATE = 2e-3, 1e-3
ENOUGH_TO_VALIDATE, MOST_SET_ASIDE = 8, 0.25
PASSES = 8000
"""Pictures that a training without a budget sees, those seen again counted again."""

FEWEST_EPOCHS, MOST_EPOCHS = 10, 200
MOST_FROZEN, FROZEN_SHARE = 3, 0.15
"""Epochs in which the encoder stays as it came: at most, and as a share of all."""

ENCODER_RATE, LAYER_DECAY = 0.15, 0.7
PIXEL_WEIGHT = 0.2
"""Of the cross-entropy of the pixels, beside the Dice of the picture."""

AVERAGED_SHARE = 0.2
"""Of the steps, what the moving average looks back on."""

LEAST_DECAY, MOST_DECAY = 0.9, 0.995


def validation(case: Case) -> Iterator[Decision]:
    """Set aside enough pictures to choose by, where the data have no validation part."""
    pictures = case.pictures
    if not pictures.makes_validation:
        return
    pairs = pictures.training + pictures.validation
    usual = float(case.get("data.validation_fraction"))
    fraction = max(usual, min(MOST_SET_ASIDE, round(ENOUGH_TO_VALIDATE / pairs, 3)))
    if fraction == usual:
        return
    yield Decision(
        "data.validation_fraction",
        fraction,
        f"{max(1, round(pairs * fraction))} of {pairs} pictures to choose the best epoch by; a "
        "tenth would be too few to tell luck from skill",
    )


def batch_size(case: Case) -> Iterator[Decision]:
    """Take eight pictures a step; fewer of few pictures, and where the memory ends."""
    size, pictures = case.get("preprocess.image_size"), case.pictures.training
    fit = pictures_in_memory(case, size)
    batch, why = USUAL_BATCH, "pictures in a step; a good number for few pictures"
    if pictures < 3 * batch:
        batch = max(2, pictures // 3) if pictures > 1 else 1
        why = f"not above a third of the {pictures} training pictures"
    if fit is not None and fit < batch:
        batch, why = max(1, fit), f"what {size[0]}x{size[1]} pixels a picture leave memory for"
    yield Decision("train.batch_size", batch, why)


def epochs(case: Case) -> Iterator[Decision]:
    """Let each picture be seen often where there are few of them; a budget knows its own end."""
    if case.get("train.budget_seconds") is not None:
        return
    pictures, size = case.pictures.training, case.get("preprocess.image_size")
    wanted = min(max(FEWEST_EPOCHS, round(PASSES / pictures)), MOST_EPOCHS)
    minutes = math.ceil(wanted * pictures * seconds_for(case, size) / 60)
    yield Decision(
        "train.epochs",
        wanted,
        f"passes over {pictures} training pictures; some {minutes} minutes on this machine if "
        "nothing else runs (--budget 10m sets a time instead)",
    )


def learning_rate(case: Case) -> Iterator[Decision]:
    """Take a rate that suits the batch, and let it fall to zero."""
    batch = case.get("train.batch_size")
    usual = PRETRAINED_RATE if _is_pretrained(case) else SCRATCH_RATE
    rate = float(f"{usual * math.sqrt(batch / USUAL_BATCH):.2g}")
    yield Decision("train.learning_rate", rate, f"what suits steps of {batch} pictures")
    end = "" if case.get("train.budget_seconds") is None else " when the budget ends"
    yield Decision(
        "train.schedule", "cosine", f"the rate falls to zero{end}, so that the last epochs settle"
    )


def freezing(case: Case) -> Iterator[Decision]:
    """Leave a pretrained encoder as it came, until what reads it has learned to."""
    frozen = min(MOST_FROZEN, int(FROZEN_SHARE * _expected_epochs(case)))
    if _is_pretrained(case) and frozen:
        yield Decision(
            "train.freeze_epochs",
            frozen,
            "at first the encoder stays as it came and the rest learns to read it; these epochs "
            "are quicker, too",
        )


def slow_encoder(case: Case) -> Iterator[Decision]:
    """Let what is known already change less than what is new, and least where it is finest."""
    if not _is_pretrained(case):
        return
    why = "what the encoder knows fits mostly as it is, so it learns more slowly than the rest"
    yield Decision("train.encoder_rate", ENCODER_RATE, why)
    if ":" not in (case.get("model.encoder") or ""):  # another package's stages may be unknown
        why = "and edges and colours, each stage towards the picture, more slowly still"
        yield Decision("train.layer_decay", LAYER_DECAY, why)


def _is_pretrained(case: Case) -> bool:
    return case.get("train.pretrained") or case.get("train.encoder_weights") is not None


def average(case: Case) -> Iterator[Decision]:
    """Average the weights over the last fifth of the steps, or two hundred of them."""
    passes = _expected_epochs(case) * case.pictures.training
    steps = max(1.0, passes / case.get("train.batch_size"))
    decay = 1 - 1 / max(1.0, AVERAGED_SHARE * steps)
    decay = round(min(max(LEAST_DECAY, decay), MOST_DECAY), 3)
    yield Decision(
        "train.average_decay",
        decay,
        f"the mean of the weights over some {round(1 / (1 - decay))} steps is steadier than the "
        "last ones; whichever scores better is kept",
    )


def _expected_epochs(case: Case) -> float:
    """Return how many epochs there will be, which under a budget of time is a guess."""
    passes = passes_within(case, case.get("preprocess.image_size"))
    epochs: float = case.get("train.epochs")
    if passes is None:
        return epochs
    within = passes / case.pictures.training
    return min(within, epochs) if "train.epochs" in case.settings else within


def precision(case: Case) -> Iterator[Decision]:
    """Compute in bf16 on processors that do."""
    if computes_in_bf16(case):
        yield Decision("train.precision", "bf16", "this processor computes in it, a third quicker")


def loss(case: Case) -> Iterator[Decision]:
    """Look at the figure more than at every pixel, most of which are easy ground."""
    del case
    yield Decision(
        "loss.bce",
        PIXEL_WEIGHT,
        "this term counts all pixels alike, and most are easy; Dice looks at each picture's figure",
    )


TRAINING_RULES = (
    validation,
    batch_size,
    epochs,
    learning_rate,
    freezing,
    slow_encoder,
    average,
    precision,
    loss,
)
