"""A budget of time ends a training at the end of an epoch, and a resume counts what was spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from notan.config import load_run
from notan.data.build import open_split
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, StoppedBySignal
from notan.train.trainer import Trainer
from runs import ask_to_stop, before_step, history, last_state, resume_own, tiny, train_own

if TYPE_CHECKING:
    from pathlib import Path

SPENT_AT_ONCE = 1e-9
NEVER_SPENT = 1e9


def test_a_spent_budget_ends_the_training_after_the_epoch(tmp_path: Path) -> None:
    run = tiny(train__epochs=5, train__budget_seconds=SPENT_AT_ONCE)
    result = train_own(run, tmp_path / "run")
    assert [line["epoch"] for line in history(result)] == [1]
    assert result.checkpoint.is_file()


def test_a_run_whose_budget_is_spent_is_finished(tmp_path: Path) -> None:
    run = tiny(train__epochs=5, train__budget_seconds=SPENT_AT_ONCE)
    first = train_own(run, tmp_path / "run")
    again = resume_own(tmp_path / "run")
    assert again == first
    assert len(history(again)) == 1


def test_a_budget_that_is_not_spent_changes_nothing(tmp_path: Path) -> None:
    run = tiny(train__epochs=2, train__budget_seconds=NEVER_SPENT)
    assert len(history(train_own(run, tmp_path / "run"))) == 2


def test_time_before_a_resume_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch is not over, so it is the first one's time that ends the training."""
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "after_step", before_step(3, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_own(tiny(train__epochs=9), tmp_path / "run")
    progress = last_state(tmp_path / "run")["progress"]
    assert progress["earlier_seconds"] > 0
    run = tiny(train__epochs=9, train__budget_seconds=progress["earlier_seconds"])
    assert [line["epoch"] for line in history(resume_own(tmp_path / "run", run=run))] == [1]


def test_every_epoch_adds_its_time(tmp_path: Path) -> None:
    result = train_own(tiny(train__epochs=3), tmp_path / "run")
    spent = last_state(tmp_path / "run")["progress"]["earlier_seconds"]
    assert spent == pytest.approx(sum(line["seconds"] for line in history(result)))


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.budget_seconds: Input should be greater than 0"):
        load_run(overrides=["train.budget_seconds=0"])


def test_a_split_seed_keeps_the_validation_pictures_whatever_the_seed(tmp_path: Path) -> None:
    write_folder(DrawnSource(30, size=(8, 8)), tmp_path)
    own = load_run(flags={"data.path": tmp_path}).data
    kept = load_run(flags={"data.path": tmp_path, "data.split_seed": 0}).data
    names = [open_split(own, "val", seed=seed).names for seed in (0, 1)]
    assert names[0] != names[1]
    assert [open_split(kept, "val", seed=seed).names for seed in (0, 1)] == [names[0]] * 2
