"""A benchmark trains each model with each seed once, goes on where it stopped, and compares."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from notan.comparison import benchmark
from notan.comparison.benchmark import make_plan, run_benchmark
from notan.config import load_run
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, DivergedError, StoppedBySignal
from notan.training.trainer import Trainer
from runs import TINY, ask_to_stop, before_step, lines_of, names_in

if TYPE_CHECKING:
    from pathlib import Path

    from notan.comparison.benchmark import BenchmarkPlan
    from notan.config import Run

MODELS = ("unet", "attention_unet")
FOLDERS = {"unet-seed0", "unet-seed1", "attention_unet-seed0", "attention_unet-seed1"}


@pytest.fixture
def run(drawn_folder: Path) -> Run:
    return load_run(flags={**TINY, "data.path": drawn_folder, "train.batch_size": 12})


@pytest.fixture
def plan(run: Run) -> BenchmarkPlan:
    return make_plan(run, MODELS, seeds=2)


def settings_of(folder: Path) -> Run:
    return load_run(folder / "run.toml")


def test_every_model_is_trained_with_every_seed_and_compared(
    plan: BenchmarkPlan, tmp_path: Path
) -> None:
    comparison = run_benchmark(plan, tmp_path)
    assert names_in(tmp_path) == {*FOLDERS, "benchmark.json"}
    titles = [model.title for model in comparison.models]
    assert titles == ["unet (2 seeds)", "attention_unet (2 seeds)"]
    assert comparison.rules["split"] == "test"
    assert "Each run was given 1 epochs of training." in comparison.notes
    run = settings_of(tmp_path / "attention_unet-seed1")
    assert (run.model.name, run.seed, run.data.split_seed) == ("attention_unet", 1, 0)


def test_time_is_divided_equally(run: Run, tmp_path: Path) -> None:
    plan = make_plan(run, MODELS, seeds=2, time_limit_seconds=1e-6)
    comparison = run_benchmark(plan, tmp_path)
    for name in FOLDERS:
        assert settings_of(tmp_path / name).train.time_limit_seconds == 1e-6 / 4
        assert len(lines_of(tmp_path / name / "history.jsonl")) == 1
    assert "Each run was given 0 seconds of training." in comparison.notes


def test_a_second_call_trains_nothing_anew(
    plan: BenchmarkPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_benchmark(plan, tmp_path)
    monkeypatch.setattr("notan.comparison.benchmark.train", None)
    monkeypatch.setattr("notan.comparison.benchmark.resume", None)
    again = run_benchmark(plan, tmp_path)
    assert [each.dice for each in again.models] == [each.dice for each in first.models]


def test_a_stopped_benchmark_goes_on_with_the_run_that_was_stopped(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = run.model_copy(update={"train": run.train.model_copy(update={"epochs": 2})})
    plan = make_plan(longer, MODELS, seeds=1)
    whole = run_benchmark(plan, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "after_step", before_step(3, ask_to_stop))
        with pytest.raises(StoppedBySignal, match="give the same command again to go on") as stop:
            run_benchmark(plan, tmp_path / "stopped")
    assert stop.value.exit_code == 128 + 15
    assert names_in(tmp_path / "stopped") == {"benchmark.json", "unet-seed0"}
    gone_on = run_benchmark(plan, tmp_path / "stopped")
    assert [each.dice for each in gone_on.models] == [each.dice for each in whole.models]
    assert len(lines_of(tmp_path / "stopped" / "unet-seed0" / "history.jsonl")) == 2


def test_on_several_devices_runs_train_side_by_side_to_the_same_scores(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the others too: more of them round otherwise
    plan = make_plan(run, MODELS, seeds=1)
    alone = run_benchmark(plan, tmp_path / "alone")
    monkeypatch.setattr(benchmark, "devices_at_hand", lambda _: ("5", "7"))
    beside = run_benchmark(plan, tmp_path / "beside")
    assert [each.dice for each in beside.models] == [each.dice for each in alone.models]
    for name in ("unet-seed0", "attention_unet-seed0"):
        assert settings_of(tmp_path / "beside" / name) == settings_of(tmp_path / "alone" / name)
        assert "done; best epoch 1" in (tmp_path / "beside" / f"{name}.log").read_text()
    monkeypatch.setattr("notan.comparison.side_by_side.TrainingProcess", None)
    again = run_benchmark(plan, tmp_path / "beside")
    assert [each.dice for each in again.models] == [each.dice for each in alone.models]


@pytest.mark.parametrize("fault", [StoppedBySignal("", 15), KeyboardInterrupt()])
def test_a_signal_that_comes_beside_others_says_how_to_go_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(benchmark, "devices_at_hand", lambda _: ("5", "7"))
    monkeypatch.setattr(benchmark, "train_side_by_side", stopped)
    with pytest.raises(StoppedBySignal, match="give the same command again to go on"):
        run_benchmark(make_plan(run, MODELS, seeds=1), tmp_path)


def test_a_run_whose_model_was_removed_is_trained_again(
    plan: BenchmarkPlan, tmp_path: Path
) -> None:
    run_benchmark(plan, tmp_path)
    model = tmp_path / "unet-seed1" / "best.safetensors"
    model.unlink()
    run_benchmark(plan, tmp_path)
    assert model.is_file()


def test_a_folder_of_other_settings_is_refused_with_what_differs(
    run: Run, plan: BenchmarkPlan, tmp_path: Path
) -> None:
    run_benchmark(plan, tmp_path)
    wider = run.model_copy(update={"model": run.model.model_copy(update={"width": 3})})
    others = (
        (make_plan(wider, MODELS, seeds=2), r"model.width \(2 -> 3\)"),
        (make_plan(run, MODELS, seeds=3), r"seeds \(2 -> 3\)"),
        (make_plan(run, MODELS[:1], seeds=2), r"models \(unet,attention_unet -> unet\)"),
        (
            make_plan(run, MODELS, seeds=2, time_limit_seconds=40),
            r"train.time_limit_seconds \(None -> 10",
        ),
    )
    for other, words in others:
        with pytest.raises(ConfigError, match=f"the benchmark here has other settings: .*{words}"):
            run_benchmark(other, tmp_path)


def test_another_device_is_no_other_benchmark(run: Run, tmp_path: Path) -> None:
    run_benchmark(make_plan(run, MODELS, seeds=1), tmp_path)
    moved = make_plan(run.model_copy(update={"device": "cpu"}), MODELS, seeds=1)
    assert len(run_benchmark(moved, tmp_path).models) == 2


def test_a_folder_of_something_else_is_left_alone(plan: BenchmarkPlan, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(ConfigError, match=r"something is here, but no benchmark.json"):
        run_benchmark(plan, tmp_path)
    assert names_in(tmp_path) == {"thesis.txt"}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"run": {"modell": 1}}', '{"run": 3}'])
def test_a_broken_plan_is_named(plan: BenchmarkPlan, tmp_path: Path, text: str) -> None:
    (tmp_path / "benchmark.json").write_text(text)
    with pytest.raises(ConfigError, match=r"benchmark.json: the benchmark's plan cannot be read"):
        run_benchmark(plan, tmp_path)


def test_a_run_that_diverges_is_left_out_and_said_to_be(
    plan: BenchmarkPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge(monkeypatch, "unet-seed1")
    comparison = run_benchmark(plan, tmp_path)
    assert [len(each.seeds) for each in comparison.models] == [1, 2]
    assert any("unet-seed1 diverged and is left out: no number" in n for n in comparison.notes)
    ended = json.loads((tmp_path / "benchmark.json").read_text())["ended"]
    assert ended["unet-seed1"] == {"diverged": "no number"}


def test_runs_that_all_diverge_are_no_comparison(
    plan: BenchmarkPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge(monkeypatch, *FOLDERS)
    with pytest.raises(DivergedError, match="fewer than two runs came to an end"):
        run_benchmark(plan, tmp_path)


def diverge(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    train = Trainer.train

    def train_or_diverge(trainer: Trainer, *arguments: object) -> object:
        if trainer.folder.name in names:
            raise DivergedError("no number")
        return train(trainer, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train", train_or_diverge)


def test_without_a_test_split_the_validation_images_serve(run: Run, tmp_path: Path) -> None:
    write_folder(DrawnSource(12, size=(16, 16)), tmp_path / "data")
    data = run.data.model_copy(update={"path": tmp_path / "data"})
    plan = make_plan(run.model_copy(update={"data": data}), ("unet",), seeds=2)
    comparison = run_benchmark(plan, tmp_path / "out")
    assert comparison.rules["split"] == "val"
    assert len(comparison.images) == 1
    assert any("The data have no test split" in note for note in comparison.notes)


def test_what_cannot_be_compared_is_refused_before_training(run: Run) -> None:
    with pytest.raises(ConfigError, match="no such model; did you mean 'unet'"):
        make_plan(run, ("unett", "attention_unet"), seeds=1)
    with pytest.raises(ConfigError, match="--seeds 0: at least one seed is wanted"):
        make_plan(run, MODELS, seeds=0)
    with pytest.raises(ConfigError, match="a benchmark wants two or more runs"):
        make_plan(run, ("unet",), seeds=1)
    with pytest.raises(ConfigError, match="--models: unet is there twice"):
        make_plan(run, ("unet", "unet"), seeds=1)
