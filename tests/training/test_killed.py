"""Killed: a training that is ended from outside at any moment loses its last steps and no more."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from notan.data.synthetic import DrawnSource, write_folder
from runs import Child, Server, fate, names_in

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

EPOCHS, STEPS, EVERY = 5, 4, 3
SETTINGS = (
    *("--epochs", EPOCHS, "--batch-size", 4, "--image-size", 16, "--learning-rate", 0.02),
    *("model.name=little", "model.width=2", "train.trackers=[]"),
    *("train.ema_decay=0.9", "train.schedule=cosine", f"train.checkpoint_every_steps={EVERY}"),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_folder(DrawnSource(STEPS * 4, size=(24, 30)), folder / "train")
    write_folder(DrawnSource(4, size=(24, 30), first=STEPS * 4), folder / "val")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(
    server: Server, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """How the run ends that nobody kills."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    server.run("train", "--data-path", images, "--out", folder, *SETTINGS)
    return fate(folder)


def newest_state(folder: Path) -> int:
    """Return the number of steps in the newest state; 0 without one."""
    return max((int(path.stem) for path in (folder / "last").glob("[0-9]*")), default=0)


def kill_at_random(child: Child, moment: random.Random) -> bool:
    """Kill a training some steps, and a part of a step, after its start; False if it ended."""
    if not child.wait_for_step(moment.randrange(8)):
        return False
    time.sleep(moment.uniform(0, 0.02))
    os.kill(child.pid, signal.SIGKILL)
    return child.end() == -signal.SIGKILL


def kill_and_resume(
    server: Server, images: Path, folder: Path, settings: Sequence[str], moment: random.Random
) -> int:
    """Kill a run and resume it until it has finished; return how often it was killed."""
    begin = ("train", "--data-path", images, "--out", folder, *SETTINGS)
    child = server.start(*begin, *settings)
    kills = saved = 0
    while kill_at_random(child, moment):
        kills += 1
        assert child.steps[:1] in ([], [saved + 1])
        done, saved = max(child.steps, default=saved), newest_state(folder)
        assert done - saved <= EVERY
        started = (folder / "run.toml").exists()
        child = server.start("train", "--resume", folder) if started else server.start(*begin)
    assert child.end() == 0, child.read()
    assert child.steps[:1] in ([], [saved + 1])  # none where the kill came after the last
    assert newest_state(folder) == EPOCHS * STEPS
    return kills


@pytest.mark.parametrize(
    ("workers", "cache", "least"), [(0, "memory", 4), (0, "disk", 4), (2, "disk", 5)]
)
def test_a_run_killed_again_and_again_ends_bit_for_bit_as_if_it_had_not_been(
    server: Server,
    images: Path,
    uninterrupted: dict[str, object],
    tmp_path: Path,
    workers: int,
    cache: str,
    least: int,
) -> None:
    settings = (f"data.workers={workers}", f"data.cache={cache}")
    moment, kills, runs = random.Random(workers), 0, 0
    while kills < least:
        runs += 1
        folder = tmp_path / str(runs)
        kills += kill_and_resume(server, images, folder, settings, moment)
        assert fate(folder) == uninterrupted
        assert names_in(folder) == {
            *("best.safetensors", "history.jsonl", "last", "run.toml", "validation.txt")
        }
        assert len(names_in(folder / "last")) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(("workers", "group"), [(0, False), (2, False), (2, True)])
def test_a_signal_saves_says_how_to_go_on_and_gives_the_usual_code(
    server: Server,
    images: Path,
    uninterrupted: dict[str, object],
    tmp_path: Path,
    number: int,
    code: int,
    workers: int,
    group: bool,  # a terminal's Ctrl-C goes to the workers too
) -> None:
    words = ("--data-path", images, "--out", tmp_path / "run", f"data.workers={workers}")
    child = server.start("train", *words, *SETTINGS)
    assert child.wait_for_step(10)
    (os.killpg if group else os.kill)(child.pid, number)
    assert child.end() == code, child.read()
    assert child.read().splitlines()[-1] == (
        f"notan: stopped and saved; go on with: notan train --resume {tmp_path / 'run'}"
    )
    assert newest_state(tmp_path / "run") == child.steps[-1]
    server.run("train", "--resume", tmp_path / "run")
    assert fate(tmp_path / "run") == uninterrupted
