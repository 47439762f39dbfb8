"""Shapes of annotated objects, and how each is painted into a mask.

A shape is painted as the tools of its format do it, so that a mask here is theirs byte for byte:

- outlines along the edges of pixels (COCO, CVAT, Label Studio, GeoJSON) by pycocotools;
- YOLO's as Ultralytics does, vertices cut to whole pixels, the outline itself included;
- LabelMe's as labelme does, by Pillow, the outline included.

Runs are decoded here: pycocotools takes runs that end too soon for whatever its memory held.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notan.types import Mask, Size

Points: TypeAlias = npt.NDArray[np.float64]
"""Vertices (n, 2), each x and y in pixels."""

MOST_VERTICES = 1_000_000
"""In one shape; an outline round every pixel of a large mask has fewer."""

MOST_STEPS = 2_000_000
"""Pixels along a shape's outlines: pycocotools takes 100 bytes for each."""


class Shape(ABC):
    """Where an object lies in its image."""

    @abstractmethod
    def paint(self, size: Size) -> Mask:
        """Return the mask, bool, (height, width).

        Raises:
            DataError: The shape cannot be one of an image of this size.
        """


def as_points(numbers: object) -> Points:
    """Take x, y, x, y ... or pairs of them as vertices.

    Raises:
        DataError: They are no numbers, not even in count, no three vertices, or too many.
    """
    try:
        given = np.asarray(numbers, np.float64)
        # flat, or pairs; a third number to a vertex would otherwise become part of the next
        points = given.reshape(-1, 2) if given.ndim == 1 else given
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"numbers of shape {points.shape}")
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"an outline whose vertices are no pairs of numbers ({error})") from error
    if not 3 <= len(points) <= MOST_VERTICES:
        raise DataError(
            f"an outline of {len(points)} vertices; from 3 to {MOST_VERTICES:,} were wanted"
        )
    if not np.isfinite(points).all():
        raise DataError("an outline with vertices that are no finite numbers")
    return points


def _require_inside(outlines: Sequence[Points], size: Size) -> None:
    """Refuse what lies far outside: percent for pixels, or another image's outline."""
    height, width = size
    points = np.concatenate(outlines)
    low, high = points.min(axis=0), points.max(axis=0)
    if (low < (-width, -height)).any() or (high > (2 * width, 2 * height)).any():
        raise DataError(
            f"an outline from ({low[0]:.6g}, {low[1]:.6g}) to ({high[0]:.6g}, {high[1]:.6g}), far "
            f"outside its image of {width} x {height} pixels (width x height)"
        )
    steps = sum(np.abs(each - np.roll(each, 1, axis=0)).max(axis=1).sum() for each in outlines)
    if len(points) > MOST_VERTICES or steps > MOST_STEPS:
        raise DataError(
            f"outlines of {len(points)} vertices and {steps:.0f} pixels of length; at most "
            f"{MOST_VERTICES:,} and {MOST_STEPS:,} were wanted"
        )


@dataclass(frozen=True, eq=False)
class Polygon(Shape):
    """Outlines along the edges of pixels; (0, 0) is the image's top left corner.

    Attributes:
        outlines: Together they are the object, also where they overlap.
        holes: What is cut out of it.
        area: In pixels, as the file says, or None. Where outlines overlap it tells which of them
            are holes: COCO's files have no other word for them.
    """

    outlines: tuple[Points, ...]
    holes: tuple[Points, ...] = ()
    area: float | None = None

    def paint(self, size: Size) -> Mask:
        """Fill as pycocotools does."""
        _require_inside((*self.outlines, *self.holes), size)
        filled = [_fill(each, size) for each in self.outlines]
        mask: Mask = np.logical_or.reduce(filled)
        if len(filled) > 1 and self.area is not None:
            hollow: Mask = np.logical_xor.reduce(filled)
            if abs(hollow.sum() - self.area) < abs(mask.sum() - self.area):
                mask = hollow
        for hole in self.holes:
            mask &= ~_fill(hole, size)
        return mask


def _fill(points: Points, size: Size) -> Mask:
    (told,) = coco.frPyObjects([points.ravel().tolist()], *size)
    return Runs(told["counts"], size).paint(size)


def box(
    left: float,
    top: float,
    right: float,
    bottom: float,
    degrees: float = 0.0,
    *,
    about: tuple[float, float] | None = None,
) -> Points:
    """Return a box as an outline, turned clockwise on the screen, about its middle or a point."""
    corners = as_points([left, top, right, top, right, bottom, left, bottom])
    return _turned(corners, corners.mean(axis=0) if about is None else np.array(about), degrees)


def ellipse(x: float, y: float, across: float, down: float, degrees: float = 0.0) -> Points:
    """Return an ellipse as an outline of 360 vertices, turned about its middle (x, y).

    Args:
        x: Its middle.
        y: Likewise.
        across: Half its width.
        down: Half its height.
        degrees: Clockwise on the screen.
    """
    angle = np.radians(np.arange(360))
    points = as_points(np.stack([x + across * np.cos(angle), y + down * np.sin(angle)], axis=1))
    return _turned(points, np.array([x, y]), degrees)


def _turned(points: Points, about: Points, degrees: float) -> Points:
    if not degrees:
        return points
    turn = math.radians(degrees)
    matrix = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    turned: Points = (points - about) @ matrix + about
    return turned


@dataclass(frozen=True, eq=False)
class PixelPolygon(Shape):
    """YOLO's outline, of fractions of the image's width and height."""

    fractions: Points

    def paint(self, size: Size) -> Mask:
        """Fill as Ultralytics' polygon2mask does."""
        # in 32 bits as there: 0.58 of 50 pixels are 29, in 64 bits a little less
        points = self.fractions.astype(np.float32) * np.array([size[1], size[0]], np.float32)
        _require_inside([points.astype(np.float64)], size)
        painted = np.zeros(size, np.uint8)
        cv2.fillPoly(painted, [points.astype(np.int32)], (1,))
        return painted > 0


@dataclass(frozen=True, eq=False)
class Drawn(Shape):
    """A shape of LabelMe.

    Attributes:
        kind: ``polygon``, ``rectangle``, ``circle``, ``line``, ``linestrip`` or ``point``.
        points: Its vertices; of a circle the middle and a point on it.
    """

    kind: str
    points: Points

    def paint(self, size: Size) -> Mask:
        """Draw as labelme's shape_to_mask does, lines 10 pixels wide and points 5 in radius."""
        _require_inside([self.points], size)
        canvas = Image.new("L", (size[1], size[0]))
        draw = ImageDraw.Draw(canvas)
        places = [(x, y) for x, y in self.points.tolist()]
        if self.kind == "polygon":
            draw.polygon(places, fill=1, outline=1)
        elif self.kind == "rectangle":
            low, high = self.points.min(axis=0).tolist(), self.points.max(axis=0).tolist()
            draw.rectangle([*low, *high], fill=1, outline=1)
        elif self.kind in ("line", "linestrip"):
            draw.line(places, fill=1, width=10)
        else:
            x, y = places[0]
            radius = 5.0 if self.kind == "point" else math.dist(places[0], places[1])
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=1, outline=1)
        return np.asarray(canvas) > 0


@dataclass(frozen=True, eq=False)
class Runs(Shape):
    """Lengths of runs, background first.

    Attributes:
        counts: Numbers, or COCO's text of them.
        size: (height, width) of what they cover.
        by_columns: Whether they run down the columns, as COCO's do, or along the rows.
        corner: Row and column of the top left pixel that they cover.
    """

    counts: bytes | npt.NDArray[np.int64]
    size: Size
    by_columns: bool = True
    corner: tuple[int, int] = (0, 0)

    def paint(self, size: Size) -> Mask:
        """Lay the runs out."""
        (height, width), (top, left) = self.size, self.corner
        if min(height, width) < 1 or min(top, left) < 0:
            raise DataError(f"runs of {height}x{width} pixels at row {top}, column {left}")
        if top + height > size[0] or left + width > size[1]:
            raise DataError(
                f"runs of {height}x{width} pixels at row {top}, column {left}, outside of an image "
                f"of {size[0]}x{size[1]} (height x width)"
            )
        counts = parse_counts(self.counts) if isinstance(self.counts, bytes) else self.counts
        total = int(counts.sum()) if len(counts) <= height * width + 1 else -1
        if total != height * width or (counts < 0).any():
            found = f"{total} pixels" if total >= 0 else "no pixels that can be"
            raise DataError(
                f"runs of {found}; {height * width} were wanted, for {height}x{width} pixels "
                "(height x width)"
            )
        values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        painted = np.zeros(size, np.bool_)
        area = values.reshape(width, height).T if self.by_columns else values.reshape(self.size)
        painted[top : top + height, left : left + width] = area
        return painted


def parse_counts(text: bytes) -> npt.NDArray[np.int64]:
    """Return the runs that COCO's text stands for.

    Args:
        text: Each number in groups of five bits, the lowest first, as characters from ``0`` on; 32
            marks that a group follows. From the fourth on a number is the difference to the
            one before the last.

    Raises:
        DataError: It is no such text.

    Source: rleFrString in pycocotools' maskApi.c.
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise DataError("runs whose text is none of COCO's (damaged, or cut off)")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if places.max() > 6:
        raise DataError("runs whose text holds a number above 34 bits")
    numbers = np.add.reduceat((codes & 31) << 5 * places, starts)
    numbers -= np.where(codes[ends] & 16, 1 << 5 * (places[ends] + 1), 0)
    for first in (1, 2):  # those of odd and of even place are added up apart
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


@dataclass(frozen=True, eq=False)
class Bitmap(Shape):
    """A mask within a part of the image.

    Attributes:
        mask: bool, (height, width) of the part.
        corner: Its top row and left column.
    """

    mask: Mask
    corner: tuple[int, int] = (0, 0)

    def paint(self, size: Size) -> Mask:
        """Lay it onto its place."""
        (top, left), (height, width) = self.corner, self.mask.shape
        if min(top, left) < 0 or top + height > size[0] or left + width > size[1]:
            raise DataError(
                f"a bitmap of {height}x{width} pixels at row {top}, column {left}, outside of an "
                f"image of {size[0]}x{size[1]} (height x width)"
            )
        painted = np.zeros(size, np.bool_)
        painted[top : top + height, left : left + width] = self.mask
        return painted
