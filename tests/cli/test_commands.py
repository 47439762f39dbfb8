"""The commands do what their help says, and no flag is there for nothing."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import notan
from notan.cli import demo as demo_command
from notan.cli.main import COMMANDS, main
from notan.config import Data, Run, load_run
from notan.data.folders import open_split
from notan.data.synthetic import DrawnSource
from notan.metrics import Tolerance
from notan.modelfile.card import read_card
from notan.training import train as run_training

if TYPE_CHECKING:
    from collections.abc import Callable

MACHINE = "model-class batch-size device backend precision threads"
SCORED = (
    "model data-path split out trimap-border tolerance groups allow-training-images threshold tta "
    f"{MACHINE}"
)
READING = "trimap-border foreground ignore mask-channel masks exif-orientation"
FLAGS = {
    "train": "data-path time-limit auto model model-class encoder pretrained image-size "
    "keep-aspect-ratio epochs batch-size learning-rate device folds out profile resume unlabelled "
    f"encoder-weights weights {READING} "
    "freeze-epochs teacher group-by patience seed deterministic detect-anomaly recipe "
    "write-recipe overwrite allow-changes",
    "pretrain": "data-path out overwrite resume encoder pretrained encoder-weights epochs "
    "batch-size learning-rate image-size device seed",
    "evaluate": SCORED,
    "inference": SCORED,
    "predict": "model out format resume profile engine address frame-step tiles scale threshold "
    f"tta {MACHINE}",
    "serve": "model host port token-file allow-host max-megabytes max-megapixels max-waiting "
    "deadline-seconds label-studio label-studio-token-file label train-project train-every "
    f"train-time-limit train-out threshold tta {MACHINE}",
    "submit": f"model data-path list out check threshold tta {MACHINE}",
    "export": "model model-class to out half int8 end-to-end data-path",
    "compare": "model-class data-path split trimap-border allow-training-images batch-size device "
    "out",
    "benchmark-models": "data-path models seeds time-limit epochs recipe trimap-border device out",
    "ensemble": "out data-path batch-size device",
    "report": "data-path split model-class device out",
    "check": f"data-path strict layout model model-class folds epochs out {READING}",
    "pack": f"data-path out shard-size overwrite {READING}",
    "download": "out",
    "demo": "out kind seed",
    "studio": (
        f"model compare findings corrections port open-browser threshold tta {MACHINE} {READING}"
    ),
}
TINY = ("model.width=2", "train.trackers=[]")
QUICK = ("--image-size", "16", "--epochs", "1", "--batch-size", "8")

pytestmark = pytest.mark.usefixtures("without_reports")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Return the settings that the words of ``notan train`` ask for, without training."""

    class StopError(Exception):
        pass

    def ask(*words: str) -> Run:
        seen: list[Run] = []

        def remember(run: Run, **_: object) -> None:
            seen.append(run)
            raise StopError

        monkeypatch.setattr("notan.training.train", remember)
        with pytest.raises(StopError):
            main(["train", *words])
        return seen[0]

    return ask


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def read(folder: Path) -> Run:
    return load_run(folder / "run.toml")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_is_one_screen_with_a_line_for_each_command(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(words)
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    named = [line.split()[0] for line in lines if line.startswith("  ")]
    assert sorted(named) == sorted(COMMANDS)
    assert all(word in said.out for word in ("--debug", "--version", "notan demo", "--help"))
    assert said.err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_names_every_flag(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    lines = [line[2:].rstrip("│ ") for line in text.splitlines()]  # within the boxes
    starts = [number for number, line in enumerate(lines) if re.match("--[a-z]", line)]
    shown = [lines[number].split()[0] for number in starts]
    assert sorted(shown) == sorted(f"--{flag}" for flag in FLAGS[command].split())
    for number in starts:  # what it does stands beside the flag, or on the next line
        assert "  " in lines[number] or lines[number + 1].startswith("   "), lines[number]


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"{notan.__version__}\n"


def test_python_m_notan_is_notan() -> None:
    answer = run_python("-m", "notan", "--version")
    assert (answer.returncode, answer.stdout) == (0, f"{notan.__version__}\n")


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["train", "--epoch", "1"]])
def test_help_and_a_slip_of_the_pen_are_answered_without_torch(words: list[str]) -> None:
    script = (
        "import sys\nfrom notan.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    answer = run_python("-c", script, *words)
    assert answer.returncode == 0, answer.stderr


def test_the_whole_path_from_a_folder_to_masks(
    drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model = tmp_path / "run", str(tmp_path / "run" / "best.safetensors")
    data = str(drawn_folder)
    main(["train", "--data-path", data, "--out", str(run), *QUICK, *TINY])
    assert f"Best validation Dice: 0.{''}" in capsys.readouterr().out

    main(["evaluate", "--model", model, "--data-path", data, "--split", "val"])
    text = capsys.readouterr().out
    score = json.loads((run / "evaluate-val" / "score.json").read_text())
    assert text.startswith("6 images ")
    assert f"\nDice                    {score['mean_dice']:.4f} " in text
    assert score["mean_dice"] == pytest.approx(read_card(Path(model)).scores["dice"], abs=1e-6)

    main(["inference", "--model", model, "--data-path", data, "--out", str(tmp_path / "test")])
    text = capsys.readouterr().out
    score = json.loads((tmp_path / "test" / "score.json").read_text())
    assert text.startswith(f"Mean Dice Score: {score['mean_dice']:.4f}\n")
    with (tmp_path / "test" / "images.csv").open(newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert names == [f"drawn-00{number}" for number in range(30, 36)]
    check_images(tmp_path / "test", names)

    photos = str(drawn_folder / "test" / "images")
    main(["predict", photos, "--model", model, "--out", str(tmp_path / "out")])
    assert "6 of 6 images" in capsys.readouterr().out
    check_images(tmp_path / "out", names)
    for name in names:
        masks = [tmp_path / part / "masks" / f"{name}.png" for part in ("test", "out")]
        assert masks[0].read_bytes() == masks[1].read_bytes()


def check_images(folder: Path, names: list[str]) -> None:
    """The masks and overlays are all there, at the drawn images' own 40x48."""
    for kind, mode in (("masks", "L"), ("overlays", "RGB")):
        assert sorted(path.stem for path in (folder / kind).iterdir()) == names
        for name in names:
            with Image.open(folder / kind / f"{name}.png") as image:
                assert (image.size, image.mode) == ((48, 40), mode)


def test_hyphens_and_underscores_are_alike(asked: Callable[..., Run]) -> None:
    runs = []
    for style in "-_":
        words = ["--data-path", "--batch-size", "--image-size", "--learning-rate"]
        path, batch, size, rate = (f"--{word[2:].replace('-', style)}" for word in words)
        runs.append(asked(path, "my_data", batch, "6", size, "16", f"{rate}=2e-4"))
    assert runs[0] == runs[1]
    assert runs[0].train.batch_size == 6
    assert runs[0].train.learning_rate == 2e-4
    assert runs[0].data.path == Path("my_data")
    assert asked("--data_path=my_data").data.path == Path("my_data")


def test_the_later_word_wins_from_defaults_to_recipe_to_flag_to_override(
    asked: Callable[..., Run], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "seed = 5\n[train]\nepochs = 9\nbatch_size = 7\ntrackers = []\n"
        "gamma = 0.5\n[model]\nwidth = 2\n[preprocess]\nimage_size = [16, 32]\n"
    )
    flags = ["--epochs", "8", "--batch-size", "6", "train.epochs=1"]
    run = asked("--recipe", str(recipe), *flags)
    assert run.train.epochs == 1  # the override
    assert run.train.batch_size == 6  # the flag
    assert (run.seed, run.train.gamma) == (5, 0.5)  # the recipe
    assert run.preprocess.image_size == (16, 32)
    assert run.train.learning_rate == 1e-4  # the default


def test_every_run_gets_a_fresh_folder(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        main(["train", "--data-path", str(drawn_folder), *QUICK, *TINY])
    model = tmp_path / "runs" / "unet-2" / "best.safetensors"
    for _ in range(2):
        main(["evaluate", "--model", str(model), "--data-path", str(drawn_folder)])
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"unet", "unet-2"}
    folders = {path.name for path in model.parent.iterdir() if path.is_dir()}
    assert folders == {"evaluate-test", "evaluate-test-2", "last"}


@pytest.mark.parametrize(
    ("words", "section", "key", "value"),
    [
        (["--data-path", "elsewhere"], "data", "path", Path("elsewhere")),
        (["--trimap-border", "ignore"], "data", "trimap_border", "ignore"),
        (["--model", "attention_unet"], "model", "name", "attention_unet"),
        (["--image-size", "48"], "preprocess", "image_size", (48, 48)),
        (["--keep-aspect-ratio"], "preprocess", "keep_aspect_ratio", True),
        (["--epochs", "3"], "train", "epochs", 3),
        (["--batch-size", "5"], "train", "batch_size", 5),
        (["--learning-rate", "0.01"], "train", "learning_rate", 0.01),
        (["--patience", "4"], "train", "patience", 4),
        (["--detect-anomaly"], "train", "detect_anomaly", True),
        (["--seed", "11"], None, "seed", 11),
        (["--device", "cpu"], None, "device", "cpu"),
        (["train.precision=bf16"], "train", "precision", "bf16"),
        (["data.limit=40"], "data", "limit", 40),
        (["augment.enabled=false"], "augment", "enabled", False),
    ],
)
def test_every_flag_of_train_reaches_the_run(
    asked: Callable[..., Run], words: list[str], section: str | None, key: str, value: object
) -> None:
    changed = {key: value} if section is None else {section: {key: value}}
    run = asked(*words)
    assert run == Run.model_validate(changed)
    assert run != Run()


def test_out_and_overwrite_reach_the_training(
    drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data-path", str(drawn_folder), "--out", str(tmp_path / "x"), *QUICK, *TINY]
    main(words)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "--overwrite it" in capsys.readouterr().err
    main([*words, "--seed", "3", "--overwrite"])
    assert read(tmp_path / "x").seed == 3


def test_a_border_given_to_evaluate_is_the_border_of_the_score(
    pets_folder: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    words = ["--model", str(small_checkpoint), "--data-path", str(pets_folder)]
    for trimap_border in ("background", "ignore"):
        out = tmp_path / trimap_border
        main(
            [
                "evaluate",
                *words,
                "--split",
                "val",
                "--trimap-border",
                trimap_border,
                "--out",
                str(out),
            ]
        )
    scores = [
        json.loads((tmp_path / b / "score.json").read_text()) for b in ("background", "ignore")
    ]
    assert [score["rules"]["trimap_border"] for score in scores] == ["background", "ignore"]
    assert scores[0]["mean_dice"] != scores[1]["mean_dice"]


def test_evaluate_says_how_each_breed_and_each_group_of_a_table_fares(
    pets_folder: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = open_split(Data(path=pets_folder), "val", seed=0).names
    rows = [f"{name},{'odd' if index % 2 else 'even'}\n" for index, name in enumerate(names)]
    (tmp_path / "rooms.csv").write_text("".join(["name,room\n", *rows]))
    words = ["--model", str(small_checkpoint), "--data-path", str(pets_folder), "--split", "val"]
    words += ["--groups", str(tmp_path / "rooms.csv"), "--tolerance", "2"]
    main(["evaluate", *words, "--out", str(tmp_path / "out")])
    score = json.loads((tmp_path / "out" / "score.json").read_text())
    assert list(score["groups"]) == ["foreground size", "breed", "room"]
    assert set(score["groups"]["breed"]) == {name.rsplit("_", 1)[0] for name in names}
    assert score["groups"]["room"]["odd"]["images"] == len(names) // 2
    assert score["rules"]["tolerance"] == "2"
    assert "boundary tolerance 2 pixels" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["evaluate", "inference"])
def test_the_tolerance_that_the_help_shows_is_the_one_that_is_used(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"(default: {Tolerance()})" in said


def shrink_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, show in demo_command.SHOWS.items():
        beside = tuple(word for word in show.settings if word.startswith("loss."))
        parts = {"train": 8, "val": 2, "test": 6}
        tiny = demo_command.Show(parts, 24, 16, 1, (*TINY, *beside))
        monkeypatch.setitem(demo_command.SHOWS, kind, tiny)


def test_the_demo_goes_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shrink_demo(monkeypatch)
    main(["demo", "--out", str(tmp_path / "demo"), "--seed", "4"])
    text = capsys.readouterr().out
    assert "Mean Dice Score: " in text
    assert f"Images to look at: {tmp_path / 'demo' / 'overview.png'}" in text
    assert [line.split()[2] for line in text.splitlines() if line.startswith("$ notan")] == [
        "train",
        "inference",
        "predict",
    ]
    with Image.open(tmp_path / "demo" / "overview.png") as sheet:
        assert sheet.size == (6 * 24 + 5 * 4, 24)
    assert read(tmp_path / "demo" / "run").seed == 4


def test_the_demo_draws_cracks_and_learns_them_with_cldice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shrink_demo(monkeypatch)
    main(["demo", "--out", str(tmp_path / "demo"), "--kind", "cracks"])
    assert "Mean Dice Score: " in capsys.readouterr().out
    assert read(tmp_path / "demo" / "run").loss.cldice == 0.5
    drawn = DrawnSource(1, size=(24, 24), kind="cracks")[0]
    with Image.open(tmp_path / "demo" / "data" / "train" / "masks" / "drawn-0000.png") as mask:
        assert np.array_equal(np.asarray(mask) > 0, drawn.mask)


def test_the_demo_draws_only_what_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--kind", "crack"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "--kind" in said
    assert "shapes" in said
    assert "cracks" in said


def test_the_commands_that_the_demo_prints_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed and what is called cannot drift apart."""
    shrink_demo(monkeypatch)
    monkeypatch.chdir(tmp_path)
    main(["demo"])
    folder = tmp_path / "runs" / "demo"
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ notan")]
    first = load_run(folder / "run" / "run.toml")
    (folder / "run").rename(folder / "first run")
    for line in lines:
        main(shlex.split(line)[2:])
    assert load_run(folder / "run" / "run.toml") == first
    models = [read_card(folder / name / "best.safetensors") for name in ("run", "first run")]
    assert models[0].sha256 == models[1].sha256


def test_python_and_the_command_line_give_the_same_weights(
    small_run: Run, small_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text((small_checkpoint.parent / "run.toml").read_text())
    main(["train", "--recipe", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")])
    direct = run_training(small_run, out=tmp_path / "direct").checkpoint
    card = read_card(tmp_path / "run" / "best.safetensors")
    assert card.sha256 == read_card(direct).sha256 == read_card(small_checkpoint).sha256
