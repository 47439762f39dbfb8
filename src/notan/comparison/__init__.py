"""Several models on the same images: which is better, by how much, and beyond noise."""

from notan.comparison.comparison import Comparison, compare, compare_on
from notan.comparison.ensemble import Joined, join

__all__ = ["Comparison", "Joined", "compare", "compare_on", "join"]
