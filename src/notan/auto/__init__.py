"""A look at the data and the machine, and the recipe that follows from it."""

from notan.auto.recipe import Suggestion, suggest

__all__ = ["Suggestion", "suggest"]
