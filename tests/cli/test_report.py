"""notan report, and the report at the end of notan train."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from notan.cli.main import main
from notan.errors import DataError
from runs import no_report

QUICK = ("--image-size", "16", "--epochs", "1", "--batch-size", "8", "--device", "cpu")
TINY = ("model.width=2", "train.trackers=[]")


@pytest.fixture
def run(small_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_checkpoint.parent, tmp_path / "run"))


def train(drawn_folder: Path, out: Path) -> None:
    main(["train", "--data-path", str(drawn_folder), "--out", str(out), *QUICK, *TINY])


def test_a_report_ends_by_naming_its_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(run)])
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"


def test_the_flags_of_a_report_are_heard(run: Path, drawn_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere"
    words = ["--split", "test", "--data-path", str(drawn_folder), "--device", "cpu"]
    main(["report", str(run), *words, "--out", str(out)])
    content = json.loads((out / "report.json").read_text())
    assert content["split"] == "test"
    assert (out / "report" / "loss.png").is_file()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "RUN"),
        (["gone"], 2, "gone: there is no such folder"),
        (["run/run.toml"], 2, "run/run.toml: this is a file; the run folder is wanted"),
        (["."], 2, "there is no run here (run.toml is missing)"),
        (["run", "--split", "tset"], 2, "--split"),
        (["run", "--split", "train"], 2, "choose one of (test, val)"),
        (["run", "--device", "gpu"], 2, "there is no such device"),
        (["run", "--data-path", "gone"], 3, "gone: there is no such folder"),
        (["run", "--out", "file"], 9, "file/report/loss.png: could not be written"),
        (["run", "--splt", "val"], 2, "did you mean '--split'"),
    ],
)
def test_a_wrong_word_is_one_line(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(run.parent)
    Path("file").touch()
    with pytest.raises(SystemExit) as stop:
        main(["report", *words])
    line = capsys.readouterr().err.splitlines()[-1]
    assert (stop.value.code, message in line) == (code, True), line
    assert not list(run.parent.rglob("report.html"))


def test_a_training_ends_with_its_report(
    drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(drawn_folder, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "report.json").read_text())
    assert content["state"].startswith("Finished: 1 epoch in")
    assert (tmp_path / "run" / "report.html").is_file()
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'run' / 'best.safetensors'}\n")


def test_another_run_in_the_same_folder_leaves_no_older_report(
    drawn_folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["report", str(run)])
    monkeypatch.setattr("notan.cli.train._report", no_report)
    words = ["train", "--data-path", str(drawn_folder), "--out", str(run), "--overwrite"]
    main([*words, *QUICK, *TINY])
    assert not [path for path in run.iterdir() if path.name.startswith("report")]


@pytest.mark.parametrize("trouble", [DataError("no luck"), ValueError("a bug"), MemoryError()])
def test_a_report_that_fails_does_not_fail_the_training(
    drawn_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    trouble: Exception,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise trouble

    monkeypatch.setattr("notan.report.run.write_report", fail)
    out = tmp_path / "a run"
    with caplog.at_level(logging.WARNING, "notan"):
        train(drawn_folder, out)
    assert caplog.messages[-1].endswith(f"try again with: notan report '{out}'")
    assert "Best validation Dice" in capsys.readouterr().out
    assert (out / "best.safetensors").is_file()
