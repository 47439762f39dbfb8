"""A time limit of time: the steps, the schedule and the end of a training fit into it.

The clock of these tests is moved on by the work alone: a second for each step, and what a test says
that a validation and the choice of threshold take.
"""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING, Any

import pytest

from notan.config import UNLIMITED_EPOCHS, load_run
from notan.data.folders import open_split
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, StoppedBySignal
from notan.modelfile.card import read_card
from notan.models.unet import UNet
from notan.prediction.predictor import Predictor
from notan.training import resume, train
from notan.training import trainer as trainer_module
from notan.training.build import prepare
from notan.training.optim import Schedule, cosine_factor
from notan.training.time_limit import Overhead, Rehearsal
from notan.training.trainer import UNDECIDED, Trainer, decide, rehearse
from runs import VALIDATION, Crash, Drawn, Own, fate, fresh_unet, history, last_state, tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from notan.config import Run
    from notan.data.batches import Batch
    from notan.training import TrainResult
    from notan.training.build import TrainingSetup

IMAGES = Drawn(12, size=(16, 16))
STEPS = 4  # of an epoch
BEGAN, RATE = 1000.0, 3e-3


class Clock:
    """A clock that the work moves on.

    Attributes:
        now: What ``time.monotonic`` says.
        rehearsed: What the end is expected to take; None: half the choice for a validation.
        rates: The learning rate of every step, over the highest.
        frozen: Of every step, whether the encoder stays as it came.
        busy: How many times as long everything takes as on a quiet machine.
        stop_at: The step after which SIGTERM comes.
        slow_from: The step from which on a step takes as long as three.
    """

    def __init__(self, *, validating: float = 0.0, choosing: float = 0.0) -> None:
        self.now, self.validating, self.choosing = BEGAN, validating, choosing
        self.rehearsed: Rehearsal | None = None
        self.rates: list[float] = []
        self.frozen: list[bool] = []
        self.stop_at, self.slow_from, self.busy = 0, 10**9, 1.0

    def monotonic(self) -> float:
        return self.now

    def after(self, original: Callable[..., None]) -> Callable[..., None]:
        """Return an ``after_step`` that takes a second."""

        def replaced(trainer: Trainer, *arguments: Any, **named: Any) -> None:
            step = trainer.progress.step + 1
            self.now += 3.0 if step >= self.slow_from else 1.0
            if step == self.stop_at:
                self.stop_at = 0
                trainer.stop.number = signal.SIGTERM
            original(trainer, *arguments, **named)

        return replaced


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all trainings of a test."""
    clock = Clock()
    advance, validations = Schedule.advance, Trainer._validations

    def advancing(schedule: Schedule) -> None:
        clock.rates.append(schedule.optimizer.param_groups[-1]["lr"] / RATE)
        clock.frozen.append(schedule.freezes)
        advance(schedule)

    def validating(trainer: Trainer) -> Iterator[Any]:
        clock.now += clock.validating
        return validations(trainer)

    def deciding(*arguments: Any) -> Any:
        clock.now += clock.choosing
        arguments[-1]()  # as between images
        return decide(*arguments)

    monkeypatch.setattr("notan.training.time_limit.time", clock)
    monkeypatch.setattr("notan.training.ranks.time", clock)
    monkeypatch.setattr("notan.training.time_limit.how_busy", lambda: clock.busy)
    monkeypatch.setattr(Schedule, "advance", advancing)
    monkeypatch.setattr(Trainer, "after_step", clock.after(Trainer.after_step))
    monkeypatch.setattr(Trainer, "_validations", validating)
    monkeypatch.setattr(trainer_module, "decide", deciding)
    monkeypatch.setattr(
        trainer_module,
        "rehearse",
        lambda *_: clock.rehearsed or Rehearsal(clock.choosing / 2, clock.choosing),
    )
    return clock


def limited(seconds: float, **flags: object) -> Run:
    """Settings with a time limit, and without a limit of epochs."""
    return tiny(train__time_limit_seconds=seconds, **{"train__epochs": UNLIMITED_EPOCHS, **flags})


def run_it(run: Run, out: Path, **more: Any) -> TrainResult:
    return train(run, out=out, training=IMAGES, validation=VALIDATION, **more)


def go_on(folder: Path, **more: Any) -> TrainResult:
    return resume(folder, training=IMAGES, validation=VALIDATION, **more)


def steps_of(result: TrainResult) -> int:
    return int(last_state(result.checkpoint.parent)["progress"]["step"])


def test_the_steps_and_the_end_fill_the_time_limit(tmp_path: Path, clock: Clock) -> None:
    clock.validating, clock.choosing = 2.5, 5.0
    result = run_it(limited(25), tmp_path / "run")
    assert 25 - 0.2 * 7.5 - 2 <= clock.now - BEGAN <= 25  # a margin is kept, and a step did not fit
    assert result.seconds_left == 25 - (clock.now - BEGAN)
    assert Predictor.load(result.checkpoint)(VALIDATION[0].image).mask.shape == (16, 16)


def test_what_was_before_the_training_and_what_comes_after_are_paid_for(
    tmp_path: Path, clock: Clock
) -> None:
    clock.now += 20
    overhead = Overhead(BEGAN, report_seconds=10, leaving_seconds=2)
    result = run_it(limited(110), tmp_path / "run", overhead=overhead)
    assert steps_of(result) == 75  # 110 - 20 - 1.2 * 12 = 75.6
    assert result.seconds_left is not None
    assert result.seconds_left >= 12


def test_the_learning_rate_comes_down_by_the_end_of_the_time_limit(
    tmp_path: Path, clock: Clock
) -> None:
    result = run_it(limited(40), tmp_path / "run")
    assert len(clock.rates) == 40
    expected = [cosine_factor(step, 40, 4) for step in range(40)]
    assert clock.rates[4:] == pytest.approx(expected[4:], abs=1e-9)
    assert clock.rates[:2] == [0.01, 0.25]  # before the speed is known: a warm-up of an epoch
    assert 0 < clock.rates[-1] < 0.01
    began = [line["learning_rate"] / RATE for line in history(result)]
    assert began == pytest.approx(clock.rates[::STEPS])


def test_the_schedule_follows_a_machine_that_slows_down(tmp_path: Path, clock: Clock) -> None:
    clock.slow_from = 16
    run_it(limited(36), tmp_path / "run")
    assert clock.now - BEGAN <= 36
    assert len(clock.rates) == 15 + (36 - 15) // 3
    assert clock.rates[-1] < 0.1
    falls = zip(clock.rates[4:], clock.rates[5:], strict=False)
    assert all(now >= then for now, then in falls)


@pytest.mark.usefixtures("clock")
def test_it_is_said_once_how_many_steps_fit_and_at_the_end_what_was_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="notan"):
        run_it(limited(12), tmp_path / "run")
    assert caplog.text.count("a time limit of 12 s: 4 s are spent, about 0 s are kept") == 1
    assert "about 12 steps fit between them, 3.0 epochs" in caplog.text
    assert caplog.text.count("a validation takes 0.0 s: one after every epoch, 0% of the time") == 1
    assert "12 of 12 seconds are used" in caplog.text


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(("frozen", "told"), [(2, False), (3, True)])
def test_it_is_said_where_the_time_limit_ends_before_the_encoder_learns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, frozen: int, told: bool
) -> None:
    run_it(limited(12, train__freeze_epochs=frozen), tmp_path / "run", model=UNet(width=2))
    said = f"train.freeze_epochs = {frozen} of 3 epochs: the encoder will stay as it came"
    assert (said in caplog.text) == told


@pytest.mark.usefixtures("clock")
def test_an_epoch_that_is_longer_than_the_time_limit_ends_within_it(tmp_path: Path) -> None:
    result = run_it(limited(3), tmp_path / "run")
    (line,) = history(result)
    assert (steps_of(result), line["time_limit/steps_left"]) == (3, 0)
    assert "validation/dice" in line


def test_validations_take_a_thirteenth_of_the_time_and_the_last_is_made_all_the_same(
    tmp_path: Path, clock: Clock
) -> None:
    clock.validating, clock.choosing, clock.rehearsed = 3.0, 3.0, Rehearsal(0.0, 0.0)
    lines = history(run_it(limited(100), tmp_path / "run"))
    validated = [line["epoch"] for line in lines if "validation/dice" in line]
    assert validated[:3] == [1, 10, 19]  # expected to take nothing; then 36 s, 9 epochs, between
    assert validated[3:] == [lines[-1]["epoch"]]
    assert 100 - 0.2 * 6 - 2 <= clock.now - BEGAN <= 100


def test_the_first_validation_is_early(tmp_path: Path, clock: Clock) -> None:
    clock.validating, clock.choosing = 2.0, 4.0
    lines = history(run_it(limited(60), tmp_path / "run"))
    validated = [line["epoch"] for line in lines if "validation/dice" in line]
    assert validated[:2] == [2, 8]  # after 8 s, then 24 s


def test_it_is_said_how_often_there_is_a_validation(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.validating, clock.choosing = 1.0, 2.0
    with caplog.at_level(logging.INFO, logger="notan"):
        run_it(limited(20), tmp_path / "run")
    words = "a validation takes 1.0 s: one after every 3 epochs, 8% of the time, and at the end"
    assert caplog.text.count(words) == 1


def thawed_after(clock: Clock) -> int:
    """Return the steps in which the encoder stayed as it came: the first, and none after them."""
    steps = clock.frozen.count(True)
    assert clock.frozen == [True] * steps + [False] * (len(clock.frozen) - steps)
    return steps


def test_the_encoder_learns_when_its_share_of_the_time_is_over_in_the_middle_of_an_epoch(
    tmp_path: Path, clock: Clock
) -> None:
    run_it(limited(40, train__freeze_fraction=0.25), tmp_path / "run", model=fresh_unet())
    assert len(clock.frozen) == 40
    assert thawed_after(clock) == 10
    assert clock.rates[10] > 0.8, "the rest does not warm up again"


def test_a_machine_that_slows_down_keeps_the_encoder_frozen_for_no_longer(
    tmp_path: Path, clock: Clock
) -> None:
    clock.slow_from = 5
    run_it(limited(40, train__freeze_fraction=0.25), tmp_path / "run", model=fresh_unet())
    assert len(clock.frozen) == 16
    assert 6 <= thawed_after(clock) <= 7  # after 10 s: 4 steps of one and 2 of three


def test_images_have_half_their_size_for_a_share_of_the_time(
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    heights: list[int] = []
    answered = Trainer.answered

    def looking(trainer: Trainer, batch: Batch, step: int) -> Batch:
        batch = answered(trainer, batch, step)
        heights.append(batch.images.shape[-2])
        return batch

    monkeypatch.setattr(Trainer, "answered", looking)
    clock.slow_from = 11
    with caplog.at_level(logging.INFO, logger="notan"):
        run_it(limited(40, train__half_size_fraction=0.25), tmp_path / "run")
    assert caplog.text.count("at most, as images of the whole size take longer") == 1
    assert heights[:10] == [8] * 10
    assert heights[10:] == [16] * (len(heights) - 10)
    assert len(heights) == 20


@pytest.mark.parametrize("stop_at", [2, 7, 8, 9])
def test_a_run_stopped_beside_the_thaw_goes_on_as_if_it_had_not_been(
    tmp_path: Path, clock: Clock, stop_at: int
) -> None:
    run = limited(18, train__freeze_fraction=0.4, train__ema_decay=0.9999)
    run_it(run, tmp_path / "whole", model=fresh_unet())
    frozen, whole = clock.frozen, fate(tmp_path / "whole")
    assert thawed_after(clock) == 8
    clock.now, clock.frozen, clock.stop_at = BEGAN, [], stop_at
    with pytest.raises(StoppedBySignal):
        run_it(run, tmp_path / "stopped", model=fresh_unet())
    clock.now += 5000  # while nothing runs
    go_on(tmp_path / "stopped", model=fresh_unet())
    assert clock.frozen == frozen
    assert fate(tmp_path / "stopped") == whole


def test_patience_counts_where_there_was_a_validation(tmp_path: Path, clock: Clock) -> None:
    clock.validating = 3.0
    never_better = Own(scale=0.0)
    result = run_it(limited(60, train__patience=1), tmp_path / "run", model=never_better)
    lines = history(result)
    assert [line["epoch"] for line in lines if "validation/dice" in line] == [1, 10]


def test_epochs_are_an_upper_limit_and_the_rate_comes_down_by_it(
    tmp_path: Path, clock: Clock
) -> None:
    result = run_it(limited(1000, train__epochs=3), tmp_path / "run")
    assert len(history(result)) == 3
    assert clock.rates[-1] < 0.1


def test_a_validation_corrects_what_the_end_is_expected_to_take(
    tmp_path: Path, clock: Clock
) -> None:
    clock.validating, clock.choosing, clock.rehearsed = 2.0, 4.0, Rehearsal(7.0, 9.0)
    result = run_it(limited(60), tmp_path / "run")
    assert 60 - 0.2 * 6 - 2 <= clock.now - BEGAN <= 60
    assert result.time_for_report


@pytest.mark.parametrize(
    ("choosing", "report", "choice"), [(2.0, True, True), (7.0, False, True), (20.0, False, False)]
)
def test_a_machine_that_gets_busy_costs_the_report_first_and_then_the_choice(
    tmp_path: Path, clock: Clock, choosing: float, report: bool, choice: bool
) -> None:
    clock.validating, clock.rehearsed = 1.0, Rehearsal(1.0, 2.0)
    clock.choosing = choosing
    overhead = Overhead(BEGAN, report_seconds=8, leaving_seconds=1)
    result = run_it(limited(100), tmp_path / "run", overhead=overhead)
    assert result.time_for_report == report
    undecided = read_card(result.checkpoint).choices == (UNDECIDED,)
    assert undecided == (not choice)


def test_a_report_that_would_take_a_fifth_of_the_time_is_planned_without(
    tmp_path: Path, clock: Clock
) -> None:
    overhead = Overhead(BEGAN, report_seconds=8, leaving_seconds=1)
    result = run_it(limited(50), tmp_path / "run", overhead=overhead)
    assert 50 - 1.2 * 1 - 2 <= clock.now - BEGAN <= 50
    assert not result.time_for_report


def test_a_report_is_expected_to_take_longer_on_a_busy_machine(
    tmp_path: Path, clock: Clock
) -> None:
    clock.busy = 2.0
    overhead = Overhead(BEGAN, report_seconds=8, leaving_seconds=1)
    result = run_it(limited(120), tmp_path / "run", overhead=overhead)
    assert 120 - 1.2 * 18 - 2 <= clock.now - BEGAN <= 120 - 1.2 * 18
    assert result.time_for_report


@pytest.mark.usefixtures("clock")
def test_a_machine_that_got_busy_has_no_time_for_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overhead = Overhead(BEGAN, report_seconds=8, leaving_seconds=1)
    found = iter([1.0, 3.0])  # before the first step, and before the report
    monkeypatch.setattr("notan.training.time_limit.how_busy", lambda: next(found))
    assert not run_it(limited(60), tmp_path / "run", overhead=overhead).time_for_report


def test_a_last_validation_that_takes_all_the_time_leaves_no_choice(
    tmp_path: Path, clock: Clock
) -> None:
    clock.validating, clock.choosing, clock.rehearsed = 15.0, 4.0, Rehearsal(1.0, 4.0)
    result = run_it(limited(20), tmp_path / "run")
    assert read_card(result.checkpoint).choices == (UNDECIDED,)
    assert clock.now - BEGAN <= 20


def test_a_rehearsal_tells_predicting_from_choosing() -> None:
    setup = prepare(tiny(), training=IMAGES, validation=VALIDATION)
    before = fate_of(setup)
    predicting, choosing = rehearse(setup, lambda: None)
    assert 0 < predicting < choosing
    assert fate_of(setup) == before


def fate_of(setup: TrainingSetup) -> dict[str, list[float]]:
    return {name: each.flatten().tolist() for name, each in setup.model.state_dict().items()}


def test_a_time_limit_that_is_too_small_says_so_and_leaves_a_model_all_the_same(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.validating, clock.choosing = 30.0, 60.0
    with caplog.at_level(logging.INFO, logger="notan"):
        result = run_it(limited(10), tmp_path / "run")
    assert "a time limit of 10 s is too small and will not be kept: 0 s are spent" in caplog.text
    assert steps_of(result) == 1
    assert Predictor.load(result.checkpoint)(VALIDATION[0].image).mask.shape == (16, 16)
    assert read_card(result.checkpoint).choices == (UNDECIDED,)


def test_a_first_validation_after_the_end_of_the_time_limit_finds_a_model_saved(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.choosing = 60.0

    def killed(_: Trainer) -> Iterator[Any]:
        raise Crash

    monkeypatch.setattr(Trainer, "_validations", killed)
    with pytest.raises(Crash):
        run_it(limited(10), tmp_path / "run")
    Predictor.load(tmp_path / "run" / "best.safetensors")


@pytest.mark.parametrize("stop_at", [1, 2, 4, 7, 17])
def test_a_stopped_run_goes_on_with_the_same_rates_to_the_same_weights(
    tmp_path: Path, clock: Clock, stop_at: int
) -> None:
    run_it(limited(18), tmp_path / "whole")
    rates, whole = clock.rates, fate(tmp_path / "whole")
    clock.now, clock.rates, clock.stop_at = BEGAN, [], stop_at
    with pytest.raises(StoppedBySignal):
        run_it(limited(18), tmp_path / "stopped")
    clock.now += 5000  # while nothing runs
    go_on(tmp_path / "stopped")
    assert clock.rates == rates
    assert fate(tmp_path / "stopped") == whole


def test_time_before_a_resume_counts(tmp_path: Path, clock: Clock) -> None:
    clock.stop_at = 10
    with pytest.raises(StoppedBySignal):
        run_it(limited(20), tmp_path / "run")
    clock.now += 5000
    began = clock.now - 4  # of the second call's loading
    result = go_on(tmp_path / "run", overhead=Overhead(began))
    assert steps_of(result) == 20 - 4


def test_another_time_limit_may_be_given_when_a_run_goes_on(tmp_path: Path, clock: Clock) -> None:
    first = run_it(limited(10), tmp_path / "run")
    assert go_on(tmp_path / "run") == first
    assert len(clock.rates) == 10
    longer = load_run(tmp_path / "run" / "run.toml", flags={"train.time_limit_seconds": 20})
    assert steps_of(go_on(tmp_path / "run", run=longer)) == 20
    assert clock.rates[10] == pytest.approx(cosine_factor(10, 20, 2), abs=1e-9)


def test_a_run_without_a_time_limit_goes_on_with_one(tmp_path: Path, clock: Clock) -> None:
    clock.stop_at = 6
    with pytest.raises(StoppedBySignal):
        run_it(tiny(train__epochs=50), tmp_path / "run")
    shorter = load_run(tmp_path / "run" / "run.toml", flags={"train.time_limit_seconds": 10})
    result = go_on(tmp_path / "run", run=shorter)
    assert steps_of(result) < 20
    assert len(history(result)) < 50


def test_a_time_limit_makes_the_schedule_a_cosine_without_end_unless_another_is_said() -> None:
    settings = limited(60, train__epochs=None).train
    assert (settings.schedule, settings.epochs) == ("cosine", UNLIMITED_EPOCHS)
    said = limited(60, train__epochs=7, train__schedule="exponential").train
    assert (said.schedule, said.epochs) == ("exponential", 7)


def test_an_exponential_schedule_falls_with_every_epoch_as_ever(
    tmp_path: Path, clock: Clock
) -> None:
    run_it(limited(8, train__schedule="exponential", train__gamma=0.5), tmp_path / "run")
    assert clock.rates == pytest.approx([1] * STEPS + [0.5] * STEPS)


def test_every_epoch_adds_its_time(tmp_path: Path) -> None:
    result = run_it(tiny(train__epochs=3), tmp_path / "run")
    spent = last_state(tmp_path / "run")["progress"]["earlier_seconds"]
    assert spent == pytest.approx(sum(line["seconds"] for line in history(result)))


def test_a_time_limit_of_nothing_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"train.time_limit_seconds: Input should be greater than 0"
    ):
        load_run(overrides=["train.time_limit_seconds=0"])


def test_a_split_seed_keeps_the_validation_images_whatever_the_seed(tmp_path: Path) -> None:
    write_folder(DrawnSource(30, size=(8, 8)), tmp_path)
    own = load_run(flags={"data.path": tmp_path}).data
    kept = load_run(flags={"data.path": tmp_path, "data.split_seed": 0}).data
    names = [open_split(own, "val", seed=seed).names for seed in (0, 1)]
    assert names[0] != names[1]
    assert [open_split(kept, "val", seed=seed).names for seed in (0, 1)] == [names[0]] * 2
