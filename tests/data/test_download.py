"""Downloads from a server on this machine that answers, breaks off and misbehaves to order."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import socket
import tarfile
from typing import TYPE_CHECKING

import pytest

import notan.io.download as fetching
from notan.data import download
from notan.data.download import PETS, Archive, download_archives, download_pets
from notan.errors import ConfigError, DataError, StorageError
from shelf import Shelf, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOISE = hashlib.shake_256(b"images").digest(40_000)


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def direct_and_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetching, "RETRY_WAITS_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(fetching, "CHUNK_BYTES", 4096)


def pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def offer(shelf: Shelf, name: str, content: bytes) -> Archive:
    shelf.files[name] = content
    return Archive(name, hashlib.md5(content, usedforsecurity=False).hexdigest())


def fetch(shelf: Shelf, archive: Archive, folder: Path) -> Path:
    return download_archives([archive], folder, base_url=shelf.url, progress=False)


@pytest.fixture
def images(shelf: Shelf) -> Archive:
    return offer(shelf, "images.tar.gz", pack({"images/cat.jpg": NOISE}))


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_archives_are_fetched_unpacked_and_removed(
    shelf: Shelf, images: Archive, tmp_path: Path
) -> None:
    notes = offer(shelf, "annotations.tar.gz", pack({"annotations/list.txt": b"cat"}))
    folder = download_archives(
        (images, notes), tmp_path / "pets", base_url=shelf.url, progress=False
    )
    assert folder == tmp_path / "pets"
    assert names_in(folder) == [
        ".unpacked.json",
        "annotations",
        "annotations/list.txt",
        "images",
        "images/cat.jpg",
    ]
    assert (folder / "images" / "cat.jpg").read_bytes() == NOISE


def test_pets_go_into_their_own_folder(
    shelf: Shelf, images: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PETS", (images,))
    folder = download_pets(tmp_path, base_url=shelf.url.rstrip("/"), progress=False)
    assert folder == tmp_path / "oxford-iiit-pet"
    assert (folder / "images" / "cat.jpg").exists()
    assert shelf.requests == [("/data/images.tar.gz", None)]


def test_the_pets_have_the_published_checksums() -> None:
    assert [archive.name for archive in PETS] == ["images.tar.gz", "annotations.tar.gz"]
    assert all(re.fullmatch("[0-9a-f]{32}", archive.md5) for archive in PETS)


def test_a_second_call_asks_the_server_nothing(
    shelf: Shelf, images: Archive, tmp_path: Path
) -> None:
    fetch(shelf, images, tmp_path)
    shelf.requests.clear()
    fetch(shelf, images, tmp_path)
    assert shelf.requests == []


def test_images_removed_by_hand_are_fetched_again(
    shelf: Shelf, images: Archive, tmp_path: Path
) -> None:
    shutil.rmtree(fetch(shelf, images, tmp_path) / "images")
    fetch(shelf, images, tmp_path)
    assert (tmp_path / "images" / "cat.jpg").read_bytes() == NOISE


def test_an_archive_already_on_the_disk_is_not_fetched(
    shelf: Shelf, images: Archive, tmp_path: Path
) -> None:
    (tmp_path / "images.tar.gz").write_bytes(shelf.files["images.tar.gz"])
    fetch(shelf, images, tmp_path)
    assert shelf.requests == []
    assert (tmp_path / "images" / "cat.jpg").exists()


def test_another_archive_of_that_name_is_refused_and_kept(
    shelf: Shelf, images: Archive, tmp_path: Path
) -> None:
    (tmp_path / "images.tar.gz").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"images\.tar\.gz: its MD5 checksum is .* delete it"):
        fetch(shelf, images, tmp_path)
    assert (tmp_path / "images.tar.gz").read_bytes() == b"something else"


def test_images_of_the_users_own_are_never_replaced(
    shelf: Shelf, images: Archive, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"images is already there .* move it away"):
        fetch(shelf, images, tmp_path)
    assert shelf.requests == []
    assert names_in(tmp_path) == ["images", "images/mine.jpg"]


def test_a_broken_download_resumes_where_it_stopped(
    shelf: Shelf, images: Archive, tmp_path: Path
) -> None:
    shelf.drops = 3
    fetch(shelf, images, tmp_path)
    size = len(shelf.files["images.tar.gz"])
    halves = [size // 2]
    while len(halves) < 3:
        halves.append(halves[-1] + (size - halves[-1]) // 2)
    assert shelf.ranges == [None, *(f"bytes={half}-" for half in halves)]
    assert (tmp_path / "images" / "cat.jpg").read_bytes() == NOISE


def test_a_download_that_keeps_breaking_says_that_it_can_be_resumed(
    shelf: Shelf, images: Archive, tmp_path: Path
) -> None:
    shelf.drops = 4
    with pytest.raises(DataError, match=r"closed after \d+ of \d+ bytes.*resumes where") as caught:
        fetch(shelf, images, tmp_path)
    assert shelf.url + "images.tar.gz" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(shelf.requests) == 4
    assert names_in(tmp_path) == ["images.tar.gz.part"]
    have = (tmp_path / "images.tar.gz.part").stat().st_size
    fetch(shelf, images, tmp_path)
    assert shelf.ranges[4:] == [f"bytes={have}-"]
    assert (tmp_path / "images" / "cat.jpg").read_bytes() == NOISE


def test_connections_that_bring_enough_are_not_counted_as_failures(
    shelf: Shelf, images: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "WORTHWHILE_BYTES", 100)
    shelf.drops = 6
    fetch(shelf, images, tmp_path)
    assert len(shelf.requests) == 7


def test_a_server_without_ranges_starts_anew(shelf: Shelf, images: Archive, tmp_path: Path) -> None:
    shelf.knows_ranges = False
    shelf.drops = 1
    fetch(shelf, images, tmp_path)
    assert len(shelf.requests) == 2
    assert (tmp_path / "images" / "cat.jpg").read_bytes() == NOISE


def test_a_part_that_is_already_complete_is_used(
    shelf: Shelf, images: Archive, tmp_path: Path
) -> None:
    (tmp_path / "images.tar.gz.part").write_bytes(shelf.files["images.tar.gz"])
    fetch(shelf, images, tmp_path)
    assert len(shelf.requests) == 1
    assert (tmp_path / "images" / "cat.jpg").exists()


def test_a_server_that_sends_the_wrong_range_is_not_believed(
    shelf: Shelf, images: Archive, tmp_path: Path
) -> None:
    (tmp_path / "images.tar.gz.part").write_bytes(shelf.files["images.tar.gz"][:1000])
    shelf.shift = 7
    fetch(shelf, images, tmp_path)
    assert shelf.ranges == ["bytes=1000-", None]
    assert (tmp_path / "images" / "cat.jpg").read_bytes() == NOISE


def test_a_wrong_checksum_deletes_the_part_and_says_so(
    shelf: Shelf, images: Archive, tmp_path: Path
) -> None:
    wanted = "0" * 32
    with pytest.raises(DataError, match=f"is {images.md5}, wanted {wanted}; it was deleted"):
        fetch(shelf, Archive(images.name, wanted), tmp_path)
    assert names_in(tmp_path) == []


def test_a_part_of_another_file_does_not_survive(
    shelf: Shelf, images: Archive, tmp_path: Path
) -> None:
    (tmp_path / "images.tar.gz.part").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="Run the same command again"):
        fetch(shelf, images, tmp_path)
    fetch(shelf, images, tmp_path)
    assert (tmp_path / "images" / "cat.jpg").read_bytes() == NOISE


def test_a_missing_file_is_not_asked_for_twice(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.tar\.gz: the server answered 404 Not Found"):
        fetch(shelf, Archive("gone.tar.gz", "0" * 32), tmp_path)
    assert len(shelf.requests) == 1


def test_a_busy_server_is_asked_again(shelf: Shelf, images: Archive, tmp_path: Path) -> None:
    shelf.errors = [503, 429]
    fetch(shelf, images, tmp_path)
    assert len(shelf.requests) == 3


def test_nobody_listening_is_one_line_with_the_address(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        with pytest.raises(DataError, match=r"refused.*run the same command again") as caught:
            download_pets(tmp_path, base_url=url, progress=False)
    assert f"{url}images.tar.gz" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///etc", "ftp://host/", "data/", "https://", "http://[::1"])
def test_only_http_addresses_are_fetched_from(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="begins with https:// or http://"):
        download_pets(tmp_path, base_url=url)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/images.tar.gz"])
def test_a_redirect_to_anything_but_http_is_not_followed(
    shelf: Shelf, images: Archive, tmp_path: Path, target: str
) -> None:
    shelf.redirect = target
    with pytest.raises(DataError, match=r"images\.tar\.gz"):
        fetch(shelf, images, tmp_path)
    assert names_in(tmp_path) == []


def test_an_unsafe_archive_writes_nothing_outside_its_folder(shelf: Shelf, tmp_path: Path) -> None:
    archive = offer(shelf, "images.tar.gz", pack({"images/cat.jpg": NOISE, "../evil": b"x"}))
    with pytest.raises(DataError, match=r"'\.\./evil' leads out of the folder"):
        fetch(shelf, archive, tmp_path / "pets")
    assert names_in(tmp_path) == ["pets", "pets/images.tar.gz"]


def test_an_interrupted_download_keeps_its_part(
    shelf: Shelf, images: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tqdm.tqdm.update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(shelf, images, tmp_path)
    have = (tmp_path / "images.tar.gz.part").stat().st_size
    assert have > 0
    fetch(shelf, images, tmp_path)
    assert shelf.ranges == [None, f"bytes={have}-"]


def test_a_disk_that_is_too_small_is_noticed_before_it_is_full(
    shelf: Shelf, images: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"50\.0kB are free and about \d+\.\dkB are needed"):
        fetch(shelf, images, tmp_path)
    assert names_in(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(
    shelf: Shelf, images: Archive, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(StorageError, match="taken: could not be written"):
        fetch(shelf, images, tmp_path / "taken")


@pytest.mark.parametrize("progress", [True, False])
def test_the_bar_is_shown_only_when_wanted(
    shelf: Shelf,
    images: Archive,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    progress: bool,
) -> None:
    shelf.drops = 1
    download_archives([images], tmp_path, base_url=shelf.url, progress=progress)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert ("images.tar.gz: 100%" in shown.err) is progress
    assert bool(shown.err) is progress
