"""Small trainings whose models the tests of comparisons compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runs import Drawn, tiny, train_own

if TYPE_CHECKING:
    from pathlib import Path

    from notan.data.samples import Source

TRAINING = Drawn(24, size=(24, 24))
VALIDATION = Drawn(6, size=(24, 24), first=24)


def train_small(out: Path, training: Source = TRAINING, **flags: object) -> Path:
    """Train on 24 drawn images, or on others; return the run folder."""
    flags = {"model__width": 4, "preprocess__image_size": 24, "train__batch_size": 8, **flags}
    train_own(tiny(**flags), out, training=training, validation=VALIDATION)
    return out
