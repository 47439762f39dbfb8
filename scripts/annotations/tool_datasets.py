"""The images as datumaro and supervision hold them in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import datumaro
import numpy as np
import supervision

from annotations.drawings import CLASSES, TRAIN, Array, Drawing, Thing, Work, filled, rings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def datumaro_dataset(
    work: Work, annotate: Callable[[Thing, int], list[Any]], *, subsets: bool = True
) -> datumaro.Dataset:
    """Return datumaro's data set of the images; ``annotate`` gets a number for each object."""
    items = []
    for name, drawing in work.drawings.items():
        each = [annotate(thing, number) for number, thing in enumerate(drawing.things, start=1)]
        items.append(
            datumaro.DatasetItem(
                id=name,
                subset=("train" if name in TRAIN else "val") if subsets else None,
                media=datumaro.Image.from_file(path=str(work.images / f"{name}.png")),
                annotations=[annotation for annotations in each for annotation in annotations],
                # else COCO's ids follow the order of a set, which changes from run to run
                attributes={"frame": len(items), "id": len(items) + 1},
            )
        )
    return datumaro.Dataset.from_iterable(items, categories=list(CLASSES))


def as_polygons(thing: Thing, number: int) -> list[Any]:
    """Return datumaro's polygons of an object; the group says that they are one."""
    label = thing.value - 1
    return [datumaro.Polygon(ring, label=label, group=number) for ring in rings(thing.mask)]


def as_mask(thing: Thing, number: int) -> list[Any]:
    """Return datumaro's mask of an object."""
    mask = thing.mask.astype(np.uint8)
    return [datumaro.Mask(mask, label=thing.value - 1, group=number)]


def as_either(thing: Thing, number: int) -> list[Any]:
    """Return a mask for an object with a hole or in pieces, and a polygon for others."""
    return (as_polygons if len(rings(thing.mask)) == 1 else as_mask)(thing, number)


def drawn(
    annotations: Iterable[Any], size: tuple[int, int], labels: datumaro.LabelCategories
) -> Array:
    """Draw datumaro's annotations as its transforms do: polygons and boxes by the COCO API."""
    values = np.zeros(size, np.uint8)
    for each in annotations:
        kind = each.type.name
        if kind == "mask":
            mask = each.image.astype(bool)
        elif kind == "bbox":
            mask = filled([[number for point in corners(each.points) for number in point]], size)
        else:
            mask = filled([each.points], size)
        values[mask] = CLASSES.index(labels[each.label].name) + 1
    return values


def corners(box: Iterable[float]) -> list[tuple[float, float]]:
    """Return the corners of a box of two points."""
    left, top, right, bottom = box
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def detections(drawing: Drawing) -> supervision.Detections:
    """Return the objects as supervision knows them."""
    if not drawing.things:
        return supervision.Detections.empty()
    masks = np.stack([thing.mask for thing in drawing.things])
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks),
        mask=masks,
        class_id=np.array([thing.value - 1 for thing in drawing.things]),
    )


def supervision_dataset(work: Work, names: Iterable[str]) -> supervision.DetectionDataset:
    """Return supervision's data set of some images."""
    paths = {name: str(work.images / f"{name}.png") for name in names}
    return supervision.DetectionDataset(
        classes=list(CLASSES),
        images=list(paths.values()),
        annotations={paths[name]: detections(work.drawings[name]) for name in paths},
    )
