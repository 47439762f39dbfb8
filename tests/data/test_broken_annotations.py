"""Annotations that are damaged, hostile or ambiguous: each ends in a line, none in a wrong mask."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference

import annotation_files as files
from annotation_files import INSIDE, SIZE, SQUARE
from notan.checking import examine
from notan.config import Data, Masks
from notan.data.annotations.formats import FORMATS, read_annotations
from notan.data.annotations.label_studio import decode_brush
from notan.data.annotations.shapes import Polygon, Runs, as_points, parse_counts
from notan.data.folders import find_layout, open_split
from notan.data.survey import survey
from notan.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pathlib import Path

    from notan.types import Mask


def masks_of(path: Path, **masks: Any) -> dict[str, Mask]:
    data = Data(path=path, masks=Masks(**masks))
    return {each.name: each.mask for each in open_split(data, "all", seed=0)}


def assert_refused(path: Path, words: str, **masks: Any) -> None:
    with pytest.raises(DataError, match=words) as caught:
        masks_of(path, **masks)
    assert "\n" not in str(caught.value)


def annotated(folder: Path, **annotation: Any) -> Path:
    """Write two images and a COCO file whose one annotation is changed."""
    files.write_images(folder, "a", "b")
    square = files.coco()["annotations"][0] | annotation
    files.write_json(folder / "all.json", files.coco(annotations=[square]))
    return folder


def test_an_outline_covers_the_pixels_within_its_edges(tmp_path: Path) -> None:
    found = masks_of(annotated(tmp_path))
    wanted = np.zeros(SIZE, np.bool_)
    wanted[INSIDE] = True
    np.testing.assert_array_equal(found["a"], wanted)
    assert not found["b"].any()


@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        ([[1, 2, 3]], "no pairs of numbers"),
        ([[1, 2, 3, 4]], "an outline of 2 vertices"),
        ([[[1, 2, 0], [3, 4, 0], [5, 6, 0]]], "no pairs of numbers"),
        ([["a", "b", "c", "d", "e", "f"]], "no pairs of numbers"),
        ([SQUARE, None], "no pairs of numbers|vertices"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "far outside its image of 8 x 6 pixels"),
        ([[1e308, 0, 1, 0, 1, 1]], "far outside"),
        ([[float("nan"), 0, 1, 0, 1, 1]], "no finite numbers"),
        ({"size": [6, 8], "counts": [10, 5]}, "runs of 15 pixels; 48 were wanted"),
        ({"size": [6, 8], "counts": [10, 500]}, "runs of 510 pixels; 48 were wanted"),
        ({"size": [6, 8], "counts": [60, -12]}, "runs of 48 pixels"),
        ({"size": [6, 8], "counts": list(range(100))}, "no pixels that can be"),
        ({"size": [6, 8], "counts": ["a"]}, "no whole numbers"),
        ({"size": [6, 8], "counts": "garbage!!"}, "text is none of COCO's"),
        ({"size": [6, 8], "counts": ""}, "text is none of COCO's"),
        ({"size": [6, 8], "counts": "PPPPPP"}, "cut off"),
        ({"size": [6], "counts": "0"}, r"wanted \[height, width\]"),
        ({"size": [60, 80], "counts": [4800]}, "outside of an image of 6x8"),
        ({"size": [0, 0], "counts": []}, "runs of 0x0 pixels"),
        ({"counts": [48]}, "wanted a list as 'size'"),
    ],
)
def test_a_segmentation_that_cannot_be_is_refused(
    tmp_path: Path, drawn: object, words: str
) -> None:
    assert_refused(annotated(tmp_path, segmentation=drawn), words)


@pytest.mark.parametrize("name", ["../../x.png", "..\\..\\x.png", "/etc/x.png", "a\x00.png"])
def test_no_image_is_taken_from_outside_of_the_folder(tmp_path: Path, name: str) -> None:
    files.write_image(tmp_path / "x.png")
    inner = tmp_path / "one" / "two"
    files.write_images(inner, "b")
    images = [{"id": 0, "file_name": name, "height": 6, "width": 8}]
    files.write_json(inner / "all.json", files.coco(images=images))
    assert_refused(inner, "lies outside of|is not in")


def test_a_folder_of_images_may_be_a_link(tmp_path: Path) -> None:
    files.write_images(tmp_path / "disk", "a", "b")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "disk")
    files.write_json(tmp_path / "data" / "all.json", files.coco())
    assert masks_of(tmp_path / "data")["a"].any()


def test_an_outline_of_ten_million_vertices_is_refused_at_once(tmp_path: Path) -> None:
    path = annotated(tmp_path)
    text = (path / "all.json").read_text().replace(json.dumps(SQUARE), f"[{'1,' * 20_000_000}1]")
    (path / "all.json").write_text(text)
    begun = time.monotonic()
    with pytest.raises(DataError, match="vertices"):
        masks_of(path)
    assert time.monotonic() - begun < 60


def test_an_outline_that_runs_to_and_fro_for_ever_is_refused() -> None:
    shape = Polygon((as_points([(0, 0), (8000, 8000)] * 400),))
    with pytest.raises(DataError, match="pixels of length"):
        shape.paint((8000, 8000))


def test_annotations_without_an_outline_are_no_empty_masks(tmp_path: Path) -> None:
    assert_refused(annotated(tmp_path, segmentation=[]), "1 annotations hold a box only")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"categories": []}, "its category 3 is none of the file's"),
        ({"images": []}, "annotations of the images 0, which it does not list"),
        ({"images": [{"id": 0, "height": 6, "width": 8}]}, "wanted text as 'file_name'"),
        ({"images": [{"id": "0", "file_name": "a.png"}]}, "wanted a whole number as 'id'"),
        ({"annotations": {}}, "wanted a list as 'annotations', found an object"),
        ({"annotations": ["x"]}, "wanted a whole number as 'category_id', found nothing"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    files.write_images(tmp_path, "a", "b")
    files.write_json(tmp_path / "all.json", files.coco(**changes))
    assert_refused(tmp_path, words)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    files.write_images(tmp_path, "a")
    text = json.dumps(files.coco())
    (tmp_path / "all.json").write_text(text[: text.index("cell")])
    assert_refused(tmp_path, "this is no JSON, or only a part of it")


def test_lists_that_are_none_are_refused(tmp_path: Path) -> None:
    files.write_images(tmp_path, "a")
    files.write_json(tmp_path / "all.json", {"images": 1, "annotations": 2, "categories": 3})
    assert_refused(tmp_path, "wanted a list as 'categories', found a whole number")


def test_an_image_of_another_size_than_its_annotation_is_refused(tmp_path: Path) -> None:
    files.write_image(tmp_path / "a.png", (12, 16))
    files.write_image(tmp_path / "b.png")
    files.write_json(tmp_path / "all.json", files.coco())
    assert_refused(tmp_path, r"all\.json/a\.png: the mask is 6x8 .* its image a\.png is 12x16")


def test_an_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    files.write_images(tmp_path, "a")
    files.write_json(tmp_path / "all.json", files.coco())
    assert_refused(tmp_path, r"names the image b\.png, which is not in")
    found = [each for each in examine(tmp_path).findings if each.severity == "error"]
    assert [each.kind for each in found] == ["annotation-fault"]


def test_several_classes_are_refused_with_their_shares(tmp_path: Path) -> None:
    files.write_images(tmp_path, "a", "b")
    square = files.coco()["annotations"][0]
    both = files.coco(
        annotations=[square, square | {"id": 2, "image_id": 1, "category_id": 4}],
        categories=[{"id": 3, "name": "cell"}, {"id": 4, "name": "nucleus"}],
    )
    files.write_json(tmp_path / "all.json", both)
    assert_refused(
        tmp_path, r"2 classes, by their share .* 2 images: cell 12\.50%, nucleus 12\.50%; say"
    )
    findings = examine(tmp_path).findings
    assert [each.kind for each in findings if each.severity == "error"] == ["several-classes"]
    assert masks_of(tmp_path, foreground="nucleus")["b"].any()
    assert not masks_of(tmp_path, foreground="nucleus")["a"].any()
    assert masks_of(tmp_path, foreground="Cell")["a"].any()
    assert masks_of(tmp_path, foreground=3)["a"].any()
    assert all(mask.any() for mask in masks_of(tmp_path, foreground="cell,nucleus").values())
    with pytest.raises(ConfigError, match=r"no class 'nuclei'; did you mean 'nucleus'"):
        masks_of(tmp_path, foreground="nuclei")


def test_an_ignored_class_is_left_out(tmp_path: Path) -> None:
    files.write_images(tmp_path, "a", "b")
    square = files.coco()["annotations"][0]
    both = files.coco(
        annotations=[square, square | {"id": 2, "category_id": 4}],
        categories=[{"id": 3, "name": "cell"}, {"id": 4, "name": "dirt"}],
    )
    files.write_json(tmp_path / "all.json", both)
    data = Data(path=tmp_path, masks=Masks(foreground=("cell",), ignore=("dirt",)))
    sample = open_split(data, "all", seed=0)[0]
    assert sample.ignore is not None
    assert sample.ignore[INSIDE].all()
    assert not sample.mask.any()


def test_a_crowd_is_ignored_where_no_object_lies(tmp_path: Path) -> None:
    files.write_images(tmp_path, "a", "b")
    square = files.coco()["annotations"][0]
    crowd = {"size": list(SIZE), "counts": [0, 48]}
    marked = square | {"id": 2, "iscrowd": 1, "segmentation": crowd}
    files.write_json(tmp_path / "all.json", files.coco(annotations=[square, marked]))
    sample = open_split(Data(path=tmp_path), "all", seed=0)[0]
    assert sample.ignore is not None
    np.testing.assert_array_equal(sample.ignore, ~sample.mask)
    assert masks_of(tmp_path, crowd="foreground")["a"].all()


def test_crowds_without_objects_are_a_question(tmp_path: Path) -> None:
    path = annotated(tmp_path, iscrowd=1)
    assert_refused(path, r"1 of 1 annotations are marked iscrowd.*data\.masks\.crowd=foreground")
    assert masks_of(path, crowd="foreground")["a"].any()


def test_an_outline_within_another_is_a_hole_where_the_area_says_so(tmp_path: Path) -> None:
    outer, hole = [0, 0, 8, 0, 8, 6, 0, 6], SQUARE
    solid = masks_of(annotated(tmp_path / "one", segmentation=[outer, hole], area=48))
    hollow = masks_of(annotated(tmp_path / "two", segmentation=[outer, hole], area=36))
    assert solid["a"].all()
    assert hollow["a"].sum() == 36
    assert not hollow["a"][INSIDE].any()


def test_runs_are_those_of_pycocotools() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        size = tuple(random.integers(1, 40, 2).tolist())
        mask = random.random(size) < random.random()
        told = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
        np.testing.assert_array_equal(Runs(told["counts"], size).paint(size), mask)


def test_a_number_of_too_many_bits_is_refused() -> None:
    with pytest.raises(DataError, match="34 bits"):
        parse_counts(b"o" * 20 + b"0")


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ([], "end too soon"),
        ([0, 0, 0, 192], "end too soon"),
        ([0, 0, 1, 0, 0, 0], "a brush of 64 pixels; 48 were wanted"),
        ([255] * 12, "a brush of"),
        ([-1, 300], "a brush|end too soon"),
        (["a"], "end too soon"),
        ([0, 0, 0, 192, 255, 255, 255, 255, 255, 255], "beyond the image|end too soon"),
    ],
)
def test_a_brush_that_cannot_be_is_refused(rle: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        decode_brush(rle, SIZE)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2 0.2", "holds a box, not an outline"),
        ("0 20 10 60 10 60 40", "fractions .* not pixels"),
        ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.7", "no pairs of numbers"),
        ("cell 0.1 0.1 0.5 0.1 0.5 0.5", "wanted a class and fractions"),
        ("7 0.1 0.1 0.5 0.1 0.5 0.5", "class 7 is none of the 1 named ones"),
        ("0 nan 0.1 0.5 0.1 0.5 0.5", "no finite numbers"),
    ],
)
def test_a_line_of_yolo_that_cannot_be_is_refused(tmp_path: Path, line: str, words: str) -> None:
    files.write_images(tmp_path / "images" / "train", "a")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text(f"{line}\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cell]\n")
    with pytest.raises(DataError, match=words):
        open_split(Data(path=tmp_path), "train", seed=0)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("train: [", "no YAML"),
        ("train: images/lost\nnames: [cell]", r"no folder 'images/lost'"),
        ("train: ../../../\nnames: [cell]", r"there is no folder"),
        ("train: train.txt\nnames: [cell]", "list of images"),
        ("train: !!python/object/apply:os.system ['true']\nval: x", "no YAML"),
    ],
)
def test_a_description_of_yolo_that_cannot_be_is_refused(
    tmp_path: Path, told: str, words: str
) -> None:
    files.write_images(tmp_path / "images" / "train", "a")
    (tmp_path / "data.yaml").write_text(told)
    with pytest.raises(DataError, match=words):
        open_split(Data(path=tmp_path / "data.yaml"), "train", seed=0)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"shape_type": "star"}, "a shape of the kind 'star'; polygon,"),
        ({"points": [[1, 1]]}, "a rectangle of 1 points"),
        ({"points": [[1, 1, 1], [2, 2, 2]]}, "pairs of numbers were wanted"),
        ({"points": "x"}, "wanted a list as 'points'"),
        ({"points": [[1e9, 1], [2e9, 2]]}, "far outside its image"),
        ({"label": None}, "wanted text as 'label'"),
        ({"shape_type": "mask", "mask": "!!"}, "shape 0"),
        ({"shape_type": "mask", "mask": "AAAA"}, "shape 0"),
    ],
)
def test_a_shape_of_labelme_that_cannot_be_is_refused(
    tmp_path: Path, shape: dict[str, Any], words: str
) -> None:
    files.write_images(tmp_path, "a")
    whole = {"label": "cell", "shape_type": "rectangle", "points": [[2, 1], [5, 3]]}
    files.write_json(tmp_path / "a.json", files.labelme(whole | shape))
    assert_refused(tmp_path, words)


def test_labelme_counts_images_that_are_not_annotated(tmp_path: Path) -> None:
    files.write_images(tmp_path, "a", "b", "c")
    files.write_json(tmp_path / "a.json", files.labelme())
    assert set(masks_of(tmp_path)) == {"a"}
    notes = read_annotations(tmp_path, "labelme").notes
    assert notes == ("2 images without a JSON file, so not annotated",)


XML = '<annotations><image id="0" name="a.png" width="8" height="6">{}</image></annotations>'


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ('<polygon label="cell" points="1,2;3,4"/>', "an outline of 2 vertices"),
        ('<polygon label="cell" points="1,2;3;4,5"/>', "no pairs of numbers"),
        ('<box label="cell" xtl="1"/>', "wanted a number as ytl of its box"),
        ('<star label="cell"/>', "a shape of the kind 'star'"),
        ('<mask label="cell" rle="1,2,x" left="0" top="0" width="2" height="2"/>', "whole numbers"),
        ('<mask label="cell" rle="1,2" left="0" top="0" width="2" height="2"/>', "4 were wanted"),
        ('<mask label="cell" rle="0,4" left="7" top="0" width="2" height="2"/>', "outside of an"),
        ("<mask", "no XML"),
    ],
)
def test_a_shape_of_cvat_that_cannot_be_is_refused(tmp_path: Path, inside: str, words: str) -> None:
    files.write_images(tmp_path, "a")
    (tmp_path / "annotations.xml").write_text(XML.format(inside))
    assert_refused(tmp_path, words)


def test_a_bomb_of_entities_is_refused(tmp_path: Path) -> None:
    files.write_images(tmp_path, "a")
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
    (tmp_path / "annotations.xml").write_text(bomb + XML.format("&b;"))
    assert_refused(tmp_path, "no XML")


@pytest.mark.parametrize("name", ["data.zip", "data.tar.gz"])
def test_an_archive_is_to_be_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\3\4")
    assert_refused(tmp_path / name, "this is an archive; unpack it")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("lost.png,m.png", r"row 1: the image lost\.png is not there"),
        ("a.png,../x", r"row 1: the mask \.\./x is not there"),
        ("a.png,a.png,holdout", r"row 1: 'holdout' is no split; train, val or test is one"),
    ],
)
def test_a_row_without_its_file_is_named(tmp_path: Path, row: str, words: str) -> None:
    files.write_images(tmp_path, "a")
    (tmp_path / "table.csv").write_text(f"image,mask,split\n{row}\n")
    assert_refused(tmp_path / "table.csv", words)


def test_a_table_needs_both_columns(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("image,size\na.png,3\n")
    assert_refused(tmp_path / "table.csv", "there is no column 'mask'; it has image, size")


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_bytes(b"PAR1 not really")
    assert_refused(tmp_path / "table.parquet", "this is no Parquet")


def test_images_of_one_name_in_several_tables_have_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    files.write_images(tmp_path, "a", "b")
    mask = Image.fromarray(np.eye(*SIZE, dtype=np.uint8) * 255)
    mask.save(tmp_path / "mask.png")
    for split, image in (("train", "a"), ("validation", "b")):
        cells = [
            {"bytes": (tmp_path / f"{name}.png").read_bytes(), "path": "0001.png"}
            for name in (image, "mask")
        ]
        columns = {"image": cells[:1], "mask": cells[1:]}
        parquet.write_table(table(columns), tmp_path / f"{split}-00000-of-00001.parquet")
    found = read_annotations(tmp_path, "table")
    names = [pair.name for pair in found.everything]
    assert len(set(names)) == 2
    assert not found.faults
    data = Data(path=tmp_path, layout="table")
    samples = [open_split(data, split, seed=0)[0] for split in ("train", "val")]
    assert not np.array_equal(samples[0].image, samples[1].image)


def test_a_file_that_is_none_of_all_is_refused(tmp_path: Path) -> None:
    files.write_json(tmp_path / "some.json", {"a": 1})
    assert_refused(tmp_path / "some.json", "none of the kinds that are read")


def test_names_of_classes_are_no_values_of_mask_files(tmp_path: Path) -> None:
    files.write_images(tmp_path / "images", "a")
    files.write_images(tmp_path / "masks", "a")
    with pytest.raises(ConfigError, match="hold values, not names such as 'cat'"):
        masks_of(tmp_path, foreground="cat")


def test_images_of_one_name_in_several_folders_have_names_of_their_own(tmp_path: Path) -> None:
    for place in ("day", "night"):
        files.write_images(tmp_path / place, "a")
    images = [
        {"id": place, "file_name": f"{name}/a.png", "height": 6, "width": 8}
        for place, name in enumerate(("day", "night"))
    ]
    files.write_json(tmp_path / "all.json", files.coco(images=images))
    found = masks_of(tmp_path)
    assert len(found) == 2
    assert sum(mask.any() for mask in found.values()) == 1


def test_annotations_that_change_are_read_anew(tmp_path: Path) -> None:
    path = annotated(tmp_path)
    data = Data(path=path)
    before = survey(open_split(data, "all", seed=0))
    assert masks_of(path)["a"].sum() == 12
    text = (path / "all.json").read_text().replace(json.dumps(SQUARE), "[0, 0, 8, 0, 8, 6, 0, 6.0]")
    (path / "all.json").write_text(text)
    assert masks_of(path)["a"].all()
    assert survey(open_split(data, "all", seed=0)).encodings == before.encodings


def test_every_format_can_be_asked_for_by_name(tmp_path: Path) -> None:
    files.write_images(tmp_path, "a")
    for name in FORMATS:
        with pytest.raises(DataError, match="no images with masks here; wanted"):
            find_layout(Data(path=tmp_path, layout=name))
