"""GeoJSON outlines beside images, as QuPath writes them and ``notan predict --format geojson``.

Source: RFC 7946; coordinates are pixels here, (0, 0) the top left corner of the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
from notan.data.annotations.shapes import Polygon, as_points
from notan.data.layouts import WHOLE
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SUFFIXES = (".geojson", ".json")
PLACES = ("*", "*/*", "*/*/*")
UNNAMED = "foreground"
"""The class of an outline that has none; what predict writes has this too."""

CHILDREN = ("childObjects", "children")
"""Properties of QuPath's that hold further features."""

AREAS = ("Polygon", "MultiPolygon")


def find(path: Path) -> Sequence[Path]:
    """Return the GeoJSON files of a folder, or the one that is named."""
    if path.is_file():
        return [path] if path.suffix.lower() in SUFFIXES and _looks_so(path) else []
    for place in PLACES:
        files = sorted(
            each for each in path.glob(place) if each.suffix.lower() in SUFFIXES and each.is_file()
        )
        if any(map(_looks_so, files[:3])):
            return [each for each in files if _looks_so(each)]
    return []


def _looks_so(path: Path) -> bool:
    head, _ = ends_of(path)
    return b'"type"' in head and (b"Feature" in head or b"Polygon" in head)


def read(folder: Path, files: Sequence[Path]) -> AnnotationSet:
    """Read GeoJSON files, each of the image of its name; an image without one is passed over.

    Raises:
        DataError: A file is no GeoJSON, or is about the earth.
    """
    collector = Collector(folder)
    for path in files:
        image = collector.find_stem(path.stem, path, path.parent, path.parent.parent / "images")
        regions = [
            region
            for each in _with_children(_features(path))
            for region in _regions(each, path, collector)
        ]
        split = split_of(path.relative_to(folder).parent.parts) or WHOLE
        if image:
            collector.add(split, path, image, Annotation(image, tuple(regions)))
    collector.pass_over_images("images without a GeoJSON file, so not annotated")
    return collector.result()


def _features(path: Path) -> Sequence[Any]:
    everything = read_json(path)
    if isinstance(everything, dict) and "crs" in everything:
        raise DataError(f"{path}: its coordinates are places on the earth, not pixels")
    if isinstance(everything, list):  # QuPath's older exports
        return everything
    kind = get(everything, "type", str, path)
    if kind == "FeatureCollection":
        found: list[Any] = get(everything, "features", list, path)
        return found
    return [everything] if kind == "Feature" else [{"geometry": everything}]


def _with_children(features: Sequence[Any]) -> Iterator[Any]:
    """Give features and those inside them: QuPath may export its objects as a hierarchy."""
    waiting = list(reversed(features))
    while waiting:
        feature = waiting.pop()
        yield feature
        told = feature.get("properties") if isinstance(feature, dict) else None
        inside = [told.get(name) for name in CHILDREN] if isinstance(told, dict) else []
        for found in inside:
            waiting += reversed(found) if isinstance(found, list) else ()


def _regions(feature: object, path: Path, collector: Collector) -> Iterator[Region]:
    geometry = get(feature, "geometry", dict, f"{path}: a feature")
    label = _label(feature.get("properties") if isinstance(feature, dict) else None)
    kind = get(geometry, "type", str, f"{path}: a geometry")
    if kind not in AREAS:
        collector.count(f"shapes of the kind {kind}, which have no area")
        return
    drawn = get(geometry, "coordinates", list, f"{path}: a {kind}")
    try:
        for rings in [drawn] if kind == "Polygon" else drawn:
            outer, *holes = [as_points(ring) for ring in rings]
            yield Region(label, Polygon((outer,), tuple(holes)))
    except (DataError, TypeError, ValueError) as error:
        raise DataError(f"{path}: a {kind}: {error}") from error


def _label(properties: object) -> str:
    """Return the class of a feature by the names that QuPath and others give it."""
    if not isinstance(properties, dict):
        return UNNAMED
    told = properties.get("classification")
    if isinstance(told, dict):  # QuPath's, and the one of its QubaLab
        names = told.get("names")
        told = told.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else None)
    told = told or properties.get("label") or properties.get("class")
    return told if isinstance(told, str) else UNNAMED
