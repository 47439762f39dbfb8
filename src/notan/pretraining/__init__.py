"""Pretraining: an encoder learns from images without masks, by filling in what is hidden."""

from notan.pretraining.pretrainer import pretrain, resume

__all__ = ["pretrain", "resume"]
