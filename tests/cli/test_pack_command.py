"""``notan pack``, and the commands that take its shards where a folder could be given."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from test_bad_input import QUICK, QUIET

from notan.cli.main import main
from notan.config import load_run
from notan.io.images import read_image
from notan.metrics.score import Score
from one_line import refused

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("without_reports")


def packed(folder: Path, out: Path, *words: str) -> Path:
    main(["pack", "--data-path", str(folder), "--out", str(out), *words])
    return out


def test_it_says_what_it_wrote(
    drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = packed(drawn_folder, tmp_path / "shards", "--shard-size", "0.05MB")
    said = capsys.readouterr().out
    assert re.fullmatch(
        rf"{out}: packed data: train 24, validation 6, test 6 images in \d+ shards, "
        r"sha256 [0-9a-f]{16}, [\d,]+ bytes\n",
        said,
    )
    code, line = refused(["pack", "--data-path", str(drawn_folder), "--out", str(out)], capsys)
    assert (code, line) == (
        2,
        f"{out}: something is here already; choose another, or --overwrite it",
    )
    packed(drawn_folder, out, "--overwrite")
    assert capsys.readouterr().out.count("in 3 shards") == 1


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--out", "x"], "--data-path FOLDER is missing"),
        (["--data-path", "x"], "--out FOLDER is missing"),
        (["--data-path", "x", "--out", "y"], "x: there is no such folder; check --data-path"),
        (["--data-path", ".", "--out", "y"], "no images with masks here"),
        (["--data-path", ".", "--out", "y", "--shard-size", "0MB"], "--shard-size 0MB: a size"),
        (["--data-path", ".", "--out", "y", "--shard-size", "many"], "--shard-size many: a size"),
        (["--data-path", ".", "--out", "y", "seed=3"], "seed=3: packing takes settings of the"),
        (["--data-path", ".", "--out", "y", "data.layut=coco"], "layout"),
    ],
)
def test_a_wrong_word_is_one_line(
    words: list[str],
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, line = refused(["pack", *words], capsys)
    assert wanted in line
    assert code in (2, 3)
    assert not any(tmp_path.iterdir())


def test_train_evaluate_and_check_take_shards(
    drawn_folder: Path, small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = packed(drawn_folder, tmp_path / "shards", "--shard-size", "50KB")
    model = ("--model", str(small_checkpoint))
    scores = []
    for name, data in (("folder", drawn_folder), ("shards", shards)):
        out = tmp_path / f"score-{name}"
        main(["inference", *model, "--data-path", str(data), "--out", str(out)])
        scores.append(Score.model_validate_json((out / "score.json").read_bytes()))
        images = sorted((out / "overlays").iterdir())
        if name == "folder":
            overlays = {path.name: read_image(path) for path in images}
        assert [path.name for path in images] == list(overlays)
        for path in images:
            np.testing.assert_array_equal(read_image(path), overlays[path.name])
    assert scores[0].images == scores[1].images
    run = tmp_path / "run"
    main(["train", "--data-path", str(shards), "--out", str(run), *QUICK, QUIET])
    assert load_run(run / "run.toml").data.path == shards
    own = ("--model", str(run / "best.safetensors"), "--data-path", str(shards))
    main(["evaluate", *own, "--out", str(tmp_path / "own")])
    main(["check", "--data-path", str(shards), "--out", str(tmp_path / "check")])
    assert "Nothing wrong found in 36 images." in capsys.readouterr().out
    assert (tmp_path / "check" / "check.html").stat().st_size > 10_000


def test_predict_takes_the_images_of_shards(
    drawn_folder: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    shards = packed(drawn_folder, tmp_path / "shards", "--shard-size", "50KB")
    parts = [str(drawn_folder / part / "images") for part in ("train", "val", "test")]
    masks = []
    for name, words in (("folder", parts), ("shards", [str(shards)])):
        out = tmp_path / f"masks-{name}"
        options = ("--out", str(out), "--format", "mask", "--batch-size", "4")
        main(["predict", *words, "--model", str(small_checkpoint), *options])
        files = sorted((out / "masks").iterdir())
        masks.append({path.name: path.read_bytes() for path in files})
    assert len(masks[0]) == 36
    assert masks[0] == masks[1]


def test_a_damaged_shard_ends_a_training_in_one_line(
    drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = packed(drawn_folder, tmp_path / "shards", "--shard-size", "50KB")
    path = shards / "train-000001.tar"
    content = path.read_bytes()
    words = ["train", "--data-path", str(shards), "--out", str(tmp_path / "run"), *QUICK, QUIET]
    for spoiled, wanted in (
        (content[:-1], "it is cut short, or of another pack; copy it again"),
        (content.replace(b"IDAT", b"iDAT"), "its checksum is not the one in the index"),
        (None, "this shard is missing, and the index counts on it; copy it again"),
    ):
        path.unlink() if spoiled is None else path.write_bytes(spoiled)
        code, line = refused(words, capsys)
        assert code == 3
        assert line.startswith(f"{path}")
        assert wanted in line
