"""Training: plain steps, and the Trainer that strings them together."""

from notan.models.own import Network
from notan.training.own import (
    OwnLogger,
    OwnLoss,
    OwnOptimizer,
    OwnParts,
    OwnSchedule,
    OwnTransform,
)
from notan.training.start import resume, train
from notan.training.trackers import Tracker
from notan.training.trainer import Trainer, TrainResult

__all__ = [
    "Network",
    "OwnLogger",
    "OwnLoss",
    "OwnOptimizer",
    "OwnParts",
    "OwnSchedule",
    "OwnTransform",
    "Tracker",
    "TrainResult",
    "Trainer",
    "resume",
    "train",
]
