"""Inputs in stores and lists of inputs: masks as of files, and one line for what is wrong."""

from __future__ import annotations

import csv
import errno
import functools
import io
import os
import re
import shutil
import tempfile
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from image_files import photo, saved
from needs import needs
from notan.errors import DataError, MissingExtraError, StorageError
from notan.io import remote
from notan.io.remote import shown
from notan.prediction import fetching
from notan.prediction.inputs import Found, find_inputs
from notan.prediction.items import items_of, items_of_all
from notan.prediction.lists import read_list
from object_store import BUCKET, NEEDS_S3, SECRET, Proxy, s3_server
from one_line import refused
from video_files import write_video

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from object_store import Fault

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # s3fs closes its sockets when it likes
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0)
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
    yield server, Path(f"s3://{BUCKET}/{name}")
    server.fault = lambda *_: None


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images, two pages, a film and a damaged file, and what is not to be predicted."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        saved(folder / f"p{number}.png", Image.fromarray(np.roll(photo(), number, axis=0)))
    pages = [Image.fromarray(photo(10 + number, 12)) for number in range(2)]
    saved(folder / "scan.tif", pages[0], save_all=True, append_images=pages[1:])
    write_video(folder / "film.mp4", frames=3)
    (folder / "torn.jpg").write_bytes(b"no image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.md").write_text("not an image")
    return folder


def sent(folder: Path, place: Path) -> Path:
    for path in folder.iterdir():
        store, name = fsspec.core.url_to_fs(shown(place / path.name))
        store.pipe_file(name, path.read_bytes())
        store.invalidate_cache()
    return place


def images_of(found: list[Found]) -> dict[str, Any]:
    """Read everything; returns what each is, and its digest."""
    seen = {}
    for item in items_of_all(found, frame_step=2):
        image: Any
        try:
            image = item.read().tobytes()
        except DataError as error:
            image = str(error).partition(": ")[2]
        seen[item.name] = (item.digest, image)
    return seen


def test_what_lies_in_a_store_is_what_lies_in_a_folder(photos: Path) -> None:
    place = sent(photos, Path("memory://bucket/photos"))
    far = find_inputs([place])
    assert [file.path for file in far] == [place / file.path.name for file in find_inputs([photos])]
    wanted, got = images_of(find_inputs([photos])), images_of(far)
    # where nothing could be read there is nothing to tell apart, but for what was fetched
    assert {name: image for name, (_, image) in got.items()} == {
        name: image for name, (_, image) in wanted.items()
    }
    assert {name: digest for name, (digest, _) in got.items()} == {
        name: digest for name, (digest, _) in wanted.items()
    }
    assert len(wanted) == 10


def test_names_patterns_and_archives_are_gone_through(photos: Path, tmp_path: Path) -> None:
    sent(photos, Path("memory://bucket/monday"))
    sent(photos, Path("memory://bucket/tuesday"))
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", photos)
    names = [shown(file.path) for file in find_inputs([Path("memory://bucket/*day/p[01]*.png")])]
    days = ("monday", "tuesday")
    assert names == [f"memory://bucket/{day}/p{number}.png" for day in days for number in (0, 1)]
    two = find_inputs([Path(f"memory://bucket/{day}/p1.png") for day in days])
    assert [file.name for file in two] == ["monday/p1", "tuesday/p1"]
    zipped = find_inputs([Path(f"zip://::{archive}")])
    assert [file.name for file in zipped] == [file.name for file in find_inputs([photos])]
    [one] = find_inputs([Path(f"zip://p2.png::file://{archive}")])
    assert (one.name, shown(one.path)) == ("p2", f"zip://p2.png::file://{archive}")
    assert images_of(zipped) == images_of(find_inputs([photos]))
    [local] = find_inputs([saved(tmp_path / "a::b.png", Image.fromarray(photo()))])
    assert local.name == "a::b"


def test_files_too_large_for_the_memory_are_read_from_the_disk_and_leave_nothing_there(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = images_of(find_inputs([photos]))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(fetching, "WHOLE", 10)
    assert images_of(find_inputs([sent(photos, Path("memory://bucket/photos"))])) == wanted
    assert not any(temporary.iterdir())


@pytest.mark.parametrize("whole", [2**26, 10])
def test_a_tiff_that_is_read_in_parts_is_fetched_again_in_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    monkeypatch.setattr(fetching, "WHOLE", whole)
    monkeypatch.setattr("notan.io.tiff.MAX_PIXELS", 500)
    local = saved(tmp_path / "plate.tif", Image.fromarray(photo()))
    place = sent(tmp_path, Path("memory://bucket/plates"))
    [item] = items_of(Found("plate", place / "plate.tif"))
    [other] = items_of(Found("plate", local))
    assert item.open_parts is not None
    assert other.open_parts is not None
    with item.open_parts() as far, other.open_parts() as near:
        assert np.array_equal(far.read(3, 4, 10, 10), near.read(3, 4, 10, 10))
    assert item.digest == other.digest
    MemoryFileSystem.store["/bucket/plates/plate.tif"].seek(0)
    MemoryFileSystem.store["/bucket/plates/plate.tif"].truncate(100)
    with pytest.raises(DataError, match=r"^memory://bucket/plates/plate.tif: "), item.open_parts():
        pass
    del MemoryFileSystem.store["/bucket/plates/plate.tif"]
    with pytest.raises(DataError, match=r"plate.tif: there is no such file"), item.open_parts():
        pass


def test_few_files_are_fetched_before_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def read_start(path: Path, _: int) -> bytes:
        asked.append(path)
        return b"no image"

    monkeypatch.setattr(remote, "read_start", read_start)
    found = [Found(f"p{number}", Path(f"memory://bucket/p{number}.png")) for number in range(50)]
    items = items_of_all(found)
    assert next(items).path == found[0].path
    assert len(asked) <= fetching.AHEAD
    assert [item.path for item in items] == [file.path for file in found[1:]]
    assert sorted(asked) == sorted(file.path for file in found)


@pytest.fixture
def predict(portable: Path) -> Callable[..., list[str]]:
    """The command's words."""
    return lambda *words: [
        *("predict", *map(str, words), "--model", str(portable), "--threads", "1"),
        *("--batch-size", "1"),
    ]


@NEEDS_S3
@pytest.mark.parametrize("fault", ["busy", "broken", "lost", "cut"])
def test_a_store_that_fails_for_a_moment_changes_nothing(
    s3: tuple[Proxy, Path], photos: Path, fault: Fault
) -> None:
    proxy, place = s3
    found = find_inputs([sent(photos, place)])
    proxy.counts.clear()
    proxy.fault = lambda method, path, before: (
        fault if method == "GET" and not before and "p1" in path else None
    )
    assert images_of(found) == images_of(find_inputs([photos]))
    assert max(proxy.counts.values()) > 1


@NEEDS_S3
def test_what_cannot_be_fetched_is_a_row_and_no_secret_is_told(
    s3: tuple[Proxy, Path],
    photos: Path,
    tmp_path: Path,
    predict: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    proxy, place = s3
    address = shown(sent(photos, place))
    out, listing = tmp_path / "out", tmp_path / "list.csv"
    names = ["p0.png", "absent.png", "p1.png", "torn.jpg", "p2.png"]
    rows = [f"{number},{address}/{name}" for number, name in enumerate(names)]
    listing.write_text("\n".join(["number,url", *rows, "5,s3://nobodys/p.png"]))
    proxy.fault = lambda _, path, __: "broken" if "p2.png" in path else None
    code, line = refused([*predict(listing), "--out", str(out)], capsys)
    assert code == 3
    assert line.startswith("4 of 6 images could not be read: ")
    failed = list(csv.DictReader((out / "failed.csv").open()))
    reasons = {row["image"]: row["reason"] for row in failed}
    assert list(reasons) == [
        *(f"{address}/{name}" for name in ("absent.png", "torn.jpg", "p2.png")),
        "s3://nobodys/p.png",
    ]
    assert all(reason.startswith(f"{image}: ") for image, reason in reasons.items())
    assert "there is no such file in the store" in reasons[f"{address}/absent.png"]
    assert "does not answer, asked 5 times" in reasons[f"{address}/p2.png"]
    done = list(csv.DictReader((out / "predictions.csv").open()))
    assert [row["image"] for row in done] == [f"{address}/{name}" for name in ("p0.png", "p1.png")]
    told = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in each for each in [*told, line.encode()])


@NEEDS_S3
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("s3://{bucket}/{name}/absent.png", "there is no such image or folder"),
        ("s3://{bucket}/{name}/absent", "there is no such image or folder"),
        ("s3://nobodys/photos", "there is no such image or folder"),
        ("s3://{bucket}/{name}/x*.png", "there are no images"),
        ("s3://me:hush@{bucket}/{name}", "holds a user, a password or a query"),
        ("s3://{bucket}/p.png?X-Amz-Signature=hush", "holds a user, a password or a query"),
        ("s4://{bucket}/p.png", "is no address that fsspec knows"),
        ("s3://{bucket}/{name}/list.txt", "could not be read"),
    ],
)
def test_a_wrong_address_is_one_line(
    tmp_path: Path,
    predict: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    word: str,
    reason: str,
) -> None:
    word = word.format(bucket=BUCKET, name="nothing")
    code, line = refused([*predict(word), "--out", str(tmp_path / "out")], capsys)
    assert code == DataError.exit_code
    assert reason in line
    assert "hush" not in line
    assert not (tmp_path / "out").exists()


@NEEDS_S3
def test_without_credentials_one_line_says_so(
    s3: tuple[Proxy, Path],
    tmp_path: Path,
    predict: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import s3fs

    _, place = s3
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    code, line = refused([*predict(shown(place)), "--out", str(tmp_path / "out")], capsys)
    s3fs.S3FileSystem.clear_instance_cache()
    assert code == DataError.exit_code
    assert "the store lets nobody in" in line
    assert "AWS_PROFILE" in line


def written(path: Path, entries: list[str]) -> Path:
    """Write a list of the kind that a file's name says."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        columns = {"label": [1] * len(entries), "image": entries}
        parquet.write_table(pa.table(columns), path)
    elif path.suffix == ".csv":
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("label", "image"), *((1, entry) for entry in entries)])
        path.write_text(text.getvalue(), encoding="utf-8-sig")
    else:
        path.write_text("\n\n".join(entries) + "\n", encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("suffix", ["txt", "csv", pytest.param("parquet", marks=needs("pyarrow"))])
def test_a_list_names_files_and_addresses(photos: Path, tmp_path: Path, suffix: str) -> None:
    place = sent(photos, Path("memory://bucket/photos"))
    entries = [str(photos / "p0.png"), shown(place / "p1.png"), str(photos / "é, absent.png")]
    listing = written(tmp_path / f"list.{suffix}", entries)
    assert [shown(file.path) for file in find_inputs([listing])] == entries
    store = fsspec.filesystem("memory")
    store.pipe_file(f"/bucket/list.{suffix}", listing.read_bytes())
    far = find_inputs([Path(f"memory://bucket/list.{suffix}"), photos / "p3.png"])
    assert [shown(file.path) for file in far] == [*entries, str(photos / "p3.png")]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("list.txt", b"", r"this list names no images"),
        ("list.txt", b"\n \n", r"this list names no images"),
        ("list.txt", b"a.png\n-\n", r"entry 2 is no path"),
        ("list.txt", b"a.png\0b", r"entry 1 is no path"),
        ("list.txt", b"\xff\xfe\x80", r"is neither an image nor a list: it is no UTF-8 text"),
        ("list.txt", b"s3://me:hush@b/x.png", r"entry 1: s3://b/x.png: holds a user"),
        ("list.txt", b"https://host/x.png?sig=hush", r"entry 1: https://host/x.png: holds a user"),
        ("list.csv", b"", r"no column is called image, path, .*; there are: none"),
        ("list.csv", b"picture,label\na.png,1\n", r"there are: picture, label"),
        ("list.csv", b"image\n", r"this list names no images"),
        ("list.csv", b'label,image\n1,"' + b"x" * 200_000 + b'"', r"this is no CSV"),
        ("list.csv", b"label,image\n1\n", r"this list names no images"),
        ("list.parquet", b"PAR1 not really", r"this is no Parquet"),
    ],
)
def test_a_broken_list_is_one_line(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        find_inputs([tmp_path / name])
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_parquet_of_bytes_and_one_without_pyarrow_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "list.parquet"
    parquet.write_table(pyarrow.table({"image": [{"bytes": b"x", "path": "a.png"}]}), path)
    with pytest.raises(DataError, match=r"entry 1 is no path or address of a file"):
        read_list(path)
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"a list in Parquet needs .*pip install 'notan\["):
        read_list(path)


def test_an_image_that_is_called_as_a_list_is_an_image(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(photo())).rename(tmp_path / "a.txt")
    assert [file.path for file in find_inputs([path])] == [path]


def test_a_pipe_is_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notan.io.pipes.UNFED", 0.01)
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(DataError, match=r"list.txt: nothing came through this pipe"):
        find_inputs([tmp_path / "list.txt"])


def test_an_archive_that_is_damaged_or_absent_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"zip://::.*x.zip: the store does not answer.*BadZipFile"):
        find_inputs([Path(f"zip://::{tmp_path}/x.zip")])
    with pytest.raises(DataError, match=r"zip://::.*y.zip: there is no such image or folder"):
        find_inputs([Path(f"zip://::{tmp_path}/y.zip")])
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("notes.md", "nothing")
    with pytest.raises(DataError, match=r"z.zip: there are no images in this folder"):
        find_inputs([Path(f"zip://::{tmp_path}/z.zip")])


class _Web(SimpleHTTPRequestHandler):
    """Serves files whole, whatever part is asked for, and some of them to nobody."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if "forbidden" in self.path:
            self.send_error(403)
        else:
            super().do_GET()


def test_files_come_from_a_web_server(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    handler = functools.partial(_Web, directory=str(photos))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{web.server_address[1]}"
        entries = [f"{address}/{path.name}" for path in find_paths(photos)]
        found = find_inputs([written(tmp_path / "list.csv", entries)])
        assert images_of(found) == images_of(find_inputs([photos]))
        assert len(find_inputs([Path(f"{address}/p1.png")])) == 1
        for name, reason in (("absent", "there is no such"), ("forbidden", "lets nobody in")):
            with pytest.raises(DataError, match="no such image or folder, or its server shows it"):
                find_inputs([Path(f"{address}/{name}.png")])
            [item] = items_of(Found(name, Path(f"{address}/{name}.png")))
            with pytest.raises(DataError, match=rf"^{address}/{name}.png: .*{reason}"):
                item.read()
        web.shutdown()
        thread.join(10)


def find_paths(folder: Path) -> list[Path]:
    return [file.path for file in find_inputs([folder])]


def test_a_full_disk_is_said_as_such(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = sent(photos, Path("memory://bucket/photos"))
    monkeypatch.setattr(fetching, "WHOLE", 10)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(MemoryFileSystem, "get_file", full)
    with pytest.raises(StorageError, match=r"No space left.*TMPDIR"):
        list(items_of_all(find_inputs([place])))
