"""Resume: a run that was stopped, killed or crashed anywhere ends as if nothing had happened."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch

from notan.cli.main import main
from notan.config import load_run
from notan.data.synthetic import DrawnSource
from notan.errors import CheckpointError, ConfigError, DataError, StoppedBySignal
from notan.training import resume, train
from notan.training.computing import NARROW
from notan.training.trainer import Trainer
from runs import (
    Crash,
    Drawn,
    Own,
    ask_to_stop,
    before_step,
    crash,
    fate,
    history,
    last_state,
    lines_of,
    names_in,
    resume_own,
    tiny,
    train_own,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from notan.config import Run
    from notan.data.batches import Batch
    from notan.data.loading import Batches

IMAGES = Drawn(12, size=(24, 30))
CHECKS = Drawn(4, size=(24, 30), first=12)
EPOCHS, STEPS = 3, 4  # of the run below


def rich(**flags: object) -> Run:
    """Settings that make use of all that a state holds."""
    everything = {
        "train__epochs": EPOCHS,
        "train__checkpoint_every_steps": 1,
        "train__schedule": "cosine",
        "train__ema_decay": 0.8,
        "train__gradient_clip": 0.5,
        "train__patience": 2,
        "train__learning_rate": 0.05,
    }
    return tiny(**{**everything, **flags})


def train_rich(run: Run, out: Path) -> None:
    train(run, out=out, training=IMAGES, validation=CHECKS)


def go_on(folder: Path, **more: Any) -> None:
    resume(folder, training=IMAGES, validation=CHECKS, **more)


def in_validation(number: int, action: Callable[[Trainer], None]) -> Callable[..., Iterator[Batch]]:
    """Return an ``until_stopped`` that does something at the n-th batch of validation."""
    calls = itertools.count(1)
    original = Trainer.until_stopped

    def replaced(trainer: Trainer, batches: Batches) -> Iterator[Batch]:
        for batch in original(trainer, batches):
            if next(calls) == number:
                action(trainer)
            yield batch

    return replaced


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How the run ends that nothing stops."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_rich(rich(), folder)
    return fate(folder)


@pytest.mark.parametrize("step", range(1, EPOCHS * STEPS + 1))
def test_a_run_stopped_after_any_step_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any], step: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(step, ask_to_stop))
        with pytest.raises(StoppedBySignal, match="stopped and saved; go on with: notan train"):
            train_rich(rich(train__checkpoint_every_steps=None), tmp_path / "run")
    go_on(tmp_path / "run")
    assert fate(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize(("step", "every"), [(2, 1), (5, 1), (6, 4), (8, 3), (12, 5)])
def test_a_crash_costs_the_steps_since_the_last_state_and_no_exactness(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: dict[str, Any],
    step: int,
    every: int,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(step, crash))
        with pytest.raises(Crash):
            train_rich(rich(train__checkpoint_every_steps=every), tmp_path / "run")
    (newest, *_) = sorted((tmp_path / "run" / "last").iterdir(), reverse=True)
    assert int(newest.stem) == (step - 1) // every * every
    go_on(tmp_path / "run")
    assert fate(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("action", [ask_to_stop, crash])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])  # 2 of the model, 2 of its average
def test_a_run_stopped_while_it_validates_goes_on_too(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: dict[str, Any],
    batch: int,
    action: Callable[[Trainer], None],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "until_stopped", in_validation(batch, action))
        with pytest.raises((StoppedBySignal, Crash)):
            train_rich(rich(), tmp_path / "run")
    go_on(tmp_path / "run")
    assert fate(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("width", [NARROW, 2])
def test_weights_and_moments_lie_alike_through_validations_and_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    # a fused optimizer pairs them as they lie: what looks at a network must not turn it around
    run = rich(model__width=width, train__precision="fp32", train__epochs=2)
    alike: list[bool] = []
    original = Trainer.capture

    def captured(trainer: Trainer) -> dict[str, Any]:
        for weight, moments in trainer.setup.optimization.optimizer.state.items():
            alike.append(weight.stride() == moments["exp_avg"].stride())
        return original(trainer)

    monkeypatch.setattr(Trainer, "capture", captured)
    train_rich(run, tmp_path / "whole")
    assert alike
    assert all(alike)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(STEPS + 2, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_rich(run, tmp_path / "run")
    go_on(tmp_path / "run")
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_a_crash_between_the_best_and_the_history_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any]
) -> None:
    def failing(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("notan.training.log.RunLog.epoch", failing)
        with pytest.raises(Crash):
            train_rich(rich(), tmp_path / "run")
    go_on(tmp_path / "run")
    assert fate(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize(("before", "after"), [(2, 2), (0, 2), (2, 0)])
def test_the_number_of_workers_may_change_on_the_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: dict[str, Any],
    before: int,
    after: int,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(6, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_rich(rich(data__workers=before), tmp_path / "run")
    go_on(tmp_path / "run", run=rich(data__workers=after))
    assert fate(tmp_path / "run") == uninterrupted


def test_a_run_that_is_stopped_again_and_again_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any]
) -> None:
    start: Callable[[], None] = lambda: train_rich(rich(), tmp_path / "run")  # noqa: E731
    for step in (2, 3, 4, 7, 11):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "after_step", before_step(step, ask_to_stop))
            with pytest.raises(StoppedBySignal):
                start()
        start = lambda: go_on(tmp_path / "run")  # noqa: E731
    start()
    assert fate(tmp_path / "run") == uninterrupted
    assert [line["epoch"] for line in lines_of(tmp_path / "run" / "history.jsonl")] == [1, 2, 3]


def test_patience_counts_the_epochs_before_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny(train__epochs=50, train__patience=3, train__learning_rate=1e-12)
    monkeypatch.setattr(Trainer, "after_step", before_step(6, ask_to_stop))
    with pytest.raises(StoppedBySignal):
        train_own(run, tmp_path / "run", model=Own(scale=0.0))
    result = resume_own(tmp_path / "run", model=Own(scale=0.0))
    assert [line["epoch"] for line in history(result)] == [1, 2, 3, 4]
    assert result.epoch == 1


class Forgetful(Own):
    """A network whose training draws random numbers."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.nn.functional.dropout(images, 0.5, training=self.training))


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_network_that_draws_random_numbers_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    run = tiny(train__epochs=3)
    torch.manual_seed(1)
    train_own(run, tmp_path / "whole", model=Forgetful())
    torch.manual_seed(1)
    monkeypatch.setattr(Trainer, "after_step", before_step(step, ask_to_stop))
    with pytest.raises(StoppedBySignal):
        train_own(run, tmp_path / "run", model=Forgetful())
    monkeypatch.undo()
    torch.rand(3)
    resume_own(tmp_path / "run", model=Forgetful())
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def stopped_run(folder: Path, run: Run, step: int = 3, **more: Any) -> Path:
    """Train up to the end of a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(step, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_own(run, folder, **more)
    return folder


def test_the_users_own_augmentation_goes_on_too(tmp_path: Path) -> None:
    def darken(*, image: Any, mask: Any) -> dict[str, Any]:
        return {"image": image // 2, "mask": mask}

    train_own(tiny(train__epochs=3), tmp_path / "whole", transform=darken)
    stopped_run(tmp_path / "run", tiny(train__epochs=3), transform=darken)
    resume_own(tmp_path / "run", transform=darken)
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_where_there_is_no_run_there_is_nothing_to_resume(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match=r"there is no run here to go on with \(run.toml is"):
            resume(folder)
    assert not any(tmp_path.iterdir())


def test_settings_that_make_another_run_are_refused_by_name_before_and_after(
    tmp_path: Path,
) -> None:
    folder = stopped_run(tmp_path / "run", tiny(train__epochs=3))
    other = tiny(train__epochs=3, seed=7, train__batch_size=2, train__patience=9)
    with pytest.raises(
        ConfigError,
        match=r"^train.batch_size \(3 -> 2\), seed \(0 -> 7\) would make it another run; .*--allow",
    ):
        resume_own(folder, run=other)
    assert load_run(folder / "run.toml").seed == 0
    resume_own(folder)


def test_other_images_are_refused(tmp_path: Path) -> None:
    folder = stopped_run(tmp_path / "run", tiny(train__epochs=2))
    others = DrawnSource(6, size=(16, 16), first=50)
    for part in ("training", "validation"):
        with pytest.raises(DataError, match="not the images that the run was trained on; give"):
            resume_own(folder, **{part: others})
    assert len(history(resume_own(folder, training=others, allow_changes=True))) == 2


def test_allowed_changes_are_really_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "notan")
    folder = stopped_run(tmp_path / "run", tiny(train__epochs=3))
    changed = tiny(train__epochs=3, train__learning_rate=1e-5, train__weight_decay=0.5)
    result = resume_own(folder, run=changed, allow_changes=True)
    assert "changed since the run began: train.learning_rate, 0.003 -> 1e-05" in caplog.text
    assert [line["learning_rate"] for line in history(result)[1:]] == [
        pytest.approx(1e-5 * 0.98**epoch) for epoch in (1, 2)
    ]
    (group,) = last_state(folder)["optimizer"]["param_groups"]
    assert group["weight_decay"] == 0.5
    assert load_run(folder / "run.toml") == changed


def test_another_network_cannot_take_up_the_state_even_if_changes_are_allowed(
    tmp_path: Path,
) -> None:
    folder = stopped_run(tmp_path / "run", tiny(train__epochs=3))
    with pytest.raises(CheckpointError, match="does not fit the network"):
        resume_own(folder, run=tiny(train__epochs=3, model__width=3), allow_changes=True)
    resume_own(folder)


def test_changes_that_make_no_other_run_pass(tmp_path: Path) -> None:
    train_own(tiny(train__epochs=3), tmp_path / "whole")
    folder = stopped_run(tmp_path / "run", tiny(train__epochs=3))
    harmless: dict[str, object] = {
        "train__patience": 9,
        "train__checkpoint_every_steps": 2,
        "train__detect_anomaly": True,
        "train__loss_guard": False,
        "train__max_rollbacks": 1,
        "device": "cpu",
    }
    resume_own(folder, run=tiny(train__epochs=3, **harmless))
    ends = [
        {
            name: value
            for name, value in fate(tmp_path / which).items()
            if not name.startswith(("/state/guard", "/state/good"))
        }
        for which in ("run", "whole")
    ]
    assert ends[0] == ends[1]


def test_more_epochs_are_as_if_they_had_been_asked_for_from_the_start(tmp_path: Path) -> None:
    train_own(tiny(train__epochs=5), tmp_path / "whole")
    train_own(tiny(train__epochs=2), tmp_path / "run")
    resume_own(tmp_path / "run", run=tiny(train__epochs=5))
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_more_epochs_make_another_cosine(tmp_path: Path) -> None:
    cosine: dict[str, object] = {"train__schedule": "cosine"}
    train_own(tiny(train__epochs=2, **cosine), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train.epochs \(2 -> 5\) would make it another run"):
        resume_own(tmp_path / "run", run=tiny(train__epochs=5, **cosine))


def test_a_finished_run_is_not_trained_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train_own(tiny(train__epochs=3), tmp_path / "run")
    before = fate(tmp_path / "run")
    monkeypatch.setattr(Trainer, "after_step", crash)
    assert resume_own(tmp_path / "run") == result
    assert fate(tmp_path / "run") == before


def test_a_run_killed_before_its_first_state_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "notan")
    train_own(tiny(train__epochs=2), tmp_path / "whole")
    monkeypatch.setattr(Trainer, "after_step", before_step(4, crash))
    with pytest.raises(Crash):
        train_own(tiny(train__epochs=2), tmp_path / "run")
    monkeypatch.undo()
    assert "last" not in names_in(tmp_path / "run")
    resume_own(tmp_path / "run")
    assert "was stopped before its first state: beginning again" in caplog.text
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


@pytest.mark.parametrize("flag", ["--out", "--recipe", "--overwrite"])
def test_resume_takes_folder_and_settings_from_the_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    value = [] if flag == "--overwrite" else [str(tmp_path / "other")]
    with pytest.raises(SystemExit) as end:
        main(["train", "--resume", str(tmp_path), flag, *value])
    assert end.value.code == 2
    assert "leave --recipe, --out and --overwrite" in capsys.readouterr().err


def test_changes_are_allowed_to_a_run_that_goes_on_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "--data-path", str(tmp_path), "--allow-changes"])
    assert end.value.code == 2
    assert "--allow-changes goes with --resume FOLDER" in capsys.readouterr().err


def test_resumed_curves_have_one_point_for_each_epoch(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tiny(
        train__epochs=4,
        train__trackers=("tensorboard",),
        train__checkpoint_every_steps=1,
        train__log_images=1,
    )
    folder = stopped_run(tmp_path / "run", run, step=5)
    resume_own(folder)
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("validation/dice")] == [1, 2, 3, 4]
