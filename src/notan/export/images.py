"""The images that an export is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from notan.config import load_run
from notan.data.build import open_split
from notan.data.synthetic import DrawnSource
from notan.errors import ExportError
from notan.predict.predictor import Predictor

if TYPE_CHECKING:
    from pathlib import Path

    from notan.checkpoint import Card
    from notan.data.sample import Source
    from notan.predict.backends import Array
    from notan.types import RGBImage

COMPARED = 32
"""Most images that masks are compared on."""

CALIBRATED = 32
"""Most images that an int8 network is calibrated on."""

FEWEST = 16
"""Validation images below which training images are calibrated on."""

DRAWN_SIZE = (120, 152)
"""Of images that are drawn for want of real ones; no multiple of any stride."""


@dataclass(frozen=True)
class ImageSet:
    """Images of an export.

    Attributes:
        images: At their own sizes; at least one.
        words: How many and where they are from.
    """

    images: tuple[RGBImage, ...]
    words: str


def images_to_compare(card: Card, data_path: Path | None) -> ImageSet:
    """Return validation images, evenly spread; drawn ones where the data are not known here.

    Args:
        card: Of the model; says where its data were and which images were held back.
        data_path: The data folder; None: where the model's training found it, if it is there.

    Raises:
        DataError: The folder that was given is missing or does not fit.
    """
    source = _open(card, data_path, "val")
    return _drawn(COMPARED) if source is None else _some(source, COMPARED, "validation images")


def images_to_calibrate(card: Card, data_path: Path | None) -> ImageSet:
    """Return images that show an int8 network what it will see: never drawn ones.

    They are of the validation split, or, where that holds fewer than 16, of the training split.

    Args:
        card: Of the model.
        data_path: The data folder; None: where the model's training found it.

    Raises:
        DataError: The folder that was given is missing or does not fit.
        ExportError: The data are not known here.
    """
    source = _open(card, data_path, "val")
    if source is None:
        place = card.run.data.path
        raise ExportError(
            "int8 is calibrated on images like those that the model was trained on, and "
            f"{f'{place} is not on this machine' if place else 'the model names no folder'}; say "
            "where they are with --data-path FOLDER"
        )
    if len(source) >= FEWEST:
        return _some(source, CALIBRATED, "validation images")
    training = _open(card, data_path, "train")
    if training is None or len(training) <= len(source):
        return _some(source, CALIBRATED, "validation images")
    words = f"training images, for the validation split holds {len(source)} only"
    return _some(training, CALIBRATED, words)


def network_inputs(card: Card, images: ImageSet) -> list[Array]:
    """Return what the network sees of images, one input (1, 3, h, w) of each.

    Of an image that goes through in tiles it is the middle one.
    """
    listener = _Listener()
    predictor = Predictor(listener, card.preprocess, card=card)
    inputs = []
    for image in images.images:
        predictor(image)
        inputs.append(listener.heard[len(listener.heard) // 2])
        listener.heard.clear()
    return inputs


class _Listener:
    """A backend that keeps what it is given."""

    def __init__(self) -> None:
        self.heard: list[Array] = []

    def __call__(self, inputs: Array) -> Array:
        self.heard.append(inputs)
        return np.zeros((len(inputs), 1, *inputs.shape[2:]), np.float32)


def _open(card: Card, data_path: Path | None, split: str) -> Source | None:
    path = data_path or card.run.data.path
    if path is None or (data_path is None and not path.is_dir()):
        return None
    flags = {
        "data.path": path,
        "data.trimap_border": card.trimap_border,
        "data.layout": card.run.data.layout,
    }
    names = frozenset(card.data.validation_names or ()) or None
    data = load_run(flags=flags).data
    return open_split(data, split, seed=card.run.seed, validation_names=names)


def _some(source: Source, most: int, words: str) -> ImageSet:
    count = len(source)
    taken = sorted({int(each) for each in np.linspace(0, count - 1, min(count, most))})
    return ImageSet(tuple(source[each].image for each in taken), f"{len(taken)} {words}")


def _drawn(count: int) -> ImageSet:
    images = tuple(sample.image for sample in DrawnSource(count, size=DRAWN_SIZE))
    return ImageSet(images, f"{count} drawn images, for want of real ones")
