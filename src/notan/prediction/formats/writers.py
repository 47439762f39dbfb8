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
from notan.prediction.formats.rows import RowFile, coco_rle, kaggle_rle
from notan.prediction.formats.shapes import coco_polygons, encode_geojson, encode_svg
from notan.prediction.pixels import (
    cutout_image,
    encode_float_tiff,
    encode_png,
    mask_image,
    overlay_image,
    probability_image,
    write_large_tiff,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from notan.prediction.predictor import LargePrediction, Prediction
    from notan.types import Image8


@dataclass(frozen=True)
class Output:
    """What a format may make use of.

    Attributes:
        name: Of the output files, and the image's in tables.
        path: The file that the image came from.
        image: uint8, (height, width, channels).
        prediction: What the model says of it.
    """

    name: str
    path: Path
    image: Image8
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
    text = io.TextIOWrapper(
        file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True
    )
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
LARGE_DTYPES: dict[str, type[np.generic]] = {
    "mask": np.uint8,
    "probability": np.uint8,
    "probability16": np.uint16,
    "probability-float": np.float32,
}
"""The formats in which an image can be written that is never in memory: as FOLDER/NAME.tif."""


class Writers:
    """Writes what was asked for of each image; may be used from many threads at once.

    Attributes:
        names: Keys of ``FORMATS``, each once.
        out: The folder that everything goes into.
    """

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
        if not names:
            raise ConfigError(f"no output format was given{nearest('', FORMATS)}")
        for name in names:
            if name not in FORMATS:
                raise ConfigError(
                    f"'{name}': there is no such output format{nearest(name, FORMATS)}"
                )
        self.names = tuple(dict.fromkeys(names))
        self.out = out
        found = {name: FORMATS[name] for name in self.names}
        self._files = {name: each for name, each in found.items() if isinstance(each, FileFormat)}
        self._tables = [
            (table, RowFile(out / table.file, table.finish, resume=resume))
            for table in found.values()
            if isinstance(table, TableFormat)
        ]

    @property
    def large_names(self) -> tuple[str, ...]:
        """The formats in which a huge image is written."""
        return tuple(name for name in self.names if name in LARGE_DTYPES)

    def paths(self, name: str, *, is_large: bool | None = None) -> list[Path]:
        """Return every file that may be written for this name, huge, not huge, or either."""
        if is_large is not None:
            return self._paths(name, is_large=is_large)
        tables = [path for _, table in self._tables for path in (table.rows, table.path)]
        return [*self._paths(name), *self._paths(name, is_large=True), *tables]

    def has(self, name: str, *, is_large: bool = False) -> bool:
        """Say whether all outputs of a name are there already."""
        return all(path.is_file() for path in self._paths(name, is_large=is_large)) and (
            is_large or all(table.has(name) for _, table in self._tables)
        )

    def add(self, name: str, path: Path, image: Image8, prediction: Prediction) -> None:
        """Write all outputs of one image; rows of shared files are kept until ``close``.

        Args:
            name: Of the output files, and the image's in tables.
            path: The file that it came from.
            image: uint8, (height, width, channels).
            prediction: Of the same height and width.

        Raises:
            StorageError: A file could not be written.
        """
        output = Output(name, path, image, prediction)
        for format_, place in zip(self._files.values(), self._paths(name), strict=True):
            write_bytes(place, format_.encode(output))
        for table_format, table in self._tables:
            table.add(name, table_format.row(output))

    def add_large(self, name: str, prediction: LargePrediction) -> None:
        """Write the outputs of a huge image in those formats in which it can be.

        Raises:
            StorageError: A file could not be written.
        """
        paths = self._paths(name, is_large=True)
        for kind, path in zip(self.large_names, paths, strict=True):
            bands = prediction.mask if kind == "mask" else prediction.probability
            write_large_tiff(path, prediction.size, LARGE_DTYPES[kind], bands or ())

    def close(self) -> None:
        """Write the files that hold all images, of what is done so far.

        Raises:
            StorageError: A file could not be written.
        """
        with contextlib.ExitStack() as stack:  # a full disk at one must not lose the others
            for _, table in self._tables:
                stack.callback(table.close)

    def _paths(self, name: str, *, is_large: bool = False) -> list[Path]:
        """Return the files of an image alone."""
        if is_large:
            files = [self._files[kind] for kind in self.large_names]
            return [self.out / format_.folder / f"{name}.tif" for format_ in files]
        return [
            self.out / format_.folder / f"{name}{format_.suffix}"
            for format_ in self._files.values()
        ]
