"""Steps that are compiled or captured: the same training, prepared once, and nothing lost by it.

A capture is stood in for by a trace of the step's operations with every Python number in it frozen
and every tensor in its place, as a CUDA graph has them; the graphs themselves need a GPU
(test_gpu.py).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx

from allergic import TRAINING, VALIDATION, Allergic, Whitening, train_allergic, watched
from notan.config import Model
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError
from notan.models.build import build_model
from notan.training import compiling, resume
from notan.training.build import prepare
from notan.training.compiling import GraphStepper, Stepper, make_stepper
from notan.training.judge import LossJudge
from notan.training.spikes import SpikeDetector
from notan.training.state import Progress, capture
from notan.training.trainer import Trainer
from runs import (
    Crash,
    Drawn,
    before_step,
    crash,
    fate,
    flat,
    fresh_unet,
    lines_of,
    resume_own,
    tiny,
    train_own,
    two_stages,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from notan.data.batches import Batch
    from notan.training.steps import StepValues

NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"name": "unet"},
    "attention_unet": {"name": "attention_unet"},
    "resnet34_unet": {"name": "resnet34_unet"},
    "report's": {"name": "resnet34_unet", "residual": "report"},
    "unet on resnet34": {"name": "unet", "encoder": "resnet34"},
    "unet on lite0": {"name": "unet", "encoder": "efficientnet_lite0"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_one_program_without_breaks(name: str) -> None:
    model = build_model(Model(width=4, **NETWORKS[name])).train()
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    assert compiled(images).shape == (2, 1, 64, 64)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Count how often something is compiled; what comes of it computes as what went in."""
    torch._dynamo.reset()
    found = CompileCounter()
    monkeypatch.setattr(compiling, "BACKEND", found)
    return found


SEVEN = Drawn(7, size=(16, 16))


def test_a_network_is_compiled_once_for_each_batch_size_and_never_again(
    tmp_path: Path, counter: CompileCounter
) -> None:
    """Seven images at three a step are batches of three, two and two."""
    run = tiny(train__compile="default", train__epochs=4, train__ema_decay=0.9)
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        end_epoch = Trainer.end_epoch

        def noted(trainer: Trainer) -> None:
            seen.append(counter.frame_count)
            end_epoch(trainer)

        patch.setattr(Trainer, "end_epoch", noted)
        train_own(run, tmp_path / "run", training=SEVEN)
    assert seen == [2, 2, 2, 2]


@pytest.mark.usefixtures("counter")
def test_a_compiled_training_is_the_same_where_the_compiler_changes_nothing(
    tmp_path: Path,
) -> None:
    settings: dict[str, object] = {"train__epochs": 3, "train__ema_decay": 0.9}
    for how in ("off", "default"):
        train_own(tiny(train__compile=how, **settings), tmp_path / how, training=SEVEN)
    ends = [fate(tmp_path / how) for how in ("off", "default")]
    assert [end.pop("/state/compiled") for end in ends] == ["off", "default"]
    assert ends[0] == ends[1]


def test_a_compiler_that_fails_costs_a_line_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction")

    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "BACKEND", broken)
    train_own(tiny(train__epochs=2), tmp_path / "plain")
    train_own(tiny(train__epochs=2, train__compile="default"), tmp_path / "run")
    (line,) = (each for each in caplog.messages if "cannot be compiled" in each)
    assert "no such instruction" in line
    assert line.endswith("going on without; train.compile=off says so from the start")
    assert fate(tmp_path / "run") == fate(tmp_path / "plain")


def test_tuning_is_for_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.compile=tuned tunes programs for a GPU"):
        train_own(tiny(train__compile="tuned"), tmp_path / "run")


def test_inputs_of_many_sizes_are_not_compiled(
    tmp_path: Path, counter: CompileCounter, caplog: pytest.LogCaptureFixture
) -> None:
    run = tiny(train__compile="default", preprocess__keep_aspect_ratio=True)
    train_own(run, tmp_path / "run")
    assert counter.frame_count == 0
    assert "inputs of many sizes" in caplog.text


def parts_and_stepper(**flags: object) -> tuple[Any, Stepper, Batch]:
    setup = prepare(tiny(**flags), training=TRAINING, validation=VALIDATION)
    spikes = SpikeDetector(LossJudge(5), setup.device)
    setup.training_batches.set_epoch(1)
    return setup, Stepper(setup, setup.loss, spikes), next(iter(setup.training_batches))


@pytest.mark.parametrize(
    ("steps", "how", "words"),
    [(1.0, "off", "too few to compile for"), (1e9, "default", "compiled first")],
)
def test_auto_weighs_the_steps_that_are_left_against_the_minute(
    steps: float,
    how: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    _, stepper, batch = parts_and_stepper()
    monkeypatch.setattr(compiling, "seconds_a_step", lambda *_: 0.01)
    assert compiling._worth_compiling(stepper, batch, lambda _: steps) == how
    assert words in caplog.text


def test_auto_leaves_a_processor_as_it_is(counter: CompileCounter, tmp_path: Path) -> None:
    train_own(tiny(), tmp_path / "run")
    assert counter.frame_count == 0


def test_what_is_tried_changes_nothing() -> None:
    setup, stepper, batch = parts_and_stepper(train__ema_decay=0.9)
    for _ in range(3):
        stepper(batch)
    setup.optimization.optimizer.zero_grad()
    before = flat(capture(setup, Progress()))
    memory = [part.clone() for part in stepper.spikes.memory]
    with stepper.trying():
        for _ in range(5):
            assert not stepper(batch).read()[0]
    assert flat(capture(setup, Progress())) == before
    assert all(torch.equal(a, b) for a, b in zip(memory, stepper.spikes.memory, strict=True))
    assert stepper(batch).read()[0]


class Recorded:
    """What stands in for CUDA: counts captures, and replays a trace with all numbers frozen."""

    def __init__(self) -> None:
        self.captures = 0

    def __call__(
        self, graphs: GraphStepper, step: Callable[[], StepValues]
    ) -> tuple[Callable[[], None], StepValues]:
        self.captures += 1
        first: list[StepValues] = []

        def numbers() -> torch.Tensor:
            values = step()
            first[:] = [values]
            return values.numbers.detach()

        step()
        graphs.setup.optimization.optimizer.zero_grad(set_to_none=True)
        trace = make_fx(numbers)()
        (values,) = first
        place = torch.zeros(len(values.names) + 2, dtype=torch.float64)

        def replay() -> None:
            with torch.no_grad():
                place.copy_(trace())

        return replay, type(values)(values.names, place)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Replay all steps of a training."""
    found = Recorded()
    monkeypatch.setattr(GraphStepper, "record", lambda graphs, step: found(graphs, step))
    monkeypatch.setattr(
        "notan.training.loop.make_stepper", lambda plain, *_, **__: GraphStepper(plain)
    )
    return found


def losses_in(folder: Path) -> list[float]:
    return [line["train/loss"] for line in lines_of(folder / "history.jsonl")]


def plainly(run: Any, folder: Path, **more: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("notan.training.loop.make_stepper", make_stepper)
        train_own(run, folder, **more)


def test_replayed_steps_are_the_training(tmp_path: Path, recorded: Recorded) -> None:
    """The rate falls, the average's warm-up rises, batches differ in size: nothing is frozen in."""
    run = tiny(train__epochs=4, train__ema_decay=0.9, train__schedule="cosine")
    train_own(run, tmp_path / "replayed", training=SEVEN)
    plainly(run, tmp_path / "plain", training=SEVEN)
    assert recorded.captures == 2
    assert losses_in(tmp_path / "replayed") == pytest.approx(losses_in(tmp_path / "plain"), 1e-5)


@pytest.mark.parametrize("when", [{"train__freeze_epochs": 2}, {"train__freeze_fraction": 0.4}])
def test_what_thaws_is_captured_anew(
    tmp_path: Path, recorded: Recorded, when: dict[str, object]
) -> None:
    run = two_stages(**{"train__freeze_epochs": 0, **when})
    train_own(run, tmp_path / "replayed", model=fresh_unet())
    plainly(run, tmp_path / "plain", model=fresh_unet())
    assert recorded.captures == 2
    assert losses_in(tmp_path / "replayed") == pytest.approx(losses_in(tmp_path / "plain"), 1e-5)


BAD = (3, 14, 15, 17, 20)


def test_replayed_steps_are_skipped_and_gone_back_from(tmp_path: Path, recorded: Recorded) -> None:
    run = watched(train__ema_decay=0.5)
    train_allergic(run, tmp_path / "replayed", *BAD)
    actions = [line["action"] for line in lines_of(tmp_path / "replayed" / "incidents.jsonl")]
    assert actions == ["skip", "skip", "skip", "go back", "skip"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("notan.training.loop.make_stepper", make_stepper)
        train_allergic(run, tmp_path / "plain", *BAD)
    assert losses_in(tmp_path / "replayed") == pytest.approx(losses_in(tmp_path / "plain"), 1e-5)
    assert recorded.captures == 1


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("last", [11, 18, 23])
def test_a_training_of_replayed_steps_resumes_exactly(tmp_path: Path, last: int) -> None:
    run = watched(train__checkpoint_every_steps=4, train__ema_decay=0.5)
    train_allergic(run, tmp_path / "whole", *BAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(last, crash))
        with pytest.raises(Crash):
            train_allergic(run, tmp_path / "run", *BAD)
    done = 4 * ((last - 1) // 4)
    left = Whitening(*(number - done for number in BAD))
    images: dict[str, Any] = {"training": TRAINING, "validation": VALIDATION}
    resume(tmp_path / "run", model=Allergic(), transform=left, **images)
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_images_without_masks_are_in_the_replayed_step(tmp_path: Path, recorded: Recorded) -> None:
    """The weight of the agreement rises from step to step, and is no number in the trace."""
    write_folder(DrawnSource(5, size=(16, 16), first=50), tmp_path / "data")
    run = tiny(
        train__unlabelled=tmp_path / "data" / "images",
        train__epochs=4,
        train__consistency_steps=6,
    )
    train_own(run, tmp_path / "replayed")
    plainly(run, tmp_path / "plain")
    assert recorded.captures == 1
    assert losses_in(tmp_path / "replayed") == pytest.approx(losses_in(tmp_path / "plain"), 1e-4)


def test_a_capture_that_fails_costs_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    _, stepper, batch = parts_and_stepper()
    monkeypatch.setattr(GraphStepper, "record", refused)
    assert compiling.captured(stepper, batch) is stepper
    assert "steps cannot be captured as CUDA graphs (RuntimeError: operation not" in caplog.text
    assert stepper(batch).read()[0]


def test_a_second_batch_size_that_cannot_be_captured_is_trained_as_it_is(
    tmp_path: Path,
    recorded: Recorded,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def once(graphs: GraphStepper, step: Callable[[], StepValues]) -> object:
        if recorded.captures:
            raise RuntimeError("out of memory")
        return recorded(graphs, step)

    monkeypatch.setattr(GraphStepper, "record", once)
    run = tiny(train__epochs=3)
    train_own(run, tmp_path / "replayed", training=SEVEN)
    plainly(run, tmp_path / "plain", training=SEVEN)
    assert caplog.text.count("cannot be captured as CUDA graphs (RuntimeError: out of memory)") == 1
    assert losses_in(tmp_path / "replayed") == pytest.approx(losses_in(tmp_path / "plain"), 1e-5)


@pytest.mark.parametrize("quicker", [True, False])
def test_a_graph_is_taken_where_it_is_quicker(
    *, quicker: bool, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stepper, batch = parts_and_stepper()
    monkeypatch.setattr(
        compiling,
        "seconds_a_step",
        lambda step, *_: 0.01 if isinstance(step, GraphStepper) == quicker else 0.02,
    )
    assert isinstance(compiling.captured(stepper, batch), GraphStepper) == quicker
    assert recorded.captures == 1


def test_a_resume_goes_on_as_it_was_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def make(plain: Stepper, *_: object, known: object, **__: object) -> Stepper:
        asked.append(known)
        plain.how = "default"
        return plain

    monkeypatch.setattr("notan.training.loop.make_stepper", make)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(3, crash))
        with pytest.raises(Crash):
            train_own(tiny(train__epochs=2, train__checkpoint_every_steps=1), tmp_path / "run")
    resume_own(tmp_path / "run")
    assert asked == [None, "default"]
