"""The corrected data set as archives: each is read back by notan's own reader, pixel for pixel."""

from __future__ import annotations

import gc
import io
import json
import tracemalloc
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from notan.config import Data, Masks
from notan.data.folders import find_layout, open_divided
from notan.io.images import read_image
from notan.studio.datasets import DATASETS, ArchiveFile, Corrected, about, zipped
from notan.studio.raster import encode_mask
from notan.studio.store import Correction

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from notan.types import Mask

# pycocotools' own arrays have not followed NumPy 2 yet
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (60, 71)
READ_AS = {"cvat": "cvat", "voc": "voc"} | {
    name: name for name in ("folder", "table", "coco", "yolo", "geojson", "nnunet")
}


def rings() -> Mask:
    rows, columns = np.indices(SIZE)
    found: Mask = (np.hypot(rows - 30, columns - 35).astype(int) // 3) % 2 == 0
    return found


MASKS: dict[str, Mask] = {
    "a noise": np.random.default_rng(1).random(SIZE) < 0.5,
    "b rings": rings(),
    "c corners": np.indices(SIZE).sum(axis=0) % 2 == 0,
    "d nothing": np.zeros(SIZE, np.bool_),
    "e everything": np.ones(SIZE, np.bool_),
    "f <&\"'ø": np.indices(SIZE)[1] < 1,
    "g one": np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) == 70,
}


@pytest.fixture
def images(tmp_path: Path) -> list[Corrected]:
    """Write images of several kinds with an accepted mask each."""
    found = []
    for number, (name, mask) in enumerate(MASKS.items()):
        suffix = (".png", ".jpg", ".tif")[number % 3]
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)
        path, mask_path = tmp_path / f"image-{number}{suffix}", tmp_path / f"mask-{number}.png"
        Image.fromarray(pixels).save(path)
        mask_path.write_bytes(encode_mask(mask))
        cells = (path.name, mask_path.name, "model+hand", "abc", "3", "4.5", "2026-11-29", "train")
        row = Correction(*cells)
        found.append(Corrected(name, path, mask_path, row))
    return found


def unpacked(folder: Path, name: str, images: list[Corrected]) -> Path:
    members = [about(DATASETS[name], images, []), *DATASETS[name].members(images)]
    with zipfile.ZipFile(io.BytesIO(b"".join(zipped(members)))) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize("name", list(READ_AS))
def test_what_is_written_is_recognised_and_read_back_without_a_pixel_different(
    tmp_path: Path, images: list[Corrected], name: str
) -> None:
    folder = unpacked(tmp_path / "out", name, images)
    data = Data(path=folder)
    assert find_layout(data) == READ_AS[name]
    samples = {sample.name: sample for part, _ in open_divided(data) for sample in part}
    assert set(samples) == set(MASKS)
    for each in images:
        np.testing.assert_array_equal(samples[each.name].mask, MASKS[each.name])
        np.testing.assert_array_equal(samples[each.name].image, read_image(each.path))
        ignored = samples[each.name].ignore
        assert ignored is None or not ignored.any()


def test_the_other_tools_own_decoders_agree(tmp_path: Path, images: list[Corrected]) -> None:
    from pycocotools.coco import COCO

    coco = COCO(unpacked(tmp_path / "coco", "coco", images) / "annotations/instances_default.json")
    for entry in coco.loadImgs(coco.getImgIds()):
        name = entry["file_name"].rpartition(".")[0]
        annotations = coco.loadAnns(coco.getAnnIds([entry["id"]]))
        masks = [coco.annToMask(each) for each in annotations]
        assert [each["area"] for each in annotations] == [mask.sum() for mask in masks]
        shown = masks[0] if masks else np.zeros(SIZE, np.uint8)
        np.testing.assert_array_equal(shown, MASKS[name])


def test_an_archive_says_what_it_is_and_what_is_lost(
    tmp_path: Path, images: list[Corrected]
) -> None:
    for name, each in DATASETS.items():
        folder = unpacked(tmp_path / name, name, images)
        said = (folder / "about.txt").read_text()
        assert said.startswith(f"{each.title}: 7 images")
        assert each.loses in said
    assert "holes" in DATASETS["yolo"].loses
    gone = b"".join(about(DATASETS["masks"], images, ["lost one"]).pieces).decode()
    assert "left out, since its file is gone: lost one" in gone


def test_a_table_keeps_where_masks_come_from(tmp_path: Path, images: list[Corrected]) -> None:
    lines = (unpacked(tmp_path / "out", "table", images) / "corrections.csv").read_text()
    assert "images/b rings.jpg,masks/b rings.png,model+hand,abc,3,4.5,2026-11-29" in lines


def test_without_images_each_format_is_still_whole(tmp_path: Path) -> None:
    for name in DATASETS:
        folder = unpacked(tmp_path / name, name, [])
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files, name
        for path in files:
            assert path.suffix != ".json" or json.loads(path.read_text()) is not None


def test_a_large_archive_is_never_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(80_000_000)

    def members() -> list[ArchiveFile]:
        from notan.studio.datasets import _pieces_of

        return [ArchiveFile(f"{n}", _pieces_of(path), path.stat().st_size) for n in range(3)]

    tracemalloc.start()
    total = sum(map(len, zipped(members())))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > 240_000_000
    assert most < 20_000_000


def test_a_reader_who_leaves_ends_the_writing() -> None:
    ended = []

    def content() -> Iterator[bytes]:
        try:
            for _ in range(100):
                yield bytes(100_000)
        finally:
            ended.append(True)

    pieces = zipped([ArchiveFile("large", content(), 10_000_000)])
    next(pieces)
    next(pieces)
    pieces.close()
    gc.collect()
    assert ended == [True]


def test_classes_of_the_archives_have_one_name(tmp_path: Path, images: list[Corrected]) -> None:
    for name in ("coco", "yolo", "geojson", "cvat", "voc", "nnunet"):
        folder = unpacked(tmp_path / name, name, images)
        data = Data(path=folder, masks=Masks(foreground=("foreground",)))
        assert sum(len(part) for part, _ in open_divided(data)) == len(MASKS)
