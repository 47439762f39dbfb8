"""SIGTERM and SIGHUP end a command like Ctrl-C: what is done is whole, and one line says it."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from image_files import photo, saved
from notan.modelfile.default import DEFAULT_MODEL
from notan.training.loop import StopRequest
from runs import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

MANY = 400
SLOW = """
import signal, sys, time
from notan.cli.main import main
from notan.prediction import batches

whole = batches.begin

def slow(*arguments):
    time.sleep(0.05)
    return whole(*arguments)

batches.begin = slow
# the tests themselves may run under nohup, which is inherited
ignored = sys.argv[1] == "nohup"
signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
main(sys.argv[2:])
"""
"""The command line, with a network that takes its time."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(MANY):
        saved(folder / f"p{number:03}.png", Image.fromarray(photo(12, 16)))
    (folder / "list.txt").write_text("".join(f"p{number:03}\n" for number in range(MANY)))
    return folder


def start(*words: object, mode: str = "plain") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, mode, *map(str, words)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(folder: Path, pattern: str, count: int = 1) -> None:
    """Wait until a folder holds files of a pattern."""
    end = time.monotonic() + PATIENCE
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < end, f"no {pattern} in {folder}"
        time.sleep(0.02)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_a_whole_table_and_says_how_to_go_on(
    number: signal.Signals, code: int, photos: Path, tmp_path: Path
) -> None:
    child = start("predict", photos, "--out", tmp_path / "out", "--format", "mask")
    wait_for(tmp_path / "out", "masks/p*.png", 3)
    child.send_signal(number)
    child.send_signal(number)  # a shell that closes, and the terminal, send it both
    _, errors = child.communicate(timeout=PATIENCE)
    assert child.returncode == code, errors
    assert errors.splitlines()[-1].startswith(f"notan: stopped by {number.name}; ")
    assert errors.splitlines()[-1].endswith("with --resume to go on")
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        done = [row["name"] for row in csv.DictReader(file)]
    assert 0 < len(done) < MANY
    assert {path.stem for path in (tmp_path / "out" / "masks").iterdir()} == set(done)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_submit_leaves_nothing_half(
    number: signal.Signals, code: int, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "submission.csv"
    words = ("--model", DEFAULT_MODEL, "--data-path", photos, "--list", photos / "list.txt")
    child = start("submit", *words, "--out", out)
    wait_for(tmp_path, ".*")
    child.send_signal(number)
    _, errors = child.communicate(timeout=PATIENCE)
    assert child.returncode == code, errors
    assert errors.splitlines()[-1].startswith(f"notan: stopped by {number.name}; ")
    assert not list(tmp_path.iterdir())


def test_under_nohup_a_closed_terminal_ends_nothing(photos: Path, tmp_path: Path) -> None:
    few = sorted(photos.glob("p00?.png"))
    child = start("predict", *few, "--out", tmp_path / "out", "--format", "mask", mode="nohup")
    wait_for(tmp_path / "out", "masks/p*.png")
    os.kill(child.pid, signal.SIGHUP)
    output, errors = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, errors
    assert f"{len(few)} of {len(few)} images" in output


def test_commands_that_run_in_this_process_leave_its_signals_alone(
    photos: Path, tmp_path: Path
) -> None:
    from notan.cli.main import main

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    main(["predict", str(photos / "p000.png"), "--out", str(tmp_path / "out")])
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_training_waits_for_a_safe_point_however_often_the_terminal_hangs_up() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would not be heard
    try:
        with StopRequest() as stop:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_training_under_nohup_hears_no_hangup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number is None
    finally:
        signal.signal(signal.SIGHUP, before)
