"""The corrected data set in the formats of other tools, each image and mask read when its turn is.

What is written here ``notan.data`` reads again, mask for mask. A format that loses something says
so in ``about.txt``, which lies at the top of each archive.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np

from notan.io.images import PLAIN, read_image, shown
from notan.io.masks import read_mask
from notan.io.write import encoded
from notan.prediction.formats.rows import coco_rle
from notan.prediction.formats.shapes import (
    FOREGROUND_CLASS,
    encode_geojson,
    outlines_through_pixels,
)
from notan.prediction.pixels import encode_png, mask_image
from notan.studio.store import COLUMNS
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from notan.studio.store import Correction
    from notan.types import Mask

PIECE_BYTES = 2**20
"""Of an image's file in memory at once."""

FRACTION_DIGITS = 8
"""Of YOLO's vertices: a pixel of the largest image has a place of its own."""


class Corrected(NamedTuple):
    """An image whose mask a person accepted.

    Attributes:
        name: What its files are called; each is there once.
        path: The image's file.
        mask_path: The mask's.
        row: What the table of corrections says of it.
        upright: Whether it is turned by its EXIF orientation before it fits the mask.
    """

    name: str
    path: Path
    mask_path: Path
    row: Correction
    upright: bool = True

    @property
    def file(self) -> str:
        """The name of its image file."""
        return f"{self.name}{self.path.suffix.lower()}"

    def mask(self) -> Mask:
        """Read the mask, bool, (height, width)."""
        return read_mask(self.mask_path).mask


class ArchiveFile(NamedTuple):
    """A file of an archive.

    Attributes:
        name: Its path there.
        pieces: Its content, made while it is read.
        size: In bytes, where it is known before.
    """

    name: str
    pieces: Iterable[bytes]
    size: int = 0


@dataclass(frozen=True)
class DatasetFormat:
    """A way to write images and masks.

    Attributes:
        title: What it is called.
        loses: What it does not hold, or what to know; a sentence for a person.
        members: Gives the files of an archive.
    """

    title: str
    loses: str
    members: Callable[[Sequence[Corrected]], Iterator[ArchiveFile]]


def _copies(images: Sequence[Corrected], folder: str) -> Iterator[ArchiveFile]:
    """Give the image files, byte for byte."""
    for each in images:
        yield ArchiveFile(f"{folder}/{each.file}", _pieces_of(each.path), each.path.stat().st_size)


def _pieces_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _encoded(
    images: Sequence[Corrected], place: str, encode: Callable[[Mask], bytes]
) -> Iterator[ArchiveFile]:
    """Give a file of each mask, where its name stands in the place."""
    for each in images:
        yield ArchiveFile(place.format(each.name), _when_asked(each, encode))


def _when_asked(image: Corrected, encode: Callable[[Mask], bytes]) -> Iterator[bytes]:
    yield encode(image.mask())


def _masks_alone(images: Sequence[Corrected]) -> Iterator[ArchiveFile]:
    return _encoded(images, "masks/{}.png", _grey)


def _grey(mask: Mask) -> bytes:
    return encode_png(mask_image(mask))


def _folder(images: Sequence[Corrected]) -> Iterator[ArchiveFile]:
    yield from _copies(images, "images")
    yield from _masks_alone(images)


def _table(images: Sequence[Corrected]) -> Iterator[ArchiveFile]:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for each in images:
        places = {"image": f"images/{each.file}", "mask": f"masks/{each.name}.png"}
        writer.writerow({**asdict(each.row), **places})
    yield from _folder(images)
    yield ArchiveFile("corrections.csv", [encoded(text.getvalue())])


def _coco(images: Sequence[Corrected]) -> Iterator[ArchiveFile]:
    yield from _copies(images, "images")
    yield ArchiveFile("annotations/instances_default.json", _coco_json(images))


def _coco_json(images: Sequence[Corrected]) -> Iterator[bytes]:
    """Give COCO's file, an image's annotation at a time; their sizes come last."""
    listed, before = [], '{"annotations":['
    for number, each in enumerate(images, start=1):
        mask = each.mask()
        size = {"height": mask.shape[0], "width": mask.shape[1]}
        listed.append({"id": number, "file_name": each.file, **size})
        if mask.any():
            yield f"{before}\n{_json(_coco_annotation(mask, number))}".encode()
            before = ","
    start = before if before != "," else ""
    category = {"id": 1, "name": FOREGROUND_CLASS}
    yield encoded(f'{start}\n],"images":{_json(listed)},"categories":{_json([category])}}}\n')


def _coco_annotation(mask: Mask, number: int) -> dict[str, Any]:
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return {
        "id": number,
        "image_id": number,
        "category_id": 1,
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": [left, top, width, height],
        "segmentation": coco_rle(mask),
    }


def _json(content: object) -> str:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def _yolo(images: Sequence[Corrected]) -> Iterator[ArchiveFile]:
    yield from _copies(images, "images")
    yield from _encoded(images, "labels/{}.txt", _yolo_lines)
    yield ArchiveFile("data.yaml", [f"train: images\nnames:\n  0: {FOREGROUND_CLASS}\n".encode()])


def _yolo_lines(mask: Mask) -> bytes:
    """Return a line for each piece; fractions of the middle of pixels, whatever rounds them."""
    scale = np.array([mask.shape[1], mask.shape[0]])
    lines = []
    for outline in outlines_through_pixels(mask):
        numbers = ((outline + 0.5) / scale).ravel()
        lines.append(" ".join(["0", *(f"{number:.{FRACTION_DIGITS}f}" for number in numbers)]))
    return "".join(f"{line}\n" for line in lines).encode()


def _geojson(images: Sequence[Corrected]) -> Iterator[ArchiveFile]:
    yield from _copies(images, "images")
    yield from _encoded(images, "geojson/{}.geojson", encode_geojson)


def _cvat(images: Sequence[Corrected]) -> Iterator[ArchiveFile]:
    yield from _copies(images, "images")
    yield ArchiveFile("annotations.xml", _cvat_xml(images))


def _cvat_xml(images: Sequence[Corrected]) -> Iterator[bytes]:
    yield b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
    for number, each in enumerate(images):
        mask = each.mask()
        height, width = mask.shape
        name = quoteattr(each.file)
        yield encoded(f'<image id="{number}" name={name} width="{width}" height="{height}">\n')
        if mask.any():
            yield _cvat_mask(mask).encode()
        yield b"</image>\n"
    yield b"</annotations>\n"


def _cvat_mask(mask: Mask) -> str:
    """Return the runs within the mask's box, row by row, background first."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    flat = np.concatenate([[False], mask[top : top + height, left : left + width].ravel()])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [flat.size - 1]]))
    return (
        f'<mask label="{FOREGROUND_CLASS}" source="manual" occluded="0" '
        f'rle="{", ".join(map(str, counts))}" left="{left}" top="{top}" width="{width}" '
        f'height="{height}" z_order="0"></mask>\n'
    )


def _voc(images: Sequence[Corrected]) -> Iterator[ArchiveFile]:
    yield from _copies(images, "JPEGImages")
    yield from _encoded(images, "SegmentationClass/{}.png", _red)
    names = "".join(f"{each.name}\n" for each in images)
    yield ArchiveFile("ImageSets/Segmentation/default.txt", [encoded(names)])
    labels = f"# label:color_rgb:parts:actions\nbackground:0,0,0::\n{FOREGROUND_CLASS}:128,0,0::\n"
    yield ArchiveFile("labelmap.txt", [labels.encode()])


def _red(mask: Mask) -> bytes:
    """Return VOC's first colour on black."""
    colours = np.zeros((*mask.shape, 3), np.uint8)
    colours[mask, 0] = 128
    return encode_png(colours)


def _nnunet(images: Sequence[Corrected]) -> Iterator[ArchiveFile]:
    for each in images:
        yield ArchiveFile(f"imagesTr/{each.name}_0000.png", _written_anew(each))
    yield from _encoded(images, "labelsTr/{}.png", lambda mask: encode_png(mask.astype(np.uint8)))
    told = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, FOREGROUND_CLASS: 1},
        "numTraining": len(images),
        "file_ending": ".png",
    }
    yield ArchiveFile("dataset.json", [json.dumps(told, indent=1).encode()])


def _written_anew(image: Corrected) -> Iterator[bytes]:
    yield encode_png(shown(read_image(image.path, replace(PLAIN, upright=image.upright))))


EXACT = "Masks come back pixel for pixel."

DATASETS: Mapping[str, DatasetFormat] = {
    "folder": DatasetFormat("Images and masks (PNG, 0 and 255)", EXACT, _folder),
    "table": DatasetFormat(
        "Images, masks and a table",
        f"{EXACT} The table says what each mask began as, by which model, and when.",
        _table,
    ),
    "coco": DatasetFormat("COCO JSON, with run lengths", f"{EXACT} One object an image.", _coco),
    "yolo": DatasetFormat(
        "YOLO outlines",
        "Each part is an object of its own, and one with holes comes in pieces. Filled with the "
        "outline itself, as Ultralytics does, they are the mask; programs that leave it out lose "
        "half a pixel all round. data.yaml names no validation images: add your own as 'val'.",
        _yolo,
    ),
    "geojson": DatasetFormat(
        "GeoJSON, for QuPath and GIS", f"{EXACT} Outlines have holes; each part is one.", _geojson
    ),
    "cvat": DatasetFormat("CVAT for images 1.1", f"{EXACT} One object an image.", _cvat),
    "voc": DatasetFormat("Pascal VOC, as CVAT's Segmentation mask 1.1", EXACT, _voc),
    "nnunet": DatasetFormat(
        "nnU-Net's raw data set",
        f"{EXACT} Images are written anew, upright, in colours of 8 bits: finer steps are lost.",
        _nnunet,
    ),
    "masks": DatasetFormat("The masks alone", EXACT, _masks_alone),
}
"""What can be asked for, by name."""


def about(
    format_: DatasetFormat, images: Sequence[Corrected], left_out: Sequence[str]
) -> ArchiveFile:
    """Return what an archive says of itself.

    Args:
        format_: Of the archive.
        images: What is in it.
        left_out: Names of images that were accepted, and are not there any more.
    """
    lines = [
        f"{format_.title}: {len(images)} images with masks that a person accepted.",
        format_.loses,
        *(f"left out, since its file is gone: {name}" for name in left_out),
        f"Written by notan {__version__}.",
    ]
    return ArchiveFile("about.txt", [encoded("\n".join(lines) + "\n")])


class _Pipe:
    """What an archive is written into: it keeps what was not sent yet, and cannot go back."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes, /) -> int:
        """Keep a piece."""
        self._pieces.append(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        """Do nothing: there is nothing behind it."""

    def close(self) -> None:
        """Do nothing likewise."""

    def take(self) -> bytes:
        """Return what was kept, and forget it."""
        whole = b"".join(self._pieces)
        self._pieces.clear()
        return whole


def zipped(members: Iterable[ArchiveFile]) -> Generator[bytes, None, None]:
    """Give the bytes of a zip archive; of its content no more than a piece is in memory.

    Images are stored as they are, since they are compressed already; all else is compressed.
    """
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for member in members:
            info = zipfile.ZipInfo(member.name)
            info.file_size, info.external_attr = member.size, 0o644 << 16
            info.compress_type = zipfile.ZIP_STORED if member.size else zipfile.ZIP_DEFLATED
            with archive.open(info, "w") as file:
                for piece in member.pieces:
                    file.write(piece)
                    if content := pipe.take():
                        yield content
    yield pipe.take()
