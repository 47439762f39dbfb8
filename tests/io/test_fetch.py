"""Fetching one file: checked by as many digits as are published, kept where the user says."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

import pytest

from notan.errors import DataError, StorageError
from notan.io import download as fetching
from notan.io.download import Checksum, Place, cache_folder, fetch
from shelf import Shelf, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = hashlib.shake_256(b"weights").digest(40_000)
DIGITS = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetching, "RETRY_WAITS_SECONDS", (0.0, 0.0, 0.0))
    with serving() as server:
        server.files["weights.pth"] = CONTENT
        yield server


@pytest.mark.parametrize("digits", [DIGITS, DIGITS[:8]])
def test_a_file_is_checked_by_as_many_digits_as_are_published(
    shelf: Shelf, tmp_path: Path, digits: str
) -> None:
    path = tmp_path / "cache" / "weights.pth"
    given = fetch(f"{shelf.url}weights.pth", Place(path), Checksum("sha256", digits))
    assert given == path
    assert path.read_bytes() == CONTENT
    assert [each.name for each in path.parent.iterdir()] == ["weights.pth"]


def test_what_came_takes_the_place_of_what_was_there(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(CONTENT[:100])
    fetch(f"{shelf.url}weights.pth", Place(path), Checksum("sha256", DIGITS), progress=False)
    assert path.read_bytes() == CONTENT


def test_what_came_and_is_not_what_was_published_is_not_kept(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"older")
    with pytest.raises(DataError, match=f"SHA-256 checksum of what came is {DIGITS[:8]}, wanted 0"):
        fetch(f"{shelf.url}weights.pth", Place(path), Checksum("sha256", "0" * 8), progress=False)
    assert [each.name for each in tmp_path.iterdir()] == ["weights.pth"]
    assert path.read_bytes() == b"older"


def test_a_file_that_stays_as_it_is_needs_no_room_to_be_unpacked(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000))
    place = Place(tmp_path / "weights.pth")
    assert fetch(f"{shelf.url}weights.pth", place, Checksum("sha256", DIGITS)).exists()


def test_a_full_disk_names_what_chooses_another_place(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    place = Place(tmp_path / "weights.pth", chosen_by="NOTAN_CACHE")
    wanted = "10.0B are free and about 40.0kB are needed to download; .* with NOTAN_CACHE$"
    with pytest.raises(StorageError, match=wanted):
        fetch(f"{shelf.url}weights.pth", place, Checksum("sha256", DIGITS), progress=False)


def test_a_cache_that_cannot_be_made_names_what_chooses_another(
    shelf: Shelf, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    place = Place(tmp_path / "taken" / "weights.pth", chosen_by="NOTAN_CACHE")
    with pytest.raises(StorageError, match=r"taken: could not be written .* with NOTAN_CACHE$"):
        fetch(f"{shelf.url}weights.pth", place, Checksum("sha256", DIGITS), progress=False)
    assert shelf.requests == []


def test_a_checksum_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: could not be read \(No such file"):
        Checksum("sha256", DIGITS).of(tmp_path / "gone")


@pytest.mark.parametrize(
    ("platform", "variables", "wanted"),
    [
        ("linux", {}, "home/.cache/notan"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/notan"),
        ("linux", {"XDG_CACHE_HOME": "/xdg", "NOTAN_CACHE": "/own"}, "/own"),
        ("linux", {"NOTAN_CACHE": "~/own"}, "home/own"),
        ("linux", {"NOTAN_CACHE": ""}, "home/.cache/notan"),
        ("darwin", {}, "home/Library/Caches/notan"),
        ("win32", {}, "home/AppData/Local/notan"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/notan"),
    ],
)
def test_the_cache_is_where_the_user_or_else_the_platform_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    variables: dict[str, str],
    wanted: str,
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CACHE_HOME", "NOTAN_CACHE", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == tmp_path / wanted  # an absolute one stands alone
