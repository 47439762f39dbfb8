"""Kept samples: the same bytes, each decoded once, wherever they stay and whatever befalls them."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import pickle
import re
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from notan.config import Data, Masks, load_run
from notan.data import cache_file, store
from notan.data.batches import BatchLoader, SampleDataset
from notan.data.folders import folder_source, mask_labels, open_split
from notan.data.samples import FileSource, ImageReading, Labels, Pair
from notan.data.store import StoredSource, keep_decoded
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, DataError
from notan.modelfile.preprocess import Preprocessor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from notan.config import Cache
    from notan.data.samples import Sample

COUNT = 6
PLACES: tuple[Cache, ...] = ("memory", "disk")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept samples, of this test alone."""
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


def read_codes(path: Path, *, with_ignored: bool = True) -> Labels:
    """Read a mask of 0, 1 and 2 (ignored), and leave a trace for each time it is read."""
    with path.with_suffix(".reads").open("ab") as trace:
        trace.write(b".")
    codes = np.load(path)
    return Labels(codes == 1, codes == 2 if with_ignored else None, "codes")


def write(folder: Path, count: int = COUNT, channels: int = 3, first: int = 0) -> FileSource:
    """Write images of different sizes, with masks that leave a trace when they are read."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        size = (20 + number, 40 - number)
        pair = Pair(f"{number}.npy", folder / f"{number}.npy", folder / f"{number}.mask.npy")
        np.save(pair.image, rng.integers(0, 256, (*size, channels), np.uint8))
        np.save(pair.mask, rng.integers(0, 3, size, np.uint8))
        pairs.append(pair)
    return FileSource(pairs, read_codes, ImageReading(channels=channels))


def reads(source: FileSource) -> list[int]:
    """Return how often each mask was read."""
    traces = [pair.mask.with_suffix(".reads") for pair in source.pairs]
    return [path.stat().st_size if path.exists() else 0 for path in traces]


def forget(source: FileSource) -> None:
    for pair in source.pairs:
        pair.mask.with_suffix(".reads").unlink(missing_ok=True)


def kept(source: FileSource, cache: Cache = "disk", **more: Any) -> FileSource:
    return keep_decoded([source], cache, **more)[0]


def assert_same(samples: Sequence[Sample], wanted: Sequence[Sample]) -> None:
    for sample, other in zip(samples, wanted, strict=True):
        assert sample.name == other.name
        for name in ("image", "mask", "ignore"):
            found, expected = getattr(sample, name), getattr(other, name)
            assert (found is None) == (expected is None)
            if found is not None:
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected)
                with pytest.raises(ValueError, match="read-only"):
                    found[:] = 0


def the_file(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("with_ignored", [True, False])
def test_samples_are_the_same_byte_for_byte(
    tmp_path: Path, where: Cache, channels: int, with_ignored: bool
) -> None:
    plain = write(tmp_path / "data", channels=channels)
    reader = partial(read_codes, with_ignored=with_ignored)
    source = FileSource(plain.pairs, reader, plain.images)
    same = kept(source, where)
    assert isinstance(same, StoredSource)
    wanted = list(source)
    forget(source)
    for _ in range(3):
        assert_same(list(same), wanted)
    assert reads(source) == [1] * COUNT
    assert [same[-1].name, same.sizes()] == [source.names[-1], source.sizes()]
    assert (same.names, same.images) == (source.names, source.images)
    assert same.hashes() == source.hashes()
    assert same.content_hashes() == source.content_hashes()
    with pytest.raises(IndexError):
        same[COUNT]


@pytest.mark.parametrize("where", PLACES)
def test_real_images_with_an_ignored_border_are_the_same(pets_folder: Path, where: Cache) -> None:
    data = Data(path=pets_folder, trimap_border="ignore", limit=5)
    source = open_split(data, "train", seed=0)
    same = kept(source, where)
    for _ in range(2):
        assert_same(list(same), list(source))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("coco-rle", "all"), ("labelme", "all"), ("geojson", "all")),
        *(("voc", "train"), ("nnunet", "train"), ("parquet", "train")),
    ],
)
def test_outlines_are_filled_once_for_each_choice_of_classes(
    monkeypatch: pytest.MonkeyPatch, cache: Path, name: str, split: str
) -> None:
    folder = Path(__file__).parent.parent / "annotations" / name
    samples = {}
    for classes in ((1,), (2,), (1, 2)) if name == "parquet" else (("cell",), ("nucleus",)):
        data = Data(path=folder, masks=Masks(foreground=classes))
        source = open_split(data, split, seed=0)
        samples[classes] = list(source)
        assert_same(list(kept(source)), samples[classes])
        with monkeypatch.context() as patch:  # a second training decodes nothing
            patch.setattr("notan.data.samples.read_channels", None)
            assert_same(list(kept(open_split(data, split, seed=0))), samples[classes])
    assert len(list(cache.glob("*.decoded"))) == len(samples)


@pytest.mark.parametrize("where", PLACES)
def test_data_workers_decode_each_file_once_for_all(tmp_path: Path, where: Cache) -> None:
    source = kept(write(tmp_path / "data", 8), where, workers=2)
    preprocessor = Preprocessor(image_size=(16, 16), stride=1)
    batches = BatchLoader(SampleDataset(source, preprocessor), 2, shuffle=True, workers=2)
    for epoch in range(4):
        batches.set_epoch(epoch)
        assert sum(len(batch.truths) for batch in batches) == 8
    batches.close()
    assert reads(source) == [1] * 8
    list(source)
    assert reads(source) == [1] * 8


def test_a_second_training_finds_all_of_it_whatever_its_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cache: Path
) -> None:
    caplog.set_level(logging.INFO)
    whole = write(tmp_path / "data")
    wanted = list(whole)
    names = frozenset(whole.names[:2])
    first = keep_decoded([whole.only(names), whole.only(frozenset(whole.names) - names)], "disk")
    assert [sample.name for source in first for sample in source] == list(whole.names)
    assert "which holds 0 of them" in caplog.text
    forget(whole)
    # the folder may have moved meanwhile
    moved = (tmp_path / "data").rename(tmp_path / "elsewhere")
    pairs = [
        Pair(pair.name, moved / pair.image.name, moved / pair.mask.name) for pair in whole.pairs
    ]
    again = kept(FileSource(pairs[::-1], whole.read_labels, whole.images))
    assert f"{the_file(cache)}, which holds 6 of them" in caplog.text
    assert_same(list(again), wanted[::-1])
    assert reads(again) == [0] * COUNT


def with_rule(source: FileSource) -> FileSource:
    return FileSource(source.pairs, partial(read_codes, with_ignored=False), source.images)


def with_other_mask(source: FileSource) -> FileSource:
    """Change one pixel of a mask, so that its file keeps its size and time."""
    path = source.pairs[2].mask
    about, codes = path.stat(), np.load(path)
    codes[0, 0] = 1 - min(codes[0, 0], 1)
    np.save(path, codes)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert path.stat().st_size == about.st_size
    return source


def with_other_image(source: FileSource) -> FileSource:
    np.save(source.pairs[2].image, np.load(source.pairs[2].image) // 2)
    return source


def with_time(source: FileSource) -> FileSource:
    os.utime(source.pairs[0].image)
    return source


def upside_down(source: FileSource) -> FileSource:
    return source.with_images(ImageReading(upright=False))


@pytest.mark.parametrize(
    "change", [with_rule, with_other_mask, with_other_image, with_time, upside_down]
)
def test_what_would_be_read_otherwise_is_decoded_anew(
    tmp_path: Path, cache: Path, change: Callable[[FileSource], FileSource]
) -> None:
    source = write(tmp_path / "data")
    list(kept(source))
    changed = change(source)
    forget(source)
    again = kept(changed)
    samples = list(again)
    assert reads(source) == [1] * COUNT
    assert_same(samples, list(changed))
    assert len(list(cache.iterdir())) == 2


def test_another_version_of_a_decoder_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    source = write(tmp_path / "data")
    kept(source)
    monkeypatch.setattr(store, "version", lambda _: "another")
    kept(source)
    assert len(list(cache.iterdir())) == 2


def test_a_reader_of_unknown_kind_shares_nothing(tmp_path: Path, cache: Path) -> None:
    class Reader:
        def __call__(self, path: Path) -> Labels:
            return read_codes(path)

    plain = write(tmp_path / "data")
    source = FileSource(plain.pairs, Reader(), plain.images)
    assert_same(list(kept(source)), list(plain))
    kept(source)
    assert len(list(cache.iterdir())) == 2


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


RECORDS = len(store.FORMAT) + store.DIGEST
PIXELS = RECORDS + COUNT * store.RECORD.size

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


def test_a_file_that_changes_before_it_is_first_read_is_not_kept_as_what_it_was(
    tmp_path: Path,
) -> None:
    source = write(tmp_path / "data")
    old = list(source)
    same = kept(source)
    path = source.pairs[1].image
    content, about = path.read_bytes(), path.stat()
    np.save(path, 255 - np.load(path))
    assert_same(list(same), list(source))
    # back to what it was, down to its time: what was kept in between would be found
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert_same(list(kept(source)), old)


@pytest.mark.parametrize("where", PLACES)
def test_a_file_that_changes_later_is_what_it_was_until_the_next_training(
    tmp_path: Path, where: Cache
) -> None:
    source = write(tmp_path / "data")
    same = kept(source, where)
    before = list(same)
    np.save(source.pairs[1].image, 255 - np.load(source.pairs[1].image))
    assert_same(list(same), before)
    assert_same(list(kept(source, where)), list(source))


@pytest.mark.parametrize("where", PLACES)
def test_a_damaged_image_is_the_same_error_at_the_same_read(tmp_path: Path, where: Cache) -> None:
    folder = tmp_path / "data"
    write_folder(DrawnSource(3, size=(40, 48), seed=1), folder)
    source = folder_source(folder)
    broken = source.pairs[1].image
    broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(DataError) as wanted:
        source[1]
    same = kept(source, where)  # its header is whole
    same[0]
    for _ in range(2):
        with pytest.raises(DataError, match=re.escape(str(wanted.value))):
            same[1]
    same[2]


@pytest.mark.parametrize("where", PLACES)
def test_an_image_of_another_size_than_was_told_is_never_put_into_its_place(
    tmp_path: Path, where: Cache
) -> None:
    source = write(tmp_path / "data")
    same = kept(source, where)
    for path in (source.pairs[1].image, source.pairs[1].mask):
        np.save(path, np.concatenate([np.load(path)] * 2))
    for _ in range(2):
        assert_same(list(same), list(source))


def choices(
    source: FileSource, monkeypatch: pytest.MonkeyPatch, free: int | None, most: int
) -> dict[str, str]:
    """Return where samples stay by setting, with so many bytes of free memory and of disk."""
    monkeypatch.setattr(store, "free_memory", lambda: free)
    monkeypatch.setattr(cache_file, "MOST_BYTES", most)
    found = {}
    for setting in ("auto", "memory", "disk", "off"):
        same = kept(source, setting)
        place = getattr(getattr(same, "_store", None), "_place", None)
        found[setting] = type(place).__name__
        del same, place
    return found


def test_the_place_is_chosen_by_size(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cache: Path,
) -> None:
    caplog.set_level(logging.INFO)
    source = write(tmp_path / "data")
    length = PIXELS + sum(4 * height * width for height, width in source.sizes())
    memory, disk, none = "SharedMemory", "CacheFile", "NoneType"
    cases = [
        (4 * length, length, (memory, memory, disk, none)),
        (4 * length - 1, length, (disk, memory, disk, none)),
        (4 * length // 3, length, (disk, none, disk, none)),
        (None, length, (disk, none, disk, none)),
        (4 * length - 1, length - 1, (none, memory, none, none)),
        (0, 0, (none, none, none, none)),
    ]
    for free, most, wanted in cases:
        shutil.rmtree(cache, ignore_errors=True)
        caplog.clear()
        found = choices(source, monkeypatch, free, most)
        assert tuple(found.values()) == wanted, (free, most)
        assert len(caplog.messages) == 3  # one for each setting but off
        # who asked for a place and does not get it is warned
        levels = [record.levelno for record in caplog.records]
        assert levels[0] == logging.INFO
        for level, place in zip(levels[1:], wanted[1:3], strict=True):
            assert level == (logging.INFO if place != none else logging.WARNING)
    assert "they may take 25% of the free memory, 0 MiB; " in caplog.messages[0]


def test_memory_is_promised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    length = PIXELS + sum(4 * height * width for height, width in one.sizes())
    store._LIVING.clear()
    monkeypatch.setattr(store, "free_memory", lambda: 2 * length)
    first = kept(one, "memory")
    assert first is not one
    assert kept(two, "memory") is two
    del first
    assert kept(two, "memory") is not two


def test_workers_that_are_not_forked_share_a_file_and_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda **_: "spawn")
    source = write(tmp_path / "data")
    assert kept(source, "memory", workers=1) is source
    assert "data workers share no memory here (data.workers=0 needs none)" in caplog.text
    assert isinstance(kept(source, "memory")._store._place, store.SharedMemory)  # type: ignore[attr-defined]
    same = kept(source, "auto", workers=1)
    wanted = list(same)
    there = pickle.loads(pickle.dumps(same))  # noqa: S301 - as a worker gets it
    forget(source)
    assert_same(list(there), wanted)
    assert reads(source) == [0] * COUNT


def test_pickled_memory_and_a_file_that_is_gone_hold_nothing(tmp_path: Path, cache: Path) -> None:
    source = write(tmp_path / "data")
    for where in PLACES:
        content = pickle.dumps(kept(source, where))
        if cache.exists():
            shutil.rmtree(cache)
            cache.write_text("this is a file")
        there = pickle.loads(content)  # noqa: S301 - as a worker gets it
        for _ in range(2):
            assert_same(list(there), list(source))


def test_nothing_is_made_for_no_images(cache: Path) -> None:
    empty = FileSource([], mask_labels)
    assert kept(empty) is empty
    assert not cache.exists()


def test_a_place_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^data.cache: Input should be 'auto', 'memory', 'disk'"):
        load_run(flags={"data.cache": "ram"})


@pytest.mark.parametrize(("where", "each_time"), [("memory", 0), ("disk", COUNT)])
def test_memory_of_our_own_is_checked_once_and_a_file_at_every_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Cache, each_time: int
) -> None:
    same = kept(write(tmp_path / "data"), where)
    list(same)
    sums: list[int] = []
    check = store.Store._sum

    def counted(kept_in: store.Store, number: int, *arguments: Any) -> int:
        sums.append(number)
        return check(kept_in, number, *arguments)

    monkeypatch.setattr(store.Store, "_sum", counted)
    list(same)
    assert len(sums) == each_time
