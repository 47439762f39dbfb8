"""LabelMe, YOLO, and GeoJSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import geojson
import numpy as np
import shapely
import yaml
from labelme._label_file import LabelFile
from labelme.utils import img_arr_to_b64, shapes_to_label
from qubalab.objects.image_feature import ImageFeature

from annotations.drawings import CLASSES, COLOURS, Array, Drawing, Work, has_hole, outlines
from annotations.tool_datasets import supervision_dataset
from notan.prediction.formats.shapes import encode_geojson, trace_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# LabelMe


def labelme_shapes(drawing: Drawing) -> list[dict[str, Any]]:
    """Return LabelMe's shapes: rectangle, circle, masks for rings, polygons for the rest."""
    shapes = []
    for number, thing in enumerate(drawing.things):
        mask = None
        if thing.box:
            left, top, right, bottom = thing.box
            kinds = [("rectangle", [(left, top), (right - 1, bottom - 1)])]
        elif thing.circle:
            column, row, radius = thing.circle
            kinds = [("circle", [(column, row), (column + radius, row)])]
        elif has_hole(thing.mask) or number == 3:  # a mask without need, too
            rows, columns = np.nonzero(thing.mask)
            first, last = (columns.min(), rows.min()), (columns.max(), rows.max())
            kinds = [("mask", [first, last])]
            mask = thing.mask[first[1] : last[1] + 1, first[0] : last[0] + 1].astype(np.uint8)
        else:
            kinds = [("polygon", polygon) for polygon in outlines(thing.mask)]
        for kind, points in kinds:
            shapes.append(
                {
                    "label": thing.label,
                    "points": [[float(x), float(y)] for x, y in points],
                    "group_id": number if len(kinds) > 1 else None,
                    "description": "",
                    "shape_type": kind,
                    "flags": {},
                    "mask": None if mask is None else img_arr_to_b64(mask),
                }
            )
    return shapes


def check_labelme(work: Work, path: str, name: str) -> None:
    """Read a LabelMe file with LabelMe."""
    label = LabelFile(str(work.out / path))
    values = {label: value for value, label in enumerate(CLASSES, start=1)}
    work.same(name, shapes_to_label(work.drawings[name].size, label.shapes, values)[0])


def write_labelme(work: Work) -> None:
    """Write JSON beside the images, some with the image inside (``imageData``)."""
    work.copy("")
    for number, (name, drawing) in enumerate(work.drawings.items()):
        data = (work.images / f"{name}.png").read_bytes() if number % 3 == 0 else None
        LabelFile().save(
            str(work.out / f"{name}.json"),
            labelme_shapes(drawing),
            f"{name}.png",
            *drawing.size,
            image_data=data,
        )
        check_labelme(work, f"{name}.json", name)


def write_labelme_windows(work: Work) -> None:
    """Write JSON in a folder of its own, with the path to the image as Windows writes it."""
    work.copy("images")
    (work.out / "labels").mkdir()
    for name, drawing in work.drawings.items():
        shapes = [
            shape | {"points": shape["points"][:: -1 if shape["shape_type"] == "rectangle" else 1]}
            for shape in labelme_shapes(drawing)
        ]  # the corners of a rectangle come in any order
        path = f"..\\images\\{name}.png"
        LabelFile().save(str(work.out / f"labels/{name}.json"), shapes, path, *drawing.size)
        check_labelme(work, f"labels/{name}.json", name)


# YOLO


def check_yolo(work: Work, labels: str, names: Iterable[str]) -> None:
    """Read labels as Ultralytics does: ``polygon2mask`` of its ``data/utils.py``, label by label.

    Its lines stand here, since its package does not import without torchvision. The product is
    single precision as there: in double precision 0.58 of 50 is 28. Its training also resamples
    each polygon to 1000 points before, which moves a few pixels; that is no part of the format.
    """
    for name in names:
        height, width = work.drawings[name].size
        values = np.zeros((height, width), np.uint8)
        path = work.out / labels / f"{name}.txt"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            label, *numbers = line.split()
            points = np.array(numbers, np.float32).reshape(-1, 2)
            points *= np.array([width, height], np.float32)
            cv2.fillPoly(values, [points.astype(np.int32)], int(label) + 1)
        work.same(name, values)


def write_yolo_supervision(work: Work) -> None:
    """Write as supervision does: no subsets, and a data.yaml that names no folder."""
    supervision_dataset(work, work.drawings).as_yolo(
        str(work.out / "images"), str(work.out / "labels"), str(work.out / "data.yaml")
    )
    check_yolo(work, "labels", work.drawings)


def write_yolo(work: Work) -> None:
    """Write Ultralytics' folders (data.yaml by the schema); an empty image has no label file."""
    for subset, names in work.split().items():
        supervision_dataset(work, names).as_yolo(
            str(work.out / "images" / subset), str(work.out / "labels" / subset)
        )
        (work.out / f"labels/{subset}/four.txt").unlink(missing_ok=True)
        check_yolo(work, f"labels/{subset}", names)
    content = {"path": ".", "train": "images/train", "val": "images/val"}
    content["names"] = dict(enumerate(CLASSES))
    work.write("data.yaml", yaml.safe_dump(content, sort_keys=False))


def write_yolo_roboflow(work: Work) -> None:
    """Write Roboflow's folders (data.yaml by the schema, whose paths begin one folder too high)."""
    for folder, names in zip(("train", "valid"), work.split().values(), strict=True):
        supervision_dataset(work, names).as_yolo(
            str(work.out / folder / "images"), str(work.out / folder / "labels")
        )
        check_yolo(work, f"{folder}/labels", names)
    content = {"train": "../train/images", "val": "../valid/images", "test": "../test/images"}
    content |= {"nc": len(CLASSES), "names": list(CLASSES)}
    work.write("data.yaml", yaml.safe_dump(content, sort_keys=False))


# GeoJSON


def geometry(mask: Array) -> shapely.Polygon | shapely.MultiPolygon:
    """Return an object's outline with its holes, along the edges of pixels."""
    polygons = [shapely.Polygon(part.outer, part.holes) for part in trace_parts(mask)]
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)


def read_geojson(work: Work, name: str, label: Callable[[Any], str]) -> Array:
    """Read a file with geojson and Shapely: a pixel is inside where its centre is."""
    content = geojson.loads((work.out / f"{name}.geojson").read_text(encoding="utf-8"))
    height, width = work.drawings[name].size
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    values = np.zeros((height, width), np.uint8)
    for feature in content["features"]:
        inside = shapely.contains_xy(shapely.geometry.shape(feature["geometry"]), x, y)
        values[inside] = CLASSES.index(label(feature["properties"])) + 1
    return values


def write_geojson(work: Work) -> None:
    """Write QuPath's FeatureCollection beside each image (by the schema)."""
    work.copy("")
    for place, (name, drawing) in enumerate(work.drawings.items()):
        features = [
            geojson.Feature(
                id=f"00000000-0000-4000-8000-{place:04}{number:08}",
                geometry=shapely.geometry.mapping(geometry(thing.mask)),
                properties={
                    "objectType": "annotation",
                    "classification": {"name": thing.label, "color": COLOURS[thing.label]},
                },
            )
            for number, thing in enumerate(drawing.things)
        ]
        content = geojson.dumps(geojson.FeatureCollection(features), separators=(",", ":"))
        work.write(f"{name}.geojson", content)
        work.same(name, read_geojson(work, name, lambda each: each["classification"]["name"]))


def write_geojson_qubalab(work: Work) -> None:
    """Write what QuPath's QubaLab makes: ``names`` and ``object_type`` as properties."""
    work.copy("")
    for name, drawing in work.drawings.items():
        features = [
            ImageFeature(
                shapely.geometry.mapping(geometry(thing.mask)),
                {"name": thing.label, "color": COLOURS[thing.label]},
                id=number,
            )
            for number, thing in enumerate(drawing.things)
        ]
        content = geojson.dumps(geojson.FeatureCollection(features), separators=(",", ":"))
        work.write(f"{name}.geojson", content)
        work.same(name, read_geojson(work, name, lambda each: each["classification"]["names"][0]))


def write_geojson_notan(work: Work) -> None:
    """Write what ``predict --format geojson`` does: the foreground, here of both classes."""
    work.copy("")
    for name, drawing in work.drawings.items():
        foreground = drawing.truth() > 0
        work.write(f"{name}.geojson", encode_geojson(foreground))
        found = read_geojson(work, name, lambda _: CLASSES[0])
        work.same(name, found, wanted=foreground.astype(np.uint8))
