"""The formats by name, and Writers, which writes those that were asked for."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from notan.errors import ConfigError, nearest
from notan.io.write import write_bytes
from notan.prediction.formats.images import (
    cutout_image,
    encode_float_tiff,
    encode_png,
    mask_image,
    overlay_image,
    probability_image,
)
from notan.prediction.formats.rows import RowFile, coco_rle, kaggle_rle
from notan.prediction.formats.shapes import coco_polygons, encode_geojson, encode_svg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from notan.prediction.predictor import Prediction
    from notan.types import RGBImage


@dataclass(frozen=True)
class Output:
    """What a format may make use of.

    Attributes:
        name: Of the output files, and the image's in tables.
        path: The file that the image came from.
        image: uint8, (height, width, 3), RGB.
        prediction: What the model says of it.
    """

    name: str
    path: Path
    image: RGBImage
    prediction: Prediction


@dataclass(frozen=True)
class FileFormat:
    """One file for each image: ``FOLDER/NAME.SUFFIX``."""

    folder: str
    suffix: str
    encode: Callable[[Output], bytes]


@dataclass(frozen=True)
class TableFormat:
    """One file of all images.

    Attributes:
        file: What it is called.
        row: What is kept of an image; JSON can hold it.
        finish: Writes the file from the rows, which come in the order of their names.
    """

    file: str
    row: Callable[[Output], Any]
    finish: Callable[[BinaryIO, Iterator[Any]], None]


RLE_HEADER = ("image_id", "encoded_mask")


def write_rle_csv(file: BinaryIO, rows: Iterator[Sequence[str]]) -> None:
    """Write rows of an image's name and its run lengths as CSV with a header."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(RLE_HEADER)
    writer.writerows(rows)
    text.detach()


def coco_row(output: Output) -> dict[str, Any]:
    """Return a COCO result of one image; its score is the Dice that the model expects."""
    return {
        "file_name": output.path.name,
        "category_id": 1,
        "segmentation": coco_rle(output.prediction.mask),
        "score": round(output.prediction.expected_dice, 6),
    }


def write_coco_results(file: BinaryIO, rows: Iterator[dict[str, Any]]) -> None:
    """Write COCO's list of results; images are numbered from 1 in the order of their names."""
    file.write(b"[")
    for number, row in enumerate(rows, start=1):
        file.write(b"\n" if number == 1 else b",\n")
        file.write(json.dumps({"image_id": number, **row}).encode())
    file.write(b"\n]\n")


def polygons_row(output: Output) -> dict[str, Any]:
    """Return COCO's image of one image, and its annotation or None where there is no foreground."""
    height, width = output.prediction.mask.shape
    foreground = coco_polygons(output.prediction.mask)
    if foreground is not None:
        foreground = {"category_id": 1, "iscrowd": 0, **foreground}
        foreground["score"] = round(output.prediction.expected_dice, 6)
    return {
        "image": {
            "file_name": output.path.name,
            "name": output.name,  # tells frames and pages of one file apart
            "height": height,
            "width": width,
        },
        "annotation": foreground,
    }


def write_coco_dataset(file: BinaryIO, rows: Iterator[dict[str, Any]]) -> None:
    """Write COCO's data set; images are numbered from 1 in the order of their names.

    Outlines are written as they come, so that they are never all in memory; the short entries of
    the images follow.
    """
    file.write(b'{"annotations":[')
    images: list[dict[str, Any]] = []
    annotations = 0
    for number, row in enumerate(rows, start=1):
        images.append({"id": number, **row["image"]})
        if row["annotation"] is not None:
            annotations += 1
            entry = {"id": annotations, "image_id": number, **row["annotation"]}
            file.write(b"\n" if annotations == 1 else b",\n")
            file.write(json.dumps(entry, separators=(",", ":")).encode())
    listed = ",\n".join(map(json.dumps, images))
    categories = json.dumps([{"id": 1, "name": "foreground"}])
    file.write(f'\n],\n"images":[\n{listed}\n],\n"categories":{categories}}}\n'.encode())


FORMATS: dict[str, FileFormat | TableFormat] = {
    "mask": FileFormat("masks", ".png", lambda o: encode_png(mask_image(o.prediction.mask))),
    "overlay": FileFormat(
        "overlays", ".png", lambda o: encode_png(overlay_image(o.image, o.prediction.mask))
    ),
    "cutout": FileFormat(
        "cutout", ".png", lambda o: encode_png(cutout_image(o.image, o.prediction.mask))
    ),
    "probability": FileFormat(
        "probability", ".png", lambda o: encode_png(probability_image(o.prediction.probability))
    ),
    "probability16": FileFormat(
        "probability16",
        ".png",
        lambda o: encode_png(probability_image(o.prediction.probability, np.uint16)),
    ),
    "probability-float": FileFormat(
        "probability-float", ".tif", lambda o: encode_float_tiff(o.prediction.probability)
    ),
    "rle": TableFormat("rle.csv", lambda o: [o.name, kaggle_rle(o.prediction.mask)], write_rle_csv),
    "coco-rle": TableFormat("coco-rle.json", coco_row, write_coco_results),
    "polygons": TableFormat("polygons.json", polygons_row, write_coco_dataset),
    "geojson": FileFormat("geojson", ".geojson", lambda o: encode_geojson(o.prediction.mask)),
    "contours": FileFormat("contours", ".svg", lambda o: encode_svg(o.prediction.mask)),
}


def check_formats(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, each once.

    Raises:
        ConfigError: There is no such format, or none was given.
    """
    if not names:
        raise ConfigError(f"no output format was given{nearest('', FORMATS)}")
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"'{name}': there is no such output format{nearest(name, FORMATS)}")
    return tuple(dict.fromkeys(names))


class Writers:
    """Writes what was asked for of each image; may be used from many threads at once."""

    def __init__(self, names: Sequence[str], out: Path, *, resume: bool = False) -> None:
        """Look the formats up; nothing is written yet.

        Args:
            names: Keys of ``FORMATS``.
            out: The folder that everything goes into.
            resume: Keep the rows of an earlier run in the files that hold all images.

        Raises:
            ConfigError: There is no such format, or none was given.
            DataError: The rows of the earlier run cannot be read.
        """
        self.names = check_formats(names)
        self.out = out
        found = [FORMATS[name] for name in self.names]
        self._files = [format_ for format_ in found if isinstance(format_, FileFormat)]
        self._tables = [
            (table, RowFile(out / table.file, table.finish, resume=resume))
            for table in found
            if isinstance(table, TableFormat)
        ]

    def paths(self, name: str) -> list[Path]:
        """Return every file that ``add`` and ``close`` write for this name."""
        files = [self._path(format_, name) for format_ in self._files]
        return [*files, *(path for _, table in self._tables for path in (table.rows, table.path))]

    def has(self, name: str) -> bool:
        """Say whether all outputs of a name are there already."""
        return all(self._path(format_, name).is_file() for format_ in self._files) and all(
            table.has(name) for _, table in self._tables
        )

    def add(self, name: str, path: Path, image: RGBImage, prediction: Prediction) -> None:
        """Write all outputs of one image; rows of shared files are kept until ``close``.

        Args:
            name: Of the output files, and the image's in tables.
            path: The file that it came from.
            image: uint8, (height, width, 3), RGB.
            prediction: Of the same height and width.

        Raises:
            StorageError: A file could not be written.
        """
        output = Output(name, path, image, prediction)
        for format_ in self._files:
            write_bytes(self._path(format_, name), format_.encode(output))
        for table_format, table in self._tables:
            table.add(name, table_format.row(output))

    def close(self) -> None:
        """Write the files that hold all images, of what is done so far.

        Raises:
            StorageError: A file could not be written.
        """
        with contextlib.ExitStack() as stack:  # a full disk at one must not lose the others
            for _, table in self._tables:
                stack.callback(table.close)

    def _path(self, format_: FileFormat, name: str) -> Path:
        return self.out / format_.folder / f"{name}{format_.suffix}"


def open_formats(names: Sequence[str], out: Path, *, resume: bool = False) -> Writers:
    """Open output formats by name, as ``Writers`` does."""
    return Writers(names, out, resume=resume)
