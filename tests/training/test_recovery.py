"""What the guard's verdicts do to a training: skipped, gone back, stopped, and resumed exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from allergic import TRAINING, VALIDATION, Allergic, Whitening, same, train_allergic, watched
from notan.errors import DivergedError
from notan.training import resume, train
from notan.training.trainer import Trainer
from notan.training.validation import Validation, validate
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
    from pathlib import Path

REASONS = ("jumped above", "NaN or infinit", "the validation loss", "has lost more than half")


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
    assert incident["reason"] == f"the {to} is NaN or infinite"
    assert incident["gradient_norm"] == "nan"
    assert (incident["loss"] == "nan") == (to == "loss")
    assert len(incident["images"]) == 3
    assert set(incident["images"]) < set(TRAINING.names)
    text = f"epoch 1, batch 5: the {to} is NaN or infinite; the batch is skipped (loss of "
    assert f"{text}{', '.join(incident['images'])}: bce" in caplog.text
    assert len(history(result)) == 3


def test_persistent_trouble_goes_back_to_good_weights_at_a_quarter_of_the_rate(
    tmp_path: Path,
) -> None:
    run = watched(train__checkpoint_every_steps=4, train__ema_decay=0.5)
    result, after = train_allergic(run, tmp_path / "run", 14, 15, 17)
    assert not same(after[8], after[9])
    assert not same(after[8], after[16])
    assert same(after[8], after[17])  # batch norm's statistics among them
    incidents = lines_of(tmp_path / "run" / "incidents.jsonl")
    assert [incident["action"] for incident in incidents] == ["skip", "skip", "go back"]
    assert last_state(tmp_path / "run")["schedule"]["lowered"] == 0.25
    rates = [line["learning_rate"] for line in history(result)]
    assert rates == [pytest.approx(rate) for rate in (0.02, 0.02 * 0.98, 0.02 * 0.98**2 / 4)]


def test_going_back_twice_finds_the_same_good_weights(tmp_path: Path) -> None:
    run = watched(train__checkpoint_every_steps=4)
    _, after = train_allergic(run, tmp_path / "run", 14, 15, 17, 18, 19, 21)
    assert not same(after[8], after[16])
    assert same(after[8], after[17])
    assert same(after[8], after[21])
    assert last_state(tmp_path / "run")["schedule"]["lowered"] == 0.0625


@pytest.mark.parametrize("last", [11, 15, 16, 19, 23])
def test_a_training_that_goes_back_before_or_after_a_stop_resumes_exactly(
    tmp_path: Path, last: int
) -> None:
    run = watched(train__checkpoint_every_steps=4, train__ema_decay=0.5)
    bad = (14, 15, 17)
    train_allergic(run, tmp_path / "whole", *bad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(last, crash))
        with pytest.raises(Crash):
            train_allergic(run, tmp_path / "run", *bad)
    parts: dict[str, Any] = {"training": TRAINING, "validation": VALIDATION}
    done = last_state(tmp_path / "run")["progress"]["step"]
    left = Whitening(*(number - done for number in bad))
    resume(tmp_path / "run", model=Allergic(), transform=left, **parts)
    actions = [incident["action"] for incident in lines_of(tmp_path / "run" / "incidents.jsonl")]
    assert actions == ["skip", "skip", "go back"]
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_numberless_answers_in_validation_are_an_incident_and_cost_one_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def ill_in_the_second(*arguments: Any) -> Validation:
        asked.append(1)
        if len(asked) == 2:
            raise DivergedError("the network gives NaN or infinity for drawn-0024", ("drawn-0024",))
        return validate(*arguments)

    monkeypatch.setattr("notan.training.trainer.validate", ill_in_the_second)
    result, after = train_allergic(watched(), tmp_path / "run")
    (incident,) = lines_of(tmp_path / "run" / "incidents.jsonl")
    assert (incident["epoch"], incident["batch"], incident["action"]) == (2, None, "go back")
    assert incident["images"] == ["drawn-0024"]
    assert last_state(tmp_path / "run")["schedule"]["lowered"] == 0.25
    assert ["validation/dice" in line for line in history(result)] == [True, False, True]
    assert not same(after[16], after[17])


def test_without_the_guard_numberless_answers_stop_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ill(*_: Any) -> Validation:
        raise DivergedError("the network gives NaN or infinity for drawn-0024", ("drawn-0024",))

    monkeypatch.setattr("notan.training.trainer.validate", ill)
    with pytest.raises(DivergedError, match="gives NaN or infinity for drawn-0024"):
        train_allergic(watched(train__loss_guard=False), tmp_path / "run")
    assert len(lines_of(tmp_path / "run" / "history.jsonl")) == 1


def test_incidents_of_steps_that_are_done_again_are_listed_once(tmp_path: Path) -> None:
    run = watched(train__checkpoint_every_steps=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(7, crash))
        with pytest.raises(Crash):
            train_allergic(run, tmp_path / "run", 2, 6)
    parts: dict[str, Any] = {"training": TRAINING, "validation": VALIDATION}
    resume(tmp_path / "run", model=Allergic(), transform=Whitening(2), **parts)  # 4 + 2 = 6
    steps = [line["step"] for line in lines_of(tmp_path / "run" / "incidents.jsonl")]
    assert steps == [2, 6]


def test_trouble_that_does_not_end_stops_and_names_batch_images_and_record(
    tmp_path: Path,
) -> None:
    run = watched(train__checkpoint_every_steps=1, train__max_rollbacks=1)
    with pytest.raises(DivergedError) as error:
        train_allergic(run, tmp_path / "run", *range(4, 30))
    incidents = lines_of(tmp_path / "run" / "incidents.jsonl")
    actions = ["skip", "skip", "go back", "skip", "skip", "stop"]
    assert [incident["action"] for incident in incidents] == actions
    assert error.value.exit_code == 6
    text = str(error.value)
    assert text.startswith(
        "epoch 2, batch 1: the loss is NaN or infinite, having gone back 1 time(s): "
    )
    assert f"loss of {', '.join(incidents[-1]['images'])}: bce nan" in text
    assert f"{tmp_path / 'run' / 'incidents.jsonl'}; try a smaller --learning-rate" in text
    parts: dict[str, Any] = {"training": TRAINING, "validation": VALIDATION}
    result = resume(tmp_path / "run", model=Allergic(), transform=Whitening(), **parts)
    assert len(history(result)) == 3


def test_without_the_guard_a_loss_that_is_no_number_stops_at_once(tmp_path: Path) -> None:
    run = watched(train__loss_guard=False, train__checkpoint_every_steps=1)
    with pytest.raises(DivergedError, match=r"epoch 1, batch 4: loss of drawn-00.*bce nan, dice"):
        train_allergic(run, tmp_path / "run", 4)
    assert last_state(tmp_path / "run")["progress"]["step"] == 3
    assert "incidents.jsonl" not in names_in(tmp_path / "run")


def test_a_healthy_training_is_the_same_with_the_guard_and_without(tmp_path: Path) -> None:
    ends = []
    for guard in (True, False):
        run = watched(train__loss_guard=guard, train__ema_decay=0.9)
        train_allergic(run, tmp_path / str(guard))
        end = fate(tmp_path / str(guard))
        own = ("/state/guard", "/state/good")
        ends.append({name: value for name, value in end.items() if not name.startswith(own)})
    assert ends[0] == ends[1]


@pytest.mark.parametrize("rate", [3.0, 30.0, 300.0, 1e4])
@pytest.mark.parametrize("schedule", ["exponential", "cosine"])
def test_an_absurd_learning_rate_is_recovered_from_or_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rate: float, schedule: str
) -> None:
    """AdamW and batch norm can bear a thousand times too much without a jump in any batch.

    Then it shows in the validation, where batch norm's statistics are no longer the batch's own.
    """
    deep = {"model__name": "unet", "train__epochs": 4, "train__schedule": schedule}
    sane, absurd = tiny(**deep), tiny(**deep, train__learning_rate=rate)
    parts: dict[str, Any] = {"training": TRAINING, "validation": VALIDATION}
    folder = tmp_path / "run"
    try:
        train(absurd, out=folder, **parts)
    except DivergedError as error:
        assert_names_images(error)
    incidents = lines_of(folder / "incidents.jsonl")
    assert incidents
    for incident in incidents:
        assert incident["images"]
        assert any(word in incident["reason"] for word in REASONS)
        assert incident["reason"] in caplog.text
    assert len(weights(resume(folder, run=sane, allow_changes=True, **parts))) == 64


def assert_names_images(error: DivergedError) -> None:
    assert error.images
    assert error.images[0] in str(error)
