"""COCO's JSON: images, categories, and annotations with polygons or runs.

Source: cocodataset.org/#format-data; Lin et al., "Microsoft COCO", ECCV 2014, arXiv:1405.0312.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from notan.data.annotations.sets import (
    Annotation,
    AnnotationSet,
    Collector,
    Region,
    ends_of,
    get,
    names_of,
    read_json,
    split_of,
)
from notan.data.annotations.shapes import Polygon, Runs, as_points
from notan.data.layouts import WHOLE
from notan.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PLACES = ("*.json", "annotations/*.json", "*/_annotations.coco.json", "labels/*.json")
"""Where exports lie: alone, as COCO's own, as Roboflow's, as FiftyOne's."""

OTHER_TASKS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")
"""How COCO's own files of other tasks begin."""

LISTS = (b'"images"', b'"annotations"', b'"categories"')


def find(path: Path) -> Sequence[Path]:
    """Return the COCO files of a folder, or the one that is named."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" and _looks_so(path) else []
    files = [each for place in PLACES for each in sorted(path.glob(place)) if each.is_file()]
    files = [each for each in files if not each.name.startswith(OTHER_TASKS)]
    return list(dict.fromkeys(each for each in files if _looks_so(each)))


def _looks_so(path: Path) -> bool:
    """Say whether a JSON file has COCO's three lists; all of it is read where they are long."""
    head, tail = ends_of(path)
    if not head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{"):
        return False
    if b'"shapes"' in head or not any(name in head for name in LISTS):
        return False
    if all(name in head + tail for name in LISTS):
        return True
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return all(name in content for name in LISTS)


def read(folder: Path, files: Sequence[Path]) -> AnnotationSet:
    """Read COCO files as one set; each is a split where its name or folder says so.

    Raises:
        DataError: A file is no COCO JSON, or several files are of one split.
    """
    collector = Collector(folder)
    splits = {path: split_of_file(path, folder) if len(files) > 1 else WHOLE for path in files}
    for split in set(splits.values()):
        same = [path for path, each in splits.items() if each == split]
        if len(same) > 1:
            raise DataError(
                f"{folder}: {names_of(each.relative_to(folder) for each in same)} could all be its "
                "annotations; give one of them as --data-path"
            )
    names: dict[str, int] = {}
    for path, split in splits.items():
        names.update(_read_file(path, split, collector))
    return collector.result(names)


def split_of_file(path: Path, folder: Path) -> str:
    """Return the split of ``instances_val2017.json`` or ``valid/_annotations.coco.json``."""
    words = [*path.relative_to(folder).parent.parts, *path.stem.rstrip("0123456789").split("_")]
    return split_of(words) or WHOLE


def _read_file(path: Path, split: str, collector: Collector) -> Mapping[str, int]:
    """Collect the images of a file; return the categories that are used."""
    everything = read_json(path)
    categories = {
        get(each, "id", int, f"{path}: a category"): get(each, "name", str, f"{path}: a category")
        for each in get(everything, "categories", list, path)
    }
    regions: dict[int, list[Region]] = defaultdict(list)
    boxes = 0
    for each in get(everything, "annotations", list, path):
        where = f"{path}: annotation {each.get('id', '') if isinstance(each, dict) else each}"
        number = get(each, "category_id", int, where)
        if number not in categories:
            raise DataError(f"{where}: its category {number} is none of the file's")
        region = _region(each, categories[number], where)
        if region is None:
            boxes += 1
        else:
            regions[get(each, "image_id", int, where)].append(region)
    for each in get(everything, "images", list, path):
        number = get(each, "id", int, f"{path}: an image")
        where = f"{path}: image {number}"
        name = get(each, "file_name", str, where)
        size = (get(each, "height", int, where), get(each, "width", int, where))
        image = collector.find(name, path, *(folder / name for folder, name in _near(path)))
        found = tuple(regions.pop(number, ()))
        if image:
            collector.add_from(path, split, Annotation(image, found, size))
    if regions:
        collector.faults.append(
            f"{path}: annotations of the images {names_of(regions)}, which it does not list"
        )
    if boxes:
        collector.faults.append(
            f"{path}: {boxes} annotations hold a box only, which tells no mask; export the data "
            "set for segmentation"
        )
    used = collector.labels()
    return {name: number for number, name in categories.items() if name in used}


def _near(path: Path) -> list[tuple[Path, str]]:
    """Return where images may lie: COCO's own are in ``train2017/`` beside ``annotations/``."""
    split = path.stem.rpartition("_")[2]
    above = path.parent.parent
    return [(above, split), (above, f"images/{split}"), (path.parent, "images"), (above, "images")]


def _region(record: Mapping[str, Any], label: str, where: str) -> Region | None:
    crowd = bool(record.get("iscrowd", 0))
    drawn = record.get("segmentation")
    if not drawn:
        return None
    try:
        if isinstance(drawn, dict):
            return Region(label, _runs(drawn, where), crowd)
        area = record.get("area")
        rings = drawn if isinstance(drawn[0], list) else [drawn]
        outlines = tuple(as_points(ring) for ring in rings)
    except (DataError, TypeError, KeyError) as error:
        raise DataError(f"{where}: {error}") from error
    known = float(area) if isinstance(area, int | float) else None
    return Region(label, Polygon(outlines, area=known), crowd)


def _runs(drawn: Mapping[str, Any], where: str) -> Runs:
    size = get(drawn, "size", list, where)
    if len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise DataError(f"wanted [height, width] as its size, found {size}")
    counts = drawn.get("counts")
    if isinstance(counts, str):
        return Runs(counts.encode(), (size[0], size[1]))
    try:
        return Runs(np.array(counts, np.int64), (size[0], size[1]))
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"runs that are no whole numbers ({error})") from error
