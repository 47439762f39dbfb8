"""Steps are tried out here and now, few and short, and leave nothing changed.

The clock of most of these tests is moved on by the steps alone.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from notan.auto import measure
from notan.auto.measure import StepTimer
from notan.config import load_run
from notan.errors import ConfigError
from notan.models.build import build_model
from notan.training import steps

if TYPE_CHECKING:
    from notan.runtime import Precision

LITTLE = ("little", None, 2)


class Clock:
    """A clock that steps move on.

    Attributes:
        now: What ``time.perf_counter`` says.
        costs: Seconds that the next steps take for each image; the last for all after it.
        steps: Of every step, how many images it had and in which arithmetic it was.
    """

    def __init__(self) -> None:
        self.now, self.costs = 0.0, [0.1]
        self.steps: list[tuple[int, torch.dtype]] = []

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, train_step = Clock(), steps.train_step

    def stepping(model: Any, batch: Any, loss: Any, optimization: Any) -> Any:
        clock.now += clock.costs[0] * len(batch.images)
        clock.costs = clock.costs[1:] or clock.costs
        clock.steps.append((len(batch.images), optimization.precision.dtype))
        return train_step(model, batch, loss, optimization)

    monkeypatch.setattr(measure, "time", clock)
    monkeypatch.setattr(measure, "train_step", stepping)
    monkeypatch.setattr(measure, "confirm_precision", lambda precision, *_: precision)
    return clock


def timer(limit: float | None = None, **flags: object) -> StepTimer:
    given = {name.replace("__", "."): value for name, value in flags.items()}
    run = load_run(flags={"device": "cpu", "train.time_limit_seconds": limit, **given})
    return StepTimer(run)


def counts(clock: Clock) -> list[int]:
    return [images for images, _ in clock.steps]


def test_the_quickest_of_two_steps_counts_after_one_that_does_not(clock: Clock) -> None:
    clock.costs = [0.3, 0.2, 0.1]
    assert timer()(*LITTLE) == pytest.approx(0.1)
    assert counts(clock) == [1, 2, 2]


def test_a_network_is_tried_once(clock: Clock) -> None:
    measured = timer()
    assert measured(*LITTLE) == measured(*LITTLE)
    assert len(clock.steps) == 3
    measured("little", None, 3)
    assert len(clock.steps) == 6


def test_a_busy_machine_is_seen_and_takes_no_more_time_than_there_is(clock: Clock) -> None:
    clock.costs = [0.8]
    assert timer()(*LITTLE) == pytest.approx(0.8)
    assert counts(clock) == [1, 1, 1]
    assert clock.now < measure.MOST_SECONDS


def test_what_is_asked_for_when_the_time_is_over_gets_a_single_step(clock: Clock) -> None:
    clock.costs = [1.2, 1.0]
    measured = timer(limit=60.0)  # of which a fiftieth is 1.2 s
    assert [measured("little", None, width) for width in (2, 3)] == pytest.approx([1.2, 1.0])
    assert counts(clock) == [1, 1]


def test_steps_are_in_the_arithmetic_that_wins_or_was_asked_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def confirmed(precision: Precision, *_: Any) -> Precision:
        return replace(precision, dtype=torch.bfloat16, why="measured")

    monkeypatch.setattr(measure, "confirm_precision", confirmed)
    for asked, dtype in (("auto", torch.bfloat16), ("fp32", torch.float32)):
        measured, clock.steps = timer(train__precision=asked), []
        measured(*LITTLE)
        assert {each for _, each in clock.steps} == {dtype}
        name = str(dtype).removeprefix("torch.")
        assert f"ms with little of width 2 in {name}" in measured.in_words()


@pytest.mark.usefixtures("clock")
def test_what_was_asked_of_the_network_is_tried_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def building(settings: Any, channels: int) -> Any:
        built.append((settings.residual, channels))
        return build_model(settings, channels)

    monkeypatch.setattr(measure, "build_model", building)
    timer(data__channels=5, model__residual="standard")("unet", "resnet34", 2)
    assert built == [("standard", 5)]


def test_real_steps_take_time_and_leave_the_random_numbers_as_they_were() -> None:
    torch.manual_seed(4)
    random.seed(4)
    np.random.seed(4)  # noqa: NPY002 - what others draw from
    measured = timer()
    assert measured(*LITTLE) > 0
    drawn = torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(4)
    random.seed(4)
    np.random.seed(4)  # noqa: NPY002
    assert drawn == (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002


@pytest.mark.parametrize(
    ("flags", "words"),
    [({"device": "gpu"}, "there is no such device"), ({"train.precision": "fp16"}, "not on a CPU")],
)
def test_what_no_training_could_begin_with_is_refused(flags: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        StepTimer(load_run(flags={"device": "cpu", **flags}))


def test_an_encoder_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="resnet35"):
        timer()("unet", "resnet35", 8)
