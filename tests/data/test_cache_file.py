"""The files of kept samples: bounded, and right whatever befalls them or the disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest

from notan.data import cache_file
from traced_images import (
    COUNT,
    PIXELS,
    RECORDS,
    assert_same,
    forget,
    kept,
    reads,
    the_file,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from notan.data.samples import FileSource, Sample


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept samples, of this test alone."""
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "a bit of a sample": (lambda path: flip(path, PIXELS + 9), "an image there is damaged", 1),
    "the last bit": (lambda path: flip(path, -1), "an image there is damaged", 1),
    "a checksum": (lambda path: flip(path, RECORDS), "an image there is damaged", 1),
    "a state": (lambda path: flip(path, RECORDS + 4), "an image there is damaged", 1),
    "the beginning": (lambda path: flip(path, 3), "damaged, or something else", COUNT),
    "another's name": (lambda path: flip(path, 30), "damaged, or something else", COUNT),
    "cut short": (lambda path: os.truncate(path, 500), "damaged, or something else", COUNT),
    "too long": (lambda path: os.truncate(path, 10**6), "damaged, or something else", COUNT),
    "foreign": (lambda path: path.write_text("hello"), "damaged, or something else", COUNT),
    "empty": (lambda path: os.truncate(path, 0), "", COUNT),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_damaged_on_disk_is_decoded_anew_and_said(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    damage, words, again = DAMAGE[kind]
    source = write(tmp_path / "data")
    wanted = list(source)
    list(kept(source))
    damage(the_file(cache))
    for count in (again, 0):  # and it is whole thereafter
        forget(source)
        caplog.clear()
        assert_same(list(kept(source)), wanted)
        assert sum(reads(source)) == count
        lines = [line for line in caplog.messages if words and words in line]
        assert len(lines) == bool(words and count)
        assert all(line.startswith(str(the_file(cache))) for line in lines)


def test_a_power_cut_that_kept_the_records_and_lost_the_pixels_is_noticed(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "data")
    wanted = list(source)
    list(kept(source))
    path = the_file(cache)
    content = path.read_bytes()
    path.write_bytes(content[:PIXELS] + bytes(len(content) - PIXELS))
    assert_same(list(kept(source)), wanted)
    assert len(caplog.messages) == 1  # however many they are


def test_a_file_that_is_cut_short_or_removed_while_in_use_costs_time_alone(
    tmp_path: Path, cache: Path
) -> None:
    source = write(tmp_path / "data")
    wanted = list(source)
    same = kept(source)
    list(same)
    for length in (100, PIXELS + 100, PIXELS + 5000):
        os.truncate(the_file(cache), length)
        same[-1]  # is written far behind what is left of it
        assert_same(list(same), wanted)
    the_file(cache).unlink()
    assert_same(list(same), wanted)


def test_a_disk_that_fails_when_read_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "data")
    same = kept(source)
    list(same)

    def fail(*_: object) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "pread", fail)
    assert_same(list(same), list(source))
    (line,) = caplog.messages
    assert "cannot be read (Stale file handle); such ones are decoded anew" in line


def test_a_full_disk_ends_the_keeping_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "data")
    same = kept(source)
    same[0]
    write_whole = os.pwrite

    def full(descriptor: int, content: memoryview, start: int) -> int:
        if start > RECORDS + 5000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_whole(descriptor, content[:700], start)  # and never all at once

    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(2):
        assert_same(list(same), list(source))
    (line,) = caplog.messages
    assert "cannot be written (No space left on device); what it lacks is decoded in each" in line
    assert_same(list(kept(source)), list(source))


def test_where_the_folder_cannot_be_written_images_are_decoded_as_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("this is a file")
    source = write(tmp_path / "data")
    assert kept(source) is source
    (line,) = caplog.messages
    assert re.fullmatch(
        r"6 decoded images, 1 MiB, are not kept but decoded in each epoch: .*cache.decoded: Not a "
        r"directory \(data.cache\)",
        line,
    )


def test_a_file_system_without_locks_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    source = write(tmp_path / "data")
    assert kept(source) is source
    assert "No locks available" in caplog.text


def test_without_the_locks_that_windows_lacks_it_works_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_file, "fcntl", None)
    for name in ("pread", "pwrite"):
        monkeypatch.delattr(os, name)
    source = write(tmp_path / "data")
    wanted = list(source)
    list(kept(source))
    forget(source)
    assert_same(list(kept(source)), wanted)
    assert reads(source) == [0] * COUNT


def ages(cache: Path, ages: Sequence[int]) -> list[Path]:
    """Make files of samples look so many seconds old, in the order in which they were made."""
    paths = sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path, age in zip(paths, ages, strict=True):
        os.utime(path, (1e9 - age, 1e9 - age))
    return paths


def three(tmp_path: Path) -> list[FileSource]:
    return [write(tmp_path / name, 2, first=10) for name in "abc"]


def test_the_folder_is_bounded_and_what_was_not_used_for_longest_goes_first(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = three(tmp_path)
    for source in sources:
        kept(source)
    (cache / "notes.txt").write_text("not ours")
    files = [path for path in cache.iterdir() if path.suffix == ".decoded"]
    length = files[0].stat().st_size
    (cache / "notes.txt").rename(tmp_path / "notes.txt")
    first, second, third = ages(cache, [10, 30, 20])
    (tmp_path / "notes.txt").rename(cache / "notes.txt")
    monkeypatch.setattr(cache_file, "MOST_BYTES", 3 * length)
    fourth = write(tmp_path / "d", 2, first=10)
    kept(fourth)
    assert not second.exists()
    assert first.exists()
    assert third.exists()
    monkeypatch.setattr(cache_file, "MOST_BYTES", 2 * length)
    kept(write(tmp_path / "e", 2, first=10))
    assert {path.suffix for path in cache.iterdir()} == {".decoded", ".txt"}
    assert len(list(cache.glob("*.decoded"))) == 2


def test_a_use_makes_a_file_young_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = three(tmp_path)
    for source in sources:
        kept(source)
    first, second, third = ages(cache, [30, 20, 10])
    kept(sources[0])
    monkeypatch.setattr(cache_file, "MOST_BYTES", 3 * first.stat().st_size)
    kept(write(tmp_path / "d", 2, first=10))
    assert [path.exists() for path in (first, second, third)] == [True, False, True]


def test_what_is_in_use_is_never_removed_nor_anything_in_vain(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, two, last = (kept(source) for source in three(tmp_path))
    length = next(cache.iterdir()).stat().st_size
    monkeypatch.setattr(cache_file, "MOST_BYTES", 3 * length)
    more = write(tmp_path / "d", 2, first=10)
    assert kept(more) is more
    assert "it may hold 1 MiB on this disk, what is in use included" in caplog.text
    assert len(list(cache.iterdir())) == 3
    del two
    assert kept(more) is not more
    assert len(list(cache.iterdir())) == 3
    for same, name in ((one, "a"), (last, "c")):
        assert_same(list(same), list(write(tmp_path / name, 2, first=10)))


def test_the_disk_keeps_most_of_its_free_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "data")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20_000))
    assert kept(source) is source
    assert "on this disk" in caplog.text


def read_all(source: FileSource, wanted: Sequence[Sample], ready: Any, told: Any) -> None:
    """Keep and read all samples, at the same time as others."""
    ready.wait()
    try:
        same = kept(source)
        for _ in range(3):
            assert_same(list(same), wanted)
        told.put("the same")
    except BaseException as error:  # noqa: BLE001 - to be seen by the test
        told.put(repr(error))


def test_several_trainings_of_the_same_images_at_once_do_each_other_no_harm(
    tmp_path: Path, cache: Path
) -> None:
    source = write(tmp_path / "data", 20)
    wanted = list(source)
    context = multiprocessing.get_context("fork")
    ready, told = context.Barrier(3), context.Queue()
    children = [
        context.Process(target=read_all, args=(source, wanted, ready, told)) for _ in range(3)
    ]
    for child in children:
        child.start()
    assert [told.get(timeout=60) for _ in children] == ["the same"] * 3
    for child in children:
        child.join(60)
    forget(source)
    assert_same(list(kept(source)), wanted)
    assert reads(source) == [0] * 20
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("of_sample", [0, 1, 2])
def test_a_process_that_is_killed_while_it_keeps_leaves_whole_samples_alone(
    tmp_path: Path, of_sample: int
) -> None:
    """It dies before, within and after the pixels of the fourth sample, ahead of its record."""
    source = write(tmp_path / "data")
    wanted = list(source)

    def work() -> None:
        whole = os.pwrite

        def die(descriptor: int, content: memoryview, start: int) -> int:
            whole(descriptor, content[: of_sample * len(content) // 2], start)
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        same = kept(source)
        for index in range(3):
            same[index]
        os.pwrite = die  # type: ignore[assignment]  # in the child alone
        same[3]

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    forget(source)
    assert_same(list(kept(source)), wanted)
    assert reads(source) == [0, 0, 0, 1, 1, 1]
