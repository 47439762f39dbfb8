"""The default model: predicts without --model, says what it is, is small, knows no machine."""

from __future__ import annotations

import hashlib
import logging
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import notan
from image_files import photo, saved
from notan.cli.main import main
from notan.config import load_run
from notan.data.folders import open_split
from notan.evaluation.evaluate import evaluate
from notan.modelfile.card import read_card
from notan.modelfile.default import DEFAULT_MODEL
from notan.prediction.predictor import Predictor

if TYPE_CHECKING:
    from notan.modelfile.card import Card

MOST_BYTES = 8_000_000
PAGE = DEFAULT_MODEL.with_name("README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def card() -> Card:
    return read_card(DEFAULT_MODEL)


def test_it_is_small() -> None:
    assert DEFAULT_MODEL.stat().st_size <= MOST_BYTES
    assert f"{DEFAULT_MODEL.stat().st_size / 1e6:.1f} MB" in PAGE


def test_its_card_says_what_it_learned_from(card: Card) -> None:
    assert card.data.training_images + card.data.validation_images == 1640
    assert len(card.data.training_hashes) == 270 + 3147  # of both steps of its training
    assert card.trimap_border == "background"
    assert card.pretrained is not None
    assert "efficientnet_lite0" in card.pretrained
    assert card.exported is not None
    assert card.exported.precision == "half"


def test_its_page_is_about_this_file() -> None:
    content = hashlib.sha256(DEFAULT_MODEL.read_bytes()).hexdigest()
    assert content[:16] in PAGE
    for words in ("Abyssinian", "Bengal", "american bulldog", "CC BY-SA 4.0", "Apache-2.0"):
        assert words in PAGE


def test_its_card_names_no_folder_of_the_machine_that_made_it(card: Card) -> None:
    assert not re.search(r'"(/|[A-Z]:\\|~)', card.model_dump_json())


def test_it_comes_with_the_package() -> None:
    settings = tomllib.loads(
        (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    )
    listed = settings["tool"]["setuptools"]["package-data"]["notan"]
    package = Path(notan.__file__).parent
    files = {path for pattern in listed for path in package.glob(pattern)}
    assert {DEFAULT_MODEL, DEFAULT_MODEL.with_name("README.md")} <= files


def test_an_image_is_predicted_without_a_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = photo()
    saved(tmp_path / "cat.png", Image.fromarray(image))
    with caplog.at_level(logging.INFO):
        main(["predict", str(tmp_path / "cat.png"), "--out", str(tmp_path / "out")])
    assert "no --model was given: the default model" in caplog.text
    with Image.open(tmp_path / "out" / "masks" / "cat.png") as mask:
        assert np.asarray(mask).shape == image.shape[:2]


def test_it_finds_pets_that_it_has_not_seen(pets_folder: Path) -> None:
    run = load_run(flags={"data.path": pets_folder, "data.trimap_border": "background"})
    test = open_split(run.data, "test", seed=0)
    some = test.only(frozenset(test.names[::8]))
    score = evaluate(Predictor.load(DEFAULT_MODEL), some, split="test", trimap_border="background")
    assert score.mean_dice > 0.85
