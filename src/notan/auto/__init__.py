"""A look at the data and the machine, and the recipe that follows from it."""

from notan.auto.choose import Suggestion, suggest

__all__ = ["Suggestion", "suggest"]
