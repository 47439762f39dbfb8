"""The data doctor on images that stand in a folder twice, and on splits that differ."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from doctor_folders import SIZE, found, image_path, mask, only, pixels, write, write_clean
from notan.checking.reading import ImageFacts
from notan.data.copies import near_copies, thumbnail_of
from notan.data.synthetic import DrawnSource

if TYPE_CHECKING:
    from notan.types import RGBImage


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clean(tmp_path_factory.mktemp("clean") / "data")


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "data"))


def copy_pair(folder: Path, number: int, part: str, name: str = "copy.png") -> None:
    shutil.copy(image_path(folder, number), folder / part / "images" / name)
    shutil.copy(mask(folder, number), folder / part / "masks" / name)


def resized_jpeg(path: Path, to: Path) -> None:
    with Image.open(path) as opened:
        opened.resize((opened.width * 3 // 2, opened.height * 3 // 2)).save(to, quality=85)


def test_the_same_image_twice_in_a_split(folder: Path) -> None:
    copy_pair(folder, 1, "train")
    finding = only(folder, "duplicate")
    assert finding.severity == "warning"
    assert finding.split == "train"
    assert {path.name for path in finding.files} == {"copy.png", "drawn-0001.png"}


def test_the_same_image_in_two_splits_is_an_error(folder: Path) -> None:
    copy_pair(folder, 1, "test")
    finding = only(folder, "duplicate-across-splits")
    assert finding.severity == "error"
    assert "(train)" in finding.message
    assert "(test)" in finding.message


def test_the_same_pixels_in_another_format_are_the_same_image(folder: Path) -> None:
    Image.fromarray(pixels(image_path(folder, 1))).save(folder / "test" / "images" / "copy.bmp")
    shutil.copy(mask(folder, 1), folder / "test" / "masks" / "copy.png")
    assert len(only(folder, "duplicate-across-splits").files) == 2


@pytest.mark.parametrize(
    ("part", "kind"), [("train", "near-duplicate"), ("val", "near-duplicate-across-splits")]
)
def test_a_resized_and_recompressed_copy(folder: Path, part: str, kind: str) -> None:
    resized_jpeg(image_path(folder, 1), folder / part / "images" / "near.jpg")
    with Image.open(mask(folder, 1)) as opened:
        larger = opened.resize((SIZE[1] * 3 // 2, SIZE[0] * 3 // 2), Image.Resampling.NEAREST)
    larger.save(folder / part / "masks" / "near.png")
    assert only(folder, kind).severity == "warning"


def test_three_copies_are_one_finding(folder: Path) -> None:
    copy_pair(folder, 1, "train", "copy.png")
    copy_pair(folder, 1, "train", "more.png")
    assert len(only(folder, "duplicate").files) == 3


def test_copies_with_different_masks(folder: Path) -> None:
    copy_pair(folder, 1, "train")
    path = folder / "train" / "masks" / "copy.png"
    write(path, pixels(path)[::-1])
    finding = found(folder, "copies-with-different-masks")[0]
    assert finding.severity == "error"
    assert "their masks differ" in finding.message


def moved(image: RGBImage, pixels_right: int) -> RGBImage:
    return np.ascontiguousarray(np.roll(image, pixels_right, axis=1))


def facts_of(image: RGBImage) -> ImageFacts:
    size = image.shape[:2]
    return ImageFacts(Path("x.png"), "train", size, "", (), (), thumbnail_of(image))


def test_thumbnails_find_copies_among_many_and_nothing_else() -> None:
    images = [sample.image for sample in DrawnSource(60, size=(64, 80), seed=9)]
    brighter = np.clip(images[7] * 1.05, 0, 255).astype(np.uint8)
    every = [facts_of(image) for image in [*images, brighter, moved(images[3], 12)]]
    assert list(near_copies(every)) == [(7, 60)]


def test_a_part_that_changed_makes_another_image() -> None:
    image = DrawnSource(1, size=(128, 160), seed=4)[0].image
    other = image.copy()
    other[40:80, 60:100] = 255 - other[40:80, 60:100]
    assert not list(near_copies([facts_of(image), facts_of(other)]))


def test_splits_of_other_colours(folder: Path) -> None:
    for path in (folder / "test" / "images").iterdir():
        write(path, pixels(path) // 5)
    finding = found(folder, "different-colour")[0]
    assert finding.severity == "warning"
    assert "train and test differ strongly" in finding.message


def test_splits_of_other_coverage(folder: Path) -> None:
    for path in (folder / "test" / "masks").iterdir():
        foreground = np.zeros(SIZE, np.uint8)
        foreground[: 70 + int(path.stem[-1]), 5:-5] = 255
        write(path, foreground)
    finding = found(folder, "different-coverage")[0]
    assert finding.severity == "warning"
    assert "share of foreground" in finding.message
