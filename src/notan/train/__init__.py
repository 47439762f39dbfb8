"""Training: plain steps, and the Trainer that strings them together."""

from notan.train.trainer import Trainer, TrainResult, train

__all__ = ["TrainResult", "Trainer", "train"]
