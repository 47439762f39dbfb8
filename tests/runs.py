"""Small trainings for the tests, what they leave, and a warm process that forks more of them.

Run as a script it is that process: it imports PyTorch once and starts a ``notan`` command in a fork
of itself for each line it reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import cv2
import torch
from torch import nn

import notan.cli.train
from notan.cli.main import main
from notan.config import Run, load_run
from notan.data.synthetic import DrawnSource
from notan.modelfile.card import read_card
from notan.models import unet
from notan.models.base import encoder_of
from notan.models.build import MODELS
from notan.models.unet import UNet
from notan.training import TrainResult, computing, resume, train
from notan.training.state import StateFolder
from notan.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from notan.config import Model
    from notan.data.samples import Sample
    from notan.models.base import SegmentationModel
    from notan.types import Size


class Drawn(DrawnSource):
    """Drawn images that are drawn once: a tiny training would take a third longer otherwise."""

    def __init__(self, count: int, *, size: Size, first: int = 0) -> None:
        super().__init__(count, size=size, first=first)
        self._drawn: dict[int, Sample] = {}

    def __getitem__(self, index: int) -> Sample:
        if index not in self._drawn:
            self._drawn[index] = super().__getitem__(index)
        return self._drawn[index]


TRAINING = Drawn(6, size=(16, 16))
VALIDATION = Drawn(3, size=(16, 16), first=6)
TINY: dict[str, object] = {
    "model.name": "little",
    "model.width": 2,
    "preprocess.image_size": 16,
    "train.epochs": 1,
    "train.batch_size": 3,
    "train.learning_rate": 3e-3,
    "train.trackers": (),
}
EPOCH_STEPS = 2
"""Steps of an epoch of the drawn images."""

PATIENCE = 60.0  # seconds to wait for another process before a test fails


class Own(nn.Module):
    """A network of the user's own: the least that keeps the contract."""

    def __init__(self, *, scale: float = 1.0, stride: int | None = 1) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 3, padding=1)
        self.scale = scale
        self.stride = stride

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(images) * self.scale
        return logits


def little(settings: Model, channels: int = 3) -> SegmentationModel:
    """Build a U-Net of two levels where there are five, which trains in a third of the time."""
    with mock.patch.object(unet, "LEVELS", 2):
        return MODELS["unet"](settings, channels)


def add_little() -> None:
    """Let the settings of this process name it."""
    MODELS["little"] = little  # type: ignore[index]


def compute_in_float32() -> None:
    """Have this process choose no bf16: which is quicker is measured, and it rounds otherwise."""
    vars(computing)["has_quick_bf16"] = lambda: False


class Crash(Exception):  # noqa: N818 - it stands for a power cut
    """What the tests end a training with where no error of ours may be at work."""


def fresh_unet() -> UNet:
    """Return a small network, always the same."""
    torch.manual_seed(3)
    return UNet(width=2)


def tiny(**flags: object) -> Run:
    """Settings of a training that takes a tenth of a second; ``__`` stands for a dot."""
    given = {name.replace("__", "."): value for name, value in flags.items()}
    return load_run(flags={**TINY, **given})


def train_own(run: Run, out: Path, **more: Any) -> TrainResult:
    """Train on nine drawn images that lie in no folder."""
    return train(run, out=out, **{"training": TRAINING, "validation": VALIDATION, **more})


def resume_own(folder: Path, **more: Any) -> TrainResult:
    """Go on with such a training."""
    return resume(folder, **{"training": TRAINING, "validation": VALIDATION, **more})


def two_stages(**flags: object) -> Run:
    """Settings that make use of all that a training in two stages adds to a state."""
    settings: dict[str, object] = {
        "train__epochs": 4,
        "train__freeze_epochs": 2,
        "train__encoder_lr_multiplier": 0.5,
        "train__layer_lr_decay": 0.8,
        "train__schedule": "cosine",
        "train__ema_decay": 0.8,
        "train__learning_rate": 0.05,
    }
    return tiny(**{**settings, **flags})


def encoder_state(model: nn.Module) -> dict[str, torch.Tensor]:
    encoder = encoder_of(model)
    assert encoder
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


def encoder_in(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the encoder of a run's last state; its best may be of an earlier epoch."""
    return {name.removeprefix("encoder."): tensor for name, tensor in state["model"].items()}


def watched(look: Callable[[Trainer], object]) -> Callable[..., None]:
    """Return an ``after_step`` that looks at every step before its end."""
    after_step = Trainer.after_step

    def replaced(trainer: Trainer, *arguments: Any, **named: Any) -> None:
        look(trainer)
        after_step(trainer, *arguments, **named)

    return replaced


def differing(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def history(result: TrainResult) -> list[dict[str, float]]:
    return lines_of(result.checkpoint.parent / "history.jsonl")


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Read a .jsonl file; none where it is absent."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def weights(result: TrainResult) -> str:
    return read_card(result.checkpoint).sha256


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def last_state(folder: Path) -> dict[str, Any]:
    """Read the newest state of a run folder."""
    tree = StateFolder(folder / "last").load()
    assert tree is not None
    return tree


def fate(folder: Path) -> dict[str, Any]:
    """Return all that two runs must agree on to be one, clocks aside: state, history, best."""
    card = read_card(folder / "best.safetensors")
    return flat(
        {
            "state": {**last_state(folder), "run": None},
            "history": lines_of(folder / "history.jsonl"),
            "best": {"epoch": card.epoch, "scores": card.scores, "sha256": card.sha256},
            "incidents": lines_of(folder / "incidents.jsonl"),
        }
    )


def flat(node: Any, name: str = "") -> dict[str, Any]:
    """Name every value of a tree; a tensor's is a text that differs where a bit differs."""
    if torch.is_tensor(node):
        content = node.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return {name: f"{node.dtype} {tuple(node.shape)} {hashlib.sha256(content).hexdigest()}"}
    if not isinstance(node, dict | list | tuple):
        return {} if name.endswith("seconds") else {name: node}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return {
        inner: value for key, part in items for inner, value in flat(part, f"{name}/{key}").items()
    }


def before_step(number: int, action: Callable[[Trainer], object]) -> Callable[..., None]:
    """Return an ``after_step`` that does something just before the end of one step."""
    after_step = Trainer.after_step

    def replaced(trainer: Trainer, *arguments: Any, **named: Any) -> None:
        if trainer.progress.step + 1 == number:
            action(trainer)
        after_step(trainer, *arguments, **named)

    return replaced


def ask_to_stop(trainer: Trainer) -> None:
    """Do what the arrival of SIGTERM does."""
    trainer.stop.number = signal.SIGTERM


def crash(_: Trainer) -> None:
    raise Crash


class Child:
    """A ``notan`` command in a process of its own, which leads a process group of its own."""

    def __init__(self, server: Server, pid: int, files: Path) -> None:
        self.server, self.pid, self.files = server, pid, files

    @property
    def steps(self) -> list[int]:
        """The steps that it has taken so far, counted from the start of the run."""
        return [int(line) for line in self.read("steps").splitlines(keepends=False)]

    def read(self, name: str = "stderr") -> str:
        path = self.files / name
        return path.read_text() if path.exists() else ""

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until something is so; False if the process ends before."""
        until = time.monotonic() + PATIENCE
        while not condition():
            if not self.server.ask({"alive": self.pid}):
                return False
            assert time.monotonic() < until, f"no such thing came: {self.read()}"
            time.sleep(0.002)
        return True

    def wait_for_step(self, number: int) -> bool:
        return self.wait_for(lambda: len(self.steps) >= number)

    def end(self) -> int:
        """Wait for the end; return the exit code, or minus the signal that ended it."""
        assert not self.wait_for(lambda: False)
        code: int = self.server.ask({"code": self.pid})
        return code


class Server:
    """Starts commands in forks of a process that has imported PyTorch already."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "NOTAN_CACHE": str(folder / "cache")},
        )

    def ask(self, question: dict[str, Any]) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *words: object, largest_file: int | None = None) -> Child:
        """Start a command; ``largest_file`` limits in bytes what it may write, as a full disk."""
        self.started += 1
        files = self.folder / str(self.started)
        files.mkdir()
        command = {"words": [str(word) for word in words], "files": str(files)}
        return Child(self, self.ask({**command, "largest_file": largest_file}), files)

    def run(self, *words: object) -> Child:
        """Run a command that is expected to succeed."""
        child = self.start(*words)
        assert child.end() == 0, child.read()
        return child

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:  # somebody else holds the other end of its input
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def no_report(*_: object, **__: object) -> None:
    """Stand in for the page at a training's end, which has tests of its own and takes its time."""


def serve() -> None:
    """Answer questions about children until the input ends."""
    codes: dict[int, int] = {}
    alive: set[int] = set()
    for line in sys.stdin:
        question = json.loads(line)
        answer: Any = None
        if "words" in question:
            answer = os.fork() or _be_the_child(question)
            alive.add(answer)
        elif "alive" in question:
            pid = question["alive"]
            if pid in alive and (status := os.waitpid(pid, os.WNOHANG))[0]:
                alive.remove(pid)
                codes[pid] = os.waitstatus_to_exitcode(status[1])
            answer = pid in alive
        else:
            answer = codes[question["code"]]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


def _be_the_child(question: dict[str, Any]) -> int:
    """Run the command and leave; every step is written down before its end."""
    os.setsid()
    files = Path(question["files"])
    for number, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
        os.dup2(os.open(files / name, os.O_RDWR | os.O_CREAT), number)
    if question["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (question["largest_file"],) * 2)
    after_step = Trainer.after_step
    journal = os.open(files / "steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def journaled(trainer: Trainer, *arguments: Any, **named: Any) -> None:
        os.write(journal, f"{trainer.progress.step + 1}\n".encode())
        after_step(trainer, *arguments, **named)

    Trainer.after_step = journaled  # type: ignore[method-assign, assignment]
    code: object = 1
    try:
        main(question["words"])
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    add_little()
    compute_in_float32()
    notan.cli.train._report = no_report
    cv2.setNumThreads(1)  # a fork loses threads, and then waits for them
    with tempfile.TemporaryDirectory() as folder:
        train_own(tiny(), Path(folder) / "run")  # what the first step loads, no fork has to
    serve()
