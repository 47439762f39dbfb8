"""From the files of an annotation tool to a model and its score."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import notan
from notan.checking import examine
from notan.data import dividing
from notan.errors import ConfigError, DataError
from notan.modelfile.card import read_card

FILES = Path(__file__).parent.parent / "annotations"
SMALL = ["model.width=8", "train.batch_size=3", "augment.enabled=false"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that learned cells from COCO's file for one epoch."""
    result = notan.train(
        FILES / "coco-polygons",
        epochs=1,
        image_size=32,
        overrides=[*SMALL, "data.masks.foreground=cell"],
        out=tmp_path_factory.mktemp("run"),
    )
    return result.checkpoint


def test_the_card_keeps_which_class_is_foreground(model: Path) -> None:
    card = read_card(model)
    assert card.run.data.masks.foreground == ("cell",)
    assert card.data.layout == "coco"
    assert card.data.training_images == 6
    assert card.data.validation_names is None


@pytest.mark.parametrize("folder", ["coco-polygons", "labelme", "cvat-mask"])
def test_evaluate_applies_the_choice(model: Path, folder: str) -> None:
    split = "val" if folder == "coco-polygons" else "all"
    score = notan.evaluate(model, FILES / folder, split=split, allow_training_images=True)
    truth = FILES / "truth"
    for image in score.images:
        labels = np.asarray(Image.open(truth / f"{image.name}.png"))
        assert image.true_positive + image.false_negative == (labels == 1).sum()


def test_two_class_masks_need_no_name(model: Path, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("one", "two"):
        image = Image.open(FILES / "nnunet" / "imagesTr" / f"{name}_0000.png")
        image.save(tmp_path / "images" / f"{name}.png")
        mask = np.asarray(Image.open(FILES / "truth" / f"{name}.png")) == 1
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "masks" / f"{name}.png")
    score = notan.evaluate(model, tmp_path, split="all", allow_training_images=True)
    assert score.mean_dice >= 0
    assert len(score.images) == 2


def test_a_value_of_mask_files_is_no_number_of_a_class(tmp_path: Path) -> None:
    result = notan.train(
        FILES / "csv",
        epochs=1,
        image_size=32,
        overrides=[*SMALL, "data.masks.foreground=1"],
        out=tmp_path / "run",
    )
    words = "foreground is 1 of the layout 'table', which is another thing in the layout 'coco'"
    with pytest.raises(ConfigError, match=words):
        notan.evaluate(result.checkpoint, FILES / "coco-polygons", split="val")


def test_channels_in_files_of_their_own_are_one_image(tmp_path: Path) -> None:
    data = FILES / "nnunet-channels"
    choice = ["data.masks.foreground=cell"]
    result = notan.train(
        data, epochs=1, image_size=32, overrides=[*SMALL, *choice], out=tmp_path / "run"
    )
    card = read_card(result.checkpoint)
    assert card.preprocess.channels == 2
    assert len(set(card.data.training_hashes)) == 7
    assert len(notan.evaluate(result.checkpoint, data, split="val").images) == 1
    diagnosis = examine(data, card.run.data, progress=False)
    assert not [each for each in diagnosis.findings if each.severity == "error"]
    assert diagnosis.statistics[0].images == 8
    (tmp_path / "lost").mkdir()
    for path in data.rglob("*"):
        if path.is_file() and path.name != "six_0001.png":
            place = tmp_path / "lost" / path.relative_to(data)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"six_0000\.png: stands alone, though .* names 2 channels"):
        notan.train(tmp_path / "lost", epochs=1, overrides=choice, out=tmp_path / "none")


def test_a_class_that_no_image_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 6 masks holds foreground 5"):
        notan.train(
            FILES / "voc-void",
            epochs=1,
            image_size=32,
            overrides=[*SMALL, "data.masks.foreground=bottle"],
            out=tmp_path / "run",
        )


def test_what_was_recognised_is_said(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    dividing.say_once.cache_clear()  # another test may have opened the folder
    with caplog.at_level(logging.INFO, logger="notan"), pytest.raises(DataError, match="2 classes"):
        notan.train(FILES / "labelme-windows", epochs=1, out=tmp_path / "run")
    assert "recognised as LabelMe's JSON files: all 8 images, classes cell, nucleus" in caplog.text
