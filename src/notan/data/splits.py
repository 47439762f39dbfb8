"""A seeded split where the data bring none of their own."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def choose_validation(names: Sequence[str], *, fraction: float, seed: int) -> frozenset[str]:
    """Choose which images are set aside for validation.

    The choice depends on the names and the seed only, not on the order of the files or on a
    random generator, so the same folder is split alike on every machine.

    Args:
        names: All images to divide; at least two.
        fraction: The share to set aside, above 0 and below 1; at least one image is set
            aside and at least one is left.
        seed: Another seed makes another split.
    """
    count = min(max(1, round(len(names) * fraction)), len(names) - 1)
    return frozenset(sorted(names, key=lambda name: _lot(name, seed))[:count])


def _lot(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def choose_folds(names: Sequence[str], count: int, *, seed: int) -> tuple[frozenset[str], ...]:
    """Divide images into parts for cross-validation, their sizes differing by one at most.

    As above, only the names and the seed decide.

    Args:
        names: All images to divide, each once; at least ``count``.
        count: How many parts, at least 2.
        seed: Another seed makes other parts.
    """
    drawn = sorted(names, key=lambda name: _lot(name, seed))
    return tuple(frozenset(drawn[first::count]) for first in range(count))
