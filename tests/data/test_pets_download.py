"""Downloads of data sets from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
from typing import TYPE_CHECKING

import pytest

from notan.data import download
from notan.data.download import PETS, download_pets
from notan.errors import ConfigError, DataError
from shelf import Shelf, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOISE = hashlib.shake_256(b"images").digest(40_000)


def pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def pets(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offer a data set of two archives in the place of the real one."""
    shelf.files["images.tar.gz"] = pack({"images/cat.jpg": NOISE})
    shelf.files["annotations.tar.gz"] = pack({"annotations/list.txt": b"cat"})
    hashes = {name: known_hash(content) for name, content in shelf.files.items()}
    monkeypatch.setattr(download, "PETS", hashes)


def fetch(shelf: Shelf, out: Path) -> Path:
    return download_pets(out, base_url=shelf.url.rstrip("/"), progress=False)


def known_hash(content: bytes) -> str:
    return f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}"


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_archives_are_downloaded_unpacked_and_removed(shelf: Shelf, tmp_path: Path) -> None:
    folder = fetch(shelf, tmp_path)
    assert folder == tmp_path / "oxford-iiit-pet"
    assert names_in(folder) == [
        "annotations",
        "annotations/.archive",
        "annotations/list.txt",
        "images",
        "images/.archive",
        "images/cat.jpg",
    ]
    assert (folder / "images" / "cat.jpg").read_bytes() == NOISE
    assert shelf.requests == [("/data/images.tar.gz", None), ("/data/annotations.tar.gz", None)]


def test_the_pets_have_the_published_hashes() -> None:
    assert [*PETS] == ["images.tar.gz", "annotations.tar.gz"]
    assert all(re.fullmatch("md5:[0-9a-f]{32}", known_hash) for known_hash in PETS.values())


def test_a_second_call_asks_the_server_nothing(shelf: Shelf, tmp_path: Path) -> None:
    fetch(shelf, tmp_path)
    shelf.requests.clear()
    fetch(shelf, tmp_path)
    assert shelf.requests == []


def test_images_removed_by_hand_are_downloaded_again(shelf: Shelf, tmp_path: Path) -> None:
    shutil.rmtree(fetch(shelf, tmp_path) / "images")
    shelf.requests.clear()
    fetch(shelf, tmp_path)
    assert (tmp_path / "oxford-iiit-pet" / "images" / "cat.jpg").read_bytes() == NOISE
    assert len(shelf.requests) == 1


def test_an_archive_already_on_the_disk_is_not_downloaded(shelf: Shelf, tmp_path: Path) -> None:
    folder = tmp_path / "oxford-iiit-pet"
    folder.mkdir()
    (folder / "images.tar.gz").write_bytes(shelf.files["images.tar.gz"])
    fetch(shelf, tmp_path)
    assert shelf.requests == [("/data/annotations.tar.gz", None)]
    assert (folder / "images" / "cat.jpg").exists()


def test_another_archive_of_that_name_is_refused_and_kept(shelf: Shelf, tmp_path: Path) -> None:
    archive = tmp_path / "oxford-iiit-pet" / "images.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(b"something else")
    with pytest.raises(DataError, match=r"images\.tar\.gz: its hash is not md5:.* delete it"):
        fetch(shelf, tmp_path)
    assert archive.read_bytes() == b"something else"


def test_images_of_the_users_own_are_never_replaced(shelf: Shelf, tmp_path: Path) -> None:
    mine = tmp_path / "oxford-iiit-pet" / "images" / "mine.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"images is already there .* move it away"):
        fetch(shelf, tmp_path)
    assert shelf.requests == []
    assert mine.read_bytes() == b"mine"


def test_an_unsafe_archive_writes_nothing_outside_its_folder(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pack({"images/cat.jpg": NOISE, "../evil": b"x"})
    shelf.files["images.tar.gz"] = content
    monkeypatch.setattr(download, "PETS", {"images.tar.gz": known_hash(content)})
    with pytest.raises(DataError, match=r"'\.\./evil' leads out of the folder"):
        fetch(shelf, tmp_path)
    assert names_in(tmp_path) == ["oxford-iiit-pet", "oxford-iiit-pet/images.tar.gz"]


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="begins with https:// or http://"):
        download_pets(tmp_path, base_url="file:///etc")
    assert names_in(tmp_path) == []
