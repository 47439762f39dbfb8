"""The pictures that an export is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from notan.config import load_run
from notan.data.build import open_split
from notan.data.synthetic import DrawnSource

if TYPE_CHECKING:
    from pathlib import Path

    from notan.checkpoint import Card
    from notan.data.sample import Source
    from notan.types import Picture

COMPARED = 32
"""Most pictures that masks are compared on."""

DRAWN_SIZE = (120, 152)
"""Of pictures that are drawn for want of real ones; no multiple of any stride."""


@dataclass(frozen=True)
class Pictures:
    """Pictures of an export.

    Attributes:
        images: At their own sizes; at least one.
        words: How many and where they are from.
    """

    images: tuple[Picture, ...]
    words: str


def pictures_to_compare(card: Card, data_path: Path | None) -> Pictures:
    """Return validation pictures, evenly spread; drawn ones where the data are not known here.

    Args:
        card: Of the model; says where its data were and which pictures were held back.
        data_path: The data folder; None: where the model's training found it, if it is there.

    Raises:
        DataError: The folder that was given is missing or does not fit.
    """
    source = _open(card, data_path)
    return _drawn(COMPARED) if source is None else _some(source, COMPARED, "validation pictures")


def _open(card: Card, data_path: Path | None) -> Source | None:
    path = data_path or card.run.data.path
    if path is None or (data_path is None and not path.is_dir()):
        return None
    flags = {"data.path": path, "data.border": card.border, "data.layout": card.run.data.layout}
    names = frozenset(card.data.validation_names or ()) or None
    data = load_run(flags=flags).data
    return open_split(data, "val", seed=card.run.seed, validation_names=names)


def _some(source: Source, most: int, words: str) -> Pictures:
    count = len(source)
    taken = sorted({int(each) for each in np.linspace(0, count - 1, min(count, most))})
    return Pictures(tuple(source[each].image for each in taken), f"{len(taken)} {words}")


def _drawn(count: int) -> Pictures:
    images = tuple(sample.image for sample in DrawnSource(count, size=DRAWN_SIZE))
    return Pictures(images, f"{count} drawn pictures, for want of real ones")
