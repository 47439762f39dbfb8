"""notan check, called as the function that it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from doctor_folders import image_path, mask, pixels, write, write_clean
from notan.cli.check import check
from notan.cli.flags import ReadingFlags
from notan.errors import ConfigError, DataError, StorageError


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clean(tmp_path_factory.mktemp("clean") / "data")


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "data"))


def test_a_clean_folder_ends_well_and_leaves_both_files(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(data_path=clean, strict=True, out=tmp_path / "out")
    printed = capsys.readouterr().out
    assert "Nothing wrong found in 30 images." in printed
    assert printed.endswith(f"{tmp_path / 'out' / 'check.html'}\n")
    assert json.loads((tmp_path / "out" / "check.json").read_text("utf-8"))["exit_code"] == 0
    page = (tmp_path / "out" / "check.html").read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>")


def test_an_error_ends_with_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_path(folder, 1).write_text("hello")
    with pytest.raises(SystemExit) as stop:
        check(data_path=folder, out=tmp_path / "out")
    assert stop.value.code == 2
    assert "error: unreadable-image (1)" in capsys.readouterr().out
    assert (tmp_path / "out" / "check.html").is_file()


def test_a_warning_ends_with_1_only_when_strict(folder: Path, tmp_path: Path) -> None:
    write(mask(folder, 10), 255 - pixels(mask(folder, 10)))
    check(data_path=folder, out=tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        check(data_path=folder, strict=True, out=tmp_path / "out")
    assert stop.value.code == 1


def test_without_out_a_fresh_folder_is_taken(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check(data_path=clean)
    check(data_path=clean)
    assert (tmp_path / "runs" / "check" / "check.json").is_file()
    assert (tmp_path / "runs" / "check-2" / "check.html").is_file()


ANNOTATED = Path(__file__).parent.parent / "annotations"


def test_settings_of_the_data_are_taken_and_no_others(tmp_path: Path) -> None:
    def look(out: str, *words: str) -> None:
        check(
            data_path=ANNOTATED / "coco-datumaro",
            reading=ReadingFlags(foreground="cell"),
            out=tmp_path / out,
            overrides=words,
        )

    look("a", "data.masks.crowd=foreground")
    content = json.loads((tmp_path / "a" / "check.json").read_text(encoding="utf-8"))
    assert content["data"]["masks"] | {"crowd": "foreground"} == content["data"]["masks"]
    with pytest.raises(ConfigError, match="takes settings of the data only"):
        look("b", "train.epochs=3")
    with pytest.raises(ConfigError, match="chanels"):
        look("b", "data.chanels=3")
    assert not (tmp_path / "b").exists()


def test_no_data_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="name one with --data-path FOLDER"):
        check()


def test_a_missing_folder_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        check(data_path=tmp_path / "nowhere", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_refused(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StorageError, match="could not be written"):
        check(data_path=clean, out=tmp_path / "out")
