"""Kept samples: the same bytes, each decoded once, wherever they stay."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import re
import shutil
import weakref
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from notan.config import Data, Masks, load_run
from notan.data import cache_file, store
from notan.data.annotations.labels import mask_labels
from notan.data.batches import BatchLoader, SampleDataset
from notan.data.folders import folder_source, open_split
from notan.data.samples import FileSource, ImageReading, Labels, Pair
from notan.data.store import StoredSource, keep_decoded
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, DataError
from notan.modelfile.preprocess import Preprocessor
from traced_images import (
    COUNT,
    PIXELS,
    assert_same,
    forget,
    kept,
    read_codes,
    reads,
    the_file,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from notan.config import Cache

PLACES: tuple[Cache, ...] = ("memory", "disk")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept samples, of this test alone; no memory is promised to other tests yet."""
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_LIVING", weakref.WeakSet())
    return tmp_path / "cache" / "decoded"


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
