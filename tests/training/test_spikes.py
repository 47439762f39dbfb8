"""Steps that are judged on the device: the host's own verdicts, and nothing that waits for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from allergic import TRAINING, VALIDATION, Allergic, Whitening, train_allergic, watched
from notan import losses as losses_module
from notan.data.batches import Batch
from notan.errors import NotanError
from notan.losses import Loss
from notan.runtime import Precision
from notan.training import resume
from notan.training.build import build_optimization
from notan.training.fine_tuning import Freezing
from notan.training.judge import LossJudge
from notan.training.optim import average_weights
from notan.training.spikes import SpikeDetector
from notan.training.steps import Optimization, train_step
from notan.training.trainer import Trainer
from runs import Crash, before_step, crash, fate, lines_of, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from notan.training.steps import StepValues

CPU = torch.device("cpu")


def skipped_by(detector: SpikeDetector, loss: float, norm: float) -> bool:
    return bool(detector(torch.tensor(loss, dtype=torch.float64), torch.tensor(norm)))


losses = st.lists(
    st.one_of(
        st.floats(0.4, 0.6),  # a quiet training
        st.floats(0, 10),
        st.sampled_from([0.0, math.nan, math.inf, 1e300]),
    ),
    min_size=1,
    max_size=150,
)


@settings(max_examples=150, deadline=None)
@given(losses=losses, norms=st.lists(st.sampled_from([1.0, math.nan, math.inf]), max_size=20))
@example(losses=[0.5] * 9 + [5.0] * 6 + [0.5] * 60 + [9.0] * 4, norms=[])
@example(losses=[math.nan] * 9, norms=[])
def test_the_device_judges_every_step_as_the_host_does(
    losses: list[float], norms: list[float]
) -> None:
    judge = LossJudge(max_rollbacks=1000)
    detector = SpikeDetector(judge, CPU)
    norms = norms + [1.0] * len(losses)
    for loss, norm in zip(losses, norms, strict=False):
        skipped = skipped_by(detector, loss, norm)
        verdict = judge.judge(loss, norm)
        assert skipped == (verdict is not None)
        went_back = verdict is not None and verdict.action == "go back"
        assert bool(detector.halted) == went_back
        if went_back:
            detector.load(judge)


@settings(max_examples=40, deadline=None)
@given(losses=losses, cut=st.integers(0, 149))
def test_a_detector_takes_up_what_any_judge_remembers(losses: list[float], cut: int) -> None:
    judge = LossJudge(max_rollbacks=1000)
    for loss in losses[:cut]:
        judge.judge(loss, 1.0)
    detector = SpikeDetector(judge, CPU)
    for loss in losses[cut:]:
        assert skipped_by(detector, loss, 1.0) == (judge.judge(loss, 1.0) is not None)
        if detector.halted:
            detector.load(judge)


def test_after_a_verdict_to_go_back_every_step_is_skipped_and_none_is_judged() -> None:
    judge = LossJudge(max_rollbacks=5)
    detector = SpikeDetector(judge, CPU)
    assert [skipped_by(detector, loss, 1.0) for loss in [0.5] * 12 + [math.nan] * 3][-3:] == [
        True
    ] * 3
    before = [part.clone() for part in detector.memory]
    assert [skipped_by(detector, 0.5, 1.0) for _ in range(5)] == [True] * 5
    assert all(torch.equal(now, then) for now, then in zip(detector.memory, before, strict=True))
    detector.load(judge)
    assert not skipped_by(detector, 0.5, 1.0)


def test_without_a_guard_only_what_is_no_number_is_skipped_and_then_all() -> None:
    detector = SpikeDetector(None, CPU)
    found = [skipped_by(detector, loss, 1.0) for loss in (0.1, 1e30, math.nan, 0.1)]
    assert found == [False, False, True, True]


class NoHostRead(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what waits for a device: a value that is read, a shape that depends on one."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select"):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def parts(flags: dict[str, object]) -> tuple[nn.Module, Optimization]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))
    run = tiny(**flags)
    precision = Precision(CPU, torch.float32, "a test")
    return model, build_optimization(run.train, model, precision, 8, Freezing())


def batch_of(seed: int, *, nan: bool = False) -> Batch:
    torch.manual_seed(seed)
    images = torch.randn(2, 3, 8, 8)
    if nan:
        images[0, 0, 0, 0] = math.nan
    targets = (torch.rand(2, 1, 8, 8) > 0.5).float()
    return Batch(images, targets, torch.ones_like(targets), ())


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("guarded", [True, False])
def test_no_step_waits_for_the_device(
    clip: float | None, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    monkeypatch.setattr(
        losses_module, "_squared_distances", losses_module.squared_distances_on_device
    )
    model, optimization = parts({"train__gradient_clip": clip})
    detector = SpikeDetector(LossJudge(5) if guarded else None, CPU)
    average = average_weights(model, 0.9)
    loss = Loss(dict.fromkeys(losses_module.LOSSES, 1.0))
    values: list[StepValues] = []
    with NoHostRead():  # type: ignore[no-untyped-call]
        for seed in range(15):
            values.append(train_step(model, batch_of(seed), loss, optimization, detector))
            average.update_parameters(model, values[-1].taken)
            optimization.schedule.advance()
    assert all(each.read()[0] for each in values)
    assert average.n_averaged == 16


def test_the_mode_of_these_tests_sees_a_read() -> None:
    mode = NoHostRead()  # type: ignore[no-untyped-call]
    with mode, pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(()).item()


def everything(model: nn.Module, optimization: Optimization, average: nn.Module) -> list[Any]:
    moments = optimization.optimizer.state_dict()["state"]
    return [
        tensor.clone()
        for state in (model.state_dict(), average.state_dict(), *moments.values())
        for tensor in state.values()
    ]


@pytest.mark.parametrize("at", [0, 5])
def test_a_batch_of_nan_leaves_weights_moments_buffers_and_average_bit_for_bit(at: int) -> None:
    model, optimization = parts({})
    detector, average = SpikeDetector(LossJudge(5), CPU), average_weights(model, 0.9)
    loss = Loss({"bce": 1.0, "dice": 1.0})

    def step(batch: Batch) -> bool:
        values = train_step(model, batch, loss, optimization, detector)
        average.update_parameters(model, values.taken)
        return values.read()[0]

    for seed in range(at):
        assert step(batch_of(seed))
    before = everything(model, optimization, average)
    assert not step(batch_of(99, nan=True))
    after = everything(model, optimization, average)
    moments = 3 * sum(1 for _ in model.parameters())
    if at == 0:  # they begin with the first step, taken or not, as zeros
        assert not any(moment.any() for moment in after[-moments:])
        after = after[:-moments]
    assert all(torch.equal(now, then) for now, then in zip(after, before, strict=True))
    assert step(batch_of(at))
    assert not all(
        torch.equal(now, then)
        for now, then in zip(everything(model, optimization, average), before, strict=False)
    )


def test_an_optimizer_that_cannot_skip_by_itself_is_not_asked_to_step() -> None:
    model, optimization = parts({})
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    stepping = Optimization(
        own, optimization.schedule, optimization.scaler, optimization.precision, None, own=True
    )
    detector = SpikeDetector(LossJudge(5), CPU)
    before = [weight.clone() for weight in model.parameters()]
    values = train_step(model, batch_of(1, nan=True), Loss({"bce": 1.0}), stepping, detector)
    assert not values.read()[0]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    train_step(model, batch_of(1), Loss({"bce": 1.0}), stepping, detector)
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_host_and_a_device_that_disagree_are_no_quiet_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpikeDetector, "__call__", lambda *_: torch.tensor(data=True))
    with pytest.raises(NotanError, match=r"host and device judge a loss of .* differently"):
        train_allergic(watched(), tmp_path / "run")


BAD = (3, 14, 15, 17, 20)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin steps while others are not done, as on a GPU."""
    monkeypatch.setattr("notan.training.loop.steps_ahead", lambda _: 2)


@pytest.mark.usefixtures("ahead")
def test_steps_that_are_begun_ahead_give_the_very_training_of_steps_that_are_not(
    tmp_path: Path,
) -> None:
    run = watched(train__ema_decay=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("notan.training.loop.steps_ahead", lambda _: 0)
        train_allergic(run, tmp_path / "one by one", *BAD)
    train_allergic(run, tmp_path / "ahead", *BAD)
    assert fate(tmp_path / "ahead") == fate(tmp_path / "one by one")
    actions = [line["action"] for line in lines_of(tmp_path / "ahead" / "incidents.jsonl")]
    assert actions == ["skip", "skip", "skip", "go back", "skip"]


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("last", [11, 18, 23])
def test_a_training_with_steps_ahead_resumes_exactly(tmp_path: Path, last: int) -> None:
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


@pytest.mark.usefixtures("ahead")
def test_a_signal_ends_what_was_begun_and_saves_behind_it(tmp_path: Path) -> None:
    from notan.errors import StoppedBySignal
    from runs import ask_to_stop, last_state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(3, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_allergic(watched(), tmp_path / "run")
    progress = last_state(tmp_path / "run")["progress"]
    assert 3 <= progress["step"] <= 6
    assert progress["step"] == progress["batch"]
