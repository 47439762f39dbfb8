"""Outputs by name: where they go, what an independent reader finds in them, and how they resume."""

from __future__ import annotations

import csv
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from notan.errors import ConfigError, StorageError
from notan.modelfile.postprocess import Postprocessing
from notan.prediction.formats import FORMATS, Writers
from notan.prediction.predictor import Prediction

RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.integers(0, 256, (7, 5, 3), dtype=np.uint8)
PHOTO = Path("photos/a.jpg")


def prediction(seed: int = 0, size: tuple[int, int] = (7, 5)) -> Prediction:
    probability = np.random.default_rng(seed).random(size, dtype=np.float32)
    return Prediction(probability, Postprocessing())


def write(folder: Path, *formats: str, name: str = "a") -> Prediction:
    written = prediction()
    writers = Writers(formats, folder)
    writers.add(name, PHOTO, IMAGE, written)
    writers.close()
    return written


def rle_rows(folder: Path) -> dict[str, str]:
    with (folder / "rle.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image_id", "encoded_mask"]
    return dict(rows)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_what_it_writes_and_writes_nothing_else(
    tmp_path: Path, name: str
) -> None:
    writers = Writers([name], tmp_path)
    assert not writers.has("a")
    writers.add("a", PHOTO, IMAGE, prediction())
    writers.close()
    assert writers.has("a")
    assert not writers.has("b")
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    only_if_huge = {path for path in writers.paths("a") if path.suffix == ".tif"} - written
    assert written == set(writers.paths("a")) - only_if_huge


def test_a_cutout_is_opaque_on_the_foreground_and_keeps_every_colour(tmp_path: Path) -> None:
    written = write(tmp_path, "cutout")
    with Image.open(tmp_path / "cutout" / "a.png") as file:
        assert file.mode == "RGBA"
        pixels = np.asarray(file)
    np.testing.assert_array_equal(pixels[..., :3], IMAGE)
    np.testing.assert_array_equal(pixels[..., 3], np.where(written.mask, 255, 0))


@pytest.mark.parametrize(("name", "top"), [("probability", 255), ("probability16", 65535)])
def test_a_probability_as_png_is_right_to_half_a_step(tmp_path: Path, name: str, top: int) -> None:
    written = write(tmp_path, name)
    with Image.open(tmp_path / name / "a.png") as file:
        pixels = np.asarray(file).astype(np.float64)
    assert np.abs(pixels / top - written.probability).max() <= 0.5 / top + 1e-9
    assert pixels.max() > 255 * (top > 255)


def test_probabilities_of_0_and_1_are_black_and_white(tmp_path: Path) -> None:
    ends = Prediction(np.array([[0, 1]], np.float32), Postprocessing())
    writers = Writers(["probability", "probability16"], tmp_path)
    writers.add("a", PHOTO, IMAGE[:1, :2], ends)
    for name, top in (("probability", 255), ("probability16", 65535)):
        with Image.open(tmp_path / name / "a.png") as file:
            assert np.asarray(file).tolist() == [[0, top]]


def test_a_float_tiff_holds_the_probabilities_to_the_last_bit(tmp_path: Path) -> None:
    written = write(tmp_path, "probability-float")
    path = tmp_path / "probability-float" / "a.tif"
    pixels = tifffile.imread(path)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, written.probability)
    with Image.open(path) as file:  # and another reader
        np.testing.assert_array_equal(np.asarray(file), written.probability)


def test_several_formats_stand_side_by_side(tmp_path: Path) -> None:
    write(tmp_path, "mask", "overlay", "rle", "mask", name="cat.jpg")
    assert (tmp_path / "masks" / "cat.jpg.png").is_file()
    assert (tmp_path / "overlays" / "cat.jpg.png").is_file()
    assert list(rle_rows(tmp_path)) == ["cat.jpg"]


def test_an_image_is_done_only_when_all_its_outputs_are_there(tmp_path: Path) -> None:
    writers = Writers(["mask", "cutout", "rle"], tmp_path)
    writers.add("a", PHOTO, IMAGE, prediction())
    assert writers.has("a")
    (tmp_path / "cutout" / "a.png").unlink()
    assert not writers.has("a")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["mask", "cutuot"], "'cutuot': there is no such output format; did you mean 'cutout'?"),
        ([""], "'': there is no such output format; choose one of"),
        ([], "no output format was given; choose one of"),
    ],
)
def test_an_unknown_format_is_refused_before_anything_is_written(
    tmp_path: Path, names: list[str], words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Writers(names, tmp_path)
    assert words in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_shared_file_holds_every_image_in_the_order_of_names(tmp_path: Path) -> None:
    writers = Writers(["rle"], tmp_path)
    names = [f"p{number:02d}" for number in range(40)]
    with ThreadPoolExecutor(4) as pool:  # as the pipeline writes
        list(pool.map(lambda n: writers.add(n, PHOTO, IMAGE, prediction()), reversed(names)))
    writers.close()
    assert list(rle_rows(tmp_path)) == names


def test_a_name_that_csv_must_quote_comes_back(tmp_path: Path) -> None:
    write(tmp_path, "rle", name='ä, "b"/c')
    assert list(rle_rows(tmp_path)) == ['ä, "b"/c']


def killed(folder: Path, *names: str) -> Writers:
    """Write rows as a run does that is killed: the shared file is never made."""
    writers = Writers(["rle"], folder)
    for name in names:
        writers.add(name, PHOTO, IMAGE, prediction(len(name)))
    return writers


def test_a_killed_run_is_completed_by_a_resumed_one(tmp_path: Path) -> None:
    killed(tmp_path, "a", "bb")
    assert not (tmp_path / "rle.csv").exists()
    writers = Writers(["rle"], tmp_path, resume=True)
    assert [writers.has(name) for name in ("a", "bb", "ccc")] == [True, True, False]
    writers.add("ccc", PHOTO, IMAGE, prediction(3))
    writers.close()
    killed(tmp_path / "whole", "a", "bb", "ccc").close()
    assert (tmp_path / "rle.csv").read_bytes() == (tmp_path / "whole" / "rle.csv").read_bytes()


@pytest.mark.parametrize(
    "tail", [b'["ccc",["c', b"\0\0\0\0\n", b'{"a": 1}\n', b"\xff\n", b"[1,2]\n"]
)
def test_a_torn_row_is_left_out_and_written_anew(tmp_path: Path, tail: bytes) -> None:
    killed(tmp_path, "a", "bb").close()
    with (tmp_path / "rle.rows.jsonl").open("ab") as file:
        file.write(tail)
    writers = Writers(["rle"], tmp_path, resume=True)
    assert not writers.has("ccc")
    writers.add("ccc", PHOTO, IMAGE, prediction(3))
    writers.close()
    assert list(rle_rows(tmp_path)) == ["a", "bb", "ccc"]
    lines = (tmp_path / "rle.rows.jsonl").read_text().splitlines()
    assert [json.loads(line)[0] for line in lines] == ["a", "bb", "ccc"]


def test_a_finished_run_can_be_taken_further(tmp_path: Path) -> None:
    killed(tmp_path, "a").close()
    writers = Writers(["rle"], tmp_path, resume=True)
    writers.add("b", PHOTO, IMAGE, prediction())
    writers.close()
    assert list(rle_rows(tmp_path)) == ["a", "b"]


def test_without_resume_nothing_of_an_earlier_run_is_left(tmp_path: Path) -> None:
    killed(tmp_path, "old").close()
    writers = Writers(["rle"], tmp_path)
    assert not writers.has("old")
    writers.add("new", PHOTO, IMAGE, prediction())
    writers.close()
    assert list(rle_rows(tmp_path)) == ["new"]


def test_an_image_predicted_again_replaces_its_row(tmp_path: Path) -> None:
    writers = killed(tmp_path, "a")
    writers.add("a", PHOTO, IMAGE, Prediction(np.ones((7, 5), np.float32), Postprocessing()))
    writers.close()
    assert rle_rows(tmp_path) == {"a": "1 35"}


def test_no_images_make_no_shared_file(tmp_path: Path) -> None:
    Writers(["rle"], tmp_path).close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_shared_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path, "a").close()
    before = (tmp_path / "rle.csv").read_bytes()
    writers = Writers(["rle"], tmp_path, resume=True)
    writers.add("b", PHOTO, IMAGE, prediction())

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"rle\.csv: could not be written \(No space"):
        writers.close()
    assert (tmp_path / "rle.csv").read_bytes() == before


def test_a_place_for_rows_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    writers = Writers(["rle"], tmp_path / "taken")
    with pytest.raises(StorageError, match=r"taken/rle\.rows\.jsonl: could not be written"):
        writers.add("a", PHOTO, IMAGE, prediction())


def test_coco_results_of_all_images_are_read_by_pycocotools(tmp_path: Path) -> None:
    masks = {"b": np.zeros((7, 5), np.float32), "a": np.eye(7, 5, dtype=np.float32)}
    writers = Writers(["coco-rle"], tmp_path)
    for name, mask in masks.items():
        writers.add(name, Path(f"photos/{name}.jpg"), IMAGE, Prediction(mask, Postprocessing()))
    writers.close()
    results = json.loads((tmp_path / "coco-rle.json").read_text())
    assert [(row["image_id"], row["file_name"]) for row in results] == [(1, "a.jpg"), (2, "b.jpg")]
    for row, name in zip(results, "ab", strict=True):
        area = coco.area(row["segmentation"])
        assert (area, row["category_id"]) == (masks[name].sum(), 1)
        assert 0 <= row["score"] <= 1


# pycocotools' own arrays have not followed NumPy 2 yet
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_polygons_of_all_images_are_read_by_pycocotools(tmp_path: Path) -> None:
    ring = np.ones((7, 5), np.float32)
    ring[2:4, 1:3] = 0
    masks = {"c": ring, "b": np.zeros((7, 5), np.float32), "a": np.eye(7, 5, dtype=np.float32)}
    writers = Writers(["polygons"], tmp_path)
    for name, mask in masks.items():
        writers.add(name, Path(f"photos/{name}.jpg"), IMAGE, Prediction(mask, Postprocessing()))
    writers.close()
    data = COCO(tmp_path / "polygons.json")
    assert data.loadCats(data.getCatIds()) == [{"id": 1, "name": "foreground"}]
    assert sorted(data.getImgIds()) == [1, 2, 3]
    found = {image["name"]: data.imgToAnns[image["id"]] for image in data.loadImgs([1, 2, 3])}
    assert found["b"] == []  # empty: an image without annotations
    for name in "ac":
        (annotation,) = found[name]
        np.testing.assert_array_equal(data.annToMask(annotation), masks[name])
        assert (annotation["iscrowd"], annotation["category_id"]) == (0, 1)
    assert [each["id"] for each in data.dataset["annotations"]] == [1, 2]


def test_polygons_survive_a_kill_as_the_other_shared_files_do(tmp_path: Path) -> None:
    for folder, kill in ((tmp_path / "killed", True), (tmp_path / "whole", False)):
        writers = Writers(["polygons"], folder)
        writers.add("a", PHOTO, IMAGE, prediction(1))
        if kill:
            assert not (folder / "polygons.json").exists()
            writers = Writers(["polygons"], folder, resume=True)
            assert [writers.has("a"), writers.has("b")] == [True, False]
        writers.add("b", PHOTO, IMAGE, prediction(2))
        writers.close()
    one, other = (tmp_path / folder / "polygons.json" for folder in ("killed", "whole"))
    assert one.read_bytes() == other.read_bytes()
