"""State files: whole or absent, checked on reading, and the one before is there when one is not."""

from __future__ import annotations

import errno
import logging
import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open

from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import CheckpointError, StorageError
from notan.training.state import StateFolder
from notan.training.trainer import Trainer
from runs import Crash, before_step, crash, fate, flat, names_in, resume_own, tiny, train_own

if TYPE_CHECKING:
    from pathlib import Path

    from runs import Server

SMALL = {"weights": {"layer.weight": torch.arange(6.0).reshape(2, 3)}, "step": 5, "best": None}
BEFORE = {**SMALL, "step": 4}
TYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.uint8, torch.bool),
)


def two_states(folder: Path) -> Path:
    """Write two states; return the newest one's file."""
    states = StateFolder(folder)
    states.save(4, BEFORE)
    states.save(5, SMALL)
    return states.files()[0]


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4, 5)], ids=str)
def test_a_tensor_comes_back_to_the_last_bit(
    tmp_path: Path, kind: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = (100 * torch.randn(shape)).to(kind)
    StateFolder(tmp_path).save(1, {"tensor": tensor})
    assert flat(StateFolder(tmp_path).load()) == flat({"tensor": tensor})


def test_a_tree_comes_back_with_all_its_values(tmp_path: Path) -> None:
    shared = torch.randn(4, 6)
    tree: dict[str, Any] = {
        "plain": {"none": None, "yes": True, "count": 2**60, "third": 1 / 3, "text": "nïx\n\"'"},
        "empty": {"dict": {}, "list": []},
        "nested": [{"deep": [1, [shared, {"again": shared}]]}, 2.5],
        "not a number": torch.tensor([float("nan"), float("inf"), -0.0]),
        "turned": shared.T,
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    StateFolder(tmp_path).save(1, tree)
    assert flat(StateFolder(tmp_path).load()) == flat(tree)


def test_the_newest_two_states_are_kept(tmp_path: Path) -> None:
    states = StateFolder(tmp_path)
    for step in (1, 2, 9, 10, 100):
        states.save(step, {"step": step})
    assert names_in(tmp_path) == {"000000010.safetensors", "000000100.safetensors"}
    assert states.load() == {"step": 100}


def test_where_nothing_was_saved_there_is_no_state(tmp_path: Path) -> None:
    assert StateFolder(tmp_path / "missing").load() is None


def test_a_state_cut_short_anywhere_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = two_states(tmp_path)
    content = newest.read_bytes()
    for length in range(len(content)):
        newest.write_bytes(content[:length])
        caplog.clear()
        assert flat(StateFolder(tmp_path).load()) == flat(BEFORE), length
        assert f"{newest}: the state is damaged" in caplog.text
        assert "going back to the state before it" in caplog.text


@pytest.mark.parametrize("bits", [0b1, 0b100000, 0b11111111])
def test_a_flipped_bit_is_never_read_as_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bits: int
) -> None:
    """A bit that carries nothing, in the padding or the format's name, may go unnoticed."""
    newest = two_states(tmp_path)
    content = newest.read_bytes()
    unnoticed = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= bits
        newest.write_bytes(damaged)
        caplog.clear()
        found = flat(StateFolder(tmp_path).load())
        assert found == flat(BEFORE if caplog.records else SMALL), place
        unnoticed += not caplog.records
    assert unnoticed < 12


def test_bytes_added_to_a_state_are_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = two_states(tmp_path)
    newest.write_bytes(newest.read_bytes() + b"\0")
    assert flat(StateFolder(tmp_path).load()) == flat(BEFORE)
    assert "the state is damaged" in caplog.text


def test_a_run_whose_newest_state_is_damaged_goes_on_from_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "notan")
    run = tiny(train__epochs=4, train__checkpoint_every_steps=1)
    train_own(run, tmp_path / "whole")
    monkeypatch.setattr(Trainer, "after_step", before_step(6, crash))
    with pytest.raises(Crash):
        train_own(run, tmp_path / "run")
    monkeypatch.undo()
    damage(tmp_path / "run" / "last" / "000000005.safetensors")
    resume_own(tmp_path / "run")
    assert "5.safetensors: the state is damaged (SHA-256 differs); going back" in caplog.text
    assert "going on from epoch 2, batch 3" in caplog.text
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_a_run_without_an_intact_state_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny(train__epochs=4, train__checkpoint_every_steps=1)
    monkeypatch.setattr(Trainer, "after_step", before_step(6, crash))
    with pytest.raises(Crash):
        train_own(run, tmp_path / "run")
    monkeypatch.undo()
    for path in (tmp_path / "run" / "last").iterdir():
        damage(path)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"no saved state in last/ can be read") as error:
        resume_own(tmp_path / "run")
    assert "best.safetensors is kept and can still be used; train it anew with" in str(error.value)
    assert {path: path.read_bytes() for path in before} == before
    assert error.value.exit_code == 5


def damage(path: Path) -> None:
    """Flip a bit of the last tensor."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_state_is_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_own(tiny(), tmp_path / "run")

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was opened")

    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(module, name, refused)
    (path,) = (tmp_path / "run" / "last").iterdir()
    with safe_open(path, framework="np") as file:
        assert set(file.metadata()) == {"format", "plain", "sha256"}
    assert StateFolder(path.parent).load()


@pytest.mark.parametrize("good_writes", [3, 4, 7])
def test_a_disk_that_is_full_at_a_state_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good_writes: int
) -> None:
    run = tiny(train__epochs=4, train__checkpoint_every_steps=1)
    train_own(run, tmp_path / "whole")
    calls = []

    def filling(_: int) -> None:
        calls.append(1)
        if len(calls) > good_writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", filling)
    with pytest.raises(StorageError, match=r"run/.*: could not be written \(No space left"):
        train_own(run, tmp_path / "run")
    monkeypatch.undo()
    assert StateFolder(tmp_path / "run" / "last").load() is not None
    assert not [name for name in names_in(tmp_path / "run" / "last") if name.startswith(".")]
    resume_own(tmp_path / "run")
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_a_limit_on_file_sizes_ends_a_run_that_can_go_on_without_it(
    server: Server, tmp_path: Path
) -> None:
    """The operating system itself refuses: a state is larger than what may be written."""
    write_folder(DrawnSource(9, size=(24, 30)), tmp_path / "data" / "train")
    write_folder(DrawnSource(3, size=(24, 30), first=9), tmp_path / "data" / "val")
    words: tuple[object, ...] = (
        "train",
        "--data-path",
        tmp_path / "data",
        "--batch-size",
        3,
        "--image-size",
        16,
    )
    words += ("--learning-rate", 0.02, "--model", "little", "model.width=2")
    words += ("train.trackers=[]",)
    server.run(*words, "--epochs", 4, "--out", tmp_path / "whole")
    server.run(*words, "--epochs", 2, "--out", tmp_path / "run")
    (state,) = (tmp_path / "run" / "last").iterdir()
    resumed = ("train", "--resume", tmp_path / "run", "--epochs", 4)
    child = server.start(
        *resumed, "train.checkpoint_every_steps=2", largest_file=state.stat().st_size - 9999
    )
    assert child.end() == 9
    assert child.read().splitlines()[-1] == (
        f"notan: {tmp_path / 'run' / 'last' / '000000008.safetensors'}: could not be written (File "
        "too large); free some space or choose another place with --out"
    )
    assert names_in(tmp_path / "run" / "last") == {state.name}
    server.run(*resumed)
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_a_state_of_another_version_is_refused_and_said_to_be_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("notan.training.state.FORMAT", "1")
        train_own(tiny(), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no saved state in last/ can be read"):
        resume_own(tmp_path / "run")
    assert "the state was written by another version of notan" in caplog.text
