"""What is chosen in reading a data set is said, in training as in check, and kept in the card."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from PIL import Image

import notan
from image_files import saved
from needs import case
from notan.config import Data, Masks
from notan.data.folders import open_split
from notan.data.survey import survey, white_of
from notan.data.synthetic import DrawnSource
from notan.errors import DataError
from notan.io.images import read_image
from notan.io.tiff import TiffPages, TiffParts
from notan.modelfile.card import read_card
from notan.prediction.inputs import Found
from notan.prediction.items import items_of
from notan.prediction.predictor import Predictor

if TYPE_CHECKING:
    from pathlib import Path

    from notan.checking import Diagnosis


def kinds(diagnosis: Diagnosis) -> dict[str, str]:
    return {finding.kind: finding.message for finding in diagnosis.findings}


def folder_of(path: Path, *, count: int = 12, size: int = 48) -> Path:
    """Write drawn images and masks as PNG."""
    for name in ("images", "masks"):
        (path / name).mkdir(parents=True)
    for number, sample in enumerate(DrawnSource(count, size=(size, size + 16), seed=3)):
        saved(path / "images" / f"p{number:02d}.png", Image.fromarray(sample.image))
        mask = Image.fromarray(sample.mask.astype(np.uint8) * 255)
        saved(path / "masks" / f"p{number:02d}.png", mask)
    return path


def test_check_sees_masks_drawn_before_the_images_were_turned() -> None:
    folder = case("08-exif-same-size/o3")
    found = kinds(notan.check(folder))
    assert "--exif-orientation ignore" in found["turned-masks"]
    assert "turned-masks" not in kinds(notan.check(folder, exif_orientation="ignore"))


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_check_tells_masks_that_were_turned_too_from_those_that_were_not(
    tmp_path: Path, orientation: int
) -> None:
    folder = folder_of(tmp_path / "data")
    exif = Image.Exif()
    exif[274] = orientation
    turn = {2: np.fliplr, 3: lambda a: a[::-1, ::-1], 4: np.flipud}[orientation]
    for path in (folder / "images").iterdir():
        stored = turn(np.asarray(Image.open(path)))
        saved(path, Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert {"turned-images"} <= set(kinds(notan.check(folder)))
    for path in (folder / "masks").iterdir():
        saved(path, Image.fromarray(np.ascontiguousarray(turn(np.asarray(Image.open(path))))))
    assert "turned-masks" in kinds(notan.check(folder))
    assert "turned-masks" not in kinds(notan.check(folder, exif_orientation="ignore"))


def test_training_says_that_images_are_turned_and_masks_are_not() -> None:
    source = open_split(Data(path=case("08-exif-same-size/o3")), "all", seed=0)
    assert any("--exif-orientation ignore" in line for line in survey(source).lines("train"))


def test_pixels_are_left_as_stored_where_the_owner_says_so() -> None:
    folder = case("08-exif-same-size/o3")
    upright, stored = (
        open_split(Data(path=folder, exif_orientation=how), "all", seed=0)[0].image
        for how in ("apply", "ignore")
    )
    np.testing.assert_array_equal(upright, stored[::-1, ::-1])


@pytest.fixture
def twelve_bits(tmp_path: Path) -> Path:
    """Write drawn images with 12 of 16 bits in use, grey."""
    folder = folder_of(tmp_path / "data")
    for path in (folder / "images").iterdir():
        grey = np.asarray(Image.open(path).convert("L"))
        path.unlink()
        tifffile.imwrite(path.with_suffix(".tif"), grey.astype(np.uint16) * np.uint16(16))
    return folder


def test_bits_in_use_are_found_said_and_kept(
    twelve_bits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "notan")
    trained = notan.train(
        twelve_bits,
        epochs=1,
        batch_size=4,
        image_size=32,
        device="cpu",
        overrides=("model.width=4", "train.trackers=[]"),
        out=tmp_path / "run",
    )
    assert "4095 is read as white" in caplog.text
    card = read_card(trained.checkpoint)
    assert card.preprocess.white == 4095
    score = notan.evaluate(trained.checkpoint, twelve_bits, split="val")
    assert score.mean_dice == pytest.approx(trained.dice, abs=0.02)
    assert "4095 is read as white" in kinds(notan.check(twelve_bits))["image-choice"]


@pytest.mark.parametrize(
    ("peak", "white"),
    [(0, 65535), (200, 255), (1000, 1023), (4095, 4095), (4096, 16383), (30000, 65535)],
)
def test_white_is_the_largest_value_of_as_many_bits_as_are_in_use(peak: int, white: int) -> None:
    assert white_of(peak) == white


def test_a_stack_among_the_images_is_said(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data")
    first = folder / "images" / "p00.png"
    pixels = np.asarray(Image.open(first))
    first.unlink()
    tifffile.imwrite(first.with_suffix(".tif"), np.stack([pixels, pixels]), photometric="rgb")
    words = "several pages or frames; the first is read"
    lines = survey(open_split(Data(path=folder), "all", seed=0)).lines("train")
    assert f"train images: {words} (1)" in lines
    assert kinds(notan.check(folder))["image-choice"] == f"1 image: {words}"


def test_foreground_that_no_mask_holds_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data")
    data = Data(path=folder, masks=Masks(foreground=(17,)))
    with pytest.raises(DataError, match="none of 12 masks holds foreground 17"):
        survey(open_split(data, "all", seed=0))


def test_the_same_rule_reads_masks_in_check_training_and_evaluation(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data")
    plain = shutil.copytree(folder, tmp_path / "plain")
    for path in (folder / "masks").iterdir():
        labels = np.asarray(Image.open(path)) // 255
        labels[:4] = 2  # another class
        labels[-4:] = 255  # void
        saved(path, Image.fromarray(labels * np.uint8(1)))
    assert "ambiguous-mask" in kinds(notan.check(folder))
    rule = {"foreground": "1", "ignore": "255"}
    assert "ambiguous-mask" not in kinds(notan.check(folder, masks=rule))
    data = Data.model_validate({"path": folder, "masks": rule})
    for told, known in zip(
        open_split(data, "all", seed=0),
        open_split(Data(path=plain), "all", seed=0),
        strict=True,
    ):
        assert told.ignore is not None
        inside = ~told.ignore
        inside[:4] = False
        np.testing.assert_array_equal(told.mask[inside], known.mask[inside])
        assert not told.mask[~inside].any()
        assert told.ignore[-4:].all()


def test_prediction_reads_bits_as_training_did(
    twelve_bits: Path, tmp_path: Path, default_model: Path
) -> None:
    predictor = notan.load(default_model)
    shown = predictor.preprocessor.model_copy(update={"white": 4095})
    told = Predictor(predictor.backend, shown, postprocessing=predictor.postprocessing)
    path = next(iter(sorted((twelve_bits / "images").iterdir())))
    reading = shown.reading
    image = read_image(path, reading)
    expected = predictor(image).mask
    np.testing.assert_array_equal(told(path).mask, expected)
    np.testing.assert_array_equal(told(path.read_bytes()).mask, expected)
    (item,) = items_of(Found("p", path), reading=reading)
    np.testing.assert_array_equal(item.read(), image)
    with path.open("rb") as file:
        np.testing.assert_array_equal(TiffPages(file, "p", reading).read(0), image)
    tiles = tmp_path / "tiles.tif"
    tifffile.imwrite(tiles, tifffile.imread(path), tile=(16, 16))
    with TiffParts(tiles, reading) as parts:
        np.testing.assert_array_equal(parts.read(0, 0, *image.shape[:2]), image)


def test_what_the_owner_said_stands_in_the_card_and_judges_the_model(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data")
    for path in (folder / "masks").iterdir():
        labels = np.asarray(Image.open(path)) // 255
        labels[:4], labels[-4:] = 2, 255
        saved(path, Image.fromarray(labels * np.uint8(1)))
    trained = notan.train(
        folder,
        epochs=1,
        batch_size=4,
        image_size=32,
        device="cpu",
        overrides=(
            "model.width=4",
            "train.trackers=[]",
            "data.masks.foreground=1",
            "data.masks.ignore=255",
        ),
        out=tmp_path / "run",
    )
    assert read_card(trained.checkpoint).run.data.masks == Masks(foreground=(1,), ignore=(255,))
    score = notan.evaluate(trained.checkpoint, folder, split="val")
    assert score.mean_dice == pytest.approx(trained.dice, abs=0.02)
