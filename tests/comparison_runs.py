"""Small trainings whose models the tests of comparisons compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runs import Drawn, tiny, train_own

if TYPE_CHECKING:
    from pathlib import Path

    from notan.data.samples import Source

TRAINING = Drawn(24, size=(24, 24))
VALIDATION = Drawn(6, size=(24, 24), first=24)
LEARNED: dict[str, Any] = {
    "train__epochs": 16,
    "train__learning_rate": 0.01,
    "augment__enabled": False,
}
"""Flags of a training that learns something in little time."""


def train_small(out: Path, training: Source = TRAINING, **flags: object) -> Path:
    """Train on 24 drawn images, or on others; return the run folder."""
    small = {"model__name": "unet", "model__width": 4, "preprocess__image_size": 24}
    flags = {**small, "train__batch_size": 8, **flags}
    train_own(tiny(**flags), out, training=training, validation=VALIDATION)
    return out
