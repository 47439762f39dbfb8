"""Training: plain steps, and the Trainer that strings them together."""

from notan.training.start import resume, train
from notan.training.trainer import Trainer, TrainResult

__all__ = ["TrainResult", "Trainer", "resume", "train"]
