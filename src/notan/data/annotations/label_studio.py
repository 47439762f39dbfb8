"""Label Studio's JSON and JSON-MIN: tasks with results of brush, polygons, boxes and ellipses.

Source: labelstud.io/guide/export, and decode_rle in label_studio_sdk/converter/brush.py, of whose
pixels the transparency is the mask.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from notan.data.annotations.sets import (
    Annotation,
    AnnotationSet,
    Collector,
    Region,
    ends_of,
    get,
    read_json,
)
from notan.data.annotations.shapes import Bitmap, Polygon, as_points, box, ellipse
from notan.data.layouts import SUFFIXES, WHOLE
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from notan.data.annotations.shapes import Shape
    from notan.types import Size

PREFIX = re.compile(r"[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""

MOST_PIXELS = 2**28
WORD, COUNT_BITS = 8, (3, 4, 8, 16)
"""Bits of a brush's values, and of the counts of its runs, as Label Studio writes them."""

KEYS = (b'"annotations"', b'"completions"', b'"annotation_id"')
KINDS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels")
OTHER = ("brush", "polygon", "rectangle", "ellipse", "labels", "choices", "textarea", "rating")


def find(path: Path) -> Sequence[Path]:
    """Return Label Studio's files of a folder, or the one that is named."""
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    return [each for each in files if each.suffix.lower() == ".json" and _looks_so(each)]


def _looks_so(path: Path) -> bool:
    head, _ = ends_of(path)
    is_list = head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")
    return is_list and any(name in head for name in KEYS)


def read(folder: Path, files: Sequence[Path]) -> AnnotationSet:
    """Read exports as one set; a task without an annotation is passed over.

    Raises:
        DataError: A file is none of Label Studio's, or a task has several annotations.
    """
    collector = Collector(folder)
    for path in files:
        tasks = read_json(path)
        for task in tasks if isinstance(tasks, list) else [tasks]:
            where = f"{path}: task {task.get('id', '') if isinstance(task, dict) else ''}"
            _add_task(task, where, path, collector)
    return collector.result()


def _add_task(task: object, where: str, path: Path, collector: Collector) -> None:
    results = _results(task, where)
    if results is None:
        collector.count("tasks without an annotation")
        return
    sizes: set[Size] = {
        (get(each, "original_height", int, where), get(each, "original_width", int, where))
        for each in results
        if each.get("type") in KINDS
    }
    if len(sizes) > 1:
        raise DataError(f"{where}: its results are of images of several sizes")
    size = next(iter(sizes), None)
    regions = [region for each in results for region in _regions(each, size, where, collector)]
    is_min = isinstance(task, dict) and "data" not in task
    told = task if is_min else get(task, "data", dict, where)
    image = _find_image(cast("Mapping[str, Any]", told), where, path, collector)
    if image:
        collector.add_from(path, WHOLE, Annotation(image, tuple(regions), size))


def _results(task: object, where: str) -> Sequence[Mapping[str, Any]] | None:
    """Return what was drawn in a task, by the one annotation that counts; None: nobody has yet."""
    old = isinstance(task, dict) and "completions" in task
    if isinstance(task, dict) and not old and "annotations" not in task:
        return _results_of_min(task) if "annotation_id" in task else None
    given = [
        each
        for each in get(task, "completions" if old else "annotations", list, where)
        if isinstance(each, dict) and not (each.get("was_cancelled") or each.get("skipped"))
    ]
    chosen = [each for each in given if each.get("ground_truth")] or given
    if len(chosen) > 1:
        raise DataError(
            f"{where}: has {len(chosen)} annotations, and it is open which one counts; mark one as "
            "ground truth in Label Studio, and export again"
        )
    if not chosen:
        return None
    return [each for each in get(chosen[0], "result", list, where) if isinstance(each, dict)]


def _results_of_min(task: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the results of a JSON-MIN export, which are values under the control's name."""
    return [
        {**value, "type": kind, "value": value}
        for values in task.values()
        for value in (values if isinstance(values, list) else ())
        for kind in KINDS
        if isinstance(value, dict) and kind in value
    ]


def _find_image(
    data: Mapping[str, Any], where: str, path: Path, collector: Collector
) -> Path | None:
    """Return the file of a task's image, under the name it was uploaded or stored by."""
    told = [
        each.rpartition("?d=")[2]
        for each in data.values()
        if isinstance(each, str) and each.lower().endswith(tuple(SUFFIXES))
    ]
    if not told:
        raise DataError(f"{where}: names no image")
    name = told[0].rpartition("/")[2]
    bare = PREFIX.sub("", name, count=1)
    known = collector.images.has(bare) and not collector.images.has(name)
    return collector.find(bare if known else told[0].lstrip("/"), path)


def _regions(
    result: Mapping[str, Any], size: Size | None, where: str, collector: Collector
) -> list[Region]:
    """Return a result once for each of its labels."""
    kind = result.get("type")
    if kind not in KINDS or size is None:
        if kind in OTHER or kind is None:
            collector.count(f"results of the kind {kind}, which have no class")
        else:
            collector.count(f"results of the kind {kind}")
        return []
    return _labelled(result, size, where)


def _labelled(result: Mapping[str, Any], size: Size, where: str) -> list[Region]:
    kind = str(result["type"])
    value = get(result, "value", dict, where)
    where = f"{where}: result {result.get('id', '')}"
    labels = get(value, kind, list, where)
    try:
        shape = _shape(kind, value, size, where)
    except (DataError, KeyError, TypeError, ValueError) as error:
        words = str(error)
        raise DataError(words if words.startswith(where) else f"{where}: {words}") from error
    return [Region(str(label), shape) for label in labels]


def paint_results(
    results: Sequence[Mapping[str, Any]], label: str | None, size: Size, where: str
) -> npt.NDArray[np.bool_]:
    """Return the mask of what was drawn of one label.

    Args:
        results: Of an annotation, or of what a person has drawn so far; kinds without pixels are
            passed over.
        label: The name of the foreground; None: whatever was drawn is.
        size: (height, width) of the upright image.
        where: What they are, for messages.

    Raises:
        DataError: A result is damaged, or does not fit the image.
    """
    mask = np.zeros(size, np.bool_)
    for result in results:
        if result.get("type") in KINDS:
            drawn = (result.get("original_height"), result.get("original_width"))
            if drawn != size:
                raise DataError(
                    f"{where}: drawn on an image of {drawn[0]}x{drawn[1]}, and this one is "
                    f"{size[0]}x{size[1]} (height x width)"
                )
            for region in _labelled(result, size, where):
                if label in (None, region.label):
                    mask |= region.shape.paint(size)
    return mask


def _shape(kind: str, value: Mapping[str, Any], size: Size, where: str) -> Shape:
    height, width = size
    if kind == "brushlabels":
        return Bitmap(decode_brush(get(value, "rle", list, where), size))
    if kind == "polygonlabels":
        points = as_points(get(value, "points", list, where))
        return Polygon((points * (width / 100, height / 100),))
    turn = float(value.get("rotation") or 0)
    x, y = (float(value[key]) * side / 100 for key, side in (("x", width), ("y", height)))
    if kind == "ellipselabels":
        across, down = (
            float(value[key]) * side / 100
            for key, side in (("radiusX", width), ("radiusY", height))
        )
        return Polygon((ellipse(x, y, across, down, turn),))
    across, down = (
        float(value[key]) * side / 100 for key, side in (("width", width), ("height", height))
    )
    # Label Studio turns a box about its top left corner
    return Polygon((box(x, y, x + across, y + down, turn, about=(x, y)),))


def decode_brush(rle: Sequence[int], size: Size) -> npt.NDArray[np.bool_]:
    """Return the mask that a brush painted.

    Args:
        rle: Bytes: a count of 32 bits, the bits of a word, four lengths of counts, then runs.
        size: (height, width) of the image.

    Raises:
        DataError: It ends too soon, or covers more or fewer pixels.
    """
    try:
        stored = np.array(rle)
        data = bytes(rle) if stored.dtype.kind in "iu" else b""
    except ValueError:
        data = b""
    wanted = size[0] * size[1] * 4
    bits = _Bits(data)
    found = bits.read(32)
    if found != wanted or wanted > 4 * MOST_PIXELS:
        raise DataError(
            f"a brush of {found // 4} pixels; {wanted // 4} were wanted, for {size[0]}x{size[1]} "
            "(height x width)"
        )
    word = bits.read(5) + 1
    lengths = [bits.read(4) + 1 for _ in range(4)]
    pixels: npt.NDArray[np.unsignedinteger] = np.zeros(
        wanted, np.uint8 if word <= WORD else np.uint32
    )
    place = 0
    while place < wanted:
        is_run = bits.read(1)
        count = bits.read(lengths[bits.read(2)]) + 1
        if place + count > wanted:
            raise DataError("a brush whose runs go beyond the image")
        if is_run:
            pixels[place : place + count] = bits.read(word)
        else:
            pixels[place : place + count] = [bits.read(word) for _ in range(count)]
        place += count
    return np.asarray(pixels.reshape(*size, 4)[..., 3] > 127, np.bool_)


def encode_brush(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Return the bytes of a mask as Label Studio's brush keeps them; ``decode_brush`` reads them.

    Each pixel is four values, 0 or 255, so that red, green, blue and opacity say the same.

    Args:
        mask: bool, (height, width).

    Source: rle-pack of thi.ng/umbrella, and encode_rle in label_studio_sdk/converter/brush.py,
        which builds a text of zeros and ones; here the bits of all runs are made at once.
    """
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    counts = np.diff(np.concatenate([starts, [flat.size]])) * 4
    values = np.where(flat[starts], 255, 0)
    longest = 1 << COUNT_BITS[-1]
    pieces = -(-counts // longest)  # a longer run is several
    values = np.repeat(values, pieces)
    lasts = np.cumsum(pieces) - 1
    lengths = np.full(values.size, longest)
    lengths[lasts] = counts - (pieces - 1) * longest
    kinds = np.searchsorted(1 << np.array(COUNT_BITS), lengths)
    widths = np.array(COUNT_BITS)[kinds]
    # one bit: it is a run; two: how wide its count is; the count less one; the value
    codes = ((((4 | kinds) << widths) | (lengths - 1)) << WORD) | values
    header = f"{4 * flat.size:032b}{WORD - 1:05b}" + "".join(f"{n - 1:04b}" for n in COUNT_BITS)
    bits = np.concatenate([np.array([int(bit) for bit in header]), _bits(codes, widths + 3 + WORD)])
    return np.packbits(bits.astype(np.uint8)).tolist()


def _bits(numbers: npt.NDArray[np.int64], widths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the bits of numbers one after another, each in its own width, the highest first."""
    ends = np.cumsum(widths)
    left = np.repeat(ends, widths) - np.arange(ends[-1]) - 1
    return (np.repeat(numbers, widths) >> left) & 1


class _Bits:
    """Reads numbers of any length in bits from bytes, the highest bit first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self, count: int) -> int:
        first, end = self._at // 8, -(-(self._at + count) // 8)
        if end > len(self._data):
            raise DataError("a brush whose runs end too soon")
        number = int.from_bytes(self._data[first:end], "big")
        self._at += count
        return (number >> (end * 8 - self._at)) & ((1 << count) - 1)
