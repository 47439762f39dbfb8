"""A mask's outlines as GeoJSON, as SVG and as COCO's polygons."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from notan.predict.formats.images import PREDICTION
from notan.predict.formats.outlines import cut_open, trace_parts

if TYPE_CHECKING:
    from notan.predict.formats.outlines import Part, Ring
    from notan.types import Mask


def encode_geojson(mask: Mask) -> bytes:
    """Return the bytes of a GeoJSON file: a feature for each foreground part.

    Coordinates are pixels, x to the right and y downwards from the image's top left corner; the
    property ``area`` is in pixels. An empty mask has no features.

    Source: RFC 7946, in whose sense outer rings go counterclockwise in (x, y) and holes clockwise;
        it knows no pixels, so a map would show them as degrees.
    """
    features = [
        {
            "type": "Feature",
            "properties": {"area": part.area},
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


def _path(part: Part) -> str:
    return "".join(map(_subpath, (part.outer, *part.holes)))


def _subpath(ring: Ring) -> str:
    """Draw a ring by its horizontal and vertical edges in turn; Z draws the last one."""
    x, y = ring[0]
    words = [f"M{x} {y}"]
    for number, (x, y) in enumerate(ring[1:]):
        words.append(f"V{y}" if number % 2 else f"H{x}")
    return "".join([*words, "Z"])
