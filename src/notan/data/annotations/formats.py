"""The formats that are recognised, and reading whichever a folder has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from notan.data.annotations import (
    coco,
    cvat,
    geojson,
    label_studio,
    labelme,
    nnunet,
    table,
    voc,
    yolo,
)
from notan.data.survey import stamp_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from notan.data.annotations.sets import AnnotationSet

Stamp = tuple["Path", tuple[int, int] | None]


@dataclass(frozen=True)
class Format:
    """A way in which tools write annotations.

    Attributes:
        title: What it is called, in words.
        find: Returns the files of it that a path names or holds; none: it is something else.
        read: Reads them, given the data folder.
    """

    title: str
    find: Callable[[Path], Sequence[Path]]
    read: Callable[[Path, Sequence[Path]], AnnotationSet]


FORMATS: Mapping[str, Format] = {
    "nnunet": Format("nnU-Net's raw data set", nnunet.find, nnunet.read),
    "voc": Format("Pascal VOC's layout", voc.find, voc.read),
    "coco": Format("COCO JSON", coco.find, coco.read),
    "label-studio": Format("Label Studio's JSON", label_studio.find, label_studio.read),
    "cvat": Format("CVAT for images", cvat.find, cvat.read),
    "labelme": Format("LabelMe's JSON files", labelme.find, labelme.read),
    "geojson": Format("GeoJSON outlines", geojson.find, geojson.read),
    "table": Format("a table", table.find, table.read),
    "yolo": Format("YOLO's outlines", yolo.find, yolo.read),
}
"""In the order in which they are looked for."""


def recognise(path: Path) -> str | None:
    """Return the name of the format of a file or folder; None: it is none of them."""
    return next((name for name in FORMATS if find(path, name)), None)


def find(path: Path, name: str) -> Sequence[Path]:
    """Return the files of a format that a path names or holds, looked for once."""
    places = [path, *path.glob("*/"), *path.glob("*/*/")]
    return _find(path, name, tuple((place, stamp_of(place)) for place in places))


@lru_cache(256)
def _find(path: Path, name: str, places: tuple[Stamp, ...]) -> Sequence[Path]:
    del places
    return FORMATS[name].find(path)


def read_annotations(path: Path, name: str) -> AnnotationSet:
    """Read the annotations of a format, once for as long as their files stay the same.

    Args:
        path: A data folder, or the one file of it that was named.
        name: A key of ``FORMATS``.

    Raises:
        DataError: The files cannot be read, or are something else.
    """
    files = tuple((file, stamp_of(file)) for file in find(path, name))
    return _read(path, name, files)


@lru_cache(4)
def _read(path: Path, name: str, files: tuple[Stamp, ...]) -> AnnotationSet:
    return FORMATS[name].read(data_folder(path), [file for file, _ in files])


def data_folder(path: Path) -> Path:
    """Return the folder that holds the images of a data folder, or of a file that was named."""
    if path.is_dir():
        return path
    # COCO's own and others keep these files beside the folders of images
    return path.parent.parent if path.parent.name.lower() in BESIDE_IMAGES else path.parent


BESIDE_IMAGES = ("annotations", "labels")
