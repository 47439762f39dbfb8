"""The lock: one run to a folder, and none shut out by a run that is dead."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError
from notan.run_folder import LOCK, RunFolder
from notan.training.trainer import Trainer
from runs import Crash, before_step, crash, fate, names_in, resume_own, tiny, train_own

if TYPE_CHECKING:
    from pathlib import Path

    from runs import Server

WORDS = "another training is writing into this folder at this moment; wait for it, stop it, or"
SETTINGS = ("--epochs", 6, "--batch-size", 3, "--image-size", 16, "--learning-rate", 0.02)
SMALL = (
    *("model.name=little", "model.width=2", "train.trackers=[]"),
    "train.checkpoint_every_steps=1",
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    write_folder(DrawnSource(12, size=(24, 30)), folder / "train")
    write_folder(DrawnSource(3, size=(24, 30), first=12), folder / "val")
    return folder


def test_a_folder_that_is_locked_takes_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_own(tiny(), folder)
    before = fate(folder)
    with RunFolder(folder).locked():
        with pytest.raises(ConfigError, match=WORDS):
            train_own(tiny(seed=1), folder, overwrite=True)
        with pytest.raises(ConfigError, match=WORDS):
            resume_own(folder)
    assert fate(folder) == before


def test_what_a_killed_report_was_writing_goes_with_the_next_run(tmp_path: Path) -> None:
    half = [tmp_path / name for name in (".report.html.x1", ".report.json.x2", "report/.a.png.x3")]
    whole = tmp_path / "report" / "a.png"
    whole.parent.mkdir()
    for path in (*half, whole):
        path.touch()
    with RunFolder(tmp_path).locked():
        assert [path.exists() for path in (*half, whole)] == [False, False, False, True]


def test_a_lock_is_gone_when_the_run_is_over_however_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_own(tiny(), tmp_path / "run")
    assert LOCK not in names_in(tmp_path / "run")
    monkeypatch.setattr(Trainer, "after_step", before_step(1, crash))
    with pytest.raises(Crash):
        train_own(tiny(), tmp_path / "run", overwrite=True)
    assert LOCK not in names_in(tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_run_is_refused_while_the_first_goes_on_unharmed(
    server: Server, images: Path, tmp_path: Path, workers: int
) -> None:
    begin = ("train", "--data-path", images, *SETTINGS, *SMALL, f"data.workers={workers}")
    server.run(*begin, "--out", tmp_path / "whole")
    first = server.start(*begin, "--out", tmp_path / "run")
    assert first.wait_for_step(5)
    os.kill(first.pid, signal.SIGSTOP)  # a pause, so that it does not end too early
    intruders = [
        server.start("train", "--resume", tmp_path / "run"),
        server.start(*begin, "--out", tmp_path / "run", "--overwrite"),
    ]
    assert [intruder.end() for intruder in intruders] == [2, 2]
    assert all(WORDS in intruder.read() for intruder in intruders)
    os.kill(first.pid, signal.SIGCONT)
    assert first.end() == 0
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_lock_of_a_killed_run_is_free_at_once(
    server: Server, images: Path, tmp_path: Path, workers: int
) -> None:
    """Its workers, which live on for some seconds, must not keep the lock."""
    begin = ("train", "--data-path", images, *SETTINGS, *SMALL, f"data.workers={workers}")
    child = server.start(*begin, "--out", tmp_path / "run")
    assert child.wait_for_step(5)
    os.kill(child.pid, signal.SIGKILL)
    assert child.end() == -signal.SIGKILL
    assert LOCK in names_in(tmp_path / "run")
    server.run("train", "--resume", tmp_path / "run")
    assert LOCK not in names_in(tmp_path / "run")


def test_a_run_killed_before_it_wrote_its_settings_is_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (LOCK, ".run.toml.a1b2c3d4"):
        (folder / name).touch()
    train_own(tiny(), folder)
    assert not [name for name in names_in(folder) if name.startswith(".")]
