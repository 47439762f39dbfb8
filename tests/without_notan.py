"""Images of all sizes, and exported files with all kinds of cards, to be run without notan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnx
from PIL import Image

from notan.data.synthetic import DrawnSource
from notan.exporting.end_to_end import around
from notan.modelfile.card import KEY, read_card
from notan.modelfile.onnx import write_onnx
from notan.prediction.backends import open_model
from notan.prediction.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from notan.modelfile.card import Card
    from notan.types import RGBImage, Size

SIZES: tuple[Size, ...] = (
    *((1, 1), (1, 2), (2, 1), (1, 300), (300, 1), (3, 7), (7, 3), (15, 17), (16, 16), (31, 33)),
    *((32, 32), (64, 64), (33, 64), (64, 33), (32, 100), (100, 32), (20, 90), (90, 20), (48, 48)),
    *((128, 96), (99, 165), (165, 99), (400, 60), (60, 400), (321, 214), (375, 500), (640, 480)),
    *((1500, 40), (37, 1500), (1201, 1500)),
)
"""Thirty: smaller and larger than a network's input, exact multiples of it, and neither."""


ANY = {
    "keep_largest": False,
    "min_component_fraction": 0.0,
    "fill_holes_fraction": 0.0,
    "min_foreground_fraction": 0.0,
    "threshold_rule": "threshold",
}
"""A rule for masks that has a place in a graph."""


def image_of(size: Size, number: int) -> RGBImage:
    """Draw shapes, with noise, at a size; every third image is grey."""
    image = DrawnSource(1, size=(40, 48), first=number)[0].image
    scaled = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int64)
    noise = np.random.default_rng(number).integers(-25, 26, scaled.shape)
    image = np.clip(scaled + noise, 0, 255).astype(np.uint8)
    return np.repeat(image[..., :1], 3, axis=2) if number % 3 == 0 else image


def write_images(folder: Path) -> list[Path]:
    """Write one image of each size; the grey ones as grey files, some with transparency."""
    paths = []
    for number, size in enumerate(SIZES):
        mode = ("L", "RGB", "RGBA")[number % 3]
        paths.append(folder / f"{number:02d}.png")
        Image.fromarray(image_of(size, number)).convert(mode).save(paths[-1])
    return paths


def decided(card: Card, predict: Callable[[Card], Predictor], **changes: Any) -> Card:
    """Return a card that says other things, and whose threshold divides an image in two halves.

    Args:
        card: Of a model.
        predict: Returns a model's predictor by a card.
        changes: Fields of its preprocessing and postprocessing.
    """
    for _ in range(2):
        parts = {}
        for name in ("preprocess", "postprocessing"):
            part = getattr(card, name)
            known = {key: value for key, value in changes.items() if key in type(part).model_fields}
            parts[name] = part.model_copy(update=known)
        card = card.model_copy(update=parts)
        probability = predict(card)(image_of((99, 165), 20)).probability
        changes["threshold"] = float(np.median(probability))
    return card


def with_card(model: Path, out: Path, **changes: Any) -> Path:
    """Write an ONNX model again whose card says other things; see ``decided``."""
    _, backend = open_model(model, backend="onnxruntime")

    def predictor(card: Card) -> Predictor:
        return Predictor(backend, card.preprocess, postprocessing=card.postprocessing)

    network = onnx.load(model)
    del network.metadata_props[:]
    content = network.SerializeToString(deterministic=True)
    write_onnx(
        out, content, {KEY: decided(read_card(model), predictor, **changes).model_dump_json()}
    )
    return out


def graph_of(model: Path, out: Path, **changes: Any) -> tuple[Path, Predictor]:
    """Put a graph around an exported network by a card that says other things; see ``decided``."""
    card, backend = open_model(model, backend="onnxruntime")

    def predictor(card: Card) -> Predictor:
        return Predictor(backend, card.preprocess, postprocessing=card.postprocessing)

    card = decided(card, predictor, **changes)
    onnx.save(around(onnx.load(model), card), out)
    return out, predictor(card)
