"""From a folder to a recipe that loads, and a run that trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from notan.auto import suggest
from notan.config import load_run
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, DataError
from notan.training import train

if TYPE_CHECKING:
    from pathlib import Path

QUICK = {"train.epochs": 1, "model.width": 2, "train.trackers": ()}


def test_the_recipe_reads_back_to_the_run(drawn_folder: Path, tmp_path: Path) -> None:
    suggestion = suggest(flags={"data.path": drawn_folder}, overrides=["seed=5"])
    path = tmp_path / "auto.toml"
    path.write_text(suggestion.recipe, encoding="utf-8")
    assert load_run(path) == suggestion.run
    assert suggestion.run.seed == 5
    assert "train.batch_size = 8: " in suggestion.sentences


@pytest.mark.parametrize("pairs", [2, 3, 7])
def test_what_is_chosen_for_few_images_trains(tmp_path: Path, pairs: int) -> None:
    write_folder(DrawnSource(pairs, size=(20, 30)), tmp_path / "data")
    suggestion = suggest(flags={"data.path": tmp_path / "data", **QUICK})
    result = train(suggestion.run, out=tmp_path / "run", recipe=suggestion.recipe)
    assert result.epoch == 1
    assert (tmp_path / "run" / "auto.toml").read_text(encoding="utf-8") == suggestion.recipe


def test_a_setting_that_is_asked_to_be_none_is_none(drawn_folder: Path, tmp_path: Path) -> None:
    flags = {"data.path": drawn_folder}
    suggestion = suggest(flags=flags, overrides=["train.ema_decay=none"])
    assert suggestion.run.train.ema_decay is None
    (tmp_path / "auto.toml").write_text(suggestion.recipe, encoding="utf-8")
    assert load_run(tmp_path / "auto.toml") == suggestion.run


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.widht=3"], "did you mean 'width'"),
        (["train.epochs=0"], "train.epochs"),
        (["device=gpu"], "there is no such device"),
    ],
)
def test_a_wrong_setting_is_named_as_ever(
    drawn_folder: Path, overrides: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        suggest(flags={"data.path": drawn_folder}, overrides=overrides)


def test_one_pair_is_too_few(tmp_path: Path) -> None:
    write_folder(DrawnSource(1, size=(20, 30)), tmp_path)
    with pytest.raises(DataError, match="only one pair"):
        suggest(flags={"data.path": tmp_path})


def test_an_empty_folder_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images with masks here"):
        suggest(flags={"data.path": tmp_path})
