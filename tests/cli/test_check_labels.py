"""notan check --model, from the command line to its files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doctor_folders import pixels, write
from label_folders import EASY, write_ellipses
from notan.cli.main import main
from notan.config import load_run
from notan.modelfile.card import load_checkpoint, save_checkpoint
from notan.training import train
from notan.training.trainer import Trainer
from runs import ask_to_stop, before_step, crash


@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ellipses(tmp_path_factory.mktemp("easy") / "data")


@pytest.fixture(scope="module")
def model(easy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one epoch: the check takes only its settings."""
    run = load_run(flags={**EASY, "data.path": easy, "train.epochs": 1})
    return train(run, out=tmp_path_factory.mktemp("run") / "easy").checkpoint


@pytest.fixture
def folder(easy: Path, tmp_path: Path) -> Path:
    """The easy images with two faults: e02 is inverted, e07 shifted by 7 up and 8 left."""
    folder = Path(shutil.copytree(easy, tmp_path / "data"))
    inverted, shifted = (folder / "train" / "masks" / f"{name}.png" for name in ("e02", "e07"))
    write(inverted, 255 - pixels(inverted))
    write(shifted, np.roll(pixels(shifted), (-7, -8), axis=(0, 1)))
    return folder


def check(*words: object) -> int:
    """Run notan check; return its exit code."""
    try:
        main(["check", *(str(word) for word in words)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = check(*words)
    return code, capsys.readouterr().err


def test_two_planted_faults_come_first_and_are_named(
    folder: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    words = ("--data-path", folder, "--model", model, "--epochs", 12, "--out", out)
    with caplog.at_level("INFO", logger="notan"):
        assert check(*words, "--strict") == 1
    printed = capsys.readouterr().out
    assert "judging 18 masks by 3 networks" in caplog.text
    assert "12 epochs each" in caplog.text
    assert "e02: looks inverted" in printed
    assert printed.index("still to judge") < printed.index("e02: looks inverted")
    assert re.fullmatch(r"\d+ warnings.* in 18 images: look at them .*", printed.splitlines()[-2])
    everything: dict[str, Any] = json.loads((out / "check.json").read_text("utf-8"))
    labels = everything["labels"]
    assert (labels["folds"], labels["epochs"], len(labels["ranking"])) == (3, 12, 18)
    assert {row["name"] for row in labels["ranking"][:2]} == {"e02", "e07"}
    kinds = {finding["kind"] for finding in everything["findings"]}
    assert {"label-inverted", "label-shifted"} <= kinds
    page = (out / "check.html").read_text("utf-8")
    assert "Masks by suspicion" in page
    assert "looks shifted by" in page
    assert page.count("data:image/jpeg") >= 36  # twelve rows of three


def test_a_stopped_check_keeps_the_ordinary_findings_and_goes_on(
    folder: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    words = ("--data-path", folder, "--model", model, "--folds", 2, "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(2, ask_to_stop))
        code, said = refusal(capsys, *words)
    assert code == 143
    assert "the same --out again to go on" in said
    assert "Nothing wrong found" not in (out / "check.json").read_text("utf-8")
    assert "labels" not in json.loads((out / "check.json").read_text("utf-8"))
    assert "networks are still to judge" in (out / "check.html").read_text("utf-8")
    check(*words)
    monkeypatch.setattr(Trainer, "after_step", before_step(3, crash))
    check(*words)  # all folds are finished: nothing is trained
    assert len(json.loads((out / "check.json").read_text("utf-8"))["labels"]["ranking"]) == 18


def test_without_a_model_nothing_of_it_is_written(easy: Path, tmp_path: Path) -> None:
    check("--data-path", easy, "--out", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"check.json", "check.html"}
    assert "labels" not in json.loads((tmp_path / "out" / "check.json").read_text("utf-8"))
    assert "by suspicion" not in (tmp_path / "out" / "check.html").read_text("utf-8")


@pytest.mark.parametrize("flag", ["--folds", "--epochs"])
def test_folds_and_epochs_without_a_model_are_refused(
    easy: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = refusal(capsys, "--data-path", easy, flag, 3)
    assert code == 2
    assert f"{flag} is about the networks that judge masks; give --model FILE too" in said


def test_one_fold_is_refused(easy: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = refusal(capsys, "--data-path", easy, "--model", model, "--folds", 1)
    assert code == 2
    assert "--folds 1: at least 2 are wanted" in said


def test_more_folds_than_images_are_refused(
    easy: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data-path", easy, "--model", model, "--folds", 19, "--out", tmp_path / "out")
    code, said = refusal(capsys, *words)
    assert code == 3
    assert "18 readable images with masks for 19 folds" in said
    assert (tmp_path / "out" / "check.html").is_file()  # the ordinary findings came first


def test_a_missing_model_a_pickle_and_a_foreign_class_are_refused_before_anything_is_written(
    easy: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled, own = tmp_path / "model.pth", tmp_path / "own.safetensors"
    pickled.write_bytes(b"\x80\x04K\x01.")
    checkpoint = load_checkpoint(model)
    card = checkpoint.card.model_copy(update={"model": None, "model_class": "Mine"})
    save_checkpoint(own, type(checkpoint)(card, checkpoint.weights))
    for path, words in (
        (tmp_path / "nothing.safetensors", "there is no such model file"),
        (pickled, "this is a PyTorch pickle"),
        (own, "this model is of Mine, a class of your own"),
    ):
        code, said = refusal(
            capsys, "--data-path", easy, "--model", path, "--out", tmp_path / "out"
        )
        assert code == 5
        assert words in said
    assert not (tmp_path / "out").exists()


def test_folds_of_other_masks_are_not_taken_for_these(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data-path", folder, "--model", model, "--folds", 2, "--out", tmp_path / "out")
    check(*words)
    mended = folder / "train" / "masks" / "e02.png"
    write(mended, 255 - pixels(mended))
    code, said = refusal(capsys, *words)
    assert code == 2
    assert "another images and masks; choose a new --out" in said
