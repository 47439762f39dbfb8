"""The search in a data folder: what is gathered, refused and kept. No network is trained here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from doctor_folders import pixels, write
from label_folders import EASY, write_ellipses
from notan.checking import examine, label_errors
from notan.checking.label_errors import (
    LabelPlan,
    claim,
    gather,
    in_words,
    plan_search,
    search_labels,
)
from notan.config import Data, load_run
from notan.errors import CheckpointError, ConfigError, DataError
from notan.modelfile.card import load_checkpoint, save_checkpoint
from notan.modelfile.postprocess import Postprocessing
from notan.prediction.predictor import Prediction
from notan.training import train
from runs import tiny

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.config import Run
    from notan.data.samples import Sample, Source

PLAN = LabelPlan(Path("best.safetensors"), "abc", load_run(flags=EASY), 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_ellipses(tmp_path / "data", train=8, val=3)


@pytest.fixture
def all_knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let networks take the bright pixels for foreground, which is right, instead of training."""

    def stub(_: Run, source: Source, **__: object) -> Iterator[tuple[Sample, Prediction]]:
        for sample in source:
            bright = sample.image.mean(axis=2) > 125
            yield (
                sample,
                Prediction(np.where(bright, 0.95, 0.05).astype(np.float32), Postprocessing()),
            )

    monkeypatch.setattr(label_errors, "predict_held_out", stub)


def mask_of(folder: Path, name: str, part: str = "train") -> Path:
    return folder / part / "masks" / f"{name}.png"


def invert(path: Path) -> None:
    write(path, 255 - pixels(path))


def test_training_and_validation_images_are_gathered_and_no_test_image(folder: Path) -> None:
    write_ellipses(folder / "more", train=1, val=1)
    (folder / "more" / "val").rename(folder / "test")
    source, left_out = gather(folder, "folder", Data())
    assert len(source) == 11
    assert left_out == ()
    assert not any("test" in pair.image.parts for pair in source.pairs)


def test_a_name_that_stands_in_two_parts_is_told_apart(folder: Path) -> None:
    for kind in ("images", "masks"):
        path = folder / "val" / kind / "e08.png"
        path.rename(path.with_name("e00.png"))
    source, _ = gather(folder, "folder", Data())
    assert len(set(source.names)) == 11
    assert {"train/e00.png", "validation/e00.png"} <= set(source.names)


@pytest.mark.usefixtures("all_knowing")
def test_masks_that_cannot_be_read_are_left_out_saying_so(folder: Path) -> None:
    mask_of(folder, "e01").write_text("no image")
    mask_of(folder, "e02").unlink()
    diagnosis = examine(folder)
    search = search_labels(PLAN, diagnosis, out=folder / "out")
    assert len(search.ranking.suspects) == 9
    (finding,) = (each for each in search.findings() if each.kind == "label-unjudged")
    assert "1 image left out of the ranking" in finding.message
    assert "e01.png" in finding.message
    assert "1 image left out" in search.describe()
    assert search.add_to(diagnosis).exit_code() == 2  # the ordinary errors stay


@pytest.mark.usefixtures("all_knowing")
def test_a_wrong_mask_becomes_a_warning_with_its_explanation(folder: Path) -> None:
    invert(mask_of(folder, "e03"))
    diagnosis = examine(folder)
    search = search_labels(PLAN, diagnosis, out=folder / "out")
    (finding,) = (
        each for each in search.add_to(diagnosis).findings if each.kind.startswith("label-")
    )
    assert (finding.kind, finding.severity) == ("label-inverted", "warning")
    assert finding.files == (mask_of(folder, "e03"),)
    assert "looks inverted (Dice with the model 0.0" in finding.message
    assert "1 of 11 masks look wrong" in search.describe()
    assert (folder / "out" / "held-out" / "e03.png").is_file()


@pytest.mark.usefixtures("all_knowing")
def test_the_json_holds_every_mask_the_worst_first(folder: Path) -> None:
    invert(mask_of(folder, "e03"))
    search = search_labels(PLAN, examine(folder), out=folder / "out")
    rows = json.loads(json.dumps(search.to_json()))["ranking"]
    assert len(rows) == 11
    assert rows[0]["name"] == "e03"
    assert rows[0]["mask"] == str(mask_of(folder, "e03"))
    assert rows[0]["explanation"]["kind"] == "inverted"
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert all(row["explanation"] is None for row in rows[1:])


@pytest.mark.usefixtures("all_knowing")
def test_healthy_masks_give_no_finding(folder: Path) -> None:
    search = search_labels(PLAN, examine(folder), out=folder / "out")
    assert list(search.findings()) == []
    assert "0 of 11 masks look wrong" in search.describe()


def test_networks_that_have_learned_nothing_accuse_nobody_and_say_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stub(_: Run, source: Source, **__: object) -> Iterator[tuple[Sample, Prediction]]:
        for sample in source:
            yield (
                sample,
                Prediction(np.where(sample.mask, 0.1, 0.9).astype(np.float32), Postprocessing()),
            )

    monkeypatch.setattr(label_errors, "predict_held_out", stub)
    search = search_labels(PLAN, examine(folder), out=folder / "out")
    (finding,) = search.findings()
    assert finding.severity == "note"
    assert "have learned too little to judge masks (typical Dice 0.00" in finding.message
    assert "give more --epochs or a better --model" in search.describe()


def test_the_networks_are_doubted_where_they_got_a_kind_of_image_wrong(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dark ellipses on white among bright ones on black: the networks find the background."""
    for path in sorted((folder / "train" / "images").iterdir())[:4]:
        write(path, 255 - pixels(path))

    def stub(_: Run, source: Source, **__: object) -> Iterator[tuple[Sample, Prediction]]:
        for sample in source:
            bright = sample.image.mean(axis=2) > 125
            yield (
                sample,
                Prediction(np.where(bright, 0.95, 0.05).astype(np.float32), Postprocessing()),
            )

    monkeypatch.setattr(label_errors, "predict_held_out", stub)
    invert(mask_of(folder, "e05"))
    search = search_labels(PLAN, examine(folder), out=folder / "out")
    wrong, doubt = search.findings()
    assert (wrong.kind, wrong.files) == ("label-inverted", (mask_of(folder, "e05"),))
    assert (doubt.kind, doubt.severity) == ("label-unjudged", "note")
    assert "most masks of 4 images that look alike (e00, e01, e02 and 1 more" in doubt.message
    assert "doubt the networks, not these masks" in doubt.message
    assert "1 of 7 masks look wrong" in search.describe()
    assert "doubt the networks" in search.describe()
    rows = {row["name"]: row for row in search.to_json()["ranking"]}
    assert rows["e00"]["is_judged"] is False
    assert rows["e00"]["explanation"] is None
    assert rows["e05"]["is_judged"] is True


@pytest.mark.usefixtures("all_knowing")
def test_how_long_it_will_take_is_said_beforehand(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="notan"):
        search_labels(PLAN, examine(folder), out=folder / "out")
    assert "judging 11 masks by 3 networks with the settings of best.safetensors, 12 epochs" in (
        caplog.text
    )
    assert in_words(0.2) == "1 second"
    assert (in_words(600), in_words(9000)) == ("10 minutes", "2.5 hours")


@pytest.mark.usefixtures("all_knowing")
def test_too_few_images_are_refused_before_anything_is_written(folder: Path) -> None:
    with pytest.raises(DataError, match="11 readable images with masks for 12 folds"):
        search_labels(replace(PLAN, folds=12), examine(folder), out=folder / "out")
    assert not (folder / "out").exists()


def test_folds_of_other_masks_settings_or_models_are_not_gone_on_with(
    folder: Path, tmp_path: Path
) -> None:
    source, _ = gather(folder, "folder", Data())
    path = tmp_path / "folds" / "plan.json"
    claim(path, PLAN, source)
    claim(path, PLAN, source)
    with pytest.raises(ConfigError, match="another folds; choose a new --out"):
        claim(path, replace(PLAN, folds=4), source)
    with pytest.raises(ConfigError, match="another model;"):
        claim(path, replace(PLAN, weights="other"), source)
    invert(mask_of(folder, "e00"))
    with pytest.raises(ConfigError, match="another images and masks;"):
        claim(path, PLAN, source)
    path.write_text("{")
    with pytest.raises(ConfigError, match="choose a new --out"):
        claim(path, PLAN, source)


def test_the_plan_takes_the_models_settings_and_says_which_it_changes(
    small_checkpoint: Path,
) -> None:
    run = load_checkpoint(small_checkpoint).card.run
    plan = plan_search(small_checkpoint)
    assert plan.folds == 3
    assert (plan.run.model, plan.run.loss, plan.run.seed) == (run.model, run.loss, run.seed)
    assert plan.run.train.epochs == run.train.epochs
    assert plan_search(small_checkpoint, folds=5, epochs=7).run.train.epochs == 7


def test_a_model_that_was_trained_by_the_clock_lends_the_epochs_that_its_best_took(
    drawn_folder: Path, tmp_path: Path
) -> None:
    run = tiny(data__path=drawn_folder, train__epochs=90, train__time_limit_seconds=1e-3)
    checkpoint = train(run, out=tmp_path / "run").checkpoint
    settings = plan_search(checkpoint).run.train
    assert (settings.epochs, settings.time_limit_seconds) == (1, None)


def test_a_model_of_a_class_of_ones_own_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(small_checkpoint)
    card = checkpoint.card.model_copy(update={"model": None, "model_class": "Mine"})
    path = tmp_path / "own.safetensors"
    save_checkpoint(path, replace(checkpoint, card=card))
    with pytest.raises(CheckpointError, match="this model is of Mine, a class of your own"):
        plan_search(path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"folds": 1}, "--folds 1: at least 2"), ({"epochs": 0}, "--epochs 0: at least 1")],
)
def test_too_few_folds_or_epochs_are_refused(
    small_checkpoint: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_search(small_checkpoint, **settings)
