"""What a container takes away: a home to write into, the network, rights, disk, memory.

Each command runs in a process of its own, so that what is taken from it is given back. (Docker's
64 MB of shared memory are the matter of test_workers.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from notan.cli.main import main
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import DataError, OutOfMemoryError, StorageError
from notan.io.images import read_image
from runs import PATIENCE, no_report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TINY = ("--epochs", 1, "--image-size", 32, "--batch-size", 3, "model.width=2")
NOBODY = 65534
MEBIBYTE = 2**20

READS_ALL = "+dac_read_search"
"""The interpreter may lie where only root reads; nothing can be written by it."""

AS_NOBODY = (
    *("unshare", "--net", "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *(f"--{caps}=-all,{READS_ALL}" for caps in ("inh-caps", "ambient-caps", "bounding-set")),
)
"""Another user, without a network."""


def can(*words: str) -> bool:
    """Say whether this machine lets us do something."""
    if shutil.which(words[0]) is None:
        return False
    return subprocess.run(words, capture_output=True, timeout=PATIENCE, check=False).returncode == 0


IS_ROOT = os.geteuid() == 0
ANOTHER = AS_NOBODY if IS_ROOT else ()
"""Who is not root may write into no read-only home as it is; the network stays."""

NEEDS_ANOTHER = pytest.mark.skipif(
    sys.platform != "linux" or not can(*ANOTHER, "true"),
    reason="this machine lets root become no other user without a network",
)
NEEDS_MOUNT = pytest.mark.skipif(
    not can("unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"),
    reason="this machine lets nobody mount a small disk",
)


class Ended:
    """How a command ended."""

    def __init__(self, words: Sequence[object], wrapped: Sequence[str] = (), **more: str) -> None:
        environment = {name: each for name, each in os.environ.items() if "CACHE" not in name}
        done = subprocess.run(
            [*wrapped, sys.executable, "-m", "notan", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=PATIENCE * 2,
            env={**environment, "PYTHONPATH": _source(), **more},
            check=False,
        )
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    def said(self) -> str:
        """Return the one line of an error, after what was logged."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("notan: ")]
        assert lines == self.err.splitlines()[-1:], self.err
        return lines[0]


def _source() -> str:
    return str(Path(main.__code__.co_filename).parents[2])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contained")
    for part, count, first in (("train", 6, 0), ("val", 3, 6)):
        write_folder(DrawnSource(count, size=(40, 48), first=first), folder / part)
    return folder


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("notan.cli.train._report", no_report)
        main(["train", *map(str, ("--data-path", data, "--out", out, *TINY))])
    return out / "best.safetensors"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """A folder that belongs to the other user, beside a home that is not his."""
    place = tmp_path / "own"
    place.mkdir()
    if IS_ROOT:
        os.chown(place, NOBODY, NOBODY)
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    yield place
    shutil.rmtree(place)


def within(mebibytes: int) -> tuple[str, ...]:
    """Run what follows with so much memory of its own, as far as a process can limit itself."""
    script = (
        "import os, resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_DATA, ({mebibytes * MEBIBYTE},) * 2); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return sys.executable, "-c", script


@NEEDS_ANOTHER
def test_a_small_container_trains_and_predicts(data: Path, own: Path) -> None:
    """Another user without network, with a home that cannot be written, in 1 GiB of memory.

    The limit counts what is asked for, which is more than what is used.
    """
    run, home = own / "run", str(own.parent / "home")
    contained, threads = (*ANOTHER, *within(1024)), {"OMP_NUM_THREADS": "2"}
    words: tuple[object, ...] = ("train", "--data-path", data, "--out", run, *TINY)
    trained = Ended(words, contained, HOME=home, **threads)
    assert trained.code == 0, trained.err
    assert (run / "report.html").stat().st_uid == (NOBODY if IS_ROOT else os.geteuid())
    assert "matplotlib" not in trained.err.lower()  # of its cache, which is nothing to the user
    assert not any(Path(home).iterdir())
    words = ("predict", data / "val" / "images", "--model", run / "best.safetensors")
    predicted = Ended((*words, "--out", own / "out"), contained, HOME="/nonexistent", **threads)
    assert predicted.code == 0, predicted.err
    assert len(list((own / "out" / "masks").iterdir())) == 3


@NEEDS_ANOTHER
def test_another_user_is_told_where_nothing_can_be_written(data: Path, own: Path) -> None:
    place = own.parent / "home" / "run"
    ended = Ended(("train", "--data-path", data, "--out", place, *TINY), ANOTHER)
    assert ended.code == StorageError.exit_code
    assert f"{place}: could not be written (Permission denied); free some space or" in ended.said()


def on_disk(size: str, place: Path) -> tuple[str, ...]:
    """Run what follows with a disk of a size mounted in a place, which only it sees."""
    script = f'mount -t tmpfs -o size={size} tmpfs "{place}" && exec "$0" "$@"'
    return "unshare", "--map-root-user", "--mount", "sh", "-c", script


@NEEDS_MOUNT
def test_a_training_on_a_full_disk_ends_in_a_line(data: Path, tmp_path: Path) -> None:
    words = ("train", "--data-path", data, "--out", tmp_path / "run", *TINY)
    ended = Ended(words, on_disk("300k", tmp_path))
    assert ended.code == StorageError.exit_code
    assert "run/last/" in ended.said()  # the disk takes the checkpoint, and not the state
    assert "(No space left on device); free some space" in ended.said()


@NEEDS_MOUNT
def test_a_prediction_on_a_full_disk_ends_in_a_line(
    data: Path, model: Path, tmp_path: Path
) -> None:
    words = ("predict", data / "train" / "images", "--model", model, "--out", tmp_path / "out")
    ended = Ended((*words, "--format", "probability,overlay"), on_disk("24k", tmp_path))
    assert ended.code == StorageError.exit_code
    assert "(No space left on device); free some space" in ended.said()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_a_training_that_needs_more_ends_in_a_line(data: Path, tmp_path: Path) -> None:
    words = ("train", "--data-path", data, "--out", tmp_path / "run", "--epochs", 1)
    ended = Ended((*words, "--image-size", 512, "--batch-size", 6), within(1024))
    assert ended.code == OutOfMemoryError.exit_code
    assert "memory ran out" in ended.said()
    assert "give a smaller --batch-size or --image-size" in ended.said()


def test_a_file_is_not_called_damaged_when_memory_ran_out(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next((data / "train" / "images").iterdir())

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("notan.io.images.pixels_of", full)
    with pytest.raises(DataError, match=rf"{path.name}: memory ran out while it was read"):
        read_image(path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation"),
        RuntimeError("Exception from src/inference: std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_every_runtimes_want_of_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("notan.api.load", fail)
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(Path(__file__)), "--out", "nowhere"])
    assert stop.value.code == OutOfMemoryError.exit_code
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("notan: memory ran out")


def test_another_fault_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("notan.api.load", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(["predict", str(Path(__file__)), "--out", "nowhere"])
