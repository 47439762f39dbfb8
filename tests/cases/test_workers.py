"""Data workers in want: killed, without shared memory, without locks. Nothing waits for ever."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from needs import case
from notan.data import workers
from notan.data.batches import BatchLoader, SampleDataset
from notan.data.samples import Sample, Source
from notan.errors import NotanError
from notan.modelfile.preprocess import Preprocessor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SIDE = 32
SOON = 20
"""Seconds; PyTorch looks after its workers every five."""


class Drawn(Source):
    """Images of noise; in a worker, one of them does something else first."""

    def __init__(self, count: int = 12, *, fatal: int | None = None, side: int = SIDE) -> None:
        self.count, self.fatal, self.side = count, fatal, side

    @property
    def names(self) -> Sequence[str]:
        return [str(number) for number in range(self.count)]

    def __getitem__(self, index: int) -> Sample:
        if index == self.fatal and get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        image = np.random.default_rng(index).integers(0, 256, (self.side,) * 2 + (3,), np.uint8)
        return Sample(str(index), image, image[..., 0] > 200)


class Raising(Drawn):
    def __getitem__(self, index: int) -> Sample:
        raise RuntimeError("a bug of one's own")


def loader_of(source: Source, *, count: int = 2, batch_size: int = 2) -> BatchLoader:
    preprocessor = Preprocessor(image_size=(SIDE, SIDE), mean=(0.5,) * 3, std=(0.2,) * 3, stride=16)
    return BatchLoader(
        SampleDataset(source, preprocessor), batch_size, shuffle=False, workers=count
    )


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    """End the workers of a test: each holds copies of all pipes that were open when it began."""
    yield
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


def test_a_worker_that_is_killed_ends_the_reading_in_a_line() -> None:
    began = time.monotonic()
    with pytest.raises(NotanError) as caught:
        list(loader_of(Drawn(fatal=7)))
    assert time.monotonic() - began < SOON
    message = str(caught.value)
    assert "a data worker, which reads images, ended (Killed)" in message
    assert all(word in message for word in ("data.workers=0", "--shm-size"))
    assert "\n" not in message


def test_a_worker_killed_in_the_midst_of_a_large_batch_is_not_waited_for() -> None:
    """Masks go through the pipe at their own size: half a batch may be there, and no more come."""
    loader = loader_of(Drawn(40, side=1500))
    batches = iter(loader)
    next(batches)
    time.sleep(1)  # both workers have filled their pipe by now, and wait for us to read on
    for process in multiprocessing.active_children():
        os.kill(process.pid or 0, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(NotanError, match=r"a data worker, .*ended"):
        list(batches)
    assert time.monotonic() - began < SOON


def test_a_worker_that_ends_meanwhile_does_not_disturb_a_step() -> None:
    loader = loader_of(Drawn(40))
    batches = iter(loader)
    next(batches)
    child = next(iter(multiprocessing.active_children()))
    os.kill(child.pid or 0, signal.SIGKILL)
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:  # a step: an error raised here would name no reason
        torch.zeros(8).sum()
    with pytest.raises(NotanError, match="data worker"):
        list(batches)


def test_a_worker_that_ended_between_two_epochs_is_noticed() -> None:
    loader = loader_of(Drawn())
    assert len(list(loader)) == 6
    for process in multiprocessing.active_children():
        os.kill(process.pid or 0, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(NotanError, match="data worker"):
        list(loader)
    assert time.monotonic() - began < SOON


def test_a_bug_in_a_worker_is_no_worker_that_ended() -> None:
    with pytest.raises(RuntimeError, match="a bug of one's own"):
        list(loader_of(Raising()))
    with pytest.raises(RuntimeError, match="a bug of one's own"):
        list(loader_of(Raising(), count=0))


@pytest.mark.parametrize("free", [0, workers.KEPT_FREE, float("inf")])
def test_batches_are_the_same_whatever_room_shared_memory_has(
    monkeypatch: pytest.MonkeyPatch, free: float
) -> None:
    monkeypatch.setattr(workers, "free_shared_memory", lambda: free)
    with_workers, without = (list(loader_of(Drawn(), count=count)) for count in (2, 0))
    assert len(with_workers) == 6
    for ours, theirs in zip(with_workers, without, strict=True):
        for part in ("images", "targets", "valid"):
            assert torch.equal(getattr(ours, part), getattr(theirs, part))
        assert [truth.name for truth in ours.truths] == [truth.name for truth in theirs.truths]
    is_shared: bool = with_workers[0].images.is_shared()  # type: ignore[no-untyped-call]
    assert is_shared == (free == float("inf"))


def test_shared_memory_that_is_refused_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file: No space left (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    assert len(list(loader_of(Drawn()))) == 6


def test_without_locks_images_are_read_in_the_process_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(multiprocessing, "Lock", refuse)
    loader = loader_of(Drawn())
    for _ in range(2):
        assert len(list(loader)) == 6
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "data workers cannot be started ([Errno 28] No space left on device): images are read "
        "without"
    ]


def free_is_told() -> bool:
    return Path(workers.SHARED_MEMORY).is_dir()


@pytest.mark.skipif(not free_is_told(), reason="this system has no /dev/shm")
def test_the_room_of_shared_memory_is_told() -> None:
    assert 0 <= workers.free_shared_memory() < float("inf")


def may_mount() -> bool:
    """Say whether a /dev/shm of one's own can be had here."""
    if not shutil.which("unshare"):
        return False
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"]  # noqa: S108
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def test_the_case_trains_with_little_shared_memory(tmp_path: Path) -> None:
    folder = case("18-small-shm")
    if not may_mount():
        pytest.skip("no mount namespaces here: unshare -rm is refused")
    words = (
        f"mount -t tmpfs -o size=20m tmpfs /dev/shm && exec {sys.executable} -m notan train "
        f"--data-path {folder} --image-size 256 --batch-size 4 model.width=4 --device cpu "
        f"--epochs 1 data.workers=2 train.trackers=[] --out {tmp_path / 'out'}"
    )
    command = ["unshare", "-rm", "bash", "-c", words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "best.safetensors").is_file()
