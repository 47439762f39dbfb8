"""Folds, and that no image is judged by a network that saw it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from notan.checking import label_errors as crossvalidate
from notan.checking.label_errors import divide, estimate_seconds, predict_held_out
from notan.config import Run
from notan.errors import ConfigError, DataError, StoppedBySignal
from notan.training import train
from notan.training.trainer import Trainer
from runs import Crash, Drawn, ask_to_stop, before_step, crash, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from notan.data.samples import Source
    from notan.training import Network, TrainResult

SOURCE = Drawn(7, size=(16, 16))


def predicted(run: Run, folder: Path, folds: int = 3) -> dict[str, np.ndarray[Any, Any]]:
    pairs = predict_held_out(run, SOURCE, folds=folds, folder=folder)
    return {sample.name: prediction.probability for sample, prediction in pairs}


@given(
    count=st.integers(4, 60), folds=st.integers(2, 8), seed=st.integers(0, 5), order=st.randoms()
)
def test_the_folds_partition_the_images_whatever_their_order(
    count: int, folds: int, seed: int, order: Any
) -> None:
    folds = min(folds, count)
    names = [f"image {place}" for place in range(count)]
    divided = divide(names, folds, run=Run(seed=seed))
    assert sorted(name for fold in divided for name in fold.held_out) == sorted(names)
    sizes = [len(fold.held_out) for fold in divided]
    assert max(sizes) - min(sizes) <= 1
    for fold in divided:
        assert fold.held_out | fold.training | fold.validation == set(names)
        assert not fold.held_out & (fold.training | fold.validation)
        assert not fold.training & fold.validation
        assert fold.training
        assert fold.validation
    order.shuffle(names)
    assert divide(names, folds, run=Run(seed=seed)) == divided


def test_another_seed_makes_other_folds() -> None:
    names = [f"image {place}" for place in range(20)]
    assert divide(names, 3, run=Run(seed=1)) != divide(names, 3, run=Run(seed=2))


def test_no_image_is_judged_by_a_network_that_saw_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[Path, set[str]] = {}

    def watched(
        run: Run, *, out: Path, training: Source, validation: Source, model: Network | None
    ) -> TrainResult:
        seen[out] = {sample.name for part in (training, validation) for sample in part}
        return train(run, out=out, training=training, validation=validation, model=model)

    monkeypatch.setattr(crossvalidate, "train", watched)
    judged = []
    for sample, prediction in predict_held_out(tiny(), SOURCE, folds=3, folder=tmp_path):
        newest = max(seen, key=lambda folder: int(folder.name))
        assert sample.name not in seen[newest]
        assert prediction.probability.shape == sample.size
        judged.append(sample.name)
    assert sorted(judged) == sorted(SOURCE.names)
    assert len(seen) == 3


def test_a_finished_fold_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = predicted(tiny(), tmp_path)
    monkeypatch.setattr(Trainer, "after_step", before_step(1, crash))
    again = predicted(tiny(), tmp_path)
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_a_stopped_check_goes_on_and_ends_as_if_it_had_not_been_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny(train__epochs=2)
    whole = predicted(run, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(2, ask_to_stop))
        with pytest.raises(StoppedBySignal, match="the same --out again to go on") as stop:
            predicted(run, tmp_path / "stopped")
    assert stop.value.exit_code == 143
    with monkeypatch.context() as patch:  # the power goes before the second step after that
        patch.setattr(Trainer, "after_step", before_step(4, crash))
        with pytest.raises(Crash):
            predicted(run, tmp_path / "stopped")
    rest = predicted(run, tmp_path / "stopped")
    assert all(np.array_equal(whole[name], rest[name]) for name in whole)


@pytest.mark.parametrize("folds", [1, 0, -2])
def test_fewer_than_two_folds_are_refused(folds: int) -> None:
    with pytest.raises(ConfigError, match=f"--folds {folds}: at least 2 are wanted"):
        divide(SOURCE.names, folds, run=Run())


@pytest.mark.parametrize(("count", "folds"), [(0, 3), (2, 3), (2, 2), (3, 2)])
def test_too_few_images_for_the_folds_are_refused(count: int, folds: int) -> None:
    with pytest.raises(DataError, match=f"{count} readable images with masks for {folds} folds"):
        divide(SOURCE.names[:count], folds, run=Run())


def test_the_estimate_grows_with_epochs_and_folds() -> None:
    assert estimate_seconds(tiny(), SOURCE, folds=2) > 0
    one, ten = (estimate_seconds(tiny(train__epochs=n), SOURCE, folds=2) for n in (1, 1000))
    assert ten > one
