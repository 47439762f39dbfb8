"""The guard: silent while all is well, quick when it is not, and bounded in what it tries.

float16's scaler, which skips steps of its own, works on a GPU only and is not tested here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from notan.data.synthetic import DrawnSource
from notan.errors import DivergedError
from notan.train import resume, train
from notan.train.guard import Guard
from notan.train.trainer import Trainer
from runs import (
    Crash,
    before_step,
    crash,
    fate,
    history,
    last_state,
    lines_of,
    names_in,
    tiny,
    weights,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from notan.config import Run
    from notan.train import TrainResult

TRAINING = DrawnSource(24, size=(16, 16))
VALIDATION = DrawnSource(4, size=(16, 16), first=24)
BATCHES = 8  # of an epoch


def verdicts(guard: Guard, losses: Iterable[float], norm: float = 1.0) -> list[str]:
    """Return the guard's actions, with '' for a step that is well."""
    found = [guard.judge(float(loss), norm) for loss in losses]
    return [verdict.action if verdict else "" for verdict in found]


def quiet_guard(most_returns: int = 5) -> Guard:
    """A guard that has seen a quiet loss around 0.5."""
    guard = Guard(most_returns)
    assert set(verdicts(guard, [0.5, 0.52, 0.48, 0.51] * 10)) == {""}
    return guard


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_skipped_from_the_first_step_on(loss: float) -> None:
    for guard in (Guard(5), quiet_guard()):
        verdict = guard.judge(loss, 1.0)
        assert verdict
        assert (verdict.reason, verdict.action) == ("the loss is no number", "skip")


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_is_skipped(norm: float) -> None:
    verdict = quiet_guard().judge(0.5, norm)
    assert verdict
    assert (verdict.reason, verdict.action) == ("the gradient is no number", "skip")


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_spike_over_a_quiet_window_is_seen_at_any_scale(scale: float) -> None:
    guard = Guard(5)
    assert set(verdicts(guard, [scale * loss for loss in [0.5, 0.52, 0.48, 0.51] * 10])) == {""}
    assert verdicts(guard, [scale * 1.4, scale * 1.7]) == ["", "skip"]


def test_a_loss_that_runs_away_slowly_is_seen_too() -> None:
    losses = [0.5 * 1.03**step for step in range(100)]
    found = verdicts(Guard(5), losses)
    assert "" not in found[-30:]
    assert losses[found.index("skip")] < 3.0


def test_bad_losses_do_not_become_the_measure() -> None:
    guard = quiet_guard(most_returns=1000)
    assert "" not in verdicts(guard, [9.0] * 200)
    assert verdicts(guard, [0.5]) == [""]


def test_trouble_that_persists_leads_back_a_bounded_number_of_times_and_then_stops() -> None:
    found = verdicts(quiet_guard(most_returns=2), [math.nan] * 9)
    assert found == ["skip", "skip", "go back"] * 2 + ["skip", "skip", "stop"]


def test_a_first_batch_that_was_far_too_easy_costs_one_return_and_not_the_training() -> None:
    guard = Guard(5)
    found = verdicts(guard, [0.01, *[0.9, 1.0, 1.1] * 30])
    assert found == ["", "skip", "skip", "go back", *[""] * 87]


def test_single_bad_batches_far_apart_are_only_skipped() -> None:
    losses = ([0.5] * 9 + [math.nan]) * 20
    assert set(verdicts(Guard(0), losses)) == {"", "skip"}


def test_a_guard_is_calm_ten_steps_after_trouble() -> None:
    guard = quiet_guard()
    guard.judge(math.nan, 1.0)
    calm = []
    for _ in range(10):
        calm.append(guard.calm)
        guard.judge(0.5, 1.0)
    assert calm == [False] * 10
    assert guard.calm


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(1e-6, 1e6),
    fall=st.floats(0.0, 0.05),
    wander=st.floats(0.0, 0.01),
    noise=st.floats(0.0, 0.25),
)
def test_a_healthy_loss_however_noisy_raises_no_alarm(
    seed: int, scale: float, fall: float, wander: float, noise: float
) -> None:
    """It falls to a twentieth, wanders, and each batch differs by up to a quarter."""
    rng = np.random.default_rng(seed)
    trend = 0.05 + 0.95 * np.exp(-fall * np.arange(400))
    walk = np.exp(wander * rng.normal(size=400).cumsum())
    losses = scale * trend * walk * np.exp(noise * rng.normal(size=400))
    assert "go back" not in verdicts(Guard(0), losses)
    assert verdicts(Guard(0), losses).count("skip") <= 1


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["gamma", "t", "lognormal"]))
def test_heavy_tails_cost_a_few_batches_and_never_the_training(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    losses = {
        "gamma": rng.gamma(6, size=400) / 6,
        "t": np.abs(1 + 0.1 * rng.standard_t(4, size=400)),
        "lognormal": np.exp(0.35 * rng.normal(size=400)),
    }[kind]
    guard = Guard(5)
    found = verdicts(guard, losses)
    assert "stop" not in found
    assert guard.returns <= 1
    assert len(found) - found.count("") <= 12


@settings(max_examples=60, deadline=None)
@given(
    losses=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=80),
    most=st.integers(0, 3),
    cut=st.integers(0, 80),
)
def test_a_restored_guard_goes_on_as_the_one_before(
    losses: list[float], most: int, cut: int
) -> None:
    whole, first, second = Guard(most), Guard(most), Guard(most)
    expected = verdicts(whole, losses)
    begun = verdicts(first, losses[:cut])
    second.restore(first.state())
    verdicts(first, [0.1, math.nan])  # what the first does later is nothing to the second
    assert begun + verdicts(second, losses[cut:]) == expected
    assert second.state() == whole.state()
    assert whole.returns <= most


class Allergic(nn.Module):
    """A small network that a white picture makes ill: its loss, or only its gradient, is NaN."""

    stride = 1

    def __init__(self, where: str = "loss") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.norm = nn.BatchNorm2d(3)
        self.layer = nn.Conv2d(3, 1, 3, padding=1)
        self.where = where

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        white = images.amin(dim=(1, 2, 3), keepdim=True) >= 1
        if self.where == "loss":
            images = torch.where(white, math.nan, images)
        logits: torch.Tensor = self.layer(self.norm(images))
        if self.where == "gradient" and white.any():
            logits = logits + (0 * self.layer.weight.sum()).sqrt()
        return logits


class Whitening:
    """An augmentation that makes every picture of some batches white, and counts the batches."""

    def __init__(self, *batches: int) -> None:
        self.batches, self.pictures = batches, 0

    def __call__(self, *, image: Any, mask: Any) -> dict[str, Any]:
        self.pictures += 1
        bad = (self.pictures + 2) // 3 in self.batches
        return {"image": np.full_like(image, 255) if bad else image, "mask": mask}


def watched(**flags: object) -> Run:
    plain: dict[str, object] = {"preprocess__mean": (0, 0, 0), "preprocess__std": (1, 1, 1)}
    return tiny(**{**plain, "train__epochs": 3, "train__learning_rate": 0.02, **flags})


def train_allergic(
    run: Run, out: Path, *bad: int, to: str = "loss"
) -> tuple[TrainResult, list[dict[str, torch.Tensor]]]:
    """Train with bad batches; return the weights after each step too, those before it first."""
    after: list[dict[str, torch.Tensor]] = []
    allows, after_step = Trainer.allows, Trainer.after_step

    def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in trainer.parts.model.state_dict().items()}

    def before(trainer: Trainer, *arguments: Any) -> bool:
        if not after:
            after.append(weights_of(trainer))
        return allows(trainer, *arguments)

    def recorded(trainer: Trainer, *arguments: Any, **named: Any) -> None:
        after_step(trainer, *arguments, **named)
        after.append(weights_of(trainer))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "allows", before)
        patch.setattr(Trainer, "after_step", recorded)
        parts: dict[str, Any] = {"training": TRAINING, "validation": VALIDATION}
        result = train(run, out=out, model=Allergic(to), transform=Whitening(*bad), **parts)
    return result, after


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("to", ["loss", "gradient"])
def test_a_bad_batch_is_skipped_and_recorded_and_leaves_no_trace_in_the_network(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, to: str
) -> None:
    result, after = train_allergic(watched(), tmp_path / "run", 5, to=to)
    assert same(after[4], after[5])  # batch norm's statistics among them
    assert not same(after[5], after[6])
    assert all(value.isfinite().all() for value in after[-1].values())
    (incident,) = lines_of(tmp_path / "run" / "incidents.jsonl")
    assert (incident["epoch"], incident["batch"], incident["step"]) == (1, 5, 5)
    assert incident["action"] == "skip"
    assert incident["reason"] == f"the {to} is no number"
    assert incident["gradient_norm"] == "nan"
    assert (incident["loss"] == "nan") == (to == "loss")
    assert len(incident["pictures"]) == 3
    assert set(incident["pictures"]) < set(TRAINING.names)
    text = f"epoch 1, batch 5: the {to} is no number; the batch is skipped (loss of "
    assert f"{text}{', '.join(incident['pictures'])}: bce" in caplog.text
    assert len(history(result)) == 3


def test_persistent_trouble_goes_back_to_good_weights_at_a_quarter_of_the_rate(
    tmp_path: Path,
) -> None:
    run = watched(train__state_steps=4, train__average_decay=0.5)
    result, after = train_allergic(run, tmp_path / "run", 6, 7, 9)
    assert not same(after[4], after[5])
    assert not same(after[4], after[8])
    assert same(after[4], after[9])  # batch norm's statistics among them
    incidents = lines_of(tmp_path / "run" / "incidents.jsonl")
    assert [incident["action"] for incident in incidents] == ["skip", "skip", "go back"]
    assert last_state(tmp_path / "run")["schedule"]["lowered"] == 0.25
    rates = [line["learning_rate"] for line in history(result)]
    assert rates == [pytest.approx(rate) for rate in (0.02, 0.02 * 0.98 / 4, 0.02 * 0.98**2 / 4)]


def test_going_back_twice_finds_the_same_good_weights(tmp_path: Path) -> None:
    run = watched(train__state_steps=4)
    _, after = train_allergic(run, tmp_path / "run", 6, 7, 9, 10, 11, 13)
    assert not same(after[4], after[12])
    assert same(after[4], after[9])
    assert same(after[4], after[13])
    assert last_state(tmp_path / "run")["schedule"]["lowered"] == 0.0625


def test_a_training_that_went_back_resumes_exactly(tmp_path: Path) -> None:
    run = watched(train__state_steps=4)
    bad = (6, 7, 9)
    train_allergic(run, tmp_path / "whole", *bad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(15, crash))
        with pytest.raises(Crash):
            train_allergic(run, tmp_path / "run", *bad)
    parts: dict[str, Any] = {"training": TRAINING, "validation": VALIDATION}
    resume(tmp_path / "run", model=Allergic(), transform=Whitening(), **parts)
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_incidents_of_steps_that_are_done_again_are_listed_once(tmp_path: Path) -> None:
    run = watched(train__state_steps=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(7, crash))
        with pytest.raises(Crash):
            train_allergic(run, tmp_path / "run", 2, 6)
    parts: dict[str, Any] = {"training": TRAINING, "validation": VALIDATION}
    resume(tmp_path / "run", model=Allergic(), transform=Whitening(2), **parts)  # 4 + 2 = 6
    steps = [line["step"] for line in lines_of(tmp_path / "run" / "incidents.jsonl")]
    assert steps == [2, 6]


def test_trouble_that_does_not_end_stops_and_names_batch_pictures_and_record(
    tmp_path: Path,
) -> None:
    run = watched(train__state_steps=1, train__most_returns=1)
    with pytest.raises(DivergedError) as error:
        train_allergic(run, tmp_path / "run", *range(4, 30))
    incidents = lines_of(tmp_path / "run" / "incidents.jsonl")
    actions = ["skip", "skip", "go back", "skip", "skip", "stop"]
    assert [incident["action"] for incident in incidents] == actions
    assert error.value.exit_code == 6
    text = str(error.value)
    assert text.startswith("epoch 2, batch 1: the loss is no number, having gone back 1 time(s): ")
    assert f"loss of {', '.join(incidents[-1]['pictures'])}: bce nan" in text
    assert f"{tmp_path / 'run' / 'incidents.jsonl'}; try a smaller --learning-rate" in text
    parts: dict[str, Any] = {"training": TRAINING, "validation": VALIDATION}
    result = resume(tmp_path / "run", model=Allergic(), transform=Whitening(), **parts)
    assert len(history(result)) == 3


def test_without_the_guard_a_loss_that_is_no_number_stops_at_once(tmp_path: Path) -> None:
    run = watched(train__guard=False, train__state_steps=1)
    with pytest.raises(DivergedError, match=r"epoch 1, batch 4: loss of drawn-00.*bce nan, dice"):
        train_allergic(run, tmp_path / "run", 4)
    assert last_state(tmp_path / "run")["progress"]["step"] == 3
    assert "incidents.jsonl" not in names_in(tmp_path / "run")


def test_a_healthy_training_is_the_same_with_the_guard_and_without(tmp_path: Path) -> None:
    ends = []
    for guard in (True, False):
        run = watched(train__guard=guard, train__average_decay=0.9)
        train_allergic(run, tmp_path / str(guard))
        end = fate(tmp_path / str(guard))
        ends.append({name: value for name, value in end.items() if "/guard" not in name})
    assert ends[0] == ends[1]


@pytest.mark.parametrize("rate", [3.0, 30.0, 300.0, 1e4])
@pytest.mark.parametrize("schedule", ["exponential", "cosine"])
def test_an_absurd_learning_rate_is_recovered_from_or_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rate: float, schedule: str
) -> None:
    """AdamW and batch norm bear a thousand times too much without a jump, and learn nothing."""
    sane = tiny(train__epochs=4, train__schedule=schedule)
    absurd = tiny(train__epochs=4, train__schedule=schedule, train__learning_rate=rate)
    parts: dict[str, Any] = {"training": TRAINING, "validation": VALIDATION}
    folder = tmp_path / "run"
    try:
        train(absurd, out=folder, **parts)
        said = "nothing was learned" in caplog.text
    except DivergedError as error:
        said = any(name in str(error) for name in (*TRAINING.names, *VALIDATION.names))
        assert "incidents.jsonl" in names_in(folder)
    for incident in lines_of(folder / "incidents.jsonl"):
        said = True
        assert incident["pictures"]
        assert "jumped above" in incident["reason"] or "no number" in incident["reason"]
    assert said
    assert len(weights(resume(folder, run=sane, allow_changes=True, **parts))) == 64
