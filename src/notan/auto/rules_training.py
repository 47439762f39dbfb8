"""How long and how fast to train, on what, and with which loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from notan.auto.case import ChosenSetting
from notan.auto.effort import computes_in_bf16, images_in_memory, passes_within, seconds_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.auto.case import Case

USUAL_BATCH = 8
PRETRAINED_RATE, SCRATCH_RATE = 2e-3, 1e-3
ENOUGH_TO_VALIDATE, MOST_SET_ASIDE = 8, 0.25
PASSES = 8000
"""Images that a training without a time limit sees, those seen again counted again."""

FEWEST_EPOCHS, MOST_EPOCHS = 10, 200
MOST_FROZEN, FROZEN_SHARE = 3, 0.15
"""Epochs in which the encoder stays as it came: at most, and as a share of all."""

ENCODER_RATE, LAYER_DECAY = 0.15, 0.7
PIXEL_WEIGHT = 0.2
"""Of the cross-entropy of the pixels, beside the Dice of the image."""

AVERAGED_SHARE = 0.2
"""Of the steps, what the moving average looks back on."""

LEAST_DECAY, MOST_DECAY = 0.9, 0.995


def validation(case: Case) -> Iterator[ChosenSetting]:
    """Set aside enough images to choose by, where the data have no validation part."""
    images = case.images
    if not images.makes_validation:
        return
    pairs = images.training + images.validation
    usual = float(case.get("data.validation_fraction"))
    fraction = max(usual, min(MOST_SET_ASIDE, round(ENOUGH_TO_VALIDATE / pairs, 3)))
    if fraction == usual:
        return
    yield ChosenSetting(
        "data.validation_fraction",
        fraction,
        f"{max(1, round(pairs * fraction))} of {pairs} images to choose the best epoch by; a "
        "tenth would be too few to tell luck from skill",
    )


def batch_size(case: Case) -> Iterator[ChosenSetting]:
    """Take eight images a step; fewer of few images, and where the memory ends."""
    size, images = case.get("preprocess.image_size"), case.images.training
    fit = images_in_memory(case, size)
    batch, why = USUAL_BATCH, "images in a step; a good number for few images"
    if images < 3 * batch:
        batch = max(2, images // 3) if images > 1 else 1
        why = f"not above a third of the {images} training images"
    if fit is not None and fit < batch:
        batch, why = max(1, fit), f"what {size[0]}x{size[1]} pixels an image leave memory for"
    yield ChosenSetting("train.batch_size", batch, why)


def epochs(case: Case) -> Iterator[ChosenSetting]:
    """Let each image be seen often where there are few of them; a time limit knows its own end."""
    if case.get("train.time_limit_seconds") is not None:
        return
    images, size = case.images.training, case.get("preprocess.image_size")
    wanted = min(max(FEWEST_EPOCHS, round(PASSES / images)), MOST_EPOCHS)
    minutes = math.ceil(wanted * images * seconds_for(case, size) / 60)
    yield ChosenSetting(
        "train.epochs",
        wanted,
        f"passes over {images} training images; some {minutes} minutes on this machine if "
        "nothing else runs (--time-limit 10m sets a time instead)",
    )


def learning_rate(case: Case) -> Iterator[ChosenSetting]:
    """Take a rate that suits the batch, and let it fall to zero."""
    batch = case.get("train.batch_size")
    usual = PRETRAINED_RATE if _is_pretrained(case) else SCRATCH_RATE
    rate = float(f"{usual * math.sqrt(batch / USUAL_BATCH):.2g}")
    yield ChosenSetting("train.learning_rate", rate, f"what suits steps of {batch} images")
    end = "" if case.get("train.time_limit_seconds") is None else " when the time limit ends"
    yield ChosenSetting(
        "train.schedule", "cosine", f"the rate falls to zero{end}, so that the last epochs settle"
    )


def freezing(case: Case) -> Iterator[ChosenSetting]:
    """Leave a pretrained encoder as it came, until what reads it has learned to."""
    frozen = min(MOST_FROZEN, int(FROZEN_SHARE * _expected_epochs(case)))
    if _is_pretrained(case) and frozen:
        yield ChosenSetting(
            "train.freeze_epochs",
            frozen,
            "at first the encoder stays as it came and the rest learns to read it; these epochs "
            "are quicker, too",
        )


def slow_encoder(case: Case) -> Iterator[ChosenSetting]:
    """Let what is known already change less than what is new, and least where it is finest."""
    if not _is_pretrained(case):
        return
    why = "what the encoder knows fits mostly as it is, so it learns more slowly than the rest"
    yield ChosenSetting("train.encoder_lr_multiplier", ENCODER_RATE, why)
    if ":" not in (case.get("model.encoder") or ""):  # another package's stages may be unknown
        why = "and edges and colours, each stage towards the image, more slowly still"
        yield ChosenSetting("train.layer_lr_decay", LAYER_DECAY, why)


def _is_pretrained(case: Case) -> bool:
    return case.get("train.pretrained") or case.get("train.encoder_weights") is not None


def average(case: Case) -> Iterator[ChosenSetting]:
    """Average the weights over the last fifth of the steps, or two hundred of them."""
    passes = _expected_epochs(case) * case.images.training
    steps = max(1.0, passes / case.get("train.batch_size"))
    decay = 1 - 1 / max(1.0, AVERAGED_SHARE * steps)
    decay = round(min(max(LEAST_DECAY, decay), MOST_DECAY), 3)
    yield ChosenSetting(
        "train.ema_decay",
        decay,
        f"the mean of the weights over some {round(1 / (1 - decay))} steps is steadier than the "
        "last ones; whichever scores better is kept",
    )


def _expected_epochs(case: Case) -> float:
    """Return how many epochs there will be, which under a time limit is a guess."""
    passes = passes_within(case, case.get("preprocess.image_size"))
    epochs: float = case.get("train.epochs")
    if passes is None:
        return epochs
    within = passes / case.images.training
    return min(within, epochs) if "train.epochs" in case.settings else within


def precision(case: Case) -> Iterator[ChosenSetting]:
    """Compute in bf16 on processors that do."""
    if computes_in_bf16(case):
        yield ChosenSetting(
            "train.precision", "bf16", "this processor computes in it, a third quicker"
        )


def loss(case: Case) -> Iterator[ChosenSetting]:
    """Look at the foreground more than at every pixel, most of which are easy background."""
    del case
    yield ChosenSetting(
        "loss.bce",
        PIXEL_WEIGHT,
        "this term counts all pixels alike, and most are easy; Dice looks at each image's "
        "foreground",
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
