"""Hearsay: images that a model knows through another one that it learns from or begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from notan.errors import DataError

if TYPE_CHECKING:
    from notan.data.samples import Source
    from notan.modelfile.card import DataCard

HASHES = ("training_hashes", "validation_hashes", "unlabelled_hashes")


class Knowing(Protocol):
    """Whatever has learned from images, and says from which by their content."""

    @property
    def training_hashes(self) -> tuple[str, ...]:
        """Of images that it was trained on."""

    @property
    def validation_hashes(self) -> tuple[str, ...]:
        """Of images that it was chosen on."""

    @property
    def unlabelled_hashes(self) -> tuple[str, ...]:
        """Of images that it has learned from without their masks."""


def seen_too(data: DataCard, other: Knowing) -> DataCard:
    """Add to a model's images those that it knows through another."""
    return data.model_copy(
        update={
            name: tuple(dict.fromkeys((*getattr(data, name), *getattr(other, name))))
            for name in HASHES
        }
    )


def require_unseen(other: Knowing, validation: Source, *, who: str, whose: str) -> None:
    """Refuse to choose a model on images that it knows through another.

    Args:
        other: What has learned.
        validation: What the model will be chosen on.
        who: The other, as the message begins.
        whose: What the Dice would flatter.

    Raises:
        DataError: The other was trained on some of them.
    """
    trained = set(other.training_hashes)
    if not trained:
        return
    known = [
        name
        for name, each in zip(validation.names, validation.hashes(), strict=True)
        if each in trained
    ]
    if known:
        raise DataError(
            f"{who} was trained on {len(known)} of this run's {len(validation)} "
            f"validation images ({', '.join(known[:3])}{', ...' if len(known) > 3 else ''}), so "
            f"{whose} Dice on them would flatter it; train both with one data.split_seed"
        )
