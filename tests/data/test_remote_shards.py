"""Packed data in stores: the same as in a folder, whatever the network does, and no secret told."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from test_batches import assert_same, varied
from test_batches import read as batches_of
from test_shards import SMALL_SHARDS, assert_equal, both, settings_for, stopped

from notan.checking import examine
from notan.cli.main import main
from notan.config import Data
from notan.data import packing
from notan.data.batches import BatchLoader
from notan.data.folders import find_layout, open_split
from notan.data.packing import pack
from notan.errors import ConfigError, DataError, MissingExtraError, StorageError
from notan.io import packed, remote
from notan.io.packed import INDEX, find_pack
from notan.training import resume, train
from object_store import BUCKET, NEEDS_S3, SECRET, Proxy, s3_server
from one_line import refused
from runs import fate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path as LocalPath

    from object_store import Fault

from pathlib import Path

QUICK = ("--image-size", "16", "--epochs", "1", "--batch-size", "4", "model.width=2")
QUIET = "train.tensorboard=false"

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # s3fs closes its sockets when it likes
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin with empty memories, and ask again without a pause."""
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(packed, "_FAR", {})
    monkeypatch.setattr(packed, "_KEPT", packed._Kept(packed.MOST_KEPT))
    MemoryFileSystem.store.clear()
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


@pytest.fixture
def s3(server: Proxy, request: pytest.FixtureRequest) -> Iterator[tuple[Proxy, Path]]:
    """A server that does not fail yet, and an address of the test's own."""
    name = re.sub(r"\W+", "-", request.node.name)
    yield server, Path(f"s3://{BUCKET}/{name}/shards")
    server.fault = lambda *_: None


@pytest.fixture(params=["memory", pytest.param("s3", marks=NEEDS_S3)])
def place(request: pytest.FixtureRequest) -> Path:
    """An address in a store that is empty, in memory and on a server."""
    if request.param == "memory":
        return Path("memory://bucket/shards")
    _, address = request.getfixturevalue("s3")
    assert isinstance(address, Path)
    return address


def sent(drawn_folder: LocalPath, place: Path) -> Data:
    pack(Data(path=drawn_folder), place, shard_bytes=SMALL_SHARDS)
    return Data(path=drawn_folder)


def store_of(place: Path) -> tuple[Any, str]:
    store, name = fsspec.core.url_to_fs(remote.shown(place))
    store.invalidate_cache()
    return store, name


def names_in(place: Path) -> list[str]:
    store, name = store_of(place)
    return sorted(each.rpartition("/")[2] for each in store.ls(name, detail=False))


def test_a_store_holds_the_samples_of_the_folder(
    drawn_folder: LocalPath, place: Path, tmp_path: LocalPath
) -> None:
    data = sent(drawn_folder, place)
    for split in ("train", "val", "test"):
        assert_equal(*both(data, place, split))
    here = pack(data, tmp_path / "here", shard_bytes=SMALL_SHARDS)
    there = find_pack(place)
    assert there is not None
    assert there.sha256 == here.sha256
    assert names_in(place) == sorted(path.name for path in (tmp_path / "here").iterdir())
    assert find_layout(Data(path=place)) == "folder"
    own, other = (examine(path, progress=False).findings for path in (drawn_folder, place))
    assert sorted(each.kind for each in other) == sorted(
        ["recognised", *(each.kind for each in own)]
    )
    pack(Data(path=place), tmp_path / "back")
    assert_equal(*both(data, tmp_path / "back", "train"))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_a_store_are_those_of_the_folder(
    drawn_folder: LocalPath, place: Path, workers: int
) -> None:
    loaders = [
        BatchLoader(varied(source, seed=4), 5, shuffle=True, workers=workers)
        for source in both(sent(drawn_folder, place), place, "train")
    ]
    for epoch in (0, 3):
        assert_same(*(batches_of(loader, epoch) for loader in loaders))


def test_a_run_goes_on_from_folder_to_store_and_back(
    drawn_folder: LocalPath, place: Path, tmp_path: LocalPath
) -> None:
    sent(drawn_folder, place)
    here, there = (settings_for(path) for path in (drawn_folder, place))
    train(here, out=tmp_path / "whole")
    stopped(3, lambda: train(there, out=tmp_path / "run"))
    stopped(11, lambda: resume(tmp_path / "run", run=here))
    resume(tmp_path / "run", run=there)
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def once(fault: Fault, method: str, part: str = "") -> Callable[[str, str, int], Fault | None]:
    """Fail the first of equal requests."""

    def chosen(asked: str, path: str, before: int) -> Fault | None:
        return fault if asked == method and part in path and not before else None

    return chosen


@NEEDS_S3
@pytest.mark.parametrize("fault", ["busy", "broken", "lost", "silent", "cut"])
def test_a_store_that_fails_for_a_moment_is_asked_again(
    s3: tuple[Proxy, Path], drawn_folder: LocalPath, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "READ_SECONDS", 0.5)
    proxy, place = s3
    if fault != "cut":
        proxy.fault = once(fault, "PUT", "000000" if fault != "silent" else "train-000000")
    data = sent(drawn_folder, place)
    if fault != "cut":
        assert len(proxy.of("PUT", "train-000000")) > 1
    proxy.seen.clear()
    proxy.counts.clear()
    proxy.fault = once(fault, "GET", "validation-")
    own, other = both(data, place, "val")
    assert_equal(own.first(1), other.first(1))
    again = [count for (method, *_), count in proxy.counts.items() if method == "GET"]
    assert max(again) > 1


@NEEDS_S3
@pytest.mark.parametrize("fault", ["busy", "broken", "lost"])
def test_a_store_that_goes_on_failing_is_one_line(
    s3: tuple[Proxy, Path],
    drawn_folder: LocalPath,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: LocalPath,
    capsys: pytest.CaptureFixture[str],
) -> None:
    proxy, place = s3
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    sent(drawn_folder, place)
    proxy.fault = lambda method, path, _: fault if "train-" in path and method == "GET" else None
    words = ["train", "--data-path", remote.shown(place), "--out", str(tmp_path / "run"), *QUICK]
    code, line = refused([*words, QUIET], capsys)
    assert code == 3
    assert line.startswith(f"{remote.shown(place)}/train-00000")
    assert "the store does not answer, asked 2 times within" in line
    proxy.fault = lambda method, *_: fault if method == "PUT" else None
    with pytest.raises(StorageError, match=r"/other/.*: the store does not answer") as caught:
        pack(Data(path=drawn_folder), place.with_name("other"))
    assert "\n" not in str(caught.value)


def test_an_interrupted_pack_is_no_set(
    drawn_folder: LocalPath, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file, count = remote.write_file, 0

    def interrupted(local: LocalPath, path: Path) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        write_file(local, path)

    monkeypatch.setattr(remote, "write_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sent(drawn_folder, place)
    monkeypatch.undo()
    assert len(names_in(place)) == 2
    with pytest.raises(DataError, match=r"index.jsonl: there is no index beside the shards here"):
        find_layout(Data(path=place))
    with pytest.raises(ConfigError, match=r"://.*: something is here already; choose another, or"):
        sent(drawn_folder, place)
    pack(Data(path=drawn_folder), place, overwrite=True)
    shards = [f"{split}-000000.tar" for split in ("test", "train", "validation")]
    assert names_in(place) == [INDEX, *shards]
    # and again when a whole set is replaced
    monkeypatch.setattr(remote, "write_file", interrupted)
    count = 2
    with pytest.raises(KeyboardInterrupt):
        pack(Data(path=drawn_folder), place, overwrite=True)
    assert INDEX not in names_in(place)
    assert find_pack_or_none(place) is None


def find_pack_or_none(place: Path) -> object:
    try:
        return find_pack(place)
    except DataError:
        return None


@NEEDS_S3
def test_the_index_is_written_last_and_removed_first(
    s3: tuple[Proxy, Path], drawn_folder: LocalPath
) -> None:
    proxy, place = s3
    sent(drawn_folder, place)
    assert proxy.of("PUT")[-1].endswith(INDEX)
    proxy.seen.clear()
    pack(Data(path=drawn_folder), place, overwrite=True)
    changes = [(method, path.rpartition("/")[2]) for method, path in proxy.seen]
    changes = [each for each in changes if each[0] in ("PUT", "POST", "DELETE")]
    assert changes[0] == ("DELETE", INDEX)
    assert changes[-1] == ("PUT", INDEX)
    assert {"train-000000.tar", "train-000001.tar"} <= {name for _, name in changes}


def test_what_is_there_beside_is_not_replaced(drawn_folder: LocalPath, place: Path) -> None:
    store, name = store_of(place)
    store.pipe_file(f"{name}/notes.txt", b"mine")
    with pytest.raises(ConfigError, match="holds more than packed data, and --overwrite replaces"):
        pack(Data(path=drawn_folder), place, overwrite=True)
    assert names_in(place) == ["notes.txt"]


def spoil(place: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    store, folder = store_of(place)
    store.pipe_file(f"{folder}/{name}", change(store.cat_file(f"{folder}/{name}")))
    store.invalidate_cache()


def test_damage_in_a_store_is_named(drawn_folder: LocalPath, place: Path) -> None:
    sent(drawn_folder, place)
    packed.forget(place)
    spoil(place, "train-000000.tar", lambda content: content.replace(b"IDAT", b"iDAT"))
    source = open_split(Data(path=place), "train", seed=0)
    with pytest.raises(DataError, match=r"://.*/train-000000.tar/.*: its checksum is not the one"):
        source[0]
    spoil(place, "train-000000.tar", lambda content: content[:700])
    with pytest.raises(DataError, match=r"train-000000.tar/.*: the shard ends within it"):
        source[0]
    packed.forget(place)
    with pytest.raises(DataError, match=r"train-000000.tar: has 700 bytes, and the index says"):
        find_layout(Data(path=place))
    store, name = store_of(place)
    store.rm_file(f"{name}/train-000000.tar")
    for look in (lambda: source[0], lambda: find_layout(Data(path=place))):
        with pytest.raises(DataError, match=r"train-000000.tar: this shard is missing, and the"):
            look()
    spoil(place, INDEX, lambda content: content[:-5])
    with pytest.raises(DataError, match=r"index.jsonl: is cut short or damaged \(its checksum"):
        find_layout(Data(path=place))
    spoil(place, INDEX, lambda _: b"nothing of ours")
    with pytest.raises(DataError, match=r"index.jsonl: is no index of packed data"):
        find_layout(Data(path=place))


def test_an_empty_place_is_one_line(place: Path, tmp_path: LocalPath) -> None:
    with pytest.raises(DataError, match=r"://.*: there is no index of packed data here; check the"):
        find_layout(Data(path=place))
    with pytest.raises(DataError, match=r"://.*: there is no index of packed data here"):
        pack(Data(path=place), tmp_path / "shards")


@NEEDS_S3
def test_a_bucket_that_is_not_there_is_one_line(
    s3: tuple[Proxy, Path], drawn_folder: LocalPath
) -> None:
    del s3
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x/.*: could not be written.*make"):
        pack(Data(path=drawn_folder), Path("s3://no-such-bucket/x"))


@NEEDS_S3
def test_what_was_read_is_kept_within_bounds(
    s3: tuple[Proxy, Path], drawn_folder: LocalPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, place = s3
    sent(drawn_folder, place)
    source = open_split(Data(path=place), "train", seed=0)
    first = source[0]
    asked = len(proxy.of("GET"))
    assert (source[0].image == first.image).all()
    assert len(proxy.of("GET")) == asked
    monkeypatch.setattr(packed, "_KEPT", packed._Kept(1))
    assert (source[0].image == first.image).all()
    assert (source[0].image == first.image).all()
    assert len(proxy.of("GET")) == asked + 4


def test_files_that_were_not_asked_for_longest_go_first() -> None:
    kept = packed._Kept(10)
    for name, length in (("a", 4), ("b", 4), ("large", 11), ("a", 4)):
        kept.keep(Path(name), 1, b"." * length)
    assert kept.get(Path("a"), 1) == b"...."
    assert kept.get(Path("large"), 1) is None
    kept.keep(Path("c"), 1, b"....")
    assert [kept.get(Path(name), 1) is None for name in "abc"] == [False, True, False]
    assert kept.get(Path("a"), 2) is None


@pytest.mark.parametrize(
    "address",
    [
        *("s3://key:hush@bucket/x", "s3://hush@bucket/x", "abfs://box:hush@here/x"),
        "https://host/x?X-Amz-Signature=hush",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(
    address: str, drawn_folder: LocalPath, tmp_path: LocalPath, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["train", "--data-path", address, "--out", str(tmp_path / "run")],
        ["check", "--data-path", address, "--out", str(tmp_path / "check")],
        ["pack", "--data-path", str(drawn_folder), "--out", address],
        ["pack", "--data-path", address, "--out", str(tmp_path / "shards")],
    ):
        code, line = refused(words, capsys)
        assert code == 3
        assert "holds a user, a password or a query, which is left out here" in line
        assert "hush" not in line
    assert not any(tmp_path.iterdir())


def test_what_a_library_says_is_repeated_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError("GET https://me:hush@host/x?X-Amz-Credential=hush&b=hush failed")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", failing)
    with pytest.raises(DataError, match=r"OSError: GET https://host/x failed") as caught:
        remote.read_whole(Path("memory://bucket/x"))
    assert "hush" not in str(caught.value)


@NEEDS_S3
def test_no_file_and_no_line_of_a_run_tells_the_key(
    s3: tuple[Proxy, Path],
    drawn_folder: LocalPath,
    tmp_path: LocalPath,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    without_reports: None,
) -> None:
    del without_reports
    _, place = s3
    address = remote.shown(place)
    main(["pack", "--data-path", str(drawn_folder), "--out", address])
    run = tmp_path / "run"
    main(["train", "--data-path", address, "--out", str(run), *QUICK, QUIET])
    model = ("--model", str(run / "best.safetensors"))
    main(["evaluate", *model, "--data-path", address, "--out", str(tmp_path / "score")])
    said = capfd.readouterr()
    assert f"{address}: packed data: train 24" in said.out
    told = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    told += [text.encode() for text in (said.out, said.err, caplog.text)]
    assert not any(SECRET.encode() in each for each in told)


def test_a_library_that_is_missing_is_said(drawn_folder: LocalPath) -> None:
    fsspec.register_implementation(
        "absent", "no_such_package.Store", clobber=True, errtxt="Install absentfs to reach it"
    )
    with pytest.raises(MissingExtraError, match=r"absent://x/y.*Install absentfs to reach it.*pip"):
        find_layout(Data(path=Path("absent://x/y")))
    with pytest.raises(DataError, match=r"nonsense://x/y.*: is no address that fsspec knows"):
        find_layout(Data(path=Path("nonsense://x/y")))
    with pytest.raises(DataError, match=r"nonsense://x: is no address that fsspec knows"):
        pack(Data(path=drawn_folder), Path("nonsense://x"))


def test_fsspec_itself_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"s3:// as an address needs fsspec: pip install '"):
        remote.read_whole(Path("s3://bucket/x"))


def test_a_place_in_the_file_system_is_no_address() -> None:
    for local in ("shards", "/data/shards", "C:/data", "a/b:c", "./x", "~/s3"):
        assert not remote.is_remote(Path(local))
        assert remote.shown(Path(local)) == str(Path(local))
    for address in ("s3://bucket/a/b", "gs://bucket", "https://host/x", "abfs://box@here/x"):
        assert remote.is_remote(Path(address))
        assert remote.shown(Path(address)) == address
        remote.require_plain(Path(address))
    assert remote.shown(Path("s3://bucket/a//b")) == "s3://bucket/a/b"
    assert packing.SHARD_BYTES < 2**30
