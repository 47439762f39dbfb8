"""``notan pretrain``: its flags do what they say, and what comes in broken gets a clear line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from notan.cli.main import main
from notan.config import Pretraining, load_settings
from notan.modelfile.card import read_card
from notan.models.encoder_weights import read_weights

if TYPE_CHECKING:
    from pathlib import Path

QUICK = ("--image-size", "64", "--epochs", "1", "--batch-size", "8")


def fails(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["pretrain", *map(str, words)])
    code = end.value.code
    assert isinstance(code, int)
    return code


def test_from_images_to_a_training_that_starts_from_them(
    drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "pre", ("--data-path", str(drawn_folder))
    main(["pretrain", *data, "--out", str(run), *QUICK, "--seed", "4", "pretrain.patch=16"])
    said = capsys.readouterr().out
    assert said.startswith("Lowest held-out loss: ")
    assert f"notan train --encoder efficientnet_lite0 --encoder-weights {run}/encoder.saf" in said
    settings = load_settings(Pretraining, run / "pretrain.toml").pretrain
    assert (settings.path, settings.train.epochs, settings.patch) == (drawn_folder, 1, 16)
    assert (settings.train.batch_size, settings.image_size, settings.seed) == (8, 64, 4)
    weights = run / "encoder.safetensors"
    assert "on 22 images of" in read_weights(weights).origin
    main(["pretrain", "--resume", str(run)])
    assert capsys.readouterr().out == said
    start = ("--encoder", "efficientnet_lite0", "--encoder-weights", str(weights))
    out = ("--out", str(tmp_path / "run"), "train.trackers=[]", "model.width=2")
    main(["train", *data, *start, *QUICK, *out])
    card = read_card(tmp_path / "run" / "best.safetensors")
    assert "notan pretrain on 22 images of" in (card.pretrained or "")


def test_the_help_says_what_it_is_for_and_names_every_flag(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fails("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Squares of each image are hidden" in text
    flags = "data-path encoder pretrained encoder-weights out overwrite resume device epochs"
    for flag in (*flags.split(), "batch-size", "learning-rate", "image-size", "seed"):
        assert f"--{flag}" in text


@pytest.mark.parametrize(
    ("words", "code", "answer"),
    [
        (["--encoder", "efficientnet_lite"], 2, "did you mean 'efficientnet_lite"),
        (["pretrain.patches=3"], 2, "patches: there is no such setting; did you mean 'patch'?"),
        (["pretrain.patch=200"], 2, "patches of 200 pixels in images of 192: at least two must"),
        (["pretrain.hidden_share=1"], 2, "pretrain.hidden_share: Input should be less than or"),
        (["--image-size", "32"], 2, "pretrain.image_size: Input should be greater than or"),
        (["--epochs", "0"], 2, "pretrain.train.epochs: Input should be greater than or equal to 1"),
        (["--pretrained", "--encoder-weights", "x"], 2, "both say what to go on from; give one"),
        (["--encoder-weights", "missing.safetensors"], 5, "missing.safetensors: there is no such"),
        (["--device", "tpu"], 2, "--device tpu: there is no such device"),
        (["model.width=3"], 2, "model: there is no such setting; choose one of (pretrain)"),
        (["--epoch", "3"], 2, "did you mean '--epochs'?"),
    ],
)
def test_a_slip_of_the_pen_is_answered_in_a_line(
    drawn_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    answer: str,
) -> None:
    out = tmp_path / "run"
    assert fails("--data-path", drawn_folder, "--out", out, *words) == code
    lines = capsys.readouterr().err.splitlines()
    assert answer in lines[-1]
    assert not out.exists()


@pytest.mark.parametrize("flags", [["--out", "elsewhere"], ["--overwrite"]])
def test_resume_takes_its_folder_from_the_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    assert fails("--resume", tmp_path, *flags) == 2
    assert "leave --out and --overwrite" in capsys.readouterr().err


def test_a_training_is_no_pretraining_to_go_on_with(
    small_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails("--resume", small_checkpoint.parent) == 2
    assert "there is no pretraining here to go on with" in capsys.readouterr().err
