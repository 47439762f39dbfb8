"""A training that is stopped, or that the disk stops, leaves what it had and nothing by halves."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from notan.errors import StorageError
from notan.modelfile.card import load_checkpoint, read_card
from notan.training.trainer import Trainer
from runs import names_in, tiny, train_own

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
