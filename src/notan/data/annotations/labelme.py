"""LabelMe's files: one JSON with shapes beside each image.

Source: github.com/wkentaro/labelme, label_file.py and utils/shape.py.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from notan.data.annotations.sets import (
    Annotation,
    AnnotationSet,
    Collector,
    Region,
    ends_of,
    get,
    read_json,
    split_of,
)
from notan.data.annotations.shapes import MOST_VERTICES, Bitmap, Drawn
from notan.data.layouts import WHOLE
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.data.annotations.shapes import Shape

PLACES = ("*.json", "*/*.json", "*/*/*.json")

IGNORED = "__ignore__"
BACKGROUND = "_background_"
"""What labelme's own examples call what is neither, and what is not annotated."""

FEWEST = {"polygon": 3, "rectangle": 2, "circle": 2, "line": 2, "linestrip": 2, "point": 1}
"""Vertices that a shape has at least."""

ROTATED = "oriented_rectangle"


def find(path: Path) -> Sequence[Path]:
    """Return LabelMe's files of a folder, or the one that is named."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" and _looks_so(path) else []
    for place in PLACES:
        files = sorted(each for each in path.glob(place) if each.is_file())
        if any(map(_looks_so, files[:3])):
            return [each for each in files if _looks_so(each)]
    return []


def _looks_so(path: Path) -> bool:
    """Say whether a JSON file is LabelMe's, by its two ends: the image may stand in it."""
    head, tail = ends_of(path)
    return b'"shapes"' in head and b'"imageWidth"' in head + tail


def read(folder: Path, files: Sequence[Path]) -> AnnotationSet:
    """Read LabelMe's files as one set; an image without one is not annotated, and passed over.

    Raises:
        DataError: A file is none of LabelMe's.
    """
    collector = Collector(folder)
    for path in files:
        everything = read_json(path)
        image = collector.find(get(everything, "imagePath", str, path), path)
        regions = _regions(everything, path, collector)
        split = split_of(path.relative_to(folder).parent.parts) or WHOLE
        if image:
            size = [everything.get(side) for side in ("imageHeight", "imageWidth")]
            known = (size[0], size[1]) if all(isinstance(side, int) for side in size) else None
            collector.add(split, path, image, Annotation(image, tuple(regions), known))
    collector.pass_over_images("images without a JSON file, so not annotated")
    return collector.result(ignored=frozenset({IGNORED}), background=BACKGROUND)


def _regions(everything: object, path: Path, collector: Collector) -> list[Region]:
    regions = []
    for place, record in enumerate(get(everything, "shapes", list, path)):
        where = f"{path}: shape {place}"
        kind = record.get("shape_type") or "polygon" if isinstance(record, dict) else ""
        if kind in ("points",):
            collector.count("sets of points, which have no area")
            continue
        try:
            shape = _shape(record, kind, where)
        except (ValueError, TypeError, OSError) as error:
            raise DataError(f"{where}: {error}") from error
        regions.append(Region(get(record, "label", str, where), shape))
    return regions


def _shape(record: object, kind: str, where: str) -> Shape:
    points = np.asarray(get(record, "points", list, where), np.float64)
    fewest = 2 if kind == "mask" else 4 if kind == ROTATED else FEWEST.get(kind)
    if fewest is None:
        known = ", ".join([*FEWEST, ROTATED, "mask"])
        raise DataError(f"{where}: a shape of the kind '{kind}'; {known} are read")
    if points.ndim != 2 or points.shape[1] != 2 or not fewest <= len(points) <= MOST_VERTICES:
        raise DataError(
            f"{where}: a {kind} of {len(points)} points; pairs of numbers were wanted, at least "
            f"{fewest} and at most {MOST_VERTICES:,}"
        )
    if not np.isfinite(points).all():
        raise DataError(f"{where}: its points are no finite numbers")
    if kind != "mask":
        return Drawn("polygon" if kind == ROTATED else kind, points)
    encoded = get(record, "mask", str, where)
    with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)), formats=["PNG"]) as image:
        mask = np.asarray(image.convert("L")) > 0
    left, top = points.min(axis=0).astype(int).tolist()
    return Bitmap(mask, (top, left))
