"""The eight images, their objects, and outlines of them."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from notan.prediction.formats.shapes import cut_open, trace_parts

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Array = npt.NDArray[Any]
CLASSES = ("cell", "nucleus")
TRAIN = ("one", "two", "three", "four", "five", "six")
COLOURS = {"cell": (250, 50, 83), "nucleus": (51, 221, 255)}
VOID = 255
DAY = "2024-01-01T00:00:00.000000Z"
"""In place of every date of the day of writing."""


@dataclass(frozen=True)
class Thing:
    """An annotated object.

    Attributes:
        label: One of ``CLASSES``.
        mask: bool, (height, width), its pixels.
        box: Left, top, right, bottom edge, where it is a rectangle.
        circle: Column and row of the middle pixel, and the radius, where it is LabelMe's circle.
    """

    label: str
    mask: Array
    box: tuple[int, int, int, int] | None = None
    circle: tuple[int, int, int] | None = None

    @property
    def value(self) -> int:
        """Its value in the truth."""
        return CLASSES.index(self.label) + 1


@dataclass
class Drawing:
    """An image to annotate: its size (height, width) and the objects on it."""

    size: tuple[int, int]
    things: list[Thing] = field(default_factory=list)

    def blob(self, label: str, middle: tuple[int, int], radii: tuple[int, int], seed: int) -> Array:
        """Add an object with a ragged outline, cut off at the image's edges; return its pixels."""
        rng = np.random.default_rng(seed)
        mask = np.zeros(self.size, np.bool_)
        for row in range(max(middle[0] - radii[0], 0), min(middle[0] + radii[0] + 1, self.size[0])):
            half = radii[1] * np.sqrt(1 - ((row - middle[0]) / (radii[0] + 0.5)) ** 2)
            left, right = np.rint([middle[1] - half, middle[1] + half]) + rng.integers(-1, 2, 2)
            mask[row, max(int(left), 0) : int(right) + 1] = True
        return self.add(label, mask)

    def rectangle(self, label: str, left: int, top: int, right: int, bottom: int) -> None:
        """Add a rectangle by its edges."""
        mask = np.zeros(self.size, np.bool_)
        mask[top:bottom, left:right] = True
        self.things.append(Thing(label, mask, box=(left, top, right, bottom)))

    def circle(self, label: str, column: int, row: int, radius: int) -> None:
        """Add a circle as LabelMe draws it."""
        drawn = Image.new("1", self.size[::-1])
        edges = (column - radius, row - radius, column + radius, row + radius)
        ImageDraw.Draw(drawn).ellipse(edges, fill=1)
        self.things.append(Thing(label, np.array(drawn, np.bool_), circle=(column, row, radius)))

    def add(self, label: str, mask: Array) -> Array:
        """Add an object by its pixels, and return them."""
        self.things.append(Thing(label, mask))
        return mask

    def truth(self) -> Array:
        """Return the value of each pixel; of two classes on one pixel, raise."""
        values = np.zeros(self.size, np.uint8)
        for thing in self.things:
            if np.isin(values[thing.mask], (0, thing.value), invert=True).any():
                raise ValueError("objects of two classes overlap")
            values[thing.mask] = thing.value
        return values

    def image(self) -> Array:
        """Return uint8, (height, width, 3): flat colours and a ramp, small as a PNG."""
        colours = np.array([(225, 205, 215), (170, 120, 160), (90, 60, 130)], np.uint8)
        ramp = (np.arange(self.size[1]) // 8).astype(np.uint8)
        return colours[self.truth()] - ramp[None, :, None]


def draw() -> dict[str, Drawing]:
    """Return the eight images by name.

    Widths and heights of those with objects divide 100,000: supervision rounds YOLO's coordinates
    to five decimals and Ultralytics truncates the product, which would else move vertices by a
    pixel.
    """
    one = Drawing((40, 50))  # an object with a hole, and another class within the hole
    ring = one.blob("cell", (17, 18), (13, 14), 1)
    hole = Drawing(one.size).blob("cell", (18, 17), (6, 6), 2)
    ring &= ~hole
    one.blob("nucleus", (18, 17), (2, 2), 3)
    one.blob("nucleus", (31, 41), (6, 6), 4)
    two = Drawing((50, 40))  # two objects of one class that touch
    first = two.blob("cell", (14, 12), (9, 9), 5)
    two.add("cell", Drawing(two.size).blob("cell", (15, 24), (9, 9), 6) & ~first)
    two.circle("nucleus", 20, 38, 7)
    three = Drawing((32, 80))  # objects of two classes that touch
    three.rectangle("cell", 6, 8, 26, 24)
    three.rectangle("nucleus", 26, 12, 34, 30)
    first = three.blob("nucleus", (15, 52), (10, 9), 7)
    three.add("cell", Drawing(three.size).blob("cell", (16, 65), (9, 10), 8) & ~first)
    five = Drawing((50, 80))  # at the image's edges and corners
    five.blob("cell", (3, 4), (9, 11), 9)
    five.blob("cell", (28, 78), (10, 8), 10)
    five.rectangle("nucleus", 0, 42, 12, 50)
    five.blob("nucleus", (48, 50), (6, 9), 11)
    six = Drawing((25, 25))  # odd sizes; lines of one and of two pixels
    six.rectangle("cell", 4, 18, 21, 20)
    line = np.zeros(six.size, np.bool_)
    line[3, 3:11] = line[3:9, 10] = line[8, 10:19] = line[8:14, 18] = True
    six.add("nucleus", line)
    seven = Drawing((50, 32))  # one object in three pieces; two of one class that overlap
    pieces = Drawing(seven.size)
    for number, middle in enumerate(((6, 6), (10, 23), (22, 10))):
        pieces.blob("cell", middle, (4 + number, 4), 12 + number)
    seven.add("cell", np.logical_or.reduce([thing.mask for thing in pieces.things]))
    seven.blob("nucleus", (37, 11), (7, 7), 15)
    seven.blob("nucleus", (40, 19), (7, 7), 16)
    empty = Drawing((37, 53)), Drawing((45, 31))
    drawings = (one, two, three, empty[0], five, six, seven, empty[1])
    return dict(zip((*TRAIN, "seven", "eight"), drawings, strict=True))


@dataclass(frozen=True)
class Work:
    """What a writer gets: the images, their files, and where its own files go."""

    drawings: dict[str, Drawing]
    images: Path
    out: Path

    def copy(self, folder: str, names: Iterable[str] | None = None, suffix: str = ".png") -> None:
        """Copy the images into a folder of the output."""
        (self.out / folder).mkdir(parents=True, exist_ok=True)
        for name in self.drawings if names is None else names:
            shutil.copyfile(self.images / f"{name}.png", self.out / folder / f"{name}{suffix}")

    def split(self) -> dict[str, list[str]]:
        """Return the names by subset."""
        return {"train": list(TRAIN), "val": [name for name in self.drawings if name not in TRAIN]}

    def write(self, path: str, content: str | bytes) -> None:
        """Write a file of the output."""
        target = self.out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)

    def same(self, name: str, found: Array, *, wanted: Array | None = None) -> None:
        """Raise where an image's values are not the truth."""
        truth = self.drawings[name].truth() if wanted is None else wanted
        if found.shape != truth.shape or not np.array_equal(found, truth):
            count = np.count_nonzero(found != truth) if found.shape == truth.shape else found.shape
            raise ValueError(f"{self.out.name}: {name} came back otherwise: {count}")


def png(values: Array) -> bytes:
    """Return the bytes of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "png", optimize=True)
    return stream.getvalue()


def rings(mask: Array) -> list[list[float]]:
    """Return polygons x, y, x, y, ... along the edges of pixels.

    Most formats have no holes in polygons: rings come as halves that touch.
    """
    pieces = [ring for part in trace_parts(mask) for ring in cut_open(part)]
    return [[float(number) for vertex in ring for number in vertex] for ring in pieces]


def filled(polygons: list[list[float]], size: tuple[int, int]) -> Array:
    """Fill polygons as the COCO API does; bool."""
    if not polygons:
        return np.zeros(size, np.bool_)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))).astype(bool)


def has_hole(mask: Array) -> bool:
    """Say whether the background has a part that the foreground surrounds."""
    return any(part.holes for part in trace_parts(mask))


def outlines(mask: Array) -> list[list[tuple[int, int]]]:
    """Return polygons (x, y) through the outermost pixels, for programs that draw the outline too.

    A ring comes as the halves that ``rings`` makes of it.
    """
    size = (mask.shape[0], mask.shape[1])
    parts = [filled([ring], size) for ring in rings(mask)] if has_hole(mask) else [mask]
    found = [
        cv2.findContours(part.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
        for part in parts
    ]
    return [
        [(int(x), int(y)) for x, y in contour[:, 0]] for contours in found for contour in contours
    ]
