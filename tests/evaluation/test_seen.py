"""A score on images that the model has seen is refused, or marked."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from notan.cli.main import main
from notan.data.folders import folder_source
from notan.errors import DataError
from notan.evaluation.evaluate import evaluate
from notan.prediction.predictor import Predictor

if TYPE_CHECKING:
    from pathlib import Path

REFUSAL = r"the model was trained on 24 of these 24 images \(.*, \.\.\.\): a score on them says"


def command(*words: object) -> int:
    """Run the command line; return its exit code."""
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_training_images_are_refused(small_checkpoint: Path, drawn_folder: Path) -> None:
    predictor = Predictor.load(small_checkpoint)
    with pytest.raises(DataError, match=REFUSAL):
        evaluate(predictor, folder_source(drawn_folder / "train"), split="train")


def test_allowed_they_are_scored_and_the_score_is_marked(
    small_checkpoint: Path, drawn_folder: Path
) -> None:
    predictor = Predictor.load(small_checkpoint)
    source = folder_source(drawn_folder / "train")
    score = evaluate(predictor, source, split="train", allow_training_images=True)
    mark = "NOT A TEST: the model was trained on 24 of 24 of these images"
    assert mark in score.summary().splitlines()
    assert score.rules.seen == mark


def test_validation_images_are_scored_and_said_to_flatter(
    small_checkpoint: Path, drawn_folder: Path
) -> None:
    score = evaluate(
        Predictor.load(small_checkpoint), folder_source(drawn_folder / "val"), split="val"
    )
    assert score.rules.seen == (
        "flattering: epoch and threshold were chosen on 6 of 6 of these images"
    )


def test_test_images_are_said_to_be_new(small_checkpoint: Path, drawn_folder: Path) -> None:
    score = evaluate(
        Predictor.load(small_checkpoint), folder_source(drawn_folder / "test"), split="test"
    )
    assert score.rules.seen == "the model has seen none of these images"


def test_a_model_without_a_card_says_that_nothing_is_known(
    small_checkpoint: Path, drawn_folder: Path
) -> None:
    known = Predictor.load(small_checkpoint)
    unknown = Predictor(known.backend, known.preprocessor)
    score = evaluate(unknown, folder_source(drawn_folder / "train"), split="train")
    assert score.rules.seen == "whether the model has seen these images is not known"


def test_one_training_image_under_another_name_is_found(
    small_checkpoint: Path,
    drawn_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(drawn_folder / "test", tmp_path / "data" / "test")
    leak = folder_source(drawn_folder / "train").pairs[3]
    for path in (leak.image, leak.mask):
        shutil.copy(path, tmp_path / "data" / "test" / path.parent.name / f"innocent{path.suffix}")
    words = ("--model", small_checkpoint, "--data-path", tmp_path / "data", "--out", tmp_path / "o")
    assert command("evaluate", *words) == 3
    said = capsys.readouterr().err
    assert "the model was trained on 1 of these 7 images (innocent): " in said
    assert not (tmp_path / "o").exists()
    assert command("inference", *words) == 3
    assert command("evaluate", *words, "--allow-training-images") == 0
    rules = json.loads((tmp_path / "o" / "score.json").read_text())["rules"]
    assert rules["seen"] == "NOT A TEST: the model was trained on 1 of 7 of these images"


@pytest.mark.parametrize("threshold", ["-0.1", "1.5", "nan"])
@pytest.mark.parametrize("verb", ["evaluate", "inference", "predict"])
def test_a_threshold_outside_of_probabilities_is_refused(
    small_checkpoint: Path,
    drawn_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    threshold: str,
    verb: str,
) -> None:
    data = drawn_folder / "test"
    images = (data / "images",) if verb == "predict" else ("--data-path", data, "--split", "all")
    words = ("--model", small_checkpoint, "--out", tmp_path / "out")
    assert command(verb, *images, *words, "--threshold", threshold) == 2
    assert f"the threshold is {threshold}; it must be in 0..1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_threshold_of_ones_own_takes_the_place_of_what_validation_chose(
    small_checkpoint: Path, drawn_folder: Path
) -> None:
    chosen = Predictor.load(small_checkpoint).postprocessing
    own = Predictor.load(small_checkpoint, threshold=0.9).postprocessing
    assert (own.threshold, own.temperature, own.threshold_rule) == (
        0.9,
        chosen.temperature,
        "threshold",
    )
    source = folder_source(drawn_folder / "test")
    score = evaluate(Predictor.load(small_checkpoint, threshold=0.9), source, split="test")
    assert score.rules.threshold == 0.9
