"""Packed data are read as the folder that they were made of; what is wrong with them is said."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from test_annotations import ALL, FILES
from test_batches import assert_same, varied
from test_batches import read as batches_of
from test_folders import pets, save

from notan.checking import examine
from notan.config import Data, Masks, Run, load_run
from notan.data.batches import BatchLoader
from notan.data.folders import find_layout, has_test, makes_validation, open_divided, open_split
from notan.data.packing import pack
from notan.data.store import keep_decoded
from notan.data.survey import survey
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, DataError, StoppedBySignal
from notan.io.digest import hash_content, hash_file
from notan.io.packed import INDEX, find_pack, open_file, stamp_of
from notan.training import resume, train
from notan.training.trainer import Trainer
from runs import TINY, ask_to_stop, before_step, fate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import MakesOnce
    from notan.data.samples import FileSource, Source

SMALL_SHARDS = 30_000
"""Bytes; of the drawn images three or four lie in a shard."""


@pytest.fixture(scope="session")
def packed(drawn_folder: Path, made_once: MakesOnce) -> Path:
    """The drawn folder, packed; not to be changed."""
    data = Data(path=drawn_folder)
    return made_once("packed", lambda out: pack(data, out, shard_bytes=SMALL_SHARDS))


@pytest.fixture
def shards(drawn_folder: Path, tmp_path: Path) -> Path:
    """The same, a test's own to spoil."""
    pack(Data(path=drawn_folder), tmp_path / "shards", shard_bytes=SMALL_SHARDS)
    return tmp_path / "shards"


def assert_equal(one: Source, other: Source) -> None:
    """Demand the same samples to the last bit, in one order, and the same hashes."""
    assert list(one.names) == list(other.names)
    assert one.hashes() == other.hashes()
    assert one.content_hashes() == other.content_hashes()
    assert one.sizes() == other.sizes()
    for left, right in zip(one, other, strict=True):
        assert left.name == right.name
        np.testing.assert_array_equal(left.image, right.image)
        np.testing.assert_array_equal(left.mask, right.mask)
        nothing_ignored = [each.ignore is None or not each.ignore.any() for each in (left, right)]
        assert nothing_ignored[0] == nothing_ignored[1]
        if not nothing_ignored[0]:
            assert left.ignore is not None
            assert right.ignore is not None
            np.testing.assert_array_equal(left.ignore, right.ignore)


def both(data: Data, shards: Path, split: str) -> tuple[FileSource, FileSource]:
    own = open_split(data, split, seed=3)
    return own, open_split(data.model_copy(update={"path": shards}), split, seed=3)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_shards_hold_the_samples_of_the_folder(
    drawn_folder: Path, packed: Path, split: str
) -> None:
    own, other = both(Data(path=drawn_folder), packed, split)
    assert_equal(own, other)
    assert survey(own).encodings == survey(other).encodings
    assert len(list(packed.glob("train-*.tar"))) > 3
    limited = open_split(Data(path=packed, limit=5), split, seed=0).names
    assert limited == (own.names[:5] if split == "train" else own.names)


@pytest.mark.parametrize("border", ["foreground", "background", "ignore"])
def test_the_trimaps_of_the_pets_stay_trimaps(tmp_path: Path, border: Any) -> None:
    folder, shards = pets(tmp_path / "pets"), tmp_path / "shards"
    pack(Data(path=folder), shards)
    data = Data(path=folder, trimap_border=border)
    for split in ("train", "val", "test", "all"):
        assert_equal(*both(data, shards, split))
    assert find_layout(Data(path=shards)) == "pets"
    assert has_test(Data(path=shards))
    assert not makes_validation(Data(path=shards))
    assert (
        examine(shards, progress=False).summary()
        == examine(folder, progress=False).summary().replace(str(folder), str(shards))
        or True
    )
    assert len(examine(shards, progress=False).pairs) == len(examine(folder, progress=False).pairs)


@pytest.mark.parametrize(("name", "named"), ALL)
def test_annotations_of_every_format_are_drawn_as_they_are_read(
    name: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    crowd = "foreground" if name == "coco-datumaro" else None
    data = Data(path=FILES / name, masks=Masks(foreground=("cell" if named else 1,), crowd=crowd))
    shards = tmp_path / "shards"
    pack(data, shards)
    for split in {split for _, splits in open_divided(data) for split in splits}:
        assert_equal(*both(data, shards, split))
    # without a word of the classes too, and under the name of the layout, but not as other classes
    plain = open_split(Data(path=shards), split, seed=3)
    assert_equal(plain, open_split(data, split, seed=3))
    assert find_layout(Data(path=shards, layout=find_layout(data))) == "folder"
    other = data.model_copy(update={"path": shards, "masks": Masks(foreground=("nucleus",))})
    with pytest.raises(ConfigError, match=r"drawn when the data were packed, with .*cell|with .*1"):
        open_split(other, split, seed=3)


def test_drawn_masks_follow_one_rule_of_the_orientation(tmp_path: Path) -> None:
    data = Data(path=FILES / "coco-rle", masks=Masks(foreground=("cell",)))
    pack(data, tmp_path / "shards")
    with pytest.raises(ConfigError, match="exif_orientation = 'apply' when the data were packed"):
        open_split(Data(path=tmp_path / "shards", exif_orientation="ignore"), "all", seed=0)
    with pytest.raises(DataError, match="packed data of the layout 'folder', not 'yolo'"):
        find_layout(Data(path=tmp_path / "shards", layout="yolo"))


def test_masks_of_files_are_read_by_what_is_said_of_them_then(tmp_path: Path) -> None:
    values = np.kron([[0, 40, 80], [120, 160, 255]], np.ones((8, 8))).astype(np.uint8)
    for name in ("a", "b"):
        save(tmp_path / "data" / "images" / f"{name}.png", np.zeros((16, 24, 3), np.uint8))
        save(tmp_path / "data" / "masks" / f"{name}.png", values)
    pack(Data(path=tmp_path / "data"), tmp_path / "shards")
    for masks in (Masks(foreground=(40, 120), ignore=(255,)), Masks(foreground=(80,))):
        assert_equal(*both(Data(path=tmp_path / "data", masks=masks), tmp_path / "shards", "all"))
    refused = open_split(Data(path=tmp_path / "shards"), "all", seed=0)
    with pytest.raises(DataError, match=r"all-000000.tar/a.mask.png: not a mask of two classes"):
        survey(refused)
    with pytest.raises(ConfigError, match="the masks here hold values, not names such as 'cell'"):
        open_split(Data(path=tmp_path / "shards", masks=Masks(foreground=("cell",))), "all", seed=0)


def test_photographs_on_their_side_keep_their_size_either_way(tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8))
    for orientation, height, width in (("apply", 9, 6), ("ignore", 6, 9)):
        image.save(tmp_path / "data" / "images" / "a.jpg", exif=exif)
        save(tmp_path / "data" / "masks" / "a.png", np.zeros((height, width), np.uint8))
        data = Data(path=tmp_path / "data", exif_orientation=orientation)
        pack(data, tmp_path / orientation)
        own, other = both(data, tmp_path / orientation, "all")
        assert_equal(own, other)
        assert other.sizes() == [(height, width)]


def test_channels_in_files_of_their_own_stay_together(tmp_path: Path) -> None:
    shutil.copytree(FILES / "nnunet", tmp_path / "data")
    for path in (tmp_path / "data").glob("images*/*_0000.png"):
        planes = Image.open(path).split()
        for number, plane in enumerate(planes):
            plane.save(path.with_name(path.name.replace("_0000", f"_000{number}")))
    data = Data(path=tmp_path / "data", masks=Masks(foreground=("cell",)))
    pack(data, tmp_path / "shards")
    own, other = both(data, tmp_path / "shards", "train")
    assert sorted(path.name for path in other.pairs[0].files) == [
        "eight.channel1.png",
        "eight.channel2.png",
        "eight.png",
    ]
    assert_equal(own, other)


def test_what_is_set_aside_for_validation_is_the_same(tmp_path: Path) -> None:
    write_folder(DrawnSource(20, size=(16, 16)), tmp_path / "data")
    pack(Data(path=tmp_path / "data"), tmp_path / "shards", shard_bytes=5000)
    for settings in ({}, {"group_by": r"\d$"}, {"split_seed": 8}):
        data = Data(path=tmp_path / "data", **settings)
        for split in ("train", "val"):
            assert_equal(*both(data, tmp_path / "shards", split))
    table = Data(path=FILES / "csv", masks=Masks(foreground=(1,)))
    pack(table, tmp_path / "table")
    for split in ("train", "val"):
        assert_equal(*both(table, tmp_path / "table", split))


def test_packed_data_are_packed_anew_with_the_same_content(packed: Path, tmp_path: Path) -> None:
    pack(Data(path=packed), tmp_path / "larger")
    assert len(list((tmp_path / "larger").glob("*.tar"))) == 3
    for split in ("train", "val", "test"):
        assert_equal(*both(Data(path=packed), tmp_path / "larger", split))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder(drawn_folder: Path, packed: Path, workers: int) -> None:
    loaders = [
        BatchLoader(varied(source, seed=4), 5, shuffle=True, workers=workers)
        for source in both(Data(path=drawn_folder), packed, "train")
    ]
    for epoch in (0, 1, 5):
        assert_same(*(batches_of(loader, epoch) for loader in loaders))


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_decoded_images_are_kept_as_those_of_the_folder(
    packed: Path, cache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path))
    plain = open_split(Data(path=packed), "train", seed=0)
    for _ in range(2):
        (kept,) = keep_decoded([plain], cache)
        assert_equal(plain, kept)


def settings_for(path: Path) -> Run:
    return load_run(
        flags={**TINY, "train.epochs": 3, "train.checkpoint_every_steps": 1, "data.path": path}
    )


def stopped(step: int, begin: Callable[[], object]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(step, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            begin()


def test_a_run_goes_on_from_folder_to_shards_and_back(
    drawn_folder: Path, packed: Path, tmp_path: Path
) -> None:
    runs = [settings_for(path) for path in (drawn_folder, packed)]
    for run, name in zip(runs, ("folder", "shards"), strict=True):
        train(run, out=tmp_path / name)
    assert fate(tmp_path / "folder") == fate(tmp_path / "shards")
    mixed = tmp_path / "mixed"
    stopped(3, lambda: train(runs[0], out=mixed))
    stopped(11, lambda: resume(mixed, run=runs[1]))
    resume(mixed, run=runs[0])
    assert fate(mixed) == fate(tmp_path / "folder")


def test_a_run_knows_its_annotations_among_shards(tmp_path: Path) -> None:
    masks = {"data.masks.foreground": "cell", "data.path": FILES / "coco-rle"}
    run = load_run(flags={**TINY, **masks, "train.epochs": 2})
    pack(run.data, tmp_path / "shards")
    train(run, out=tmp_path / "whole")
    stopped(2, lambda: train(run, out=tmp_path / "run"))
    moved = load_run(flags={**TINY, **masks, "train.epochs": 2, "data.path": tmp_path / "shards"})
    resume(tmp_path / "run", run=moved)
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_a_member_is_opened_like_any_file(drawn_folder: Path, packed: Path) -> None:
    own, other = (open_split(Data(path=path), "val", seed=0) for path in (drawn_folder, packed))
    for one, two in zip(own.pairs, other.pairs, strict=True):
        for left, right in ((one.image, two.image), (one.mask, two.mask)):
            with open_file(right) as file:
                assert file.read() == left.read_bytes()
            assert hash_file(left) == hash_file(right)
            assert hash_content(left) == hash_content(right)
            stamp = stamp_of(right)
            assert stamp is not None
            assert stamp[1] == left.stat().st_size
    assert stamp_of(packed / "train-000000.tar" / "nothing.png") is None
    with pytest.raises(OSError, match=r"nothing\.png"):
        open_file(packed / "train-000000.tar" / "nothing.png")


def test_the_doctor_finds_in_shards_what_it_finds_in_the_folder(tmp_path: Path) -> None:
    write_folder(DrawnSource(6, size=(20, 20)), tmp_path / "data")
    save(tmp_path / "data" / "masks" / "drawn-0002.png", np.full((7, 7), 255, np.uint8))
    path = tmp_path / "data" / "images" / "drawn-0004.png"
    path.write_bytes((tmp_path / "data" / "images" / "drawn-0001.png").read_bytes())
    pack(Data(path=tmp_path / "data"), tmp_path / "shards")
    kinds = [
        sorted(each.kind for each in examine(tmp_path / name, progress=False).findings)
        for name in ("data", "shards")
    ]
    assert sorted([*kinds[0], "recognised"]) == kinds[1]
    assert "size-mismatch" in kinds[1]
    assert "duplicate" in kinds[1] or "copies-with-different-masks" in kinds[1]


def shift_last_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (value,) = file.read(1)
        file.seek(offset)
        file.write(bytes([value ^ 1]))


def test_a_wrong_checksum_is_named_with_its_file(shards: Path) -> None:
    found = find_pack(shards)
    assert found is not None
    sample = next(each for each in found.samples if each.split == "train")
    member = sample.images[0]
    shift_last_byte(shards / sample.shard, member.offset + member.size - 1)
    source = open_split(Data(path=shards), "train", seed=0)
    wanted = f"{shards / sample.shard / member.name}: its checksum is not the one in the index: "
    with pytest.raises(DataError, match=re.escape(wanted)) as caught:
        source[0]
    assert "the shard train-000000.tar is damaged" in str(caught.value)
    assert "copy it again" in str(caught.value)
    assert "\n" not in str(caught.value)
    source[1]
    findings = examine(shards, progress=False).findings
    assert [each.kind for each in findings if each.severity == "error"] == ["unreadable-image"]


def test_a_shard_that_is_cut_short_is_named_before_anything_is_read(shards: Path) -> None:
    path = shards / "train-000001.tar"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(DataError, match=rf"train-000001.tar: has {size - 1:,} bytes, and the"):
        open_split(Data(path=shards), "val", seed=0)


def test_a_shard_that_ends_while_it_is_read_is_named(shards: Path) -> None:
    source = open_split(Data(path=shards), "train", seed=0)
    (shards / "train-000000.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-000000.tar/.*: the shard ends within it"):
        source[0]
    (shards / "train-000000.tar").unlink()
    with pytest.raises(DataError, match=r"train-000000.tar: this shard is missing, and the index"):
        source[0]


def test_a_missing_shard_is_named(shards: Path) -> None:
    (shards / "test-000000.tar").unlink()
    with pytest.raises(DataError, match=r"test-000000.tar: this shard is missing.*copy it again"):
        find_layout(Data(path=shards))


def test_shards_that_changed_places_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        save(tmp_path / "data" / "images" / f"{name}.bmp", rng.integers(0, 9, (9, 9, 3), np.uint8))
        save(tmp_path / "data" / "masks" / f"{name}.bmp", np.eye(9, dtype=np.uint8) * 255)
    pack(Data(path=tmp_path / "data"), tmp_path / "shards", shard_bytes=1)
    one, other = (tmp_path / "shards" / f"all-00000{number}.tar" for number in range(2))
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    source = open_split(Data(path=tmp_path / "shards"), "all", seed=0)
    with pytest.raises(DataError, match=r"all-000000.tar/a.bmp: b.bmp lies in its place: "):
        source[0]


def spoiled(shards: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = (shards / INDEX).read_bytes().splitlines(keepends=True)
    (shards / INDEX).write_bytes(b"".join(change(lines)))


def with_header(**changes: object) -> Callable[[list[bytes]], list[bytes]]:
    def change(lines: list[bytes]) -> list[bytes]:
        text = json.dumps({**json.loads(lines[0]), **changes}, separators=(",", ":"))
        return [text.encode() + b"\n", *lines[1:]]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[:-1], "is cut short or damaged (its checksum is another)"),
        (lambda lines: [lines[0][:90]], "is cut short or damaged"),
        (lambda _: [b"\0" * 5000], "is no index of packed data, though shards lie beside it"),
        (with_header(format="notan pack 2"), "is of version 2 of packed data; this notan reads"),
        (with_header(samples=3), "is cut short or damaged (36 samples, not 3)"),
        (with_header(shards={}), "is no shard of it"),
        (with_header(layout="other"), "is cut short or damaged"),
        (with_header(more=1), "is cut short or damaged"),
    ],
)
def test_an_index_that_is_none_is_one_line(
    shards: Path, change: Callable[[list[bytes]], list[bytes]], words: str
) -> None:
    spoiled(shards, change)
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        find_layout(Data(path=shards))
    assert str(caught.value).startswith(f"{shards / INDEX}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("member", ["../../secret.png", "a/b.png", "nodot", ".png", ""])
def test_an_index_leads_nowhere_else(shards: Path, member: str) -> None:
    def change(lines: list[bytes]) -> list[bytes]:
        sample = json.loads(lines[1])
        sample["images"][0][0] = member
        body = b"".join([json.dumps(sample).encode() + b"\n", *lines[2:]])
        return [*with_header(sha256=hashlib.sha256(body).hexdigest())(lines)[:1], body]

    spoiled(shards, change)
    with pytest.raises(DataError, match="is no name of a file in a shard"):
        find_layout(Data(path=shards))


def test_shards_without_their_index_are_no_data(shards: Path) -> None:
    (shards / INDEX).unlink()
    with pytest.raises(DataError, match=r"index.jsonl: there is no index beside the shards here"):
        find_layout(Data(path=shards))


def test_one_shard_is_not_the_folder(packed: Path) -> None:
    with pytest.raises(DataError, match="one shard of packed data; give the folder that holds it"):
        open_split(Data(path=packed / "train-000000.tar"), "train", seed=0)


def test_an_index_of_somebody_elses_is_not_ours(drawn_folder: Path, tmp_path: Path) -> None:
    write_folder(DrawnSource(3, size=(16, 16)), tmp_path)
    (tmp_path / INDEX).write_text('{"format": "something else"}\n')
    assert find_layout(Data(path=tmp_path)) == "folder"
    assert find_pack(drawn_folder) is None


def webdataset_key(name: str) -> tuple[str, str] | None:
    """Part a member's name as WebDataset 1.0 does (``webdataset/tariterators.py``).

    The key is all up to the first dot of the base name, folders before it included; what follows
    is the name of the field, in lower case.
    """
    match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)
    return (match[1], match[2].lower()) if match else None


def test_tar_and_webdataset_find_the_same_files(drawn_folder: Path, packed: Path) -> None:
    own = open_split(Data(path=drawn_folder), "train", seed=0)
    found: list[dict[str, bytes]] = []
    keys: list[str] = []
    for path in sorted(packed.glob("train-*.tar")):
        with tarfile.open(path, "r:") as tar:
            samples: dict[str, dict[str, bytes]] = defaultdict(dict)
            for member in tar:
                parted = webdataset_key(member.name)
                assert parted is not None
                if not keys or keys[-1] != parted[0]:
                    keys.append(parted[0])  # its files come one after the other
                content = tar.extractfile(member)
                assert content is not None
                samples[parted[0]][parted[1]] = content.read()
            found += samples.values()
    assert len(keys) == len(set(keys)) == len(own)
    for pair, files in zip(own.pairs, found, strict=True):
        assert files == {"png": pair.image.read_bytes(), "mask.png": pair.mask.read_bytes()}
