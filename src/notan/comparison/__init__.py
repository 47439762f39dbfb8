"""Several models on the same images: which is better, by how much, and beyond noise."""

from notan.comparison.comparison import Comparison, compare
from notan.comparison.ensemble import EnsembleResult, make_ensemble

__all__ = ["Comparison", "EnsembleResult", "compare", "make_ensemble"]
