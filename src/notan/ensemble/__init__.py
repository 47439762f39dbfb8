"""Several model files become one, weighted and decided on the validation split."""

from notan.ensemble.join import Joined, join

__all__ = ["Joined", "join"]
