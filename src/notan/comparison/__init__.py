"""Several models on the same images: which is better, by how much, and beyond noise."""

from notan.comparison.compare import compare, compare_on
from notan.comparison.comparison import Comparison

__all__ = ["Comparison", "compare", "compare_on"]
