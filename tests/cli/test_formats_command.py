"""``notan predict --format``: what one run writes in many formats is one and the same mask."""

from __future__ import annotations

import csv
import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import shapely
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from image_files import photo, saved
from notan.cli.main import main
from notan.prediction.formats import FORMATS
from notan.prediction.formats.rows import decode_rle

if TYPE_CHECKING:
    from pathlib import Path

    from notan.types import Mask

# pycocotools' own arrays have not followed NumPy 2 yet
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHARED = "rle,coco-rle,polygons"


def predict(checkpoint: Path, images: Path, out: Path, *words: str) -> None:
    main(["predict", str(images), "--model", str(checkpoint), "--out", str(out), *words])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images of which a network makes different masks."""
    (tmp_path / "photos").mkdir()
    for number in range(3):
        image = np.roll(photo(24 + number, 20), 5 * number, axis=1)
        saved(tmp_path / "photos" / f"p{number}.png", Image.fromarray(image))
    return tmp_path / "photos"


def read_masks(out: Path) -> list[Mask]:
    masks = []
    for path in sorted((out / "masks").iterdir()):
        with Image.open(path) as file:
            masks.append(np.asarray(file) == 255)
    return masks


def test_all_formats_of_one_run_hold_the_same_masks(
    small_checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    threshold = middle_threshold(small_checkpoint, photos, tmp_path)
    formats = f"mask,{SHARED},geojson,contours"
    predict(small_checkpoint, photos, out, "--format", formats, "--threshold", threshold)
    masks = read_masks(out)
    assert len(masks) == 3
    assert all(mask.any() and not mask.all() for mask in masks)

    with (out / "rle.csv").open(newline="") as file:
        rle = [row["encoded_mask"] for row in csv.DictReader(file)]
    results = json.loads((out / "coco-rle.json").read_text())
    polygons = COCO(out / "polygons.json")
    for number, mask in enumerate(masks):
        np.testing.assert_array_equal(decode_rle(rle[number], mask.shape), mask)
        np.testing.assert_array_equal(coco.decode(results[number]["segmentation"]), mask)
        (image,) = polygons.loadImgs([number + 1])
        assert (image["file_name"], image["height"]) == (f"p{number}.png", mask.shape[0])
        (annotation,) = polygons.imgToAnns[number + 1]
        np.testing.assert_array_equal(polygons.annToMask(annotation), mask)
        collection = json.loads((out / "geojson" / f"p{number}.geojson").read_text())
        shapes = [shapely.geometry.shape(each["geometry"]) for each in collection["features"]]
        rows, columns = np.indices(mask.shape) + 0.5
        inside = shapely.contains_xy(shapely.union_all(shapes), columns, rows)
        np.testing.assert_array_equal(inside, mask)
        drawing = (out / "contours" / f"p{number}.svg").read_text()
        assert f'viewBox="0 0 {mask.shape[1]} {mask.shape[0]}"' in drawing
        assert drawing.count("<path") == len(shapes)


def middle_threshold(checkpoint: Path, photos: Path, folder: Path) -> str:
    """Return a threshold between what a network of no training says, so that no mask is empty."""
    predict(checkpoint, photos, folder / "look", "--format", "probability-float")
    values = []
    for path in sorted((folder / "look" / "probability-float").iterdir()):
        with Image.open(path) as file:
            values.append(np.asarray(file))
    low, high = max(map(np.min, values)), min(map(np.max, values))
    assert low < high
    return str((low + high) / 2)


def test_shared_files_go_on_after_a_stop(
    small_checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first run over fewer images stands for the stopped one: its rows are kept."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = ("--format", SHARED)
    predict(small_checkpoint, photos / "p1.png", out, *words)
    predict(small_checkpoint, photos, out, *words, "--resume")
    assert "(1 were there already)" in capsys.readouterr().out
    predict(small_checkpoint, photos, whole, *words)
    for name in ("rle.csv", "coco-rle.json", "polygons.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_the_help_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    said = re.sub(r"[^\w-]+", " ", capsys.readouterr().out)
    for name in FORMATS:
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", said), name
