"""Small exports of labelling tools, written by hand: a 6 x 8 image with a box of one class."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (6, 8)
"""Height and width."""

INSIDE = (slice(1, 4), slice(2, 6))
"""Where the object lies: rows 1 to 3, columns 2 to 5."""

SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]
"""The same as an outline along the edges of pixels, x and y in turn."""


def write_image(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_images(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        write_image(folder / f"{name}.png", seed=seed)


def coco(**changes: Any) -> dict[str, Any]:
    """Return a COCO file about ``a.png`` (an object of the class cell) and ``b.png`` (none)."""
    images = [
        {"id": place, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]}
        for place, name in enumerate("ab")
    ]
    square = {"id": 1, "image_id": 0, "category_id": 3, "segmentation": [SQUARE], "iscrowd": 0}
    whole = {"images": images, "annotations": [square], "categories": [{"id": 3, "name": "cell"}]}
    return whole | changes


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def labelme(*shapes: dict[str, Any], name: str = "a.png", **changes: Any) -> dict[str, Any]:
    square = {"label": "cell", "shape_type": "rectangle", "points": [[2, 1], [5, 3]]}
    whole: dict[str, Any] = {"version": "5.4.1", "flags": {}, "shapes": list(shapes) or [square]}
    whole = whole | {
        "imagePath": name,
        "imageData": None,
        "imageHeight": SIZE[0],
        "imageWidth": SIZE[1],
    }
    return whole | changes
