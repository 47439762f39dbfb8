"""Files are written whole or not at all, and no run takes another one's folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from notan.errors import StorageError
from notan.io.write import fresh_folder, holds_something, replacing, storage_errors, write_bytes

if TYPE_CHECKING:
    from pathlib import Path

WRITE_ON_A_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from notan.errors import StorageError
from notan.io.write import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path(sys.argv[1]), b"x" * int(sys.argv[2]))
except StorageError as error:
    print(error)
"""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    write_bytes(tmp_path / "mask.png", b"\x00\xff" * 5000)
    assert (tmp_path / "mask.png").read_bytes() == b"\x00\xff" * 5000
    assert names_in(tmp_path) == ["mask.png"]


def test_missing_parent_folders_are_made(tmp_path: Path) -> None:
    write_bytes(tmp_path / "runs" / "unet" / "run.toml", b"seed = 0")
    assert (tmp_path / "runs" / "unet" / "run.toml").read_bytes() == b"seed = 0"


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("spoilt"), KeyboardInterrupt()])
@pytest.mark.parametrize("there_was_one", [True, False])
def test_an_error_in_the_middle_leaves_what_was_there(
    tmp_path: Path, error: BaseException, there_was_one: bool
) -> None:
    path = tmp_path / "best.safetensors"
    if there_was_one:
        path.write_bytes(b"old")

    def break_off() -> None:
        with replacing(path) as file:
            file.write(b"half of the n")
            raise error

    with pytest.raises(type(error)):
        break_off()
    assert names_in(tmp_path) == (["best.safetensors"] if there_was_one else [])
    assert not there_was_one or path.read_bytes() == b"old"


def test_the_temporary_file_lies_in_the_same_folder_and_is_hidden(tmp_path: Path) -> None:
    """Another file system could not rename it; a folder of masks must not show it."""
    with replacing(tmp_path / "cat.png"):
        (temporary,) = names_in(tmp_path)
        assert temporary.startswith(".")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_is_as_readable_as_any_other(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "run.toml", b"seed = 0")
    finally:
        assert os.umask(before) == umask
    assert (tmp_path / "run.toml").stat().st_mode & 0o777 == mode


def test_a_disk_that_fills_up_is_one_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match=r"best\.safetensors: .*No space left.*free some space"):
        write_bytes(tmp_path / "best.safetensors", b"new")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("size", [5_000, 500_000])
def test_a_real_limit_on_the_disk_leaves_the_old_file(tmp_path: Path, size: int) -> None:
    """Below and above the buffer: the write fails at the flush, or in the middle."""
    path = tmp_path / "best.safetensors"
    path.write_bytes(b"old")
    answer = subprocess.run(
        [sys.executable, "-c", WRITE_ON_A_FULL_DISK, str(path), str(size)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stderr == ""
    assert answer.stdout.startswith(f"{path}: could not be written (File too large)")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["best.safetensors"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(StorageError, match=r"taken/mask\.png: could not be written"):
        write_bytes(tmp_path / "taken" / "mask.png", b"new")
    assert names_in(tmp_path) == ["taken"]


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mask.png").mkdir()
    with pytest.raises(StorageError, match=r"mask\.png: could not be written"):
        write_bytes(tmp_path / "mask.png", b"new")
    assert names_in(tmp_path) == ["mask.png"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match=r"mask\.png: could not be written \(Permission denied"):
        write_bytes(tmp_path / "mask.png", b"new")
    tmp_path.chmod(0o700)


def test_an_error_without_a_reason_from_the_system_keeps_its_words(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the cable is loose"), storage_errors(tmp_path):
        raise OSError("the cable is loose")


def test_a_fresh_folder_is_the_first_that_holds_nothing(tmp_path: Path) -> None:
    base = tmp_path / "unet"
    assert fresh_folder(base) == base
    base.mkdir()
    assert fresh_folder(base) == base  # empty: nothing to overwrite
    (base / "run.toml").touch()
    assert fresh_folder(base) == tmp_path / "unet-2"
    (tmp_path / "unet-2").touch()  # a file is in the way as well
    assert fresh_folder(base) == tmp_path / "unet-3"


def test_a_dot_in_a_folder_name_is_kept(tmp_path: Path) -> None:
    (tmp_path / "unet.v1").mkdir()
    (tmp_path / "unet.v1" / "run.toml").touch()
    assert fresh_folder(tmp_path / "unet.v1").name == "unet.v1-2"


def test_a_path_is_taken_by_a_file_or_by_a_folder_with_something_in_it(tmp_path: Path) -> None:
    assert not holds_something(tmp_path)
    assert not holds_something(tmp_path / "missing")
    (tmp_path / ".hidden").touch()
    assert holds_something(tmp_path)
    assert holds_something(tmp_path / ".hidden")
