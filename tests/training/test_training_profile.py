"""The profile of a training says what its steps wait for, and leaves no trace in the training."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from notan.cli.main import main
from notan.config import load_run
from notan.errors import DataError, StoppedBySignal
from notan.prediction.profile import Repeated, repeat
from notan.training import trace
from notan.training.profile import ALONE, DATA, RESIDENT, TOGETHER, StepFindings, report
from notan.training.steps import train_step
from notan.training.trace import (
    BACKWARD,
    FORWARD,
    LAUNCHES,
    LOSS,
    NORMALISATION,
    OPTIMIZER,
    WAITS,
    HostReads,
    measure_kinds,
    measure_matrix_rate,
    split_idle,
)
from notan.training.trainer import Trainer
from runs import (
    Drawn,
    ask_to_stop,
    before_step,
    fate,
    fresh_unet,
    resume_own,
    tiny,
    train_own,
    two_stages,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from notan.config import Run
    from notan.data.samples import Sample
    from notan.training.build import TrainingSetup

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for an instant: what is said of planted faults does not depend on it."""
    monkeypatch.setattr("notan.training.profile.SECONDS", 0.02)
    monkeypatch.setitem(trace.MATRIX_SIDES, "cpu", 64)


def page_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "profile.json").read_text())
    return found


def shaken(*, image: Any, mask: Any) -> dict[str, Any]:
    """Vary an image by the process's own random numbers, as many users' pipelines do."""
    moved = np.random.random() < 0.5  # noqa: NPY002
    return {"image": image[:, ::-1] if moved else image, "mask": mask[:, ::-1] if moved else mask}


@pytest.mark.parametrize(
    ("run", "more"),
    [
        (tiny(train__epochs=2, train__ema_decay=0.8, train__schedule="cosine"), {}),
        (two_stages(), {"model": fresh_unet}),
        (tiny(train__epochs=2), {"transform": shaken}),
        (tiny(train__epochs=2, data__workers=1), {}),
    ],
    ids=["ema and cosine", "frozen first", "own random numbers", "workers"],
)
def test_a_training_is_the_same_with_it_and_without(
    run: Run, more: dict[str, Any], tmp_path: Path
) -> None:
    folders = tmp_path / "plain", tmp_path / "profiled"
    for folder in folders:
        given = {"model": fresh_unet()} if "model" in more else more
        train_own(run, folder, profile=folder.name == "profiled", **given)
    assert fate(folders[0]) == fate(folders[1])
    assert not (folders[0] / "profile.json").exists()
    assert page_of(folders[1])["images"] == 3.0


def test_a_resume_is_the_same_with_it_and_without(tmp_path: Path) -> None:
    run = tiny(train__epochs=2, train__ema_decay=0.8)
    train_own(run, tmp_path / "whole")
    stopping = mock.patch.object(Trainer, "after_step", before_step(3, ask_to_stop))
    with stopping, pytest.raises(StoppedBySignal):
        train_own(run, tmp_path / "stopped")
    resume_own(tmp_path / "stopped", profile=True)
    assert fate(tmp_path / "whole") == fate(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "profile.md").exists()


class Slow(Drawn):
    """Images whose decoding takes longer than the step of a tiny network."""

    def __getitem__(self, index: int) -> Sample:
        time.sleep(0.03)
        return super().__getitem__(index)


def test_a_slow_decoder_is_named_with_remedies_that_exist(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    train_own(tiny(), tmp_path / "run", training=Slow(6, size=(16, 16)), profile=True)
    page = page_of(tmp_path / "run")
    sentence = page["bottleneck"]
    assert sentence.startswith("Bottleneck: waiting for data, ")
    assert page["shares"][DATA] > 0.5
    assert page["timings"][ALONE]["seconds"] >= 0.09  # three images in a step
    assert re.search(r"(\d+)% of the time of an image is reading", sentence)
    remedies = re.findall(r"data\.\w+=\w+", sentence)
    assert remedies
    load_run(overrides=remedies)  # refuses a setting that is none
    assert "augment" not in re.sub("the rest augmentation", "", sentence)
    assert sentence in caplog.text
    assert sentence in (tmp_path / "run" / "profile.md").read_text()


def read_slowly(value: torch.Tensor) -> float:
    """Read a number as from a GPU with much to do: what the profiler shows of it is this wait."""
    with torch.profiler.record_function("cudaStreamSynchronize"):
        time.sleep(0.004)
    return value.item()


def reading_loss(logits: torch.Tensor, mask: torch.Tensor, ignore: torch.Tensor) -> torch.Tensor:
    """Compute a loss of which every image is read by the host."""
    del ignore
    losses = nn.functional.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    assert all(read_slowly(loss.mean()) < 100 for loss in losses for _ in range(5))
    return losses.mean()


def test_reads_in_a_loss_are_named_by_their_line(tmp_path: Path) -> None:
    train_own(tiny(), tmp_path / "run", loss=reading_loss, profile=True)
    page = page_of(tmp_path / "run")
    sentence = page["bottleneck"]
    assert sentence.startswith(f"Bottleneck: {WAITS}, ")
    line = read_slowly.__code__.co_firstlineno + 4
    place = f"training/test_training_profile.py:{line} (read_slowly)"
    assert f"reads from it in {place}" in sentence
    assert page["facts"]["host_reads"][place] == 15
    assert f"{place} 15" in (tmp_path / "run" / "profile.md").read_text()


def test_of_the_optimizers_own_counts_nothing_is_a_read() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    with HostReads(CPU) as reads:
        weight.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert not reads.places
    with HostReads(CPU) as reads:
        weight.detach()[torch.tensor([True, False, True])]
        bool(weight.detach().sum() > 2)
    assert sum(reads.places.values()) == 2
    assert all("test_training_profile.py" in place for place in reads.places)


def test_a_signal_meanwhile_leaves_the_state_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, taken = tiny(train__epochs=2), list[int]()

    def interrupted(*given: Any, **named: Any) -> Any:
        taken.append(1)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(*given, **named)

    train_own(run, tmp_path / "plain")
    monkeypatch.setattr("notan.training.compiling.train_step", interrupted)
    with pytest.raises(StoppedBySignal):
        train_own(run, tmp_path / "run", profile=True)
    assert len(taken) == 3
    assert not (tmp_path / "run" / "profile.md").exists()
    resume_own(tmp_path / "run", profile=True)
    assert fate(tmp_path / "plain") == fate(tmp_path / "run")


def test_one_batch_and_a_time_limit_are_enough(tmp_path: Path) -> None:
    run = tiny(train__time_limit_seconds=60.0, train__batch_size=8)
    result = train_own(run, tmp_path / "run", profile=True)
    page = page_of(tmp_path / "run")
    assert page["facts"]["steps_in_epoch"] == 1
    assert page["images"] == 6.0
    assert result.seconds_left is not None
    assert result.seconds_left > 0


def test_of_a_time_limit_each_measurement_takes_a_hundredth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr("notan.training.profile.SECONDS", 5.0)

    def noted(action: Any, seconds: float, *rest: Any) -> Repeated:
        asked.append(seconds)
        return repeat(action, 0.01, *rest)

    monkeypatch.setattr("notan.training.profile.repeat", noted)
    train_own(tiny(train__time_limit_seconds=30.0), tmp_path / "run", profile=True)
    assert asked == [0.3] * 4


def test_an_image_that_cannot_be_read_is_said_as_without_it(tmp_path: Path) -> None:
    class Damaged(Drawn):
        asked = 0

        def __getitem__(self, index: int) -> Sample:
            self.asked += 1
            if self.asked > 20:
                raise DataError("p1.png: is damaged")
            return super().__getitem__(index)

    with pytest.raises(DataError, match=r"p1\.png: is damaged"):
        train_own(tiny(), tmp_path / "run", training=Damaged(6, size=(16, 16)), profile=True)


def test_nothing_is_profiled_where_nothing_is_trained(tmp_path: Path) -> None:
    words = ["--auto", "--write-recipe", str(tmp_path / "r.toml"), "--profile"]
    with pytest.raises(SystemExit) as stop:
        main(["train", *words])
    assert stop.value.code == 2


def test_what_was_measured_twice_is_the_mean_of_both() -> None:
    assert Repeated(1.0, 0.5, 2.0).beside(Repeated(3.0, 1.0, 4.0)) == (2.0, 0.5, 4.0)


def test_a_slow_action_is_measured_once_and_a_quick_one_often() -> None:
    calls = 0

    def slow() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.02)

    taken = repeat(slow, 0.01)
    assert calls == 2  # the first is for getting warm
    assert taken.least == taken.most >= 0.02
    calls = 0
    repeat(lambda: None, 0.05)
    settled: list[int] = []
    repeat(lambda: None, 0.02, lambda: settled.append(1))
    assert 2 < len(settled) < 12  # between groups of calls, not after each


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingSetup]:
    """What a small training is built from."""
    kept: list[TrainingSetup] = []
    patch = pytest.MonkeyPatch()
    train = Trainer.train

    def noted(trainer: Trainer, tree: Any = None) -> Any:
        kept.append(trainer.setup)
        return train(trainer, tree)

    patch.setattr(Trainer, "train", noted)
    train_own(tiny(), tmp_path_factory.mktemp("setup") / "run")
    patch.undo()
    yield kept[0]
    kept[0].training_batches.close()


def made_up(together: float, alone: float, **shares: float) -> StepFindings:
    """StepFindings of steps of 0.1 s on a resident batch of three images."""
    timings = {TOGETHER: together, RESIDENT: 0.1, ALONE: alone}
    return StepFindings(
        {name: Repeated(each, each, each) for name, each in timings.items()},
        images=3.0,
        reading=0.001,
        shares={FORWARD: 1 - sum(shares.values()), **shares},
        reads={"own/loss.py:3 (loss)": 4},
        flops=1e9,
        matrix_rate=5e10,
        validation=None,
    )


@pytest.mark.parametrize(
    ("findings", "named", "remedy"),
    [
        (made_up(0.2, 0.1), "waiting for data, 50% of a step", "data.workers="),
        (made_up(0.102, 0.1), "the network's own arithmetic, 98%", "model.width"),
        (made_up(0.1, 0.1, **{WAITS: 0.4}), WAITS, "own/loss.py:3 (loss)"),
        (made_up(0.1, 0.1, **{LAUNCHES: 0.5}), LAUNCHES, "--batch-size 6"),
        (made_up(0.1, 0.1, **{OPTIMIZER: 0.5}), OPTIMIZER, "--batch-size 6"),
        (made_up(0.1, 0.1, **{LOSS: 0.5}), LOSS, "loss.*"),
        (made_up(0.3, 0.1, **{WAITS: 0.4}), DATA, "data.workers="),  # the larger of the two
    ],
)
def test_the_largest_share_that_has_a_remedy_is_named(
    setup: TrainingSetup,
    monkeypatch: pytest.MonkeyPatch,
    findings: StepFindings,
    named: str,
    remedy: str,
) -> None:
    monkeypatch.setattr("notan.training.profile.count_cores", lambda: 8)
    monkeypatch.setattr("notan.training.profile.has_quick_bf16", lambda: False)
    page = report(setup, findings)
    assert page.bottleneck.startswith(f"Bottleneck: {named}")
    assert remedy in page.bottleneck
    assert sum(page.shares.values()) == pytest.approx(1)
    assert "which gave NaN" in page.in_words()
    assert page.facts["share_of_matrix_rate"] == pytest.approx(0.2)


def test_what_there_is_to_gain_is_what_the_step_alone_reaches(setup: TrainingSetup) -> None:
    sentence = report(setup, made_up(0.2, 0.1)).bottleneck
    assert sentence.endswith("Without it 30 images a second, not 15.")
    mixed = replace(made_up(0.1, 0.1), reading=0.02)
    slow = replace(mixed, timings={**mixed.timings, TOGETHER: Repeated(0.2, 0.2, 0.2)})
    assert "60% of the time of an image is reading" in report(setup, slow).bottleneck


def test_a_gap_after_a_wait_is_the_waits_and_any_other_a_launch() -> None:
    kernels = [(10.0, 20.0), (15.0, 22.0), (30.0, 40.0), (45.0, 50.0)]
    assert split_idle(kernels, []) == (27.0, 0.0, 13.0)
    assert split_idle(kernels, [(12.0, 23.0)]) == (27.0, 8.0, 5.0)  # it ended in the first gap
    assert split_idle(kernels, [(11.0, 15.0)]) == (27.0, 0.0, 13.0)  # the device was still busy
    assert split_idle([], []) == (0.0, 0.0, 0.0)


def test_the_work_of_a_step_is_shared_out_by_kind() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    head = nn.Conv2d(16, 1, 3, padding=1)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()])
    images, targets = torch.rand(4, 3, 64, 64), torch.rand(4, 1, 64, 64)

    def step(*, heavy: bool = False) -> None:
        optimizer.zero_grad()
        logits = head(model(images))
        with torch.profiler.record_function(trace.LOSS_SPAN):
            loss = (logits - targets).pow(2).mean()
            for _ in range(200 * heavy):  # forward and backward alike
                loss = loss + logits.sigmoid().mean()
        loss.backward()
        optimizer.step()

    step()
    shares = measure_kinds(step, 3, CPU)
    assert sum(shares.values()) == pytest.approx(1)
    for kind in (FORWARD, BACKWARD, NORMALISATION, LOSS, OPTIMIZER):
        assert shares[kind] > 0, kind
    assert shares[FORWARD] + shares[BACKWARD] > shares[LOSS]
    heavy = measure_kinds(lambda: step(heavy=True), 1, CPU)
    assert next(iter(heavy)) == LOSS
    assert heavy[LOSS] > 0.5  # the way back through it is its own too


def test_a_matrix_product_has_a_rate() -> None:
    assert measure_matrix_rate(CPU, torch.float32, 0.01) > 1e6
