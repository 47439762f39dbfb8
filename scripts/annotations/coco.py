"""COCO's JSON."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datumaro
import numpy as np
import supervision
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from annotations.drawings import CLASSES, DAY, VOID, Array, Thing, Work, png, rings
from annotations.tool_datasets import as_either, as_polygons, datumaro_dataset, supervision_dataset

if TYPE_CHECKING:
    from collections.abc import Callable


def coco_json(work: Work, names: list[str], segment: Callable[[Thing], Any]) -> dict[str, Any]:
    """Return the content of COCO's instances file (by the schema: the COCO API only reads)."""
    images, annotations = [], []
    for number, name in enumerate(names, start=1):
        height, width = work.drawings[name].size
        images.append({"id": number, "width": width, "height": height, "file_name": f"{name}.png"})
        for thing in work.drawings[name].things:
            rle = coco_mask.encode(np.asfortranarray(thing.mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": thing.value,
                    "segmentation": segment(thing),
                    "area": int(coco_mask.area(rle)),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": value, "name": label, "supercategory": ""}
        for value, label in enumerate(CLASSES, start=1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def compressed(thing: Thing) -> dict[str, Any]:
    """Return COCO's compressed run lengths."""
    rle = coco_mask.encode(np.asfortranarray(thing.mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def uncompressed(thing: Thing) -> dict[str, Any]:
    """Return COCO's run lengths as datumaro counts them."""
    rle = datumaro.util.mask_tools.mask_to_rle(thing.mask)
    return {"size": list(thing.mask.shape), "counts": [int(count) for count in rle["counts"]]}


def check_coco(work: Work, path: str, *, wanted: dict[str, Array] | None = None) -> None:
    """Read a COCO file with the COCO API; a crowd becomes void where a truth with void is given."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(work.out / path)
    names = {each["id"]: each["name"] for each in coco.loadCats(coco.getCatIds())}
    for image in coco.loadImgs(coco.getImgIds()):
        values = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            value = CLASSES.index(names[annotation["category_id"]]) + 1
            crowd = annotation["iscrowd"] and wanted is not None
            values[coco.annToMask(annotation) > 0] = VOID if crowd else value
        name = Path(image["file_name"]).stem
        work.same(name, values, wanted=None if wanted is None else wanted[name])


def write_coco_polygons(work: Work) -> None:
    """Write polygons, in ``annotations/instances_SUBSET.json``."""
    dataset = datumaro_dataset(work, as_polygons)
    dataset.export(str(work.out), "coco_instances", save_media=True)
    for subset in work.split():
        check_coco(work, f"annotations/instances_{subset}.json")


def write_coco_datumaro(work: Work) -> None:
    """Write polygons, and run lengths with iscrowd 1 for objects that are no crowd."""
    dataset = datumaro_dataset(work, as_either)
    dataset.export(str(work.out), "coco_instances", save_media=True)
    for subset in work.split():
        check_coco(work, f"annotations/instances_{subset}.json")


def write_coco_rle(work: Work) -> None:
    """Write compressed run lengths in one file beside ``images/`` (by the schema)."""
    work.copy("images")
    work.write("annotations.json", json.dumps(coco_json(work, list(work.drawings), compressed)))
    check_coco(work, "annotations.json")


def write_coco_uncompressed(work: Work) -> None:
    """Write uncompressed run lengths in the folders of CVAT's COCO export (by the schema)."""
    work.copy("images")
    path = "annotations/instances_default.json"
    work.write(path, json.dumps(coco_json(work, list(work.drawings), uncompressed)))
    check_coco(work, path)


def write_coco_crowd(work: Work) -> None:
    """Write two images (by the schema); the nucleus of ``two`` is a crowd (``truth-crowd/``)."""
    names = ["two", "three"]
    work.copy("images", names)
    content = coco_json(work, names, lambda thing: rings(thing.mask))
    crowd = content["annotations"][2]
    crowd["segmentation"], crowd["iscrowd"] = uncompressed(work.drawings["two"].things[2]), 1
    work.write("annotations.json", json.dumps(content))
    truth = {name: work.drawings[name].truth() for name in names}
    truth["two"][truth["two"] == CLASSES.index("nucleus") + 1] = VOID
    for name, values in truth.items():
        work.write(f"../truth-crowd/{name}.png", png(values))
    check_coco(work, "annotations.json", wanted=truth)


def write_coco_roboflow(work: Work) -> None:
    """Write ids from 0 and a parent of the categories, without objects (by the schema)."""
    for folder, names in zip(("train", "valid"), work.split().values(), strict=True):
        work.copy(folder, names)
        content = coco_json(work, names, lambda thing: rings(thing.mask))
        for image in content["images"]:
            image |= {"id": image["id"] - 1, "license": 1, "date_captured": DAY[:19]}
        for annotation in content["annotations"]:
            annotation["id"] -= 1
            annotation["image_id"] -= 1
        parent = {"id": 0, "name": "tissue", "supercategory": "none"}
        children = [each | {"supercategory": "tissue"} for each in content["categories"]]
        content["categories"] = [parent, *children]
        work.write(f"{folder}/_annotations.coco.json", json.dumps(content))
        check_coco(work, f"{folder}/_annotations.coco.json")


def write_coco_supervision(work: Work) -> None:
    """Write polygons through pixels, not round them, and run lengths with a false iscrowd 1.

    Its own reader restores the truth; the COCO API takes the last row and column off each polygon.
    """
    path = work.out / "annotations.json"
    images = work.out / "images"
    supervision_dataset(work, work.drawings).as_coco(str(images), str(path))
    content = json.loads(path.read_text(encoding="utf-8"))
    for image in content["images"]:
        image["date_captured"] = "01/01/2024,00:00:00"
    work.write("annotations.json", json.dumps(content))
    again = supervision.DetectionDataset.from_coco(str(images), str(path), force_masks=True)
    for file, found in again.annotations.items():
        values = np.zeros(work.drawings[Path(file).stem].size, np.uint8)
        for mask, label in zip(found.mask if len(found) else (), found.class_id, strict=True):
            values[mask] = label + 1
        work.same(Path(file).stem, values)
