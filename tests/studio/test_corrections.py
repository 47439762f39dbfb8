"""Corrections: every stroke is kept, every file is whole, and nothing of the data is written."""

from __future__ import annotations

import csv
import errno
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import studio_runs
from notan.config import Data
from notan.data.folders import open_divided
from notan.errors import ConfigError, DataError, StorageError
from notan.io.digest import hash_content
from notan.studio.gallery import Gallery
from notan.studio.journal import Acceptance, ConflictError, Journal, Step, Stroke, read_entry
from notan.studio.raster import (
    TILE_BYTES,
    apply,
    as_text,
    checksum,
    difference,
    mask_of,
    pack_raster,
    unpack_raster,
)
from notan.studio.store import Corrections, default_folder
from studio_runs import SIZE, begin_empty, open_store, painted, stroke_between, write_images

if TYPE_CHECKING:
    from pathlib import Path

ACCEPT = "accept000000"
HEADER = "image,mask,origin,model,strokes,seconds,accepted_at\n"
KILLS = 25
EMPTY = as_text(difference(np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8))[1])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "cells", 3, masks=1)


def paint(store: Corrections, count: int) -> Journal:
    """Paint discs on the first image."""
    image = store.gallery.images[0]
    journal = store.open(image) if store.has_journal(image) else begin_empty(store, image)
    raster = journal.raster()
    for number in range(count):
        after = painted(raster, number)
        stroke = stroke_between(raster, after, number)
        store.append(image, stroke, version=journal.version)
        raster = after
    return journal


def accept(store: Corrections, journal: Journal) -> None:
    entry = Acceptance(id=ACCEPT, checksum=checksum(journal.raster()))
    store.append(store.gallery.images[0], entry, version=journal.version)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "corrections.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 530), width=st.integers(1, 530), seed=st.integers(0, 99))
def test_a_raster_survives_its_journey_and_a_stroke_done_twice_is_undone(
    height: int, width: int, seed: int
) -> None:
    numbers = np.random.default_rng(seed)
    before, after = (numbers.integers(0, 4, (height, width), np.uint8) for _ in range(2))
    packed = pack_raster(before)
    np.testing.assert_array_equal(unpack_raster(packed, (height, width)), before)
    tiles, bits = difference(before, after)
    raster = before.copy()
    apply(raster, tiles, bits)
    np.testing.assert_array_equal(raster, after)
    apply(raster, tiles, bits)
    np.testing.assert_array_equal(raster, before)


def test_what_was_painted_is_there_when_the_folder_is_opened_again(
    data: Path, tmp_path: Path
) -> None:
    store, image = open_store(data, tmp_path / "c")
    journal = paint(store, 6)
    for number, op in enumerate(("undo", "undo", "redo")):
        step = read_entry(f'{{"op": "{op}", "id": "step000{number}"}}'.encode())
        store.append(image, step, version=journal.version)
    wanted = journal.raster()
    store.close()
    again, image = open_store(data, tmp_path / "c")
    found = again.open(image)
    np.testing.assert_array_equal(found.raster(), wanted)
    assert (found.version, len(found.applied), len(found.undone)) == (9, 5, 1)
    again.append(image, Step(op="redo", id="redo000001"), version=9)
    assert not found.undone
    again.close()


def test_an_accepted_mask_is_data_that_training_reads(data: Path, tmp_path: Path) -> None:
    before = {path: hash_content(path) for path in data.rglob("*.png")}
    store, _ = open_store(data, default_folder(data))
    journal = paint(store, 3)
    accept(store, journal)
    store.close()
    folder = tmp_path / "cells-corrections"
    ((source, _),) = open_divided(Data(path=folder))
    assert source.names == ["spot-0000"]
    np.testing.assert_array_equal(source[0].mask, mask_of(journal.raster()))
    with Image.open(data / "images" / "spot-0000.png") as image:
        np.testing.assert_array_equal(source[0].image, np.asarray(image))
    (row,) = rows(folder)
    assert row["image"] == "../cells/images/spot-0000.png"
    assert (row["origin"], row["strokes"], row["model"]) == ("empty+hand", "3", "")
    assert row["split"] == "train"
    assert {path: hash_content(path) for path in data.rglob("*.png")} == before


def test_what_a_process_accepted_before_it_was_killed_is_made_up_for(
    data: Path, tmp_path: Path
) -> None:
    store, image = open_store(data, tmp_path / "c")
    journal = paint(store, 3)
    wanted = journal.raster()
    # the entry is on the disk, and the process ends before mask and table are
    at = "2026-01-01T00:00:00.000+00:00"
    journal.append(Acceptance(id=ACCEPT, checksum=checksum(wanted), at=at), version=3)
    journal.append(stroke_between(wanted, painted(wanted, 77), 77), version=4)
    store.close()
    again, image = open_store(data, tmp_path / "c")
    with Image.open(again.mask_path(image)) as mask:
        np.testing.assert_array_equal(np.asarray(mask) > 0, mask_of(wanted))
    row = again.row(image)
    assert row is not None
    assert row.accepted_at == at
    assert again.open(image).is_changed
    again.close()


def test_an_acceptance_that_found_no_room_is_made_up_for_whatever_came_after_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, image = open_store(data, tmp_path / "c")
    journal = paint(store, 2)

    def full(path: Path, _: bytes) -> None:
        raise StorageError(f"{path}: could not be written")

    with monkeypatch.context() as patch:
        patch.setattr("notan.studio.store.write_bytes", full)
        with pytest.raises(StorageError):
            accept(store, journal)
    other, damaged = store.gallery.images[1:]
    begun = begin_empty(store, other)
    store.append(other, Acceptance(id=ACCEPT, checksum=checksum(begun.raster())), version=0)
    begin_empty(store, damaged).path.write_bytes(b"not a journal\n\n")
    assert store.row(image) is None
    store.close()
    os.utime(journal.path, (1, 1))
    again, image = open_store(data, tmp_path / "c")
    assert again.row(image) is not None
    assert again.mask_path(image).is_file()
    assert "this journal is damaged" in caplog.text
    again.close()


def test_a_journal_that_was_torn_loses_its_last_line_and_nothing_else(
    data: Path, tmp_path: Path
) -> None:
    store, _ = open_store(data, tmp_path / "c")
    journal = paint(store, 4)
    store.close()
    content = journal.path.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    for length in range(last, len(content), 37):
        journal.path.write_bytes(content[:length])
        assert Journal.open(journal.path).version == 3
        assert journal.path.read_bytes() == content[:last]
    journal.path.write_bytes(content[:last] + b"0" * 40 + b"\n")
    assert Journal.open(journal.path).version == 3
    journal.path.write_bytes(content.replace(b"brush", b"crush", 1))
    with pytest.raises(DataError, match="this journal is damaged"):
        Journal.open(journal.path)


def test_killed_at_random_moments_no_stroke_is_lost_that_was_said_to_be_safe(
    data: Path, tmp_path: Path
) -> None:
    folder, numbers = tmp_path / "c", random.Random(3)
    with subprocess.Popen(
        [sys.executable, studio_runs.__file__, str(data), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in range(KILLS):
            begun, said = paint_and_kill(process, numbers.uniform(0.0, 0.1))
            store, image = open_store(data, folder)
            journal = store.open(image)
            version = int(said[-1].split()[0]) if said else begun
            assert version <= journal.version <= version + 1
            if said and journal.version == version:
                assert checksum(journal.raster()) == int(said[-1].split()[1])
            if store.row(image) is not None:
                with Image.open(store.mask_path(image)) as mask:
                    wanted = mask_of(journal.accepted_raster())
                    np.testing.assert_array_equal(np.asarray(mask) > 0, wanted)
            store.close()
        assert journal.version > KILLS
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def paint_and_kill(process: subprocess.Popen[str], seconds: float) -> tuple[int, list[str]]:
    """Have it painted for a while; return the version at first, and the lines of what is safe."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    word, painter, version = process.stdout.readline().split()
    assert word == "begun"
    time.sleep(seconds)
    os.kill(int(painter), signal.SIGKILL)
    lines = list(iter(process.stdout.readline, "killed\n"))
    # the last is empty, or was torn by the kill
    return int(version), [line for line in lines[:-1] if line.strip()]


def test_a_full_disk_is_said_and_the_entry_does_not_count(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, image = open_store(data, tmp_path / "c")
    journal = paint(store, 2)
    length, raster = journal.path.stat().st_size, journal.raster()
    stroke = stroke_between(raster, painted(raster, 5), 5)
    write = os.write

    def half(descriptor: int, content: bytes) -> int:
        if len(content) < 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[: len(content) // 2])

    with monkeypatch.context() as patch:
        patch.setattr("os.write", half)
        with pytest.raises(StorageError, match=r"No space left.*--corrections"):
            store.append(image, stroke, version=2)
    assert journal.version == 2
    assert journal.path.stat().st_size == length
    assert store.append(image, stroke, version=2).version == 3
    # sent again, because its answer was lost: it counts once
    assert store.append(image, stroke, version=2).version == 3
    store.close()


def test_two_pages_cannot_write_over_each_other(data: Path, tmp_path: Path) -> None:
    store, image = open_store(data, tmp_path / "c")
    raster = paint(store, 2).raster()
    stroke = stroke_between(raster, painted(raster, 9), 9)
    with pytest.raises(ConflictError, match="another tab changed it"):
        store.append(image, stroke, version=1)
    with pytest.raises(ConflictError, match="not the one that its strokes make"):
        store.append(image, Acceptance(id=ACCEPT, checksum=1), version=2)
    with pytest.raises(ConflictError, match="there is nothing to redo"):
        store.append(image, Step(op="redo", id="redo000000"), version=2)
    assert store.row(image) is None
    with pytest.raises(ConfigError, match="another studio works in this folder"):
        open_store(data, tmp_path / "c")
    store.close()


def test_many_strokes_are_folded_and_the_last_can_still_be_undone(
    data: Path, tmp_path: Path
) -> None:
    store, image = open_store(data, tmp_path / "c")
    journal = paint(store, 30)
    for number in range(3):
        store.append(image, Step(op="undo", id=f"undo{number:06d}"), version=journal.version)
    wanted = journal.raster()
    assert journal.folded() is journal
    folded = journal.folded(keep=5)
    np.testing.assert_array_equal(folded.raster(), wanted)
    assert (len(folded.applied), len(folded.undone), folded.strokes) == (5, 3, 27)
    assert folded.version == journal.version == 33
    again = Journal.open(journal.path)
    np.testing.assert_array_equal(again.raster(), wanted)
    again.append(Step(op="redo", id="redo000009"), version=33)
    assert again.undone == journal.undone[:2]
    assert again.applied[-1] == journal.undone[2]
    store.close()


def test_the_parts_of_a_long_stroke_are_one_to_take_back_and_to_count(
    data: Path, tmp_path: Path
) -> None:
    store, image = open_store(data, tmp_path / "c")
    journal = paint(store, 2)
    before = raster = journal.raster()
    for number in range(10, 14):
        part = stroke_between(raster, painted(raster, number), number)
        raster = painted(raster, number)
        entry = part.model_copy(update={"goes_on": number > 10})
        store.append(image, entry, version=journal.version)
    assert (len(journal.applied), journal.strokes) == (6, 3)
    store.append(image, Step(op="undo", id="undo000001"), version=6)
    np.testing.assert_array_equal(journal.raster(), before)
    store.append(image, Step(op="redo", id="redo000001"), version=7)
    np.testing.assert_array_equal(journal.raster(), raster)
    # a fold keeps so many strokes, whole, done or undone
    assert journal.folded(keep=3) is journal
    done = journal.folded(keep=1)
    assert (len(done.applied), done.strokes, done.version) == (4, 3, 8)
    for number in (2, 3):
        store.append(image, Step(op="undo", id=f"undo00000{number}"), version=6 + number)
    undone = journal.folded(keep=2)
    assert (len(undone.applied), len(undone.undone), undone.version) == (1, 5, 10)
    for number in (2, 3):
        undone.append(Step(op="redo", id=f"redo00000{number}"), version=8 + number)
    np.testing.assert_array_equal(undone.raster(), raster)
    store.close()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"op": "burn", "id": "abcdefgh"}',
        b'{"op": "undo", "id": "../../etc"}',
        b'{"op": "undo", "id": "abcdefgh", "path": "/etc"}',
        b'{"op":"stroke","id":"abcdefgh","tool":"rm","tiles":[0],"bits":""}',
        b'{"op":"stroke","id":"abcdefgh","tool":"brush","tiles":[0],"bits":"","seconds":-1}',
    ],
)
def test_an_entry_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="this is no entry of a journal"):
        read_entry(content)


@pytest.mark.parametrize(
    ("tiles", "bits", "wanted"),
    [
        ((), EMPTY, "at least one tile"),
        ((0, 0), EMPTY, "wanted ascending ones"),
        ((4,), EMPTY, "of 0 to 3"),
        ((-1,), EMPTY, "wanted ascending ones"),
        (tuple(range(10**5)), EMPTY, "at least one tile"),
        ((0,), "not base64!", "no base64"),
        ((0,), as_text(b"not compressed"), "no compressed bits"),
        ((0, 1), EMPTY, f"{2 * TILE_BYTES} were wanted"),
        ((0,), as_text(zlib.compress(bytes(10**7))), "were wanted"),
        ((3,), as_text(zlib.compress(b"\xff" * TILE_BYTES)), "outside of the image"),
    ],
)
def test_a_stroke_that_does_not_fit_the_image_is_refused_and_changes_nothing(
    data: Path, tmp_path: Path, tiles: tuple[int, ...], bits: str, wanted: str
) -> None:
    store, image = open_store(data, tmp_path / "c")
    journal = begin_empty(store, image)
    stroke = Stroke(id="abcdefgh", tool="brush", tiles=tiles, bits=bits)
    with pytest.raises(DataError, match=wanted):
        store.append(image, stroke, version=0)
    assert journal.version == 0
    assert not Journal.open(journal.path).raster().any()
    store.close()


def test_another_image_of_the_same_name_gets_no_strokes_of_the_old_one(
    data: Path, tmp_path: Path
) -> None:
    store, image = open_store(data, tmp_path / "c")
    paint(store, 1)
    store.close()
    Image.new("RGB", SIZE[::-1], "green").save(image.path)
    again, image = open_store(data, tmp_path / "c")
    with pytest.raises(DataError, match="is another one than when its correction was begun"):
        again.open(image)
    again.begin_anew(image)
    assert not again.has_journal(image)
    again.close()


def test_a_folder_that_is_not_the_studios_is_left_alone(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something else than the studio's corrections"):
        open_store(data, other)
    with pytest.raises(ConfigError, match="this is a file"):
        open_store(data, other / "chapter.txt")


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        ("name,age\nx,3\n", "has the columns name, age; wanted image, mask"),
        (f"{HEADER}../a.png,../../b.png,,,,,\n", "names the mask ../../b.png"),
        (f"{HEADER}a.png,masks/../b.png,,,,,\n", "names the mask masks/../b.png"),
        (f"{HEADER}a.png,/etc/passwd,,,,,\n", "names the mask /etc/passwd"),
    ],
)
def test_a_table_that_points_elsewhere_is_refused(
    data: Path, tmp_path: Path, table: str, wanted: str
) -> None:
    (tmp_path / "c" / ".studio").mkdir(parents=True)
    (tmp_path / "c" / "corrections.csv").write_text(table)
    with pytest.raises(DataError, match=wanted):
        open_store(data, tmp_path / "c")


def test_masks_of_images_with_one_name_have_names_of_their_own(tmp_path: Path) -> None:
    write_images(tmp_path / "d" / "train", 1, masks=1)
    write_images(tmp_path / "d" / "test", 1, masks=1)
    gallery = Gallery.open(Data(path=tmp_path / "d"))
    store = Corrections(tmp_path / "c", gallery)
    names = {store.mask_path(image).name for image in gallery.images}
    assert len(names) == len({image.id for image in gallery.images}) == 2
    assert all(image.mask is not None for image in gallery.images)
    store.close()


def test_images_without_masks_are_a_gallery_and_an_empty_folder_is_none(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "plain", 2)
    assert [image.mask for image in Gallery.open(Data(path=folder)).images] == [None, None]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images here"):
        Gallery.open(Data(path=tmp_path / "empty"))
    with pytest.raises(DataError, match="there is no such folder"):
        Gallery.open(Data(path=tmp_path / "nowhere"))
