"""Folders as people have them: other names, parts inside out, masks beside their images."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from needs import case
from notan.checking.examine import examine
from notan.cli.main import main
from notan.config import Data, Masks
from notan.data.folders import find_layout, has_test, makes_validation, open_split
from notan.data.layouts import find_parts, match, passed_over
from notan.errors import DataError

SIZE = (8, 10)


def image_at(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(path)


def mask_at(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(SIZE, np.uint8)
    mask[2:6, 3:7] = 255
    Image.fromarray(mask).save(path)


def pairs_at(images: Path, masks: Path, *, image: str = "{}.jpg", mask: str = "{}.png") -> None:
    for name in ("ant", "bee", "cow"):
        image_at(images / image.format(name))
        mask_at(masks / mask.format(name))


def opened(folder: Path, split: str, **settings: Any) -> list[tuple[str, str]]:
    pairs = open_split(Data(path=folder, **settings), split, seed=0).pairs
    return [(pair.image.name, pair.mask.name) for pair in pairs]


@pytest.mark.parametrize("layout", ["yolo", "mmseg"])
def test_the_layouts_of_yolo_and_mmsegmentation_are_recognised(layout: str) -> None:
    folder = case("24-yolo-layout") / layout
    data = Data(path=folder)
    assert find_layout(data) == "folder"
    assert makes_validation(data)
    parts = [open_split(data, split, seed=0).names for split in ("train", "val")]
    assert sorted([*parts[0], *parts[1]]) == [f"p0{number}" for number in range(6)]
    diagnosis = examine(folder)
    assert diagnosis.exit_code() == 0
    assert [finding.kind for finding in diagnosis.findings].count("recognised") == 1
    assert [split.images for split in diagnosis.statistics] == [6]


@pytest.mark.parametrize("images", ["images", "image", "imgs", "img", "Images", "Original"])
@pytest.mark.parametrize(
    "masks",
    ["masks", "mask", "labels", "label", "annotations", "gt", "GT", "ground_truth", "Ground Truth"],
)
def test_the_usual_names_of_folders_are_recognised(tmp_path: Path, images: str, masks: str) -> None:
    pairs_at(tmp_path / images, tmp_path / masks)
    assert opened(tmp_path, "all") == [(f"{n}.jpg", f"{n}.png") for n in ("ant", "bee", "cow")]


@pytest.mark.parametrize("part", ["train", "training", "Train"])
@pytest.mark.parametrize("masks", ["masks", "labels", "gt", "annotations"])
def test_parts_may_hold_the_folders_or_lie_in_them(tmp_path: Path, part: str, masks: str) -> None:
    pairs_at(tmp_path / "outer" / part / "images", tmp_path / "outer" / part / masks)
    pairs_at(tmp_path / "inner" / "images" / part, tmp_path / "inner" / masks / part)
    for folder in (tmp_path / "outer", tmp_path / "inner"):
        assert [found.split for found in find_parts(folder)] == ["train"]
        assert len(opened(folder, "train")) == 2


@pytest.mark.parametrize(
    ("split", "word"),
    [
        ("val", "val"),
        ("val", "valid"),
        ("val", "validation"),
        ("test", "test"),
        ("test", "testing"),
    ],
)
def test_all_parts_are_found_inside_the_folders(tmp_path: Path, split: str, word: str) -> None:
    for part in ("training", word):
        pairs_at(tmp_path / "images" / part, tmp_path / "annotations" / part)
    assert len(opened(tmp_path, split)) == 3
    assert makes_validation(Data(path=tmp_path)) == (split == "test")
    assert has_test(Data(path=tmp_path)) == (split == "test")


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("train", "train_masks"),  # Carvana
        ("train", "train_labels"),  # Massachusetts roads
        ("train", "trainannot"),  # CamVid of SegNet
        ("train_img", "train_lab"),  # DeepCrack
        ("train_images", "train_masks"),
    ],
)
def test_folders_named_after_part_and_kind_are_recognised(
    tmp_path: Path, images: str, masks: str
) -> None:
    pairs_at(tmp_path / images, tmp_path / masks)
    assert [found.split for found in find_parts(tmp_path)] == ["train"]
    assert len(opened(tmp_path, "train")) == 2


@pytest.mark.parametrize("where", ["together", "apart"])
@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{}.jpg", "{}_mask.png"),  # Carvana, BUSI, LGG, Roboflow
        ("{}.jpg", "{}-mask.png"),
        ("{}.jpg", "{}_gt.png"),
        ("{}.jpg", "{}_seg.png"),
        ("{}.jpg", "{}_label.png"),
        ("{}.jpg", "{}_segmentation.png"),  # ISIC 2018
        ("{}.jpg", "{}_Segmentation.png"),  # ISIC 2016
        ("{}.bmp", "{}_anno.bmp"),  # GlaS
        ("{}.png", "{}_Annotation.png"),  # HC18
        ("{}_sat.jpg", "{}_mask.png"),  # DeepGlobe roads
        ("{}_image.png", "{}_mask.png"),  # CWFID
        ("{}.png", "mask_{}.png"),
        ("img_{}.png", "mask_{}.png"),
    ],
)
def test_what_is_usually_added_to_a_masks_name_is_recognised(
    tmp_path: Path, image: str, mask: str, where: str
) -> None:
    folders = ("images", "masks") if where == "apart" else (".", ".")
    pairs_at(tmp_path / folders[0], tmp_path / folders[1], image=image, mask=mask)
    found = opened(tmp_path, "all")
    assert found == [(image.format(n), mask.format(n)) for n in ("ant", "bee", "cow")]
    kinds = {finding.kind for finding in examine(tmp_path).findings}
    assert not kinds & {"image-without-mask", "mask-without-image", "unclear-partner"}


def test_a_number_may_follow_the_addition_at_once(tmp_path: Path) -> None:
    for number in range(3):  # as MONAI's tutorials write them
        image_at(tmp_path / f"img{number}.png")
        mask_at(tmp_path / f"seg{number}.png")
    assert opened(tmp_path, "all") == [(f"img{n}.png", f"seg{n}.png") for n in range(3)]


def test_masks_beside_images_of_one_name_are_told_by_their_kind(tmp_path: Path) -> None:
    pairs_at(tmp_path, tmp_path)  # MSRA10K, Crack500
    assert opened(tmp_path, "all") == [(f"{n}.jpg", f"{n}.png") for n in ("ant", "bee", "cow")]


def test_parts_may_hold_masks_beside_images(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        pairs_at(tmp_path / part, tmp_path / part, mask="{}_mask.png")
    assert [len(opened(tmp_path, split)) for split in ("train", "val", "test")] == [3, 3, 3]


def test_a_mere_folder_of_images_is_no_data(tmp_path: Path) -> None:
    for name in ("ant.jpg", "bee.png", "cow.png"):
        image_at(tmp_path / name)
    assert find_parts(tmp_path) == []
    with pytest.raises(DataError, match="no images with masks here"):
        open_split(Data(path=tmp_path), "train", seed=0)


@pytest.mark.parametrize(
    "others", [("x_mask.png", "x_gt.png"), ("x.png", "x_gt.png"), ("x_mask.png", "x_mask_1.png")]
)
def test_an_image_with_two_masks_is_refused_by_name(
    tmp_path: Path, others: tuple[str, str]
) -> None:
    pairs_at(tmp_path / "images", tmp_path / "masks")
    image_at(tmp_path / "images" / "x.jpg")
    for name in others:
        mask_at(tmp_path / "masks" / name)
    with pytest.raises(DataError) as caught:
        opened(tmp_path, "all")
    assert all(name in str(caught.value) for name in ("x.jpg", *others))
    findings = [each for each in examine(tmp_path).findings if each.kind == "unclear-partner"]
    assert [finding.severity for finding in findings] == ["error"]
    assert all(name in findings[0].message for name in ("x.jpg", *others))


def test_two_masks_beside_one_image_are_refused_by_name(tmp_path: Path) -> None:
    pairs_at(tmp_path, tmp_path, mask="{}_mask.png")
    mask_at(tmp_path / "bee_gt.png")
    with pytest.raises(DataError, match=r"bee\.jpg: bee_gt\.png and bee_mask\.png may both"):
        opened(tmp_path, "all")


def test_two_images_of_one_mask_are_refused_by_name(tmp_path: Path) -> None:
    pairs_at(tmp_path / "images", tmp_path / "masks")
    for name in ("x_image.png", "x_sat.png"):
        image_at(tmp_path / "images" / name)
    mask_at(tmp_path / "masks" / "x_mask.png")
    with pytest.raises(DataError, match=r"x_mask\.png: x_image\.png and x_sat\.png may both"):
        opened(tmp_path, "all")


def test_two_folders_of_masks_are_refused_by_name(tmp_path: Path) -> None:
    pairs_at(tmp_path / "images", tmp_path / "mask")
    pairs_at(tmp_path / "images", tmp_path / "1st_manual")  # DRIVE: mask/ is the field of view
    for read in (lambda: opened(tmp_path, "all"), lambda: examine(tmp_path)):
        with pytest.raises(DataError, match="1st_manual/ and mask/ could both hold the masks"):
            read()


def two_folders_of_masks(folder: Path) -> Path:
    for part in ("train", "test"):
        pairs_at(folder / part / "images", folder / part / "mask")
        pairs_at(folder / part / "images", folder / part / "1st_manual", mask="{}_manual1.png")
    return folder


def test_masks_names_the_folder_where_two_could_hold_them(tmp_path: Path) -> None:
    folder = two_folders_of_masks(tmp_path)
    with pytest.raises(DataError, match=r"name it with --masks 1st_manual, or take the others out"):
        opened(folder, "train")
    for name, ending in (("mask", ".png"), ("1st_manual", "_manual1.png")):
        data = Data(path=folder, masks=Masks(folder=Path(name)))
        assert [pair.mask.name for pair in open_split(data, "test", seed=0).pairs] == [
            f"{each}{ending}" for each in ("ant", "bee", "cow")
        ]
        diagnosis = examine(folder, data)
        assert not [each for each in diagnosis.findings if "without" in each.kind]
        assert {split.masks for split in diagnosis.statistics} == {3}
    assert has_test(data)
    assert makes_validation(data)


def test_masks_may_name_a_folder_of_an_unusual_name(tmp_path: Path) -> None:
    pairs_at(tmp_path / "images", tmp_path / "masks")
    pairs_at(tmp_path / "images", tmp_path / "by Anna", mask="{}_mask.png")
    pairs = opened(tmp_path, "all", masks=Masks(folder=Path("by Anna")))
    assert pairs[0] == ("ant.jpg", "ant_mask.png")


@pytest.mark.parametrize("name", ["msk", "train/mask", "../mask", "mask.png"])
def test_masks_that_names_no_folder_of_masks_is_refused(name: str, tmp_path: Path) -> None:
    folder = two_folders_of_masks(tmp_path)
    for read in (
        lambda data: open_split(data, "train", seed=0),
        lambda data: examine(folder, data),
    ):
        with pytest.raises(DataError) as refusal:
            read(Data(path=folder, masks=Masks(folder=Path(name))))
        said = str(refusal.value)
        assert f"no images here with masks in {name}/, as --masks says; found test/, train/" in said


def test_a_model_finds_its_masks_again_and_those_of_a_folder_that_has_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = two_folders_of_masks(tmp_path / "data"), tmp_path / "other"
    pairs_at(other / "test" / "images", other / "test" / "masks")
    words = ("--epochs", 1, "--image-size", 16, "model.width=2", "--masks", "1st_manual")
    main(["train", "--data-path", *map(str, (folder, "--out", tmp_path / "run", *words))])
    for place in (folder, other):
        model = ("--model", tmp_path / "run" / "best.safetensors", "--out", tmp_path / place.name)
        allowed = "--allow-training-images"  # the same pixels stand in both parts
        main(["evaluate", *map(str, (*model, "--data-path", place, allowed))])
        assert "3 images" in capsys.readouterr().out


def test_a_folder_of_other_files_is_no_folder_of_masks(tmp_path: Path) -> None:
    pairs_at(tmp_path / "images", tmp_path / "masks")
    for folder in ("labels", "annotations"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ant.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5")
    assert len(opened(tmp_path, "all")) == 3


@pytest.mark.parametrize("inside", [False, True])
def test_boxes_where_masks_are_wanted_are_named(tmp_path: Path, inside: bool) -> None:
    places = ("images/train", "labels/train") if inside else ("train/images", "train/labels")
    pairs_at(tmp_path / places[0], tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "elsewhere")
    (tmp_path / places[1]).mkdir(parents=True)
    for name in ("ant", "bee", "cow"):
        (tmp_path / places[1] / f"{name}.xml").write_text("<annotation><object/></annotation>\n")
    words = r"labels.*: no masks here but 3 \.xml files, which look like boxes"
    for read in (lambda: opened(tmp_path, "train"), lambda: examine(tmp_path)):
        with pytest.raises(DataError, match=words):
            read()


def test_a_partner_of_a_kind_that_is_not_read_is_named(tmp_path: Path) -> None:
    pairs_at(tmp_path / "images", tmp_path / "masks")
    (tmp_path / "images" / "bee.jpg").rename(tmp_path / "images" / "bee.cr2")
    with pytest.raises(DataError, match=r"bee\.png: .*bee\.cr2 is of a kind that is not read"):
        opened(tmp_path, "all")
    findings = [each for each in examine(tmp_path).findings if each.kind == "mask-without-image"]
    assert "bee.cr2 is of a kind that is not read" in findings[0].message


def test_a_partner_of_another_suffix_is_found(tmp_path: Path) -> None:
    pairs_at(tmp_path / "images", tmp_path / "masks", image="{}.JPG", mask="{}.tif")
    assert opened(tmp_path, "all")[0] == ("ant.JPG", "ant.tif")


def test_accents_in_one_piece_or_two_are_the_same_name() -> None:
    images, masks = [Path("caf\u00e9.jpg")], [Path("cafe\u0301.png")]
    assert match(images, masks).partners == {images[0]: masks[0]}


def test_what_was_recognised_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs_at(tmp_path / "images" / "train", tmp_path / "labels" / "train")
    with caplog.at_level("INFO"):
        for _ in range(2):
            opened(tmp_path, "train")
            opened(tmp_path, "val")
    said = [record.getMessage() for record in caplog.records]
    words = f"{tmp_path}: labels/train/ read as the masks of images/train/: 3 pairs"
    assert said.count(words) == 1


def test_what_is_passed_over_is_counted_by_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    pairs_at(images, tmp_path / "masks")
    for name in ("d.cr2", "e.CR2", "f.cr2", "g.svs", "README", ".hidden.png"):
        (images / name).write_bytes(b"")
    (images / "more").mkdir()
    (images / "gone.png").symlink_to(images / "nowhere")
    words = (
        "5 of kinds that are not read (.cr2 3, .svs 1, no suffix 1), 1 broken link or pipe, "
        "1 folder inside, 1 hidden"
    )
    assert passed_over(images) == words
    assert passed_over(tmp_path / "masks") == ""
    with caplog.at_level("INFO"):
        opened(tmp_path, "all")
    assert f"passed over in images/: {words}" in caplog.text
    assert any(words in finding.message for finding in examine(tmp_path).findings)


def test_links_in_a_circle_do_no_harm(tmp_path: Path) -> None:
    pairs_at(tmp_path / "images", tmp_path / "masks")
    (tmp_path / "train").symlink_to(tmp_path)
    (tmp_path / "images" / "train").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "self.png").symlink_to(tmp_path / "images" / "self.png")
    (tmp_path / "val").symlink_to(tmp_path / "val")
    assert len(opened(tmp_path, "all")) == 3
    assert examine(tmp_path).exit_code() in (0, 2)


def test_names_that_look_like_ways_out_stay_names(tmp_path: Path) -> None:
    pairs_at(tmp_path / "images", tmp_path / "masks", image="..{}.jpg", mask="..{}.png")
    with pytest.raises(DataError, match="no images here"):  # hidden, by their first dot
        opened(tmp_path, "all")
    name = "a\\..\\..\\b" if os.name != "nt" else "ab"
    image_at(tmp_path / "images" / f"{name}.png")
    mask_at(tmp_path / "masks" / f"{name}.png")
    assert opened(tmp_path, "all") == [(f"{name}.png", f"{name}.png")]


def test_predict_counts_what_it_passes_over(
    tmp_path: Path, small_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    image_at(folder / "a.png")
    for name in ("b.cr2", "c.cr2", "d.cr2", "e.svsx"):
        (folder / name).write_bytes(b"")
    main(["predict", str(folder), "--model", str(small_checkpoint), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "1 of 1 images" in said
    assert f"passed over in {folder}: 4 of kinds that are not read (.cr2 3, .svsx 1)" in said
