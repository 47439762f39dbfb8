"""Benchmark: train several models with several seeds under one time limit, and compare them.

The folder says which runs there are and how each ended, so that the same call goes on where an
earlier one was stopped.
"""

from __future__ import annotations

import logging
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from notan.comparison import Comparison, compare
from notan.comparison.side_by_side import devices_at_hand, train_side_by_side
from notan.config import UNLIMITED_EPOCHS, Run, changed_settings, run_to_toml
from notan.data.folders import has_test
from notan.errors import ConfigError, DivergedError, StoppedBySignal
from notan.io.write import holds_something, write_bytes
from notan.models.build import check_model
from notan.run_folder import BEST, SETTINGS
from notan.training import resume, train

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from notan.training import TrainResult
    from notan.training.time_limit import Overhead

logger = logging.getLogger("notan")

PLAN, SHARED_SETTINGS = "benchmark.json", "benchmark.toml"


class BenchmarkPlan(BaseModel):
    """What is trained; it stands in ``benchmark.json``, with how each run ended.

    Attributes:
        models: Names of models.
        seeds: How many seeds of each, from the run's own on.
        run: The settings that all runs share; their model's name and seed are replaced.
    """

    model_config = ConfigDict(frozen=True)

    models: tuple[str, ...]
    seeds: int
    run: Run

    def runs(self) -> dict[str, Run]:
        """Return each run under its folder's name, one seed of every model after the other."""
        return {
            f"{name}-seed{seed}": self.run.model_copy(
                update={"model": self.run.model.model_copy(update={"name": name}), "seed": seed}
            )
            for seed in range(self.run.seed, self.run.seed + self.seeds)
            for name in self.models
        }


class _Stored(BenchmarkPlan):
    """What an earlier call left: its plan, and how the runs ended, by name."""

    ended: dict[str, Any]


def make_plan(
    run: Run,
    models: Sequence[str],
    *,
    seeds: int,
    time_limit_seconds: float | None = None,
) -> BenchmarkPlan:
    """Divide a time limit among runs.

    The validation images are the same for all seeds.

    Args:
        run: The settings that all runs share; without ``time_limit_seconds``, each gets its epochs.
        models: Names of models; two or more, or one with two or more seeds.
        seeds: How many seeds of each, from the run's own on.
        time_limit_seconds: Training time for all runs together, divided equally, instead of epochs.

    Raises:
        ConfigError: A name is unknown or twice there, or the numbers leave nothing to compare.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least one seed is wanted")
    if run.model.class_path:
        raise ConfigError(
            f"model.class_path = {run.model.class_path}: a benchmark trains notan's own networks; "
            "train yours with notan train --model-class and set the runs beside each other with "
            "notan compare"
        )
    for name in models:
        check_model(run.model.model_copy(update={"name": name}))
        if list(models).count(name) > 1:
            raise ConfigError(f"--models: {name} is there twice; give it once and raise --seeds")
    number = len(models) * seeds
    if number < 2:
        raise ConfigError(
            "a benchmark wants two or more runs to compare; name more models "
            "(--models unet,attention_unet) or raise --seeds"
        )
    share = None if time_limit_seconds is None else time_limit_seconds / number
    limits = {"epochs": UNLIMITED_EPOCHS, "time_limit_seconds": share} if share else {}
    split_seed = run.seed if run.data.split_seed is None else run.data.split_seed
    shared = run.model_copy(
        update={
            "train": run.train.model_copy(update=limits),
            "data": run.data.model_copy(update={"split_seed": split_seed}),
        }
    )
    return BenchmarkPlan(run=shared, models=tuple(models), seeds=seeds)


def run_benchmark(plan: BenchmarkPlan, folder: Path) -> Comparison:
    """Train what is not trained yet, then compare all runs on the test split.

    Where the data have no test split, the validation split takes its place, which the comparison
    says. A run that diverges is left out of it, which it says too.

    Args:
        plan: What to train.
        folder: Where the runs are kept; a second call with the same plan goes on in it.

    Raises:
        ConfigError: The folder belongs to another plan, or holds something else.
        DataError: An image or mask is missing, unreadable or ambiguous.
        DivergedError: Fewer than two runs came to an end.
        StorageError: The disk is full.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
    """
    split = "test" if has_test(plan.run.data) else "val"  # before hours of training, not after
    ended = _claim(plan, folder)
    try:
        _train_missing(plan, ended, folder)
    except KeyboardInterrupt as stop:
        raise StoppedBySignal(
            f"stopped and saved ({folder}); give the same command again to go on",
            stop.number if isinstance(stop, StoppedBySignal) else signal.SIGINT,
        ) from stop
    return _compare(plan, ended, folder, split)


def _train_missing(plan: BenchmarkPlan, ended: dict[str, Any], folder: Path) -> None:
    """Train the runs that are not trained yet, and note in ``ended`` how they ended."""
    runs, missing = plan.runs(), dict[str, Run]()
    for number, (name, run) in enumerate(runs.items(), start=1):
        if is_over(ended, folder / name):
            logger.info("run %d of %d: %s has ended before", number, len(runs), name)
        else:
            missing[name] = run

    def note(name: str, end: dict[str, Any]) -> None:
        ended[name] = end
        _write(plan, ended, folder)

    devices = devices_at_hand(plan.run.device)
    if len(devices) > 1 and len(missing) > 1:
        write_bytes(folder / SHARED_SETTINGS, run_to_toml(plan.run).encode())
        settings = {name: partial(missing.__getitem__, name) for name in missing}
        lost = {name for name in missing if name in ended}
        train_side_by_side(settings, folder / SHARED_SETTINGS, devices, note, anew=lost)
        return
    for name, run in missing.items():
        number = list(runs).index(name) + 1
        left = _remaining(plan, ended, folder)
        logger.info("run %d of %d: %s%s", number, len(runs), name, left)
        note(name, _train(run, folder / name, anew=name in ended))


def _compare(plan: BenchmarkPlan, ended: dict[str, Any], folder: Path, split: str) -> Comparison:
    finished = [name for name in plan.runs() if "dice" in ended[name]]
    notes = list(_notes(plan, ended, split))
    if len(finished) < 2:
        raise DivergedError(f"{folder}: fewer than two runs came to an end. {' '.join(notes)}")
    compared = compare(
        [folder / name for name in finished],
        data_path=plan.run.data.path,
        split=split,
        device=plan.run.device,
    )
    return compared.with_notes(notes)


def _train(run: Run, folder: Path, *, anew: bool) -> dict[str, Any]:
    """Train or go on, or begin anew where an ended run has lost its model; say how it ended."""
    began = time.perf_counter()
    try:
        result = train_or_resume(run, folder, anew=anew)
    except DivergedError as error:
        logger.warning("%s", error)
        return {"diverged": str(error)}
    seconds = time.perf_counter() - began
    return {"dice": result.dice, "epoch": result.epoch, "seconds": seconds}


def train_or_resume(
    run: Run, folder: Path, *, anew: bool, overhead: Overhead | None = None
) -> TrainResult:
    """Begin a run of several, or go on with it where it was stopped.

    Args:
        run: Its settings.
        folder: Its run folder.
        anew: It has ended, and what it left is gone: begin again.
        overhead: As for ``notan.training.train``; see there for the errors too.
    """
    if (folder / SETTINGS).is_file() and not anew:
        return resume(folder, run=run, overhead=overhead)
    return train(run, out=folder, overwrite=anew, overhead=overhead)


def _claim(plan: BenchmarkPlan, folder: Path) -> dict[str, Any]:
    """Return how the runs of an earlier call ended, after making sure that it was the same plan."""
    path = folder / PLAN
    if not path.is_file():
        if holds_something(folder):
            raise ConfigError(
                f"{folder}: something is here, but no {PLAN}, so it is no benchmark to go on with; "
                "choose another --out"
            )
        _write(plan, {}, folder)
        return {}
    try:
        before = _Stored.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: the benchmark's plan cannot be read ({str(error).splitlines()[0]}); "
            "choose another --out"
        ) from error
    differing = list(_differences(before, plan))
    if differing:
        raise ConfigError(
            f"{folder}: the benchmark here has other settings: {', '.join(differing)}; "
            "give the same ones to go on with it, or choose another --out"
        )
    return before.ended


def _differences(before: BenchmarkPlan, now: BenchmarkPlan) -> Iterator[str]:
    for name in ("models", "seeds"):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            yield f"{name} ({_listed(old)} -> {_listed(new)})"
    for name, (old, new) in changed_settings(before.run, now.run).items():
        if name != "device":
            yield f"{name} ({old} -> {new})"


def _listed(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _write(plan: BenchmarkPlan, ended: dict[str, Any], folder: Path) -> None:
    stored = _Stored(run=plan.run, models=plan.models, seeds=plan.seeds, ended=ended)
    write_bytes(folder / PLAN, (stored.model_dump_json(indent=2) + "\n").encode())


def is_over(ended: Mapping[str, Any], folder: Path) -> bool:
    """Say whether a run ended, and what it left is still there."""
    end = ended.get(folder.name)
    return end is not None and ("diverged" in end or (folder / BEST).is_file())


def _remaining(plan: BenchmarkPlan, ended: dict[str, Any], folder: Path) -> str:
    """Say how long the runs that are left will take, going by those that ended."""
    left = sum(not is_over(ended, folder / name) for name in plan.runs())
    known = [end["seconds"] for end in ended.values() if "seconds" in end]
    seconds = plan.run.train.time_limit_seconds or (sum(known) / len(known) if known else None)
    return "" if seconds is None else f"; about {left * seconds / 60:.0f} minutes are left"


def _notes(plan: BenchmarkPlan, ended: dict[str, Any], split: str) -> Iterator[str]:
    train_settings = plan.run.train
    if train_settings.time_limit_seconds is not None:
        yield f"Each run was given {train_settings.time_limit_seconds:.0f} seconds of training."
    else:
        yield f"Each run was given {train_settings.epochs} epochs of training."
    if split == "val":
        yield (
            "The data have no test split, so these are the validation images, by which each "
            "run's best epoch was chosen: the scores are somewhat too good."
        )
    for name, end in ended.items():
        if "diverged" in end:
            yield f"{name} diverged and is left out: {end['diverged']}"
