"""Downloading one file: checked by as many digits as are published, kept where the user says."""

from __future__ import annotations

import hashlib
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pooch
import pytest

from notan.errors import ConfigError, DataError, StorageError
from notan.io.download import cache_folder, check_url, download, download_bytes, hash_matches
from shelf import Shelf, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = hashlib.shake_256(b"weights").digest(40_000)
DIGITS = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
KNOWN_HASH = f"sha256:{DIGITS}"


@pytest.fixture(autouse=True)
def direct_and_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with serving() as server:
        server.files["weights.pth"] = CONTENT
        yield server


def fetch(shelf: Shelf, path: Path, known_hash: str = KNOWN_HASH, **options: str) -> Path:
    return download(f"{shelf.url}weights.pth", path, known_hash, progress=False, **options)


@pytest.mark.parametrize("known_hash", [KNOWN_HASH, KNOWN_HASH[:15], f"md5:{MD5}"])
def test_a_file_is_checked_by_as_many_digits_as_are_published(
    shelf: Shelf, tmp_path: Path, known_hash: str
) -> None:
    path = tmp_path / "cache" / "weights.pth"
    assert fetch(shelf, path, known_hash) == path
    assert path.read_bytes() == CONTENT
    assert [each.name for each in path.parent.iterdir()] == ["weights.pth"]


def test_a_downloaded_file_is_as_readable_as_any_other(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    fetch(shelf, tmp_path / "weights.pth")
    modes = {(tmp_path / name).stat().st_mode for name in ("other", "weights.pth")}
    assert len(modes) == 1


def test_a_whole_file_is_not_downloaded_again(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(CONTENT)
    assert fetch(shelf, path) == path
    assert shelf.requests == []


def test_a_damaged_file_is_replaced_and_named(
    shelf: Shelf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(CONTENT[:100])
    assert fetch(shelf, path).read_bytes() == CONTENT
    assert f"{path}: damaged or cut short" in caplog.text


def test_what_came_and_is_not_what_was_published_is_not_kept(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"SHA256 of what came is {DIGITS[:8]}, wanted 00000000; "):
        fetch(shelf, tmp_path / "weights.pth", "sha256:00000000")
    assert len(shelf.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_broken_transfer_is_tried_again(shelf: Shelf, tmp_path: Path) -> None:
    shelf.drops = 3
    assert fetch(shelf, tmp_path / "weights.pth").read_bytes() == CONTENT
    assert len(shelf.requests) == 4


def test_a_transfer_that_keeps_breaking_is_one_line_and_keeps_nothing(
    shelf: Shelf, tmp_path: Path
) -> None:
    shelf.drops = 4
    with pytest.raises(DataError, match="run the same command again") as caught:
        fetch(shelf, tmp_path / "weights.pth")
    assert str(caught.value).startswith(f"{shelf.url}weights.pth: the download failed")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_not_asked_for_twice(shelf: Shelf, tmp_path: Path) -> None:
    shelf.files.clear()
    with pytest.raises(DataError, match=r"weights\.pth: the server answered 404 Not Found"):
        fetch(shelf, tmp_path / "weights.pth")
    assert len(shelf.requests) == 1


def test_a_busy_server_is_asked_again(shelf: Shelf, tmp_path: Path) -> None:
    shelf.errors = [503, 429]
    fetch(shelf, tmp_path / "weights.pth")
    assert len(shelf.requests) == 3


def test_nobody_listening_is_one_line_with_the_address(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/weights.pth"
        with pytest.raises(DataError, match=r"refused.*run the same command again") as caught:
            download(url, tmp_path / "weights.pth", KNOWN_HASH, progress=False)
    assert str(caught.value).startswith(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/weights.pth"])
def test_a_redirect_to_anything_but_http_is_not_followed(
    shelf: Shelf, tmp_path: Path, target: str
) -> None:
    shelf.redirect = target
    with pytest.raises(DataError, match=r"weights\.pth: the download failed"):
        fetch(shelf, tmp_path / "weights.pth")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_download_leaves_nothing_half(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*words: Any) -> None:
        Path(words[2]).write_bytes(CONTENT[:100])  # the file that pooch names
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(shelf, tmp_path / "weights.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_what_chooses_another_place(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
    wanted = r"weights\.pth: could not be written \(No space left .* with NOTAN_CACHE$"
    with pytest.raises(StorageError, match=wanted):
        fetch(shelf, tmp_path / "weights.pth", chosen_by="NOTAN_CACHE")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_made_names_what_chooses_another(
    shelf: Shelf, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(StorageError, match=r"taken.* could not be written .* with NOTAN_CACHE$"):
        fetch(shelf, tmp_path / "taken" / "weights.pth", chosen_by="NOTAN_CACHE")
    assert shelf.requests == []


@pytest.mark.parametrize("progress", [True, False])
def test_the_bar_is_shown_only_when_wanted(
    shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str], progress: bool
) -> None:
    shelf.drops = 1
    path = tmp_path / "weights.pth"
    download(f"{shelf.url}weights.pth", path, KNOWN_HASH, progress=progress)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert ("100%" in shown.err) is progress
    assert bool(shown.err) is progress


def test_a_small_file_comes_into_memory(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notan.io.download.RETRY_WAITS_SECONDS", (0.0,))
    shelf.drops = 1
    assert download_bytes(f"{shelf.url}weights.pth", len(CONTENT)) == CONTENT
    assert len(shelf.requests) == 2
    with pytest.raises(DataError, match=r"weights\.pth: holds more than 39,999 bytes"):
        download_bytes(f"{shelf.url}weights.pth", len(CONTENT) - 1)
    shelf.drops = 2
    with pytest.raises(DataError, match=r"the download failed \(the connection closed too soon\)"):
        download_bytes(f"{shelf.url}weights.pth", len(CONTENT))
    shelf.drops = 0
    with pytest.raises(ConfigError, match="is not an address"):
        download_bytes("ftp://host/a.png", 9)


@pytest.mark.parametrize("url", ["file:///etc", "ftp://host/", "data/", "https://", "http://[::1"])
def test_only_http_addresses_are_downloaded_from(url: str) -> None:
    with pytest.raises(ConfigError, match="begins with https:// or http://"):
        check_url(url)


def test_the_hash_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: could not be read \(No such file"):
        hash_matches(tmp_path / "gone", KNOWN_HASH)


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, r"home/.*notan"),
        ({"NOTAN_CACHE": "/own"}, "/own"),
        ({"NOTAN_CACHE": "~/own"}, "home/own"),
        ({"NOTAN_CACHE": ""}, r"home/.*notan"),
    ],
)
def test_the_cache_is_where_the_user_or_else_the_platform_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], wanted: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CACHE_HOME", "NOTAN_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert re.search(f"{wanted}$", cache_folder().as_posix())
