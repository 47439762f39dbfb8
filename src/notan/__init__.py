"""notan: two-class image segmentation, foreground against background.

The nouns are here, loaded when they are first asked for, so that ``import notan`` is quick::

    from notan import Predictor, load_run

The verbs live in their rooms: ``notan.training.train``, ``notan.evaluation.evaluate.evaluate``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from notan.version import __version__

if TYPE_CHECKING:
    from notan.config import Run, load_run
    from notan.data.samples import Sample, Source
    from notan.errors import NotanError
    from notan.losses import Loss
    from notan.metrics import Counts, Score
    from notan.modelfile.card import Card, Checkpoint, load_checkpoint, read_card
    from notan.modelfile.preprocess import Placement, Preprocessor
    from notan.models.base import SegmentationModel
    from notan.prediction.predictor import Prediction, Predictor
    from notan.training import Trainer

_HOMES = {
    "Card": "notan.modelfile.card",
    "Checkpoint": "notan.modelfile.card",
    "Counts": "notan.metrics",
    "Loss": "notan.losses",
    "NotanError": "notan.errors",
    "Placement": "notan.modelfile.preprocess",
    "Prediction": "notan.prediction.predictor",
    "Predictor": "notan.prediction.predictor",
    "Preprocessor": "notan.modelfile.preprocess",
    "Run": "notan.config",
    "Sample": "notan.data.samples",
    "Score": "notan.metrics",
    "SegmentationModel": "notan.models.base",
    "Source": "notan.data.samples",
    "Trainer": "notan.training",
    "load_checkpoint": "notan.modelfile.card",
    "load_run": "notan.config",
    "read_card": "notan.modelfile.card",
}

__all__ = [
    "Card",
    "Checkpoint",
    "Counts",
    "Loss",
    "NotanError",
    "Placement",
    "Prediction",
    "Predictor",
    "Preprocessor",
    "Run",
    "Sample",
    "Score",
    "SegmentationModel",
    "Source",
    "Trainer",
    "__version__",
    "load_checkpoint",
    "load_run",
    "read_card",
]


def __getattr__(name: str) -> object:
    """Import a public name from its room the first time that it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'notan' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
