"""notan: two-class image segmentation, foreground against background.

The functions do what the commands of the same names do; the classes are what they take and give.
All are loaded when they are first asked for, so that ``import notan`` is quick::

    import notan

    result = notan.train("cells/", time_limit="10m")
    print(notan.evaluate(result.checkpoint, "cells/").summary())
    mask = notan.predict("photo.jpg", result.checkpoint).mask

Below them are the rooms, such as ``notan.training``, whose functions take sources, modules and
transforms of your own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from notan.version import __version__

if TYPE_CHECKING:
    from notan.api import check, compare, evaluate, export, load, predict, train
    from notan.config import Run, load_run
    from notan.data.samples import Sample, Source
    from notan.errors import NotanError
    from notan.losses import Loss
    from notan.metrics import Counts, Score
    from notan.modelfile.card import Card, Checkpoint, load_checkpoint, read_card
    from notan.modelfile.preprocess import Placement, Preprocessor
    from notan.models.base import SegmentationModel
    from notan.models.unet import UNet
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
    "UNet": "notan.models.unet",
    "check": "notan.api",
    "compare": "notan.api",
    "evaluate": "notan.api",
    "export": "notan.api",
    "load": "notan.api",
    "load_checkpoint": "notan.modelfile.card",
    "load_run": "notan.config",
    "predict": "notan.api",
    "read_card": "notan.modelfile.card",
    "train": "notan.api",
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
    "UNet",
    "__version__",
    "check",
    "compare",
    "evaluate",
    "export",
    "load",
    "load_checkpoint",
    "load_run",
    "predict",
    "read_card",
    "train",
]


def __getattr__(name: str) -> object:
    """Import a public name from its room the first time that it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'notan' has no attribute '{name}'")
    from notan.errors import explaining_extras

    with explaining_extras(f"notan.{name}"):
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
