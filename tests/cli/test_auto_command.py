"""``notan train --auto``: what it writes, what it trains, what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from notan.cli.main import main
from notan.config import load_run

if TYPE_CHECKING:
    from pathlib import Path

QUICK = ("--epochs", "1", "model.width=2", "train.trackers=[]", "preprocess.image_size=16")

pytestmark = pytest.mark.usefixtures("without_reports")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["train", *words])
    assert stop.value.code
    return capsys.readouterr().err.splitlines()[-1]


def test_it_says_what_it_chose_and_trains_that(
    drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    main(["train", "--auto", "--data-path", str(drawn_folder), "--out", str(out), *QUICK])
    said = capsys.readouterr().out
    assert "24 training and 6 validation images" in said
    assert "train.epochs = 1: as asked" in said
    assert "Best validation Dice" in said
    run = load_run(out / "run.toml")
    assert load_run(out / "auto.toml") == run
    assert (run.model.width, run.train.epochs, run.train.schedule) == (2, 1, "cosine")


def test_a_recipe_can_be_written_changed_and_trained(
    drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "mine.toml", tmp_path / "run"
    words = ["--auto", "--data-path", str(drawn_folder), "--write-recipe", str(recipe)]
    main(["train", *words, *QUICK])
    assert f"notan train --recipe {recipe}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml"]
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("batch_size = 8", "batch_size = 12"), encoding="utf-8")
    main(["train", "--recipe", str(recipe), "--out", str(out)])
    assert load_run(out / "run.toml").train.batch_size == 12


def test_a_recipe_is_written_over_nothing_unless_asked(
    drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("seed = 1\n")
    words = ["--auto", "--data-path", str(drawn_folder), "--write-recipe", str(recipe)]
    assert "mine.toml: something is here already" in refused(words, capsys)
    assert recipe.read_text() == "seed = 1\n"
    main(["train", *words, "--overwrite"])
    assert load_run(recipe).model.name == "unet"


def test_a_later_plain_run_in_the_folder_leaves_no_recipe_of_the_earlier_one(
    drawn_folder: Path, tmp_path: Path
) -> None:
    words = ["train", "--data-path", str(drawn_folder), "--out", str(tmp_path / "run"), *QUICK]
    main([*words, "--auto"])
    main([*words, "--overwrite", "--image-size", "16", "--batch-size", "8"])
    assert not (tmp_path / "run" / "auto.toml").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--auto"], "no data folder was given; name one with --data-path FOLDER"),
        (["--auto", "--data-path", "nowhere"], "nowhere: there is no such folder"),
        (["--auto", "--recipe", "a.toml"], "--auto chooses the settings and --recipe brings them"),
        (["--auto", "--resume", "run"], "--auto chooses the settings and --resume brings them"),
        (["--write-recipe", "a.toml"], "give --auto too"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in refused(words, capsys)
