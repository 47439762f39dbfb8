"""``notan submit``: the same masks as ``notan predict``, and a check that finds what is wrong."""

from __future__ import annotations

import csv
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from notan.cli.main import main
from notan.prediction.formats.rows import decode_rle, kaggle_rle

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data(drawn_folder: Path, tmp_path: Path) -> Path:
    """The drawn test images as a leaderboard gives them, without masks, and a list."""
    shutil.copytree(drawn_folder / "test" / "images", tmp_path / "data" / "test" / "images")
    names = sorted(path.name for path in (tmp_path / "data" / "test" / "images").iterdir())
    words = [name if number % 2 else name.split(".")[0] for number, name in enumerate(names)]
    (tmp_path / "test.txt").write_text("\n".join(f"{word} 1 1" for word in reversed(words)))
    return tmp_path / "data"


@pytest.fixture
def flags(data: Path) -> list[str]:
    """The two flags that writing and checking share."""
    return ["--data-path", str(data), "--list", str(data.parent / "test.txt")]


def written(flags: list[str], model: Path, tmp_path: Path, *more: str) -> Path:
    out = tmp_path / "submission.csv"
    main(["submit", "--model", str(model), *flags, "--out", str(out), *more])
    return out


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["submit", *words])
    assert isinstance(stop.value.code, int)
    printed = capsys.readouterr()
    return stop.value.code, printed.err.strip().splitlines()[-1], printed.out


@pytest.mark.parametrize("more", [(), ("--threshold", "0.01", "--tta", "hflip")])
def test_the_decoded_masks_are_those_of_predict(
    flags: list[str],
    data: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
) -> None:
    out = written(flags, small_checkpoint, tmp_path, "--batch-size", "4", *more)
    assert f"6 images: {out}" in capsys.readouterr().out
    header, *found = rows(out)
    assert header == ["image_id", "encoded_mask"]
    listed = (tmp_path / "test.txt").read_text().splitlines()
    assert [name for name, _ in found] == [line.split()[0] for line in listed]

    masks = tmp_path / "masks"
    main(["predict", str(data / "test" / "images"), "--model", str(small_checkpoint), "--out",
          str(masks), "--format", "mask", *more])  # fmt: skip
    foreground = 0
    for name, text in found:
        with Image.open(masks / "masks" / f"{name.split('.')[0]}.png") as image:
            wanted = np.asarray(image) == 255
        np.testing.assert_array_equal(decode_rle(text, wanted.shape), wanted)
        assert kaggle_rle(decode_rle(text, wanted.shape)) == text
        foreground += int(wanted.sum())
    assert foreground > 0

    capsys.readouterr()
    main(["submit", "--check", str(out), *flags])
    assert capsys.readouterr().out == "fine: 6 images\n"


def test_every_problem_is_listed_with_exit_code_3(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("image_id,encoded_mask\nnobody,1 1\n,1 x\n")
    code, line, out = refused(["--check", str(path), *flags], capsys)
    assert (code, line.split(",")[0]) == (3, f"notan: {path}: 9 problems")
    assert out.splitlines()[:2] == [
        f"row 2, 'nobody': is not in {tmp_path / 'test.txt'}",
        "row 3 has no name",
    ]
    assert out.count("no row for") == 6


def test_a_mask_of_another_size_shows_where_the_images_are_given(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [line.split()[0] for line in (tmp_path / "test.txt").read_text().splitlines()]
    path = tmp_path / "mine.csv"
    cells = ["1 1921", *[""] * (len(names) - 1)]  # the images have 40x48 = 1920 pixels
    lines = [f"{name},{cell}" for name, cell in zip(names, cells, strict=True)]
    path.write_text("\n".join(["image_id,encoded_mask", *lines]) + "\n")
    main(["submit", "--check", str(path), *flags[2:]])
    assert capsys.readouterr().out == "fine: 6 images\n"
    code, line, out = refused(["--check", str(path), *flags], capsys)
    assert (code, "1 problem," in line) == (3, True)
    assert "reaches pixel 1921, but the image has 1920" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--check", "s.csv", "--out", "o.csv", "--tta", "hflip"],
            "--out, --tta: --check predicts",
        ),
        (["--check", "s.csv", "--model", "m"], "--model: --check predicts nothing"),
        (["--check", "s.csv", "--threshold", "0.5"], "--threshold: --check predicts nothing"),
        (["--check", "s.csv", "--device", "cpu"], "--device: --check predicts nothing"),
        (["--check", "s.csv", "--batch-size", "2"], "--batch-size: --check predicts nothing"),
        (["--check", "s.csv", "--data-path", "."], "--data-path: needs --list"),
        (["--model", "m"], "--data-path, --list: needed to write a submission"),
        ([], "--model, --data-path, --list: needed"),
        (
            ["--model", "m", "--data-path", ".", "--list", "l", "--batch-size", "0"],
            "--batch-size is 0; 1 or more is wanted",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line, _ = refused(words, capsys)
    assert code == 2
    assert message in line


@pytest.mark.parametrize("what", ["list", "model", "image"])
def test_an_input_is_never_overwritten(
    flags: list[str],
    data: Path,
    small_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    image = next((data / "test" / "images").iterdir())
    out = {"list": data.parent / "test.txt", "model": small_checkpoint, "image": image}[what]
    before = out.read_bytes()
    words = ["--model", str(small_checkpoint), *flags, "--out", str(out)]
    code, line, _ = refused(words, capsys)
    assert (code, out.read_bytes() == before) == (2, True)
    assert f"{out}: is an input" in line


def test_a_missing_image_is_named_before_the_model_is_loaded(
    flags: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.txt").write_text("# names\nnobody\n")
    words = ["--model", "absent.safetensors", *flags, "--out", str(tmp_path / "s.csv")]
    code, line, _ = refused(words, capsys)
    assert code == 3
    assert f"{tmp_path / 'test.txt'}, line 2: 'nobody': there is no image" in line
    assert not (tmp_path / "s.csv").exists()
    assert str(data) in line
