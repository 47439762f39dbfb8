"""CVAT's "CVAT for images 1.1": one annotations.xml beside the images.

Source: docs.cvat.ai/docs/manual/advanced/xml_format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from notan.data.annotations.sets import (
    Annotation,
    AnnotationSet,
    Collector,
    Region,
    ends_of,
    read_whole,
    split_of,
)
from notan.data.annotations.shapes import Polygon, Runs, as_points, box, ellipse
from notan.data.layouts import WHOLE
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from xml.etree.ElementTree import Element

    from notan.data.annotations.shapes import Shape

WITHOUT_AREA = ("polyline", "points", "tag", "cuboid", "skeleton")


def find(path: Path) -> Sequence[Path]:
    """Return CVAT's file of a folder, or the one that is named."""
    files = [path] if path.is_file() else sorted(path.glob("*.xml"))
    return [each for each in files if each.suffix.lower() == ".xml" and _looks_so(each)]


def _looks_so(path: Path) -> bool:
    head, _ = ends_of(path)
    return b"<annotations" in head and (b"<image " in head or b"<meta" in head)


def read(folder: Path, files: Sequence[Path]) -> AnnotationSet:
    """Read CVAT's files as one set.

    Raises:
        DataError: A file is none of CVAT's, or is one of a video.
    """
    collector = Collector(folder)
    for path in files:
        try:
            root = fromstring(read_whole(path))
        except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
            raise DataError(
                f"{path}: this is no XML, or only a part of it ({error}); export it again"
            ) from error
        if root.find("track") is not None:
            raise DataError(
                f"{path}: holds the tracks of a video; export it as CVAT for images 1.1"
            )
        for element in root.iter("image"):
            _add_image(element, path, collector)
    return collector.result()


def _add_image(element: Element, path: Path, collector: Collector) -> None:
    name, subset = element.get("name", ""), element.get("subset", "")
    where = f"{path}: image {name}"
    size = (int(_number(element, "height", where)), int(_number(element, "width", where)))
    regions = []
    for shape in element:
        if shape.tag in WITHOUT_AREA:
            collector.count(f"shapes of the kind {shape.tag}, which have no area")
            continue
        try:
            regions.append(Region(shape.get("label", ""), _shape(shape, where)))
        except DataError as error:
            words = str(error)
            raise DataError(words if words.startswith(where) else f"{where}: {words}") from error
    near = [path.parent / "images" / subset, path.parent / "images", path.parent / subset]
    image = collector.find(name, path, *near)
    if image:
        split = split_of([subset]) or WHOLE
        collector.add_from(path, split, Annotation(image, tuple(regions), size))


def _number(element: Element, key: str, where: str) -> float:
    try:
        return float(element.get(key, ""))
    except ValueError as error:
        raise DataError(
            f"{where}: wanted a number as {key} of its {element.tag}, found "
            f"'{element.get(key, '')[:30]}'"
        ) from error


def _shape(element: Element, where: str) -> Shape:
    def numbers(*keys: str) -> list[float]:
        return [_number(element, key, where) for key in keys]

    turn = _number(element, "rotation", where) if element.get("rotation") else 0.0
    if element.tag == "polygon":
        pairs = [pair.split(",") for pair in element.get("points", "").split(";")]
        return Polygon((as_points(pairs),))
    if element.tag == "box":
        left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
        return Polygon((box(left, top, right, bottom, turn),))
    if element.tag == "ellipse":
        x, y, across, down = numbers("cx", "cy", "rx", "ry")
        return Polygon((ellipse(x, y, across, down, turn),))
    if element.tag == "mask":
        left, top, width, height = map(int, numbers("left", "top", "width", "height"))
        try:
            counts = np.array(element.get("rle", "").split(","), np.int64)
        except (ValueError, OverflowError) as error:
            raise DataError(f"{where}: runs that are no whole numbers ({error})") from error
        return Runs(counts, (height, width), by_columns=False, corner=(top, left))
    raise DataError(f"{where}: a shape of the kind '{element.tag}', which is not read")
