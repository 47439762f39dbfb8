"""Bad input: one clear line, the class's exit code, and no half-written file."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from notan.cli.main import main
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import NotanError
from one_line import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUICK = ("--image-size", "16", "--epochs", "1", "--batch-size", "4", "model.width=2")
QUIET = "train.trackers=[]"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six drawn pairs in images/ and masks/, each test's own to spoil."""
    write_folder(DrawnSource(6, size=(16, 16)), tmp_path / "data")
    return tmp_path / "data"


def write_mask(path: Path, values: list[list[int]]) -> None:
    Image.fromarray(np.array(values, np.uint8)).save(path)


def no_folder(data: Path) -> None:
    shutil.rmtree(data)


def a_file_for_a_folder(data: Path) -> None:
    shutil.rmtree(data)
    data.write_text("not a folder")


def no_pairs(data: Path) -> None:
    shutil.rmtree(data / "masks")


def empty_folders(data: Path) -> None:
    for path in data.rglob("*.png"):
        path.unlink()


def no_mask(data: Path) -> None:
    (data / "masks" / "drawn-0002.png").unlink()


def no_image(data: Path) -> None:
    (data / "images" / "drawn-0002.png").unlink()


def other_size(data: Path) -> None:
    write_mask(data / "masks" / "drawn-0003.png", [[0, 255]] * 16)


def unreadable_image(data: Path) -> None:
    (data / "images" / "drawn-0004.png").write_text("this is no image")


def cut_image(data: Path) -> None:
    """A header that is whole, so that only decoding finds it out."""
    path = data / "images" / "drawn-0004.png"
    path.write_bytes(path.read_bytes()[:120])


def unreadable_mask(data: Path) -> None:
    (data / "masks" / "drawn-0004.png").write_bytes(b"")


def ambiguous_mask(data: Path) -> None:
    values = [[0, 1, 2, 3] * 4] * 16
    write_mask(data / "masks" / "drawn-0005.png", values)


def three_classes(data: Path) -> None:
    write_mask(data / "masks" / "drawn-0000.png", [[0, 7] * 8] * 16)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_folder, "data: there is no such folder"),
        (a_file_for_a_folder, "data: this is a file"),
        (no_pairs, "no images with masks here"),
        (empty_folders, "no images here"),
        (no_mask, "drawn-0002.png: there is no mask drawn-0002.*"),
        (no_image, "drawn-0002.png: there is no image drawn-0002.*"),
        (other_size, "drawn-0003.png: the mask is 16x2"),
        (unreadable_image, "images/drawn-0004.png"),
        (cut_image, "images/drawn-0004.png"),
        (unreadable_mask, "masks/drawn-0004.png"),
        (ambiguous_mask, "masks/drawn-0005.png"),
        (three_classes, "drawn-0000.png"),
    ],
)
def test_bad_data_are_named_before_anything_is_kept(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    words: str,
) -> None:
    spoil(data)
    out = tmp_path / "out"
    given = ["train", "--data-path", str(data), "--out", str(out), *QUICK, QUIET]
    code, line = refused(given, capsys)
    assert code == 3
    assert words in line
    assert not list(out.rglob("*.safetensors"))


def test_an_image_that_a_worker_cannot_read_is_one_line_as_well(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (data / "images").iterdir():
        path.write_bytes(path.read_bytes()[:120])
    words = ["train", "--data-path", str(data), "--out", str(tmp_path / "out"), *QUICK, QUIET]
    code, line = refused([*words, "data.workers=1"], capsys)
    assert code == 3
    assert "images/drawn-000" in line
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["trian"], 2, "did you mean 'train'"),
        (["train", "--epoch", "3"], 2, "did you mean '--epochs'"),
        (["train", "--batch_siez", "3"], 2, "did you mean '--batch-size'"),
        (["train", "--border", "ignore"], 2, "did you mean '--trimap-border'"),
        (["train", "--budget", "10m"], 2, "did you mean '--time-limit'"),
        (["train", "--budget=10m"], 2, "--budget: notan train takes no such flag"),
        (["train", "--lr", "1e-3"], 2, "did you mean '--learning-rate'"),
        (["evaluate", "--model", "m", "--allow-seen"], 2, "did you mean '--allow-training-images'"),
        (["benchmark-models", "--model", "unet", "model.width=2"], 2, "--model: notan benchmark"),
        (["train", "--x", "model.width=2", "data.masks.channel=1"], 2, "--x: notan train takes no"),
        (
            ["train", "mdoel.width=2", "--epochs", "1", "model.width=2"],
            2,
            "mdoel: there is no such",
        ),
        (["train", "model.width=2", "--epochs", "1", "mdoel.width=2"], 2, "did you mean 'model'"),
        (["train", "model.width=2", "--pretrained", "yes", "loss.dice=2"], 2, "yes: notan train"),
        (
            ["benchmark-models", "--models", "unet", "attention_unet", "model.width=2"],
            2,
            "attention_unet: notan benchmark-models takes no such word",
        ),
        (["predict", "a.jpg", "--every", "3"], 2, "did you mean '--frame-step'"),
        (["predict", "a.jpg", "--machin"], 2, "--machin: notan predict takes no such flag; see"),
        (["predict", "a.jpg", "--zzz"], 2, "--zzz: notan predict takes no such flag; see notan"),
        (["predict", "a.jpg", "--frame-step"], 2, "--frame-step N: needs a value"),
        (["evaluate", "--model", "m", "word"], 2, "word: notan evaluate takes no such word"),
        (["train", "--model", "unte"], 2, "did you mean 'unet'"),
        (["train", "--epochs", "many"], 2, "--epochs many: a whole number is wanted"),
        (["train", "--learning_rate=fast"], 2, "--learning-rate fast: a number is wanted"),
        (["train", "--epochs", "0"], 2, "train.epochs: Input should be greater"),
        (
            ["train", "--time-limit", "soon"],
            2,
            "--time-limit soon: a time above zero is wanted, such as",
        ),
        (
            ["train", "--time-limit", "0m"],
            2,
            "--time-limit 0m: a time above zero is wanted, such as 90s",
        ),
        (
            ["train", "--time-limit=-90"],
            2,
            "--time-limit -90: a time above zero is wanted, such as 90s",
        ),
        (["train", "train.time_limit_seconds=nan"], 2, "train.time_limit_seconds: Input should be"),
        (["train", "--learning-rate", "nan"], 2, "train.learning_rate"),
        (["train", "--seed", "-1"], 2, "seed: Input should be greater"),
        (["train", "--trimap-border", "blue"], 2, "--trimap-border blue: there is no such choice"),
        (["train", "model.widht=3"], 2, "did you mean 'width'"),
        (["train", "modle.width=3"], 2, "did you mean 'model'"),
        (["train", "seed.x=3"], 2, "seed"),
        (["train", "model.width=wide"], 2, "model.width"),
        (["train", "width"], 2, "an override looks like section.key=value"),
        (["train", "--device", "cuda:99"], 2, "--device cuda:99: this machine"),
        (["train", "--device", "gpu"], 2, "there is no such device"),
        (["train", "--recipe", "gone.toml"], 2, "gone.toml: there is no such recipe"),
        (["train", "train.precision=fp16", "--device", "cpu"], 2, "not on a CPU"),
        (["train", "model.residual=report"], 2, "belongs to resnet34_unet"),
        (["evaluate"], 2, "--model FILE: needed; see notan evaluate --help"),
        (["evaluate", "--model", "gone.safetensors"], 5, "there is no such model file"),
        (["predict", "--model", "gone.safetensors"], 3, "no images were given"),
        (["predict", "gone.jpg", "--model", "x"], 3, "gone.jpg: there is no such image"),
        (["download", "coco"], 2, "oxford-iiit-pet"),
    ],
)
def test_a_wrong_word_is_one_line_and_leaves_nothing(
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(data)
    before = sorted(data.rglob("*"))
    command, *rest = words
    given = [command, "--data-path", ".", *rest] if command in ("train", "evaluate") else words
    found, line = refused(given, capsys)
    assert (found, message in line) == (code, True), line
    assert sorted(data.rglob("*")) == before


def test_no_data_folder_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = refused(["train"], capsys)
    assert (code, line) == (2, "no data folder was given; name one with --data-path FOLDER")


@pytest.mark.parametrize(("split", "code"), [("test", 3), ("tset", 2)])
def test_a_split_that_is_not_there_is_refused(
    small_checkpoint: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    split: str,
    code: int,
) -> None:
    words = ["evaluate", "--model", str(small_checkpoint), "--data-path", str(data)]
    found, line = refused([*words, "--split", split, "--out", str(tmp_path / "x")], capsys)
    assert found == code
    assert "--split" in line or "did you mean 'test'" in line
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", ["evaluate", "inference"])
@pytest.mark.parametrize("words", ["-1", "abc", "nan%", "0", ""])
def test_a_tolerance_that_is_none_is_refused(
    data: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    words: str,
) -> None:
    given = [*commands(data, small_checkpoint, tmp_path / "out")[command], f"--tolerance={words}"]
    code, line = refused(given, capsys)
    assert code == 2
    assert "the tolerance is" in line
    assert "pixels above 0 (2) or a part of the diagonal up to 100% (0.75%)" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "inference"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no such file; check --groups"),
        ("name\ndrawn-0000\n", "the only column is 'name'"),
        ("name,site\ndrawn-0000,north\n", "the image drawn-0001 has no row"),
    ],
)
def test_a_table_of_groups_that_does_not_fit_is_refused_before_anything_is_scored(
    data: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    text: str | None,
    words: str,
) -> None:
    path = tmp_path / "groups.csv"
    if text is not None:
        path.write_text(text)
    given = commands(data, small_checkpoint, tmp_path / "out")[command]
    code, line = refused([*given, "--groups", str(path)], capsys)
    assert code == 3
    assert f"groups.csv: {words}" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "inference", "predict"])
def test_a_pickle_is_not_opened(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "model.pth")
    where = [str(data / "images")] if command == "predict" else ["--data-path", str(data)]
    words = [command, *where, "--model", str(tmp_path / "model.pth"), "--out", str(tmp_path / "x")]
    code, line = refused(words, capsys)
    assert code == 5
    assert "model.pth: this is a PyTorch pickle" in line
    assert not (tmp_path / "x").exists()


def commands(data: Path, model: Path, out: Path) -> dict[str, list[str]]:
    scored = ["--model", str(model), "--data-path", str(data), "--split", "all", "--out", str(out)]
    return {
        "train": ["train", "--data-path", str(data), "--out", str(out), *QUICK, QUIET],
        "evaluate": ["evaluate", *scored],
        "inference": ["inference", *scored],
        "predict": ["predict", str(data / "images"), "--model", str(model), "--out", str(out)],
    }


@pytest.mark.parametrize("command", ["train", "evaluate", "inference", "predict"])
def test_a_file_in_the_place_of_the_out_folder_is_named(
    data: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    (tmp_path / "taken").write_text("a file")
    words = commands(data, small_checkpoint, tmp_path / "taken" / "out")[command]
    code, line = refused(words, capsys)
    assert code == 9
    assert "taken/out" in line
    assert "choose another place with --out" in line
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.parametrize("good_writes", [0, 1, 2])
@pytest.mark.parametrize("command", ["train", "evaluate", "inference", "predict"])
def test_a_full_disk_leaves_whole_files_only(
    data: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    good_writes: int,
) -> None:
    calls: list[int] = []

    def filling(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > good_writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if command == "evaluate" and good_writes == 2:
        pytest.skip("two files are all that it writes")
    monkeypatch.setattr(os, "fsync", filling)
    code, line = refused(commands(data, small_checkpoint, tmp_path / "out")[command], capsys)
    assert code == 9
    assert "could not be written (No space left on device)" in line
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == good_writes
    assert not any(path.name == "best.safetensors" or path.name[0] == "." for path in files)


def test_debug_shows_the_whole_trace(data: Path) -> None:
    shutil.rmtree(data)
    with pytest.raises(NotanError, match="there is no such folder"):
        main(["train", "--debug", "--data-path", str(data)])
    with pytest.raises(NotanError, match="did you mean"):
        main(["--debug", "trian"])


@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_one_bad_image_does_not_stop_the_others(
    data: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    batch_size: str,
) -> None:
    unreadable_image(data)
    cut = data / "images" / "drawn-0001.png"
    cut.write_bytes(cut.read_bytes()[:120])
    words = commands(data, small_checkpoint, tmp_path / "out")["predict"]
    code, line = refused([*words, "--batch-size", batch_size], capsys)
    assert code == 3
    assert line.startswith("2 of 6 images could not be read: ")
    assert "drawn-0001.png" in line
    assert "drawn-0004.png" in line
    masks = sorted(path.stem for path in (tmp_path / "out" / "masks").iterdir())
    assert masks == ["drawn-0000", "drawn-0002", "drawn-0003", "drawn-0005"]


def test_ctrl_c_is_one_line_and_exit_code_130(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("notan.training.trainer.Trainer.train_epoch", interrupted)
    words = ["train", "--data-path", str(data), "--out", str(tmp_path / "out"), *QUICK, QUIET]
    assert refused(words, capsys) == (130, "stopped by Ctrl-C")
    with pytest.raises(KeyboardInterrupt):
        main([*words, "--overwrite", "--debug"])
