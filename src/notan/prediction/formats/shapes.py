"""Masks as outlines: polygons, GeoJSON, SVG.

Outlines run along the edges of pixels: they are exact, and filling them gives the mask. A vertex
(x, y) is a corner of pixels: (0, 0) is the image's top left corner, and pixel (row, column) covers
the square from (column, row) to (column + 1, row + 1).
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from notan.prediction.pixels import PREDICTION

if TYPE_CHECKING:
    from notan.types import Mask

Ring: TypeAlias = list[list[int]]
"""Vertices [x, y] in pixels, joined by horizontal and vertical edges in turn, last to first."""
Integers: TypeAlias = npt.NDArray[np.int64]

# The four pixels round a vertex as bits of a number
NORTH_WEST, NORTH_EAST, SOUTH_WEST, SOUTH_EAST = 1, 2, 4, 8
FALLING, RISING = NORTH_WEST | SOUTH_EAST, NORTH_EAST | SOUTH_WEST
FOREGROUND_CLASS = "foreground"
"""What the class is called, in formats that name classes."""

BENDS = np.array([code < 16 and code not in (0, 3, 5, 10, 12, 15) for code in range(256)], np.uint8)
"""1 where an outline bends at a vertex of this code: neither all alike nor two equal halves."""


@dataclass(frozen=True)
class Part:
    """A piece of the foreground whose pixels hang together by their sides, not by corners alone.

    Attributes:
        outer: The outline; its signed area in (x, y) is positive.
        area: In pixels, without the holes.
        holes: Their outlines, with negative signed areas. Two rings of a part may touch at single
            vertices; they never cross, and no ring touches itself.
    """

    outer: Ring
    area: int
    holes: list[Ring] = field(default_factory=list)


def trace_parts(mask: Mask) -> list[Part]:
    """Return the outlines of a mask, part by part, from the top left on.

    Args:
        mask: bool, (height, width).

    Returns:
        Parts whose rings are valid for the OGC's simple features, as Shapely and GeoJSON want them.

    Source: edges from sorted vertices after O'Rourke, "Uniqueness of orthogonal connect-the-dots",
        1988. Ours also takes vertices where two pixels of the foreground meet by their corners:
        there the outline turns round each of the two where they are of different parts, and round
        the background where they are of one, so no ring ever meets itself.
    """
    _, found, statistics, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S
    )
    labels, areas = np.asarray(found, np.int32), statistics[:, cv2.CC_STAT_AREA]
    x, y, successor = _edges(mask, labels)
    parts: dict[int, Part] = {}
    for ring in _rings(x, y, successor):
        column, row = ring[0]  # of its vertices the highest, and of those the leftmost
        if mask[row, column]:
            label = int(labels[row, column])
            parts[label] = Part(ring, int(areas[label]))
        else:
            parts[int(labels[row - 1, column])].holes.append(ring[::-1])
    return list(parts.values())


def cut_open(part: Part) -> list[Ring]:
    """Return rings without holes that cover a part exactly, for formats that know no holes.

    The part is cut from top to bottom at as few columns as meet every hole.

    Source: the fewest points that stab all intervals, greedily by their ends.
    """
    if not part.holes:
        return [part.outer]
    left, top = map(min, zip(*part.outer, strict=True))
    spans = [(min(x), max(x)) for x in ([point[0] - left for point in hole] for hole in part.holes)]
    cuts: list[int] = []
    for first, last in sorted(spans, key=lambda span: span[1]):
        if not cuts or cuts[-1] < first:
            cuts.append(last)
    # A column of background at each cut separates the pieces; taking it out again moves them back
    opened = [piece.outer for piece in trace_parts(np.insert(_fill(part), cuts, False, axis=1))]
    vertices = np.concatenate(opened)
    vertices[:, 0] -= np.searchsorted(np.array(cuts) + np.arange(len(cuts)), vertices[:, 0])
    moved: Ring = (vertices + np.array([left, top])).tolist()
    ends = list(itertools.accumulate(map(len, opened), initial=0))
    return [moved[first:last] for first, last in itertools.pairwise(ends)]


def _edges(mask: Mask, labels: npt.NDArray[np.int32]) -> tuple[Integers, Integers, Integers]:
    """Return where outlines bend: x and y of each bend, and which bend begins the edge after next.

    Bends are sorted by (y, x), so that each even one and the next are the ends of a horizontal
    edge; sorted by (x, y) they are those of vertical edges. Where two pixels of the foreground meet
    by their corners there are two bends: in the first order that of the edge to the left and that
    of the edge to the right.
    """
    pixels = np.pad(mask, 1).astype(np.uint8)
    codes = pixels[:-1, :-1] * NORTH_WEST
    codes |= pixels[:-1, 1:] * NORTH_EAST
    codes |= pixels[1:, :-1] * SOUTH_WEST
    codes |= pixels[1:, 1:] * SOUTH_EAST
    y, x = np.nonzero(cv2.LUT(codes, BENDS))  # an array as index would take 8 bytes a pixel
    codes = codes[y, x]
    falling, crossing = codes == FALLING, (codes == FALLING) | (codes == RISING)
    # The pixels of the foreground that meet, as (row, column): one above the vertex, one below
    above = labels[y[crossing] - 1, x[crossing] - falling[crossing]]
    below = labels[y[crossing], x[crossing] - 1 + falling[crossing]]
    left_goes_up = np.zeros(len(y), np.bool_)
    left_goes_up[crossing] = falling[crossing] ^ (above == below)

    twice = crossing.astype(np.int64) + 1
    x, y = np.repeat(x, twice), np.repeat(y, twice)
    left_goes_up = np.repeat(left_goes_up, twice)
    is_left = np.zeros(len(y), np.bool_)
    is_left[(np.cumsum(twice) - twice)[crossing]] = True
    goes_down = is_left ^ left_goes_up  # of two bends in one place the one that goes up comes first
    order = np.lexsort((goes_down, y, x))
    vertical = np.empty_like(order)
    vertical[order[0::2]], vertical[order[1::2]] = order[1::2], order[0::2]
    return x, y, vertical[np.arange(len(order)) ^ 1]


def _rings(x: Integers, y: Integers, successor: Integers) -> list[Ring]:
    """Walk along the edges: rings clockwise on the screen, each from its top left vertex."""
    following, seen = successor.tolist(), bytearray(len(successor))
    order: list[int] = []
    ends = [0]
    for start in range(0, len(following), 2):
        if seen[start]:
            continue
        bend = start
        while not seen[bend]:
            seen[bend] = seen[bend ^ 1] = 1
            order.append(bend)
            bend = following[bend]
        ends.append(len(order))
    begin = np.array(order, np.int64)
    corners = np.stack([x[begin], y[begin], x[successor[begin]], y[begin]], axis=1)
    vertices: Ring = corners.reshape(-1, 2).tolist()
    return [vertices[2 * first : 2 * last] for first, last in itertools.pairwise(ends)]


def _fill(part: Part) -> Mask:
    """Return a part's pixels within its own box."""
    columns, rows = np.concatenate([part.outer, *part.holes]).T
    columns, rows = columns - columns.min(), rows - rows.min()
    corners = np.zeros((rows.max() + 1, columns.max() + 1), np.uint8)
    np.bitwise_xor.at(corners, (rows, columns), 1)
    # A pixel is foreground where an odd number of corners lies above and to the left of it
    filled = np.bitwise_xor.accumulate(np.bitwise_xor.accumulate(corners, axis=0), axis=1)
    return filled[:-1, :-1].astype(np.bool_)


def encode_geojson(mask: Mask) -> bytes:
    """Return the bytes of a GeoJSON file: a feature for each foreground part.

    Coordinates are pixels, x to the right and y downwards from the image's top left corner; the
    property ``area`` is in pixels. An empty mask has no features.

    Source: RFC 7946, in whose sense outer rings go counterclockwise in (x, y) and holes clockwise;
        it knows no pixels, so a map would show them as degrees. The other properties are those by
        which QuPath (0.4 and later, ``QuPathTypeAdapters``) makes annotations with a class and a
        colour of them; it numbers objects without an ``id`` itself.
    """
    classification = {"name": FOREGROUND_CLASS, "color": list(PREDICTION)}
    known = {"objectType": "annotation", "classification": classification}
    features = [
        {
            "type": "Feature",
            "properties": {**known, "area": part.area},
            "geometry": {
                "type": "Polygon",
                "coordinates": [[*ring, ring[0]] for ring in (part.outer, *part.holes)],
            },
        }
        for part in trace_parts(mask)
    ]
    lines = ",\n".join(json.dumps(feature, separators=(",", ":")) for feature in features)
    return f'{{"type":"FeatureCollection","features":[\n{lines}\n]}}\n'.encode()


def encode_svg(mask: Mask) -> bytes:
    """Return the bytes of an SVG drawing of the image's size, with a path for each part.

    Source: W3C, Scalable Vector Graphics 1.1, 2011. ``evenodd`` leaves the holes open whichever
        way a program turns their rings.
    """
    height, width = mask.shape
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">',
        f'<g fill="#{bytes(PREDICTION).hex()}" fill-rule="evenodd">',
        *(f'<path d="{_path(part)}"/>' for part in trace_parts(mask)),
        "</g>",
        "</svg>\n",
    ]
    return "\n".join(lines).encode()


def coco_polygons(mask: Mask) -> dict[str, Any] | None:
    """Return COCO's area and box in pixels, and polygons; None where nothing is foreground.

    COCO's polygons have no holes, so parts with holes come in pieces that lie side by side. Filled
    by the COCO API they give the mask again, pixel by pixel.

    Returns:
        ``segmentation`` holds a flat list x, y, x, y, ... for each polygon; ``bbox`` is x, y,
        width, height.

    Source: Lin et al. 2014, arXiv:1405.0312, and the data format of cocodataset.org. One object is
        the foreground of one image, as in ``coco-rle``.
    """
    parts = trace_parts(mask)
    if not parts:
        return None
    columns, rows = zip(*(vertex for part in parts for vertex in part.outer), strict=True)
    left, top = min(columns), min(rows)
    return {
        "area": sum(part.area for part in parts),
        "bbox": [left, top, max(columns) - left, max(rows) - top],
        "segmentation": [
            [number for vertex in ring for number in vertex]
            for part in parts
            for ring in cut_open(part)
        ],
    }


def outlines_through_pixels(mask: Mask) -> list[Integers]:
    """Return outlines through the middle of the outermost pixels, which belong to what they fill.

    Parts with holes come in pieces, as of ``cut_open``.

    Returns:
        Of each piece the vertices, (n, 2), x and y as whole pixels, n at least 3; a vertex comes
        again where a piece is too small to have so many.

    Source: Ultralytics fills outlines so; OpenCV's ``fillPoly`` of these gives the mask.
    """
    found = []
    for part in trace_parts(mask):
        for ring in cut_open(part):
            piece = _fill(Part(ring, 0)).astype(np.uint8)
            contours, _ = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            outline = contours[0][:, 0].astype(np.int64) + np.min(ring, axis=0)
            short = max(0, 3 - len(outline))
            found.append(np.concatenate([outline, np.repeat(outline[-1:], short, axis=0)]))
    return found


def _path(part: Part) -> str:
    return "".join(map(_subpath, (part.outer, *part.holes)))


def _subpath(ring: Ring) -> str:
    """Draw a ring by its horizontal and vertical edges in turn; Z draws the last one."""
    x, y = ring[0]
    words = [f"M{x} {y}"]
    for number, (x, y) in enumerate(ring[1:]):
        words.append(f"V{y}" if number % 2 else f"H{x}")
    return "".join([*words, "Z"])
