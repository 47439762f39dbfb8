"""``notan predict`` on tiles, and on images that are streamed."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from PIL import Image

from image_files import photo, saved
from notan.cli.main import main
from notan.io import tiff

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TIFF that counts as huge: 300 x 200 pixels, where 50,000 are decoded at once."""
    monkeypatch.setattr(tiff, "MAX_PIXELS", 50_000)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, photo(300, 200), photometric="rgb", tile=(64, 64), compression="zlib")
    return path


def predict(model: Path, *words: object) -> None:
    main(["predict", *map(str, words), "--model", str(model)])


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_huge_tiff_is_streamed_beside_other_images(
    small_checkpoint: Path, large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = saved(tmp_path / "small.png", Image.fromarray(photo()))
    out = tmp_path / "out"
    predict(small_checkpoint, large, small, "--out", out)
    assert "2 of 2 images" in capsys.readouterr().out
    assert [row["name"] for row in rows(out)] == ["slide", "small"]
    mask = tifffile.imread(out / "masks" / "slide.tif")
    assert mask.shape == (300, 200)
    assert set(np.unique(mask)) <= {0, 255}
    assert (out / "masks" / "small.png").exists()
    by_name = {row["name"]: row for row in rows(out)}
    assert by_name["slide"]["height"] == "300"
    assert float(by_name["slide"]["foreground_fraction"]) == pytest.approx(
        (mask > 0).mean(), abs=1e-6
    )


def test_the_streamed_mask_is_that_of_the_same_tiles_in_memory(
    small_checkpoint: Path, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(small_checkpoint, large, "--out", tmp_path / "a", "--format", "mask", "--scale", "0.4")
    monkeypatch.undo()
    flags = ["--tiles", "--scale", "0.4", "--format", "mask"]
    predict(small_checkpoint, large, "--out", tmp_path / "b", *flags)
    with Image.open(tmp_path / "b" / "masks" / "slide.png") as image:
        np.testing.assert_array_equal(
            tifffile.imread(tmp_path / "a" / "masks" / "slide.tif"), np.asarray(image)
        )


def test_a_resumed_run_leaves_a_streamed_image_that_is_done(
    small_checkpoint: Path, large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    predict(small_checkpoint, large, "--out", out)
    before = (out / "masks" / "slide.tif").stat().st_mtime_ns
    predict(small_checkpoint, large, "--out", out, "--resume")
    assert (out / "masks" / "slide.tif").stat().st_mtime_ns == before
    assert "(1 were there already)" in capsys.readouterr().out


def test_other_tiles_are_another_job(
    small_checkpoint: Path, large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    predict(small_checkpoint, large, "--out", out)
    assert json.loads((out / "predict.json").read_text())["tiling"]
    with pytest.raises(SystemExit) as stop:
        predict(small_checkpoint, large, "--out", out, "--resume", "--scale", "2")
    assert stop.value.code == 2
    assert "tiling was" in capsys.readouterr().err


def test_a_huge_tiff_that_is_broken_is_named_and_leaves_nothing(
    small_checkpoint: Path, large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large.write_bytes(large.read_bytes()[:-2000])
    small = saved(tmp_path / "small.png", Image.fromarray(photo()))
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        predict(small_checkpoint, large, small, "--out", out)
    assert stop.value.code == 3
    said = capsys.readouterr().err
    assert "1 of 2 images could not be read" in said
    assert "slide.tif: is damaged or cut short" in said
    assert [row["name"] for row in rows(out)] == ["small"]
    assert "slide.tif" in (out / "failed.csv").read_text()
    assert not list(out.rglob("*.tif"))


def test_what_cannot_be_written_of_a_huge_image_is_said(
    small_checkpoint: Path, large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        predict(small_checkpoint, large, "--out", tmp_path / "out", "--format", "overlay")
    assert stop.value.code == 3
    assert "is written as mask, probability" in capsys.readouterr().err


@pytest.mark.parametrize("scale", ["0", "-1", "99", "nan"])
def test_a_scale_that_is_none_is_refused(
    scale: str, small_checkpoint: Path, large: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        predict(small_checkpoint, large, "--scale", scale)
    assert stop.value.code == 2
    assert "above 0 and at most 16" in capsys.readouterr().err
