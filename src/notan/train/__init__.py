"""Training: plain steps, and the Trainer that strings them together."""

from notan.train.start import resume, train
from notan.train.trainer import Trainer, TrainResult

__all__ = ["TrainResult", "Trainer", "resume", "train"]
