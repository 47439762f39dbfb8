"""Packing writes whole sets or nothing, the same bytes each time, under names that are safe."""

from __future__ import annotations

import os
import shutil
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from test_folders import pets, save

from notan.config import Data, Masks
from notan.data import packing
from notan.data.packing import SHARD_BYTES, pack
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, DataError, StorageError
from notan.io.packed import INDEX, PackedFile, find_pack
from notan.io.write import write_bytes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Six drawn pairs in images/ and masks/."""
    write_folder(DrawnSource(6, size=(16, 16)), tmp_path / "data")
    return Data(path=tmp_path / "data")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_packing_twice_gives_the_same_bytes(data: Data, tmp_path: Path) -> None:
    first = pack(data, tmp_path / "one", shard_bytes=3000)
    moved = tmp_path / "elsewhere"
    shutil.copytree(data.path or "", moved)
    for path in moved.rglob("*.png"):
        os.utime(path, (1, 1))
    second = pack(Data(path=moved), tmp_path / "two", shard_bytes=3000)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert first.sha256 == second.sha256
    mask = moved / "masks" / "drawn-0005.png"
    save(mask, np.eye(16, dtype=np.uint8) * 255)
    assert pack(Data(path=moved), tmp_path / "three", shard_bytes=3000).sha256 != first.sha256


def test_a_shard_has_the_size_that_was_asked_for(data: Data, tmp_path: Path) -> None:
    for most in (1, 8000, SHARD_BYTES):
        found = pack(data, tmp_path / str(most), shard_bytes=most)
        sizes = [shard.size for shard in found.header.shards.values()]
        samples = len(found.samples) / len(sizes)
        assert all(size <= most for size in sizes) or samples == 1
        assert len(sizes) == {1: 6, 8000: len(sizes), SHARD_BYTES: 1}[most]
        assert most != 8000 or 1 < len(sizes) < 6
        for name, shard in found.header.shards.items():
            assert (tmp_path / str(most) / name).stat().st_size == shard.size


def test_members_belong_to_nobody_and_to_no_time(data: Data, tmp_path: Path) -> None:
    pack(data, tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "all-000000.tar") as tar:
        for member in tar:
            assert member.isreg()
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (
                *(0, 0, 0),
                *("", ""),
            )


NAMES = {
    "plate.1.final": "plate_1_final",
    "plate 1 final": "plate_1_final_2",
    "Plate_1 (final)": "Plate_1_final__2",
    "каша ☃ 写真": "каша_写真",
    "--": "--",
    "x" * 120: "x" * 60,
    "x" * 121: "x" * 60 + "_2",
}


def test_every_name_is_safe_and_none_is_lost(tmp_path: Path) -> None:
    for name in NAMES:
        save(tmp_path / "data" / "images" / f"{name}.PNG", np.zeros((4, 4, 3), np.uint8))
        save(tmp_path / "data" / "masks" / f"{name}.PNG", np.eye(4, dtype=np.uint8))
    found = pack(Data(path=tmp_path / "data"), tmp_path / "shards")
    assert sorted(sample.name for sample in found.samples) == sorted(NAMES)
    members = [sample.images[0].name for sample in found.samples]
    assert all(member.endswith(".png") for member in members)
    keys = [member.removesuffix(".png") for member in members]
    assert len({key.casefold() for key in keys}) == len(NAMES)
    assert all("." not in key and " " not in key and "/" not in key for key in keys)
    assert "каша_写真" in keys
    with tarfile.open(tmp_path / "shards" / "all-000000.tar") as tar:
        assert [name for name in tar.getnames() if ".mask." not in name] == members


def test_keys_that_differ_in_their_case_alone_are_told_apart() -> None:
    keys = packing._Keys()
    made = [keys.of(name) for name in ("a", "A", "a b", "a_b", "a_b_2", "", "?", "a")]
    assert made[0] == "a"
    assert len({key.casefold() for key in made}) == len(made)
    assert all(made)


def test_files_of_pets_are_copied_and_those_in_no_list_are_left(tmp_path: Path) -> None:
    folder = pets(tmp_path / "pets")
    save(folder / "images" / "stray.jpg", np.zeros((6, 8, 3), np.uint8))
    found = pack(Data(path=folder), tmp_path / "shards")
    assert found.header.resolved is None
    assert "stray" not in [sample.name for sample in found.samples]
    splits = [sample.split for sample in found.samples]
    assert {split: splits.count(split) for split in splits} == {
        "validation": 3,
        "train": 20,
        "test": 4,
    }


def test_an_image_that_is_none_is_named_and_nothing_is_left(data: Data, tmp_path: Path) -> None:
    (tmp_path / "data" / "images" / "drawn-0004.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"drawn-0004.png"):
        pack(data, tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_pack_that_is_interrupted_leaves_nothing(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    add = packing._OpenShard.add

    def interrupted(shard: packing._OpenShard, name: str, content: bytes) -> PackedFile:
        if name.startswith("drawn-0003"):
            raise error
        return add(shard, name, content)

    pack(data, tmp_path / "old", shard_bytes=3000)
    before = contents(tmp_path / "old")
    monkeypatch.setattr(packing._OpenShard, "add", interrupted)
    for out, overwrite in (("new", False), ("old", True)):
        with pytest.raises(error):
            pack(data, tmp_path / out, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "old"]
    assert contents(tmp_path / "old") == before


def test_the_index_comes_last(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    write = write_bytes

    def watched(path: Path, content: bytes) -> None:
        seen.append(sorted(each.name for each in path.parent.iterdir()))
        write(path, content)

    monkeypatch.setattr("notan.data.packing.write_bytes", watched)
    pack(data, tmp_path / "shards")
    assert seen == [["all-000000.tar"]]
    # what a process that was killed leaves is a hidden folder without an index
    assert find_pack(tmp_path) is None


def test_what_is_there_is_not_overwritten(data: Data, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    out.mkdir()
    pack(data, out)  # an empty folder is no loss
    with pytest.raises(ConfigError, match="something is here already; choose another, or --over"):
        pack(data, out)
    assert (out / "all-000000.tar").exists()
    pack(data, out, shard_bytes=1, overwrite=True)
    assert len(list(out.glob("*.tar"))) == 6
    pack(data, out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["all-000000.tar", INDEX]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds more than packed data, and --overwrite replaces"):
        pack(data, out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="holds more than packed data"):
        pack(data, tmp_path / "data", overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="holds more than packed data"):
        pack(data, tmp_path / "file", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "file", "shards"]


def test_a_reader_sees_that_the_pack_was_replaced(data: Data, tmp_path: Path) -> None:
    first = pack(data, tmp_path / "shards", shard_bytes=3000)
    second = pack(data, tmp_path / "shards", overwrite=True)
    now = find_pack(tmp_path / "shards")
    assert now is not None
    assert now.sha256 == second.sha256 != first.sha256


def test_a_place_that_cannot_be_written_is_one_line(data: Data, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"shards: could not be written \(.*choose another"):
        pack(data, tmp_path / "file" / "shards")


def test_classes_that_are_not_chosen_are_asked_for(tmp_path: Path) -> None:
    from test_annotations import FILES

    with pytest.raises(DataError, match="--foreground"):
        pack(Data(path=FILES / "coco-rle"), tmp_path / "shards")
    with pytest.raises(ConfigError, match=r"there is no class 'cel'.*cell"):
        pack(Data(path=FILES / "coco-rle", masks=Masks(foreground=("cel",))), tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
