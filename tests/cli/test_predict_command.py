"""``notan predict``: folders, videos, patterns, standard input; damage; going on after a stop."""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import notan.cli.predict as predict_module
from image_files import photo, png, saved
from notan.cli.main import main
from notan.io.video import Video
from notan.prediction import pipeline as pipeline_module
from notan.prediction.backends import TorchBackend
from video_files import write_video

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def predict(small_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run the command; returns the folder of outputs."""

    def command(*words: object, out: Path = tmp_path / "out") -> Path:
        given = [str(word) for word in words]
        main(["predict", *given, "--model", str(small_checkpoint), "--out", str(out)])
        return out

    return command


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images."""
    (tmp_path / "photos").mkdir()
    for number in range(4):
        image = np.roll(photo(), number, axis=0)
        saved(tmp_path / "photos" / f"p{number}.png", Image.fromarray(image))
    return tmp_path / "photos"


def masks(out: Path) -> list[str]:
    folder = out / "masks"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def rows(out: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with (out / name).open(newline="") as file:
        return list(csv.DictReader(file))


def refused(
    capsys: pytest.CaptureFixture[str], command: Callable[..., Path], *words: object, **out: Path
) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        command(*words, **out)
    assert isinstance(stop.value.code, int)
    return stop.value.code, capsys.readouterr().err.strip().splitlines()[-1]


def test_a_video_gives_a_mask_of_every_nth_frame(
    predict: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = predict(write_video(tmp_path / "clip.mp4"), "--frame-step", 3)
    wanted = ["clip-000001", "clip-000004", "clip-000007"]
    assert masks(out) == [f"{name}.png" for name in wanted]
    assert [row["name"] for row in rows(out)] == wanted
    assert "3 of 3 images" in capsys.readouterr().out
    with Image.open(out / "overlays" / "clip-000004.png") as overlay:
        assert overlay.size == (64, 48)


def test_a_frame_and_its_image_have_the_same_mask(
    predict: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_video(tmp_path / "clip.avi")
    out = predict(path)
    with Video(path) as video:
        assert video.advance()
        frame = Image.fromarray(video.read())
    alone = predict(saved(tmp_path / "frame.png", frame), out=tmp_path / "alone")
    first = (out / "masks" / "clip-000001.png").read_bytes()
    assert first == (alone / "masks" / "frame.png").read_bytes()


def test_pages_patterns_and_images_go_together(predict: Callable[..., Path], photos: Path) -> None:
    pages = [Image.fromarray(photo(10 + number, 12)) for number in range(2)]
    saved(photos / "scan.tif", pages[0], save_all=True, append_images=pages[1:])
    out = predict(photos / "*.tif", photos / "p[01].png")
    assert masks(out) == ["p0.png", "p1.png", "scan-p0001.png", "scan-p0002.png"]
    assert [row["height"] for row in rows(out)] == ["10", "11", "20", "20"]


def test_folders_with_the_same_names_do_not_collide(
    predict: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "more")
    out = predict(photos, tmp_path / "more")
    assert masks(out) == sorted(f"{part}/p{n}.png" for part in ("photos", "more") for n in range(4))


def test_an_image_may_come_by_standard_input(
    predict: Callable[..., Path], photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Standard:
        buffer = io.BytesIO((photos / "p0.png").read_bytes())

    monkeypatch.setattr(sys, "stdin", Standard())
    out = predict("-")
    assert masks(out) == ["stdin.png"]
    named = predict(photos / "p0.png", out=tmp_path / "named")
    assert (out / "masks/stdin.png").read_bytes() == (named / "masks/p0.png").read_bytes()


def test_only_the_formats_that_were_asked_for_are_written(
    predict: Callable[..., Path], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = predict(photos, "--format", "mask")
    assert (out / "masks").exists()
    assert not (out / "overlays").exists()
    code, line = refused(capsys, predict, photos, "--format", "mask,overlays")
    assert code == 2
    assert "overlays" in line
    assert "did you mean 'overlay'" in line


@pytest.mark.parametrize("flag", ["--frame-step", "--batch-size"])
def test_a_number_below_one_is_refused(
    predict: Callable[..., Path], photos: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    code, line = refused(capsys, predict, photos, flag, 0)
    assert (code, line) == (2, f"notan: {flag} is 0; 1 or more is wanted")


def test_an_input_is_never_overwritten(
    predict: Callable[..., Path],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(photos, tmp_path / "out" / "masks")
    before = (tmp_path / "out" / "masks" / "p0.png").read_bytes()
    code, line = refused(capsys, predict, tmp_path / "out" / "masks")
    assert code == 2
    assert "out/masks/p0.png: is an input" in line
    assert (tmp_path / "out" / "masks" / "p0.png").read_bytes() == before
    assert not (tmp_path / "out" / "predict.json").exists()


def test_outputs_may_go_into_the_folder_of_the_inputs(
    predict: Callable[..., Path], photos: Path
) -> None:
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    out = predict(photos, out=photos)
    assert masks(out) == sorted(before)
    assert all((photos / name).read_bytes() == content for name, content in before.items())
    assert len(rows(predict(photos, "--resume", out=photos))) == 4


def damage(photos: Path) -> int:
    """Put broken files of many kinds among the images; return how many."""
    whole = (photos / "p0.png").read_bytes()
    for name, content in {
        "cut.png": whole[:200],
        "empty.jpg": b"",
        "text.jpg": b"this is no image",
        "page.png": b"<!DOCTYPE html><html><body>404</body></html>",
        "bomb.png": png(65_535, 65_535),
        "film.mp4": b"ffconcat version 1.0\nfile p0.png\n",
        "cut.mp4": write_video(photos / "cut.mp4").read_bytes()[:300],
    }.items():
        (photos / name).write_bytes(content)
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    return 7


def test_damaged_files_among_good_ones_are_listed_at_the_end(
    predict: Callable[..., Path],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = damage(photos)
    code, line = refused(capsys, predict, photos, "--batch-size", 2)
    assert code == 3
    assert f"{bad} of {bad + 4} images could not be read" in line
    assert "and 2 more; all in failed.csv" in line
    out = tmp_path / "out"
    assert masks(out) == ["p0.png", "p1.png", "p2.png", "p3.png"]
    failed = rows(out, "failed.csv")
    assert sorted(Path(row["image"]).name for row in failed) == sorted(
        ["cut.png", "empty.jpg", "text.jpg", "page.png", "bomb.png", "film.mp4", "cut.mp4"]
    )
    assert all(row["image"] in row["reason"] for row in failed)


def stop_at(monkeypatch: pytest.MonkeyPatch, image: int) -> None:
    """Press Ctrl-C while the network has the image of this number."""
    whole, asked = TorchBackend.begin, 0

    def begin(self: TorchBackend, inputs: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == image:
            raise KeyboardInterrupt
        return whole(self, inputs)

    monkeypatch.setattr(TorchBackend, "begin", begin)


def test_ctrl_c_leaves_whole_files_and_resume_completes_them(
    predict: Callable[..., Path],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = predict(photos, out=tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 3)
        code, line = refused(capsys, predict, photos)
    assert code == 130
    assert "2 images are done and whole: give the same command with --resume" in line
    out = tmp_path / "out"
    assert masks(out) == ["p0.png", "p1.png"]
    times = {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    predict(photos, "--resume")
    assert "4 of 4 images" in (said := capsys.readouterr().out)
    assert "(2 were there already)" in said
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    files = [path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file()]
    assert files == [p.relative_to(whole) for p in sorted(whole.rglob("*")) if p.is_file()]
    for path in files:
        assert (out / path).read_bytes() == (whole / path).read_bytes()


def test_resume_in_an_empty_folder_begins(predict: Callable[..., Path], photos: Path) -> None:
    assert len(rows(predict(photos, "--resume"))) == 4


def test_without_resume_everything_is_predicted_again(
    predict: Callable[..., Path], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = predict(photos)
    (photos / "p3.png").unlink()
    predict(photos)
    assert "already" not in capsys.readouterr().out
    assert len(rows(out)) == 3


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        ({"predict.json": "{}"}, 2, "this folder was begun otherwise"),
        (
            {"predict.json": "[1]"},
            2,
            "this folder was begun otherwise: model was not said",
        ),
        ({"predict.json": "no json"}, 3, "nobody knows how this folder was made"),
        ({"predictions.csv": "name;image\nx;y\n"}, 3, "cannot be read as the table"),
        ({"predictions.csv": "\0\0\0"}, 3, "cannot be read as the table"),
    ],
)
def test_a_folder_that_cannot_be_resumed_is_refused_and_left_as_it_is(
    predict: Callable[..., Path],
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: dict[str, str],
    code: int,
    words: str,
) -> None:
    out = predict(photos)
    for name, content in spoil.items():
        (out / name).write_text(content)
    found, line = refused(capsys, predict, photos, "--resume")
    assert found == code
    assert words in line
    assert all((out / name).read_text() == content for name, content in spoil.items())
    predict(photos)  # to begin anew is always possible
    assert len(rows(out)) == 4


def test_resume_with_another_threshold_is_refused(
    predict: Callable[..., Path], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = predict(photos)
    settings = json.loads((out / "predict.json").read_text())
    code, line = refused(capsys, predict, photos, "--resume", "--threshold", 0.9)
    assert code == 2
    assert "begun otherwise: postprocessing was" in line
    assert json.loads((out / "predict.json").read_text()) == settings


def test_what_it_computed_in_is_kept_and_resuming_in_another_is_refused(
    predict: Callable[..., Path], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = predict(photos, "--device", "cpu")
    assert json.loads((out / "predict.json").read_text())["precision"] == "fp32"
    predict(photos, "--device", "cpu", "--precision", "fp32", "--resume")
    assert "4 were there already" in capsys.readouterr().out
    code, line = refused(
        capsys, predict, photos, "--device", "cpu", "--precision", "bf16", "--resume"
    )
    assert code == 2
    assert "precision was fp32, is now bf16" in line


def test_a_precision_that_there_is_not_is_refused(
    predict: Callable[..., Path], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = refused(capsys, predict, photos, "--precision", "fp16")
    assert code == 2
    assert "fp16" in line
    assert "fp32" in line


@pytest.mark.parametrize("is_long", [False, True])
def test_a_long_job_says_its_rates_and_what_it_waited_for(
    is_long: bool,
    predict: Callable[..., Path],
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(predict_module, "LONG_SECONDS", 0.0 if is_long else 1e9)
    with caplog.at_level("INFO", logger="notan"):
        predict(photos)
    said = [line.message for line in caplog.records if "from files to files" in line.message]
    assert len(said) == is_long
    for line in said:
        assert "by the network alone; it waited for reading" in line


def test_the_table_is_saved_now_and_then(
    predict: Callable[..., Path], photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So that a power cut, after which nothing more is written, costs little."""
    monkeypatch.setattr(pipeline_module, "SAVE_SECONDS", 0.0)
    whole, seen = TorchBackend.begin, []

    def begin(self: TorchBackend, inputs: Any) -> Any:
        seen.append((tmp_path / "out" / "predictions.csv").exists())
        return whole(self, inputs)

    monkeypatch.setattr(TorchBackend, "begin", begin)
    predict(*[photos] * 2, *write_many(tmp_path, 30))
    assert any(seen)


def write_many(folder: Path, count: int) -> list[Path]:
    image = Image.fromarray(photo(4, 4))
    return [saved(folder / f"q{number}.png", image) for number in range(count)]


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("command", ["predict", "evaluate", "inference"])
@pytest.mark.parametrize("name", ["m.pth", "m.pt", "m.safetensors", "m.onnx", "m.bin"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_not_run_under_any_name(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
    protocol: int,
) -> None:
    canary = tmp_path / "canary"
    content = pickle.dumps(Canary(canary), protocol)
    (tmp_path / name).write_bytes(content)
    words = [str(photos)] if command == "predict" else ["--data-path", str(photos)]
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main([command, *words, "--model", str(tmp_path / name), "--out", str(out)])
    assert stop.value.code == 5
    assert name in capsys.readouterr().err
    assert not canary.exists()
    assert not out.exists()
    pickle.loads(content)  # noqa: S301 - our own, to show that it would have sung
    assert canary.exists()


def test_a_state_dict_of_somebody_else_is_refused_with_what_to_do(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    small_checkpoint: Path,
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(small_checkpoint)
    torch.save(weights, tmp_path / "theirs.pth")
    save_file(weights, tmp_path / "theirs.safetensors")
    for name, words in (
        ("theirs.pth", "a PyTorch pickle.*load it into its own network"),
        ("theirs.safetensors", "weights without a notan card"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["predict", str(photos), "--model", str(tmp_path / name)])
        assert stop.value.code == 5
        line = capsys.readouterr().err
        assert name in line
        assert re.search(words, line)


def test_a_whole_command_line_says_one_clean_line(photos: Path, small_checkpoint: Path) -> None:
    """In a process of its own: what FFmpeg or a thread might print would show here."""
    damage(photos)
    words = ["-m", "notan", "predict", str(photos / "*.mp4"), str(photos / "p0.png")]
    answer = subprocess.run(
        [sys.executable, *words, "--model", str(small_checkpoint), "--out", str(photos / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 3
    assert answer.stderr.count("\n") == 1
    assert answer.stderr.startswith("notan: 2 of 3 images could not be read: ")
    assert "1 of 3 images" in answer.stdout
