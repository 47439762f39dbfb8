"""A training that is stopped, or that the disk stops, leaves what it had and nothing by halves."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from notan.errors import StoppedBySignal, StorageError
from notan.modelfile.card import load_checkpoint, read_card
from notan.training.trainer import Trainer
from runs import EPOCH_STEPS, ask_to_stop, before_step, names_in, resume_own, tiny, train_own

if TYPE_CHECKING:
    from pathlib import Path


def test_ctrl_c_keeps_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    train_epoch = Trainer.train_epoch

    def interrupted(*arguments: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_epoch(*arguments)

    monkeypatch.setattr(Trainer, "train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_own(tiny(train__epochs=5), tmp_path / "run")
    assert read_card(tmp_path / "run" / "best.safetensors").epoch == 1
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("good_writes", [0, 1, 2, 3])
def test_a_disk_that_fills_up_leaves_no_half_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good_writes: int
) -> None:
    calls = []

    def filling(_: int) -> None:
        calls.append(1)
        if len(calls) > good_writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", filling)
    run = tiny(train__epochs=40, train__learning_rate=0.05)
    with pytest.raises(StorageError, match=r"run/.*: could not be written \(No space left"):
        train_own(run, tmp_path / "run")
    whole = ["run.toml", "validation.txt", "best.safetensors"][:good_writes]
    logged = {"history.jsonl"} if good_writes == 3 else set()
    assert names_in(tmp_path / "run") == {*whole, *logged}
    if good_writes == 3:
        load_checkpoint(tmp_path / "run" / "best.safetensors")


def test_progress_counts_epochs_and_after_a_stop_those_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int | None]] = []

    def note(done: int, total: int | None) -> None:
        steps.append((done, total))

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(2 * EPOCH_STEPS, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_own(tiny(train__epochs=3), tmp_path / "run", progress=note)
    assert steps == [(1, 3)]
    resume_own(tmp_path / "run", progress=note)
    assert steps == [(1, 3), (2, 3), (3, 3)]
