"""Kill a training at random moments, resume it each time, and compare the result.

Run by hand: python benchmarks/kill_and_resume.py --kills 100 --workers 2
Each kill is SIGKILL, which no program can catch. A run that finishes is compared, bit for bit,
with one that was never killed; then another starts, until all kills are done. Prints how many
runs finished, how many were identical, and the work lost to the kills. Exits with 1 if a run
differs or lost more than the interval between two states. 100 kills take two or three minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import torch

from notan.config import load_run
from notan.data.synthetic import DrawnSource
from notan.modelfile.card import read_card
from notan.modelfile.safetensors import hash_weights
from notan.training import resume, train
from notan.training.state import StateFolder
from notan.training.trainer import Trainer

if TYPE_CHECKING:
    from notan.config import Run

EPOCHS, STEPS, BATCH, EVERY = 8, 10, 3, 4
TRAINING = DrawnSource(STEPS * BATCH, size=(24, 32))
VALIDATION = DrawnSource(6, size=(24, 32), first=STEPS * BATCH)


@dataclass
class Tally:
    """What has happened so far."""

    kills: int = 0
    before_first_state: int = 0
    while_writing: int = 0
    finished: int = 0
    identical: int = 0
    lost: list[int] = field(default_factory=list)


def settings(workers: int) -> Run:
    """Return settings that make use of all that a state holds."""
    return load_run(
        flags={
            "data.workers": workers,
            "model.width": 4,
            "preprocess.image_size": 32,
            "train.epochs": EPOCHS,
            "train.batch_size": BATCH,
            "train.learning_rate": 0.01,
            "train.schedule": "cosine",
            "train.ema_decay": 0.9,
            "train.checkpoint_every_steps": EVERY,
            "train.trackers": (),
        }
    )


def start(run: Run, folder: Path, journal: Path) -> int:
    """Begin or resume a run in a fork of this process; return its number."""
    journal.unlink(missing_ok=True)  # a kill before it is opened must not find the last run's
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        sink = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 2)
        _write_down_steps(journal)
        parts: dict[str, Any] = {"training": TRAINING, "validation": VALIDATION}
        if (folder / "run.toml").exists():
            resume(folder, **parts)
        else:
            train(run, out=folder, **parts)
        code = 0
    finally:
        os._exit(code)


def _write_down_steps(journal: Path) -> None:
    """Let the trainer append the number of each step, before it can save it, to a file."""
    after_step = Trainer.after_step
    file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def journaled(trainer: Trainer, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        os.write(file, f"{trainer.progress.step + 1}\n".encode())
        after_step(trainer, *arguments, **named)

    Trainer.after_step = journaled  # type: ignore[method-assign, assignment]


def outcome(folder: Path) -> tuple[object, ...]:
    """Return the last weights, moments and average and the best weights, each as a hash."""
    tree = StateFolder(folder / "last").load() or {}
    moments = {
        f"{number} {name}": value
        for number, values in tree["optimizer"]["state"].items()
        for name, value in values.items()
    }
    hashes = [hash_weights(part) for part in (tree["model"], moments, tree["average"])]
    card = read_card(folder / "best.safetensors")
    return (*hashes, tree["progress"]["step"], card.sha256, card.epoch)


def killed(pid: int, seconds: float) -> bool:
    """Kill a process after some time; False if it had ended by then."""
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        sys.exit(f"a run ended with {code}; see its log")
    return code != 0


def note_kill(tally: Tally, folder: Path, journal: Path) -> None:
    """Write down what a kill has cost."""
    states = folder / "last"
    saved = max((int(path.stem) for path in states.glob("[0-9]*")), default=0)
    steps = journal.read_text().split() if journal.exists() else []
    tally.kills += 1
    tally.before_first_state += not saved
    tally.while_writing += any(states.glob(".*.safetensors.*")) or any(folder.glob(".*.*.*"))
    tally.lost.append(max(int(steps[-1]) - saved, 0) if steps else 0)


def main() -> None:
    """Kill, resume, compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    words = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)  # a fork loses threads, and then waits for them
    run, moment, tally = settings(words.workers), random.Random(words.seed), Tally()
    with tempfile.TemporaryDirectory() as place:
        whole, journal = Path(place) / "whole", Path(place) / "journal"
        parts: dict[str, Any] = {"training": TRAINING, "validation": VALIDATION}
        train(run, out=Path(place) / "warm", **parts)  # what the first step loads, no fork has to
        began = time.perf_counter()
        os.waitpid(start(run, whole, journal), 0)
        length, expected = time.perf_counter() - began, outcome(whole)
        while tally.kills < words.kills:
            folder = Path(place) / str(tally.finished)
            while tally.kills < words.kills:
                if not killed(start(run, folder, journal), moment.uniform(0, length / 2)):
                    break
                note_kill(tally, folder, journal)
            else:
                os.waitpid(start(run, folder, journal), 0)
            tally.finished += 1
            tally.identical += outcome(folder) == expected
    report(tally, words.workers)


def report(tally: Tally, workers: int) -> None:
    """Print the summary, and end with 1 if it is a bad one."""
    most = max(tally.lost, default=0)
    print(f"{tally.kills} kills with {workers} workers, {tally.finished} runs finished")
    print(f"identical to the uninterrupted run: {tally.identical} of {tally.finished}")
    print(f"killed before the first state: {tally.before_first_state}")
    print(f"killed while a file was being written: {tally.while_writing}")
    mean = sum(tally.lost) / max(len(tally.lost), 1)
    print(f"steps done again: {mean:.1f} a kill, at most {most} (a state every {EVERY} steps)")
    sys.exit(tally.identical < tally.finished or most > EVERY)


if __name__ == "__main__":
    main()
