"""notan compare and notan benchmark-models: what they write, and what they refuse."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from notan.cli.main import main
from notan.data.folders import folder_source
from notan.modelfile.card import Checkpoint, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

SMALL = ("model.width=2", "preprocess.image_size=16", "train.trackers=[]")


def refused(words: list[object], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Run a command that must fail; return its exit code and its last line."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return stop.value.code, text.splitlines()[-1].removeprefix("notan: ")


def with_border(checkpoint: Path, folder: Path, trimap_border: str) -> Path:
    """Copy a checkpoint, as if it had been trained by a rule for the border."""
    old = load_checkpoint(checkpoint)
    card = old.card.model_copy(update={"trimap_border": trimap_border})
    save_checkpoint(folder / "best.safetensors", Checkpoint(card, old.weights))
    return folder


def test_compare_prints_a_table_and_writes_json_and_page(
    seeded_runs: dict[str, Path],
    drawn_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*map(str, seeded_runs.values()), "--data-path", str(drawn_folder), "--split", "val"]
    main(["compare", *words, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "trained (2 seeds) -> raw (2 seeds): " in printed
    assert printed.splitlines()[-1] == str(tmp_path / "compare.html")
    read = json.loads((tmp_path / "compare.json").read_text())
    assert len(read["images"]) == 6
    assert (tmp_path / "compare.html").read_text().startswith("<!DOCTYPE html>")


def test_compare_takes_a_fresh_folder(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        main(["compare", str(small_checkpoint), str(small_checkpoint.parent)])
    assert (tmp_path / "runs" / "compare-2" / "compare.json").is_file()


def test_different_border_rules_want_one_to_be_chosen(
    small_checkpoint: Path,
    pets_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = [
        with_border(small_checkpoint, tmp_path / each, each)
        for each in ("foreground", "background")
    ]
    few = few_pets(pets_folder, tmp_path / "pets")
    words = ["compare", *models, "--data-path", few, "--out", tmp_path / "out"]
    code, text = refused(words, capsys)
    assert code == 2
    assert (
        "different rules for the trimap's border (foreground foreground, background background)"
        in text
    )
    main([str(word) for word in (*words, "--trimap-border", "ignore")])
    printed = capsys.readouterr().out
    assert "border left out" in printed
    assert (
        "foreground was trained with trimap_border = foreground and is scored by trimap_border = "
        "ignore." in printed
    )


def few_pets(pets: Path, folder: Path) -> Path:
    """Make a small dataset of the first seven test images."""
    lines = (pets / "annotations" / "test.txt").read_text().splitlines()[:7]
    for part in ("images", "annotations/trimaps"):
        (folder / part).mkdir(parents=True)
    for name in (line.split()[0] for line in lines):
        for path in (f"images/{name}.jpg", f"annotations/trimaps/{name}.png"):
            shutil.copy(pets / path, folder / path)
    for split in ("test", "trainval"):
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines))
    return folder


def other_weights(checkpoint: Path, folder: Path) -> Path:
    """Copy a checkpoint whose weights are another network's."""
    old = load_checkpoint(checkpoint)
    some = {name: each for name, each in old.weights.items() if not name.endswith("weight")}
    save_checkpoint(folder / "best.safetensors", Checkpoint(old.card, some))
    return folder


def spoilt(checkpoint: Path, folder: Path) -> Path:
    """Copy a checkpoint with a bit of a weight turned."""
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 1
    folder.mkdir()
    (folder / "best.safetensors").write_bytes(content)
    return folder


def trained_on_test(checkpoint: Path, data: Path, folder: Path) -> Path:
    """Copy a checkpoint, as if it had been trained on the test images."""
    old = load_checkpoint(checkpoint)
    seen = {"training_hashes": tuple(folder_source(data / "test").hashes())}
    card = old.card.model_copy(update={"data": old.card.data.model_copy(update=seen)})
    save_checkpoint(folder / "best.safetensors", Checkpoint(card, old.weights))
    return folder


def without_an_image(data: Path, folder: Path) -> Path:
    """Copy a data folder with one test image cut short."""
    shutil.copytree(data, folder)
    images = sorted((folder / "test" / "images").iterdir())
    images[2].rename(images[2].with_name("drawn-002.png"))
    mask = folder / "test" / "masks" / images[2].name
    mask.rename(mask.with_name("drawn-002.png"))
    cut = images[2].with_name("drawn-002.png")
    cut.write_bytes(cut.read_bytes()[:200])
    return folder


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["RUN"], 2, "a comparison wants two or more runs or model files; only "),
        (["RUN", "nowhere"], 5, "nowhere: there is no such model file"),
        (["RUN", "EMPTY"], 5, "there is no best.safetensors here"),
        (["RUN", "PICKLE"], 5, "this is a PyTorch pickle"),
        (["RUN", "RUN", "--split", "tset"], 2, "did you mean 'test'?"),
        (["RUN", "RUN", "--data-path", "TRAIN"], 3, "there is no test part"),
        (["RUN", "RUN", "--device", "cuda:99"], 2, "--device cuda:99"),
        (["RUN", "RUN", "--boarder", "foreground"], 2, "--trimap-border"),
        (["RUN", "RUN", "--batch-size", "0"], 2, "--batch-size is 0; 1 or more is wanted"),
        (["RUN", "OTHER WEIGHTS"], 5, "the weights do not fit UNet"),
        (["RUN", "SPOILT"], 5, "the weights are not those that were saved"),
        (["RUN", "TRAINED ON TEST"], 3, "trained: the model was trained on 6 of these 6 images"),
        (["RUN", "RUN", "--data-path", "NO IMAGE"], 3, "drawn-002.png"),
        (["RUN", "RUN", "--out", "PICKLE"], 2, "a file is here already; choose another --out"),
        (["RUN", "RUN", "--out", "PICKLE/out"], 9, "could not be written (Not a directory)"),
        (["RUN", "RUN", "--out", "TAKEN"], 2, "an earlier comparison is here already"),
    ],
)
def test_compare_refuses_bad_input_in_one_line(
    small_checkpoint: Path,
    drawn_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    message: str,
) -> None:
    def predicts(*_: object) -> None:
        raise AssertionError("refused too late")

    monkeypatch.setattr("notan.comparison.comparison.measure", predicts)
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "compare.json").write_text("{}")
    (tmp_path / "model.pth").write_bytes(b"\x80\x02 and so on")
    places = {
        "OTHER WEIGHTS": other_weights(small_checkpoint, tmp_path / "other"),
        "SPOILT": spoilt(small_checkpoint, tmp_path / "spoilt"),
        "TRAINED ON TEST": trained_on_test(small_checkpoint, drawn_folder, tmp_path / "trained"),
        "NO IMAGE": without_an_image(drawn_folder, tmp_path / "data"),
        "PICKLE/out": tmp_path / "model.pth" / "out",
        "TAKEN": tmp_path / "taken",
        "RUN": small_checkpoint.parent,
        "EMPTY": tmp_path / "empty",
        "PICKLE": tmp_path / "model.pth",
        "TRAIN": drawn_folder / "train",
    }
    out = () if "--out" in words else ("--out", tmp_path / "out")
    found = refused(["compare", *(places.get(word, word) for word in words), *out], capsys)
    assert found[0] == code
    assert message in found[1]
    assert not (tmp_path / "out").exists()


def test_a_benchmark_ends_with_the_comparison_and_can_be_called_again(
    drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data_path", str(drawn_folder), "--models", "unet,attention_unet"]
    words += ["--seeds", "1", "--epochs", "1", "--out", str(tmp_path), *SMALL]
    for command in ("benchmark-models", "benchmark_models"):
        main([command, *words])
        assert "unet-seed0 -> attention_unet-seed0: " in capsys.readouterr().out
        assert (tmp_path / "compare.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "1", "--seeds", "0"], "--seeds 0: at least one seed is wanted"),
        (["--epochs", "0"], "train.epochs: Input should be greater than or equal to 1"),
        (["--epochs", "1", "--time-limit", "1m"], "both were given; give one"),
        ([], "neither --time-limit nor --epochs was given; give one"),
        (["--time-limit", "soon"], "--time-limit soon: a time above zero is wanted, such as 90s"),
        (["--epochs", "1", "--models", "unet,unnet"], "'unnet': there is no such model; did you"),
        (["--epochs", "1", "--models", ","], "a benchmark wants two or more runs to compare"),
        (["--time-limit", "1m", "train.epochs=3"], "train.epochs is said by --epochs"),
        (["--epochs", "1", "model.name=unet"], "model.name is said by --models"),
        (["--epochs", "1", "model.widht=2"], "did you mean 'width'"),
        (["--epochs", "1", "--data-path", "nowhere"], "nowhere: there is no such folder"),
        (["--epochs", "1", "--recipe", "nowhere.toml"], "there is no such recipe"),
    ],
)
def test_a_benchmark_refuses_bad_input_before_it_trains(
    drawn_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    always = ["--data-path", drawn_folder, "--models", "unet,attention_unet"]
    out = tmp_path / "out"
    code, text = refused(["benchmark-models", *always, *words, "--out", out], capsys)
    assert message in text
    assert code in (2, 3)
    assert not out.exists()


def test_a_wrong_command_is_offered_the_hyphenated_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = refused(["benchmark-model"], capsys)
    assert code == 2
    assert "did you mean 'benchmark-models'?" in text
