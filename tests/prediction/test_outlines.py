"""Outlines, against Shapely, pycocotools and a naive reader: valid, and filled the same mask."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from notan.prediction.formats.shapes import (
    Part,
    coco_polygons,
    cut_open,
    encode_geojson,
    encode_svg,
    trace_parts,
)

if TYPE_CHECKING:
    from notan.prediction.formats.shapes import Ring
    from notan.types import Mask, Size

# pycocotools' own arrays have not followed NumPy 2 yet
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SVG = "{http://www.w3.org/2000/svg}"
SMALL = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda size: arrays(np.bool_, size))


QUPATH = {
    "objectType": "annotation",
    "classification": {"name": "foreground", "color": [230, 159, 0]},
}


def noise(seed: int) -> Mask:
    """Draw a mask, mostly foreground, mostly background or in between: holes, islands, corners."""
    random = np.random.default_rng(seed)
    return random.random(random.integers(1, 60, 2)) < random.random()


MASKS = SMALL | st.integers(0, 2**32 - 1).map(noise)


def drawn(text: str) -> Mask:
    return np.array([[each == "#" for each in line] for line in text.split()])


def rings_in_rings(count: int) -> Mask:
    side = 4 * count + 1
    away = np.abs(np.arange(side) - side // 2)
    rings: Mask = np.maximum(away[:, None], away) % 2 == 0
    return rings


NAMED = {
    "empty": np.zeros((3, 4), np.bool_),
    "full": np.ones((3, 4), np.bool_),
    "one pixel": np.ones((1, 1), np.bool_),
    "no pixel": np.zeros((1, 1), np.bool_),
    "one row": drawn("#.##.###"),
    "one column": drawn("#.##.###").T,
    "checkerboard": np.indices((5, 6)).sum(axis=0) % 2 == 0,
    "rings in rings": rings_in_rings(3),
    "holes that touch": drawn("#### #.## ##.# ####"),
    "a hole that touches the background outside": drawn("### #.# ##."),
    "parts that touch through a hole": drawn("####. #..#. #.#.# ##.##"),
    "an island at a hole's corner": drawn("##### #.#.# ##.## #.#.# #####"),
}


def polygons(parts: list[Part]) -> list[Any]:
    return [shapely.Polygon(part.outer, part.holes) for part in parts]


def fill(shapes: list[Any], size: Size) -> Mask:
    """Ask Shapely of the middle of each pixel whether a shape holds it."""
    rows, columns = np.indices(size) + 0.5
    filled = np.zeros(size, np.bool_)
    for shape in shapes:
        filled |= shapely.contains_xy(shape, columns, rows)
    return filled


def fill_by_coco(segmentation: list[list[int]], size: Size) -> Mask:
    runs = coco.frPyObjects(segmentation, *size)
    filled: Mask = coco.decode(coco.merge(runs)).astype(np.bool_)
    return filled


def fill_by_parity(rings: list[Ring], size: Size) -> Mask:
    """Count the vertical edges to the left of the middle of each pixel; odd is inside."""
    filled = np.zeros(size, np.bool_)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
            if x0 == x1:
                filled[min(y0, y1) : max(y0, y1), x0:] ^= True
    return filled


def read_svg(text: bytes) -> tuple[list[list[Ring]], Size]:
    """Return the rings of each path, and (height, width)."""
    root = ET.fromstring(text)  # noqa: S314 - our own text
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    assert root.attrib["viewBox"] == f"0 0 {width} {height}"
    group = root.find(f"{SVG}g")
    assert group is not None
    assert group.attrib["fill-rule"] == "evenodd"
    paths = []
    for path in group.iter(f"{SVG}path"):
        assert re.fullmatch(r"(M\d+ \d+([HV]\d+)+Z)+", path.attrib["d"])
        rings: list[Ring] = []
        for letter, first, second in re.findall(r"([MHV])(\d+)(?: (\d+))?", path.attrib["d"]):
            if letter == "M":
                rings.append([[int(first), int(second)]])
            else:
                x, y = rings[-1][-1]
                rings[-1].append([int(first), y] if letter == "H" else [x, int(first)])
        paths.append(rings)
    return paths, (height, width)


def check_outlines(mask: Mask) -> None:
    parts = trace_parts(mask)
    shapes = polygons(parts)
    for part, shape in zip(parts, shapes, strict=True):
        assert shape.is_valid, shapely.is_valid_reason(shape)
        assert all(ring.is_simple for ring in (shape.exterior, *shape.interiors))
        assert shape.area == part.area
    assert shapely.union_all(shapes).area == mask.sum()
    np.testing.assert_array_equal(fill(shapes, mask.shape), mask)


def check_pieces(mask: Mask) -> None:
    parts = trace_parts(mask)
    pieces = [shapely.Polygon(ring) for part in parts for ring in cut_open(part)]
    assert all(piece.is_valid for piece in pieces)
    assert sum(piece.area for piece in pieces) == mask.sum()  # so none lies over another
    np.testing.assert_array_equal(fill(pieces, mask.shape), mask)


def check_files(mask: Mask) -> None:
    collection = json.loads(encode_geojson(mask))
    assert collection["type"] == "FeatureCollection"
    shapes = [shapely.geometry.shape(each["geometry"]) for each in collection["features"]]
    for feature, shape in zip(collection["features"], shapes, strict=True):
        rings = feature["geometry"]["coordinates"]
        assert all(ring[0] == ring[-1] and len(ring) >= 4 for ring in rings)
        assert shape.exterior.is_ccw
        assert not any(hole.is_ccw for hole in shape.interiors)
        assert feature["properties"] == QUPATH | {"area": shape.area}
    np.testing.assert_array_equal(fill(shapes, mask.shape), mask)

    paths, size = read_svg(encode_svg(mask))
    assert size == mask.shape
    assert len(paths) == len(shapes)
    whole = sum((fill_by_parity(rings, size).astype(int) for rings in paths), np.zeros(size, int))
    np.testing.assert_array_equal(whole, mask)

    foreground = coco_polygons(mask)
    assert (foreground is None) == (not mask.any())
    if foreground is not None:
        runs = coco.encode(np.asfortranarray(mask, np.uint8))
        assert foreground["area"] == coco.area(runs)
        assert foreground["bbox"] == coco.toBbox(runs).tolist()
        np.testing.assert_array_equal(fill_by_coco(foreground["segmentation"], size), mask)


CHECKS = pytest.mark.parametrize("check", [check_outlines, check_pieces, check_files])


@CHECKS
@settings(deadline=None)
@given(MASKS)
def test_outlines_are_valid_and_filled_they_are_the_mask(check: Any, mask: Mask) -> None:
    check(mask)


@CHECKS
@pytest.mark.parametrize("name", NAMED)
def test_special_masks_come_back_too(check: Any, name: str) -> None:
    check(NAMED[name])


@pytest.mark.parametrize(("fraction", "size"), [(0.5, (90, 700)), (0.62, (500, 100))])
def test_large_and_noisy_masks_come_back_to_the_pixel(fraction: float, size: Size) -> None:
    """COCO's filling rounds fractions of pixels, which could go wrong far from the corner only."""
    mask = np.random.default_rng(0).random(size) < fraction
    foreground = coco_polygons(mask)
    assert foreground is not None
    np.testing.assert_array_equal(fill_by_coco(foreground["segmentation"], size), mask)
    assert sum(part.area for part in trace_parts(mask)) == mask.sum()


def test_a_ring_has_vertices_at_its_bends_only() -> None:
    (part,) = trace_parts(np.ones((2, 300), np.bool_))
    assert part == Part([[0, 0], [300, 0], [300, 2], [0, 2]], area=600)


def test_pixels_that_meet_by_their_corners_are_two_parts() -> None:
    assert [part.area for part in trace_parts(drawn("##. ..#"))] == [2, 1]


def test_parts_come_from_the_top_left_and_islands_are_parts_of_their_own() -> None:
    parts = trace_parts(rings_in_rings(3))
    assert [part.outer[0] for part in parts] == [[0, 0], [2, 2], [4, 4], [6, 6]]
    assert [len(part.holes) for part in parts] == [1, 1, 1, 0]


def test_two_holes_over_each_other_need_one_cut_and_no_hole_none() -> None:
    (ring,) = trace_parts(drawn("### #.# ### #.# ###"))
    assert [shapely.Polygon(piece).area for piece in cut_open(ring)] == [8, 5]
    (solid,) = trace_parts(drawn("### ##."))
    assert cut_open(solid) == [solid.outer]


def test_a_drawing_has_the_images_size_and_no_path_where_the_mask_is_empty() -> None:
    assert read_svg(encode_svg(np.zeros((3, 4), np.bool_))) == ([], (3, 4))
    assert json.loads(encode_geojson(np.zeros((3, 4), np.bool_)))["features"] == []
