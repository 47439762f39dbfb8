"""``predict --resume`` goes by what a file holds, not by what it is called."""

from __future__ import annotations

import csv
import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from image_files import photo, saved
from needs import case
from notan.cli.main import main
from notan.io import digest
from notan.io.digest import hash_content

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = ("--format", "mask,rle,geojson")


def predict(*words: object, out: Path) -> None:
    main(["predict", *map(str, words), "--out", str(out), *FORMATS])


def rows(out: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with (out / name).open(newline="") as file:
        return list(csv.DictReader(file))


def content(out: Path) -> dict[str, bytes]:
    """Return every file that a user reads, by name."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and not path.name.endswith(".rows.jsonl")
    }


def test_a_replaced_image_is_predicted_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "in"
    shutil.copytree(case("17-resume-stale") / "v1", place)
    saved(place / "same.png", Image.fromarray(photo()))
    predict(place, out=tmp_path / "out")
    first = rows(tmp_path / "out")
    shutil.copy(case("17-resume-stale") / "v2" / "a.png", place / "a.png")
    capsys.readouterr()
    predict(place, "--resume", out=tmp_path / "out")
    said = capsys.readouterr().out
    assert "(1 were there already; 1 changed since: predicted anew)" in said
    assert (rows(tmp_path / "out")[0]["height"], rows(tmp_path / "out")[1]) != (
        first[0]["height"],
        first[1],
    )
    predict(place, out=tmp_path / "anew")
    assert content(tmp_path / "out") == content(tmp_path / "anew")
    predict(place, "--resume", out=tmp_path / "out")
    assert "(2 were there already)" in capsys.readouterr().out


def test_pixels_in_the_middle_count_though_size_and_time_stay(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((300, 300, 3), np.uint8))
    path = saved(tmp_path / "a.bmp", image)  # stored plainly: 270 KB
    predict(path, out=tmp_path / "out")
    before = path.stat()
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 40_000] = b"\xff" * 40_000
    path.write_bytes(whole)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    predict(path, "--resume", out=tmp_path / "out")
    predict(path, out=tmp_path / "anew")
    assert content(tmp_path / "out") == content(tmp_path / "anew")


def test_the_pages_that_a_file_no_longer_has_leave_the_table(tmp_path: Path) -> None:
    pages = [Image.fromarray(photo(10 + number, 12)) for number in range(3)]
    path = saved(tmp_path / "scan.tif", pages[0], save_all=True, append_images=pages[1:])
    predict(path, out=tmp_path / "out")
    saved(path, pages[1], save_all=True, append_images=pages[:1])
    predict(path, "--resume", out=tmp_path / "out")
    found = [(row["name"], row["height"]) for row in rows(tmp_path / "out")]
    assert found == [("scan-p0001", "11"), ("scan-p0002", "10")]


def test_an_image_that_is_damaged_now_has_no_row_of_before(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(photo()))
    other = saved(tmp_path / "b.png", Image.fromarray(photo()))
    predict(path, other, out=tmp_path / "out")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SystemExit):
        predict(path, other, "--resume", out=tmp_path / "out")
    assert [row["name"] for row in rows(tmp_path / "out")] == ["b"]
    assert [row["name"] for row in rows(tmp_path / "out", "failed.csv")] == ["a"]


def test_a_table_of_an_earlier_version_has_no_digests_and_is_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(photo()))
    predict(path, out=tmp_path / "out")
    table = tmp_path / "out" / "predictions.csv"
    lines = table.read_text().splitlines()
    table.write_text("".join(line.rpartition(",")[0] + "\n" for line in lines))
    capsys.readouterr()
    predict(path, "--resume", out=tmp_path / "out")
    assert "1 changed since: predicted anew" in capsys.readouterr().out
    assert table.read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--threshold", "0.8"), "postprocessing was"),
        (("--tta", "hflip"), "tta was none"),
        (("--tiles",), "tiling was"),
        (("--model", "other.onnx"), "model was"),
    ],
)
def test_another_way_of_making_masks_is_refused(
    flags: tuple[str, ...],
    what: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    portable: Path,
) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(photo()))
    predict(path, out=tmp_path / "out")
    words = [str(portable) if word == "other.onnx" else word for word in flags]
    with pytest.raises(SystemExit) as stop:
        predict(path, "--resume", *words, out=tmp_path / "out")
    assert stop.value.code == 2
    assert f"begun otherwise: {what}" in capsys.readouterr().err


def test_of_a_huge_file_size_ends_and_time_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "WHOLE", 1000)
    monkeypatch.setattr(digest, "END", 100)
    path = tmp_path / "slide.tif"
    path.write_bytes(bytes(2000))
    os.utime(path, ns=(0, 0))
    before = hash_content(path)
    assert hash_content(path) == before
    os.utime(path, ns=(0, 5_000))
    assert hash_content(path) != before
    path.write_bytes(bytes(1999) + b"x")
    os.utime(path, ns=(0, 0))
    assert hash_content(path) != before
