"""Bring and take: images that come in through the page, and masks that go out."""

from __future__ import annotations

import io
import socket
import zipfile
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from notan.config import Data
from notan.data.folders import open_divided
from notan.errors import StorageError
from notan.io.digest import hash_content
from notan.io.images import read_image
from notan.studio import brought as brought_module
from notan.studio.datasets import DATASETS
from notan.studio.raster import checksum, mask_of
from studio_runs import (
    SIZE,
    Served,
    error_of,
    painted,
    red_finder,
    serving,
    stroke_between,
    wait_until,
    write_images,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("notan.studio.predictions.START_SECONDS", 0.0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "cells", 2, masks=1)


@pytest.fixture
def studio(data: Path, tmp_path: Path) -> Iterator[Served]:
    with serving(data, tmp_path / "corrections") as served:
        yield served


def ask(studio: Served, path: str, method: str = "GET", **more: Any) -> httpx.Response:
    where = path if path.startswith("http") else studio.url + path
    return httpx.request(method, where, headers=studio.headers, timeout=PATIENCE, **more)


def bring(studio: Served, name: str, content: bytes) -> httpx.Response:
    return ask(studio, "/api/brought", "POST", params={"name": name}, content=content)


def picture(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = SIZE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def stored(studio: Served) -> list[str]:
    folder = studio.store.folder / "brought"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def accept(studio: Served, place: int) -> Any:
    """Paint a spot on an image's mask, accept it, and return the raster."""
    assert ask(studio, studio.path(place, "/journal"), "POST", json={"origin": "model"}).is_success
    image = studio.gallery.images[place]
    before = studio.store.open(image).raster()
    after = painted(before, 1)
    for version, entry in enumerate(
        (
            stroke_between(before, after, 1).model_dump_json(),
            f'{{"op": "accept", "id": "acceptance", "checksum": {checksum(after)}}}',
        )
    ):
        path = studio.path(place, f"/entries?version={version}")
        assert ask(studio, path, "POST", content=entry).status_code == 200
    return after


def test_a_brought_image_is_listed_predicted_corrected_and_there_after_a_restart(
    studio: Served, data: Path, tmp_path: Path
) -> None:
    before = {path: hash_content(path) for path in data.rglob("*.png")}
    known = ask(studio, "/api/images").json()
    content = picture(1)
    answer = bring(studio, "holiday/photo 1.png", content).json()
    assert (answer["name"], answer["is_new"]) == ("photo 1", True)
    assert stored(studio) == ["photo 1.png"]
    since = f"/api/images?since={known['revision']}&edits={known['edits']}"

    def is_predicted() -> bool:
        rows = {row[0]: row for row in ask(studio, since).json()["images"]}
        return answer["id"] in rows and rows[answer["id"]][4] is not None

    wait_until(is_predicted)
    image = studio.gallery.images[2]
    assert image.id == answer["id"]
    raster = accept(studio, 2)
    with serving_again(studio, data, tmp_path) as again:
        assert [each.name for each in again.gallery.images] == ["spot-0000", "spot-0001", "photo 1"]
        assert again.gallery.images[2].id == answer["id"]
        rows = ask(again, "/api/images").json()["images"]
        assert rows[2][8] == "accepted"
        assert not bring(again, "another name.png", content).json()["is_new"]
    ((part, _),) = open_divided(Data(path=studio.store.folder))
    (sample,) = part
    np.testing.assert_array_equal(sample.image, read_image(image.path))
    np.testing.assert_array_equal(sample.mask, mask_of(raster))
    assert {path: hash_content(path) for path in data.rglob("*.png")} == before


def serving_again(studio: Served, data: Path, tmp_path: Path) -> Any:
    """End one studio and start the next in the same folder."""
    studio.store.close()
    return serving(data, tmp_path / "corrections", red_finder())


NAMES = {
    "../../../etc/passwd.png": "passwd.png",
    "C:\\Users\\me\\x.png": "x.png",
    "a\0b.png": "a_b.png",
    "..png": None,
    "": None,
    ".hidden.png": "hidden.png",
    "con.png": "con_.png",
    "é" * 300 + ".png": "é" * 58 + ".png",
    "<img src=x onerror=alert(1)>.png": "_img src=x onerror=alert(1)_.png",
    "notes.txt": None,
    "spot-0000.png": "spot-0000-2.png",
}


def test_a_name_is_a_wish_and_never_a_place(studio: Served, tmp_path: Path) -> None:
    def files() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if "cache" not in path.parts}

    before = files()
    for seed, (name, wanted) in enumerate(NAMES.items()):
        kept = stored(studio)
        answer = bring(studio, name, picture(seed, size=(9, 9)))
        assert answer.status_code == (200 if wanted else 415), name
        assert {*stored(studio)} - {*kept} == ({wanted} if wanted else set())
    assert all("brought" in path.parts for path in files() - before)


def test_names_that_are_taken_get_a_number(studio: Served) -> None:
    names = ["x.png", "X.PNG", "x.jpg", "x.png"]
    said = [bring(studio, name, picture(seed)).json()["name"] for seed, name in enumerate(names)]
    assert said == ["x", "X-2", "x-3", "x-4"]
    assert len({image.id for image in studio.gallery.images}) == 6


BROKEN = {
    "empty": (b"", 400, "the body is empty"),
    "no image": (b"no image at all" * 99, 422, "the image that was sent"),
    "cut short": (picture()[:-5000], 422, ""),
    "bits flipped": (picture()[:3000] + bytes(3000) + picture()[6000:], 422, ""),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", 415, "is SVG"),
}


def test_a_broken_file_is_refused_and_leaves_nothing(studio: Served) -> None:
    for content, status, words in BROKEN.values():
        answer = bring(studio, "x.png", content)
        assert answer.status_code == status, answer.text
        assert words in error_of(answer)
        assert stored(studio) == []
    assert len(studio.gallery) == 2


def test_an_image_that_claims_more_pixels_than_the_page_holds_is_not_decoded(
    studio: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = io.BytesIO()
    Image.new("1", (8000, 8000)).save(bomb, "PNG")

    def decode(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(brought_module, "decode_image", decode)
    answer = bring(studio, "bomb.png", bomb.getvalue())
    assert answer.status_code == 413
    assert "8000x8000 pixels" in error_of(answer)


def test_what_is_there_already_is_passed_over_whatever_it_is_called(studio: Served) -> None:
    own = studio.gallery.images[0]
    answer = bring(studio, "renamed.png", own.path.read_bytes()).json()
    assert answer == {"id": own.id, "name": own.name, "is_new": False}
    first = bring(studio, "a.png", picture(5)).json()
    assert bring(studio, "b.png", picture(5)).json() == {**first, "is_new": False}
    assert stored(studio) == ["a.png"]


def test_there_is_an_end_to_how_much_is_kept(
    studio: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brought_module, "MOST_FILES", 1)
    assert bring(studio, "a.png", picture(1)).is_success
    answer = bring(studio, "b.png", picture(2))
    assert answer.status_code == 413
    assert "at most 1 of 50 GB are kept" in error_of(answer)
    assert bring(studio, "c.png", bytes(100_000_001)).status_code == 413
    assert stored(studio) == ["a.png"]


def test_an_upload_that_ends_halfway_leaves_nothing(studio: Served) -> None:
    content = picture()
    head = (
        f"POST /api/brought?name=x.png HTTP/1.1\r\nHost: 127.0.0.1:{studio.port}\r\n"
        f"Authorization: Bearer {studio.token}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", studio.port), timeout=PATIENCE) as client:
        client.sendall(head.encode() + content[: len(content) // 2])
    assert bring(studio, "y.png", picture(1)).is_success
    assert stored(studio) == ["y.png"]


def test_what_a_killed_studio_left_of_a_file_is_removed(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corrections" / "brought"
    (tmp_path / "corrections" / ".studio").mkdir(parents=True)
    folder.mkdir()
    (folder / ".x.png.abcdefgh").write_bytes(b"half")
    (folder / "whole.png").write_bytes(picture())
    with serving(data, tmp_path / "corrections") as studio:
        assert stored(studio) == ["whole.png"]
        assert len(studio.gallery) == 3


def test_a_full_disk_is_told(studio: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _: bytes) -> None:
        raise StorageError(f"{path}: could not be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(brought_module, "write_bytes", full)
        answer = bring(studio, "x.png", picture())
        assert answer.status_code == 507
        assert "No space left" in error_of(answer)
    assert len(studio.gallery) == 2
    assert bring(studio, "x.png", picture()).json()["is_new"]


def test_a_mask_a_cutout_and_outlines_can_be_taken_of_each_image(studio: Served) -> None:
    raster = accept(studio, 1)
    mask = mask_of(raster)
    answer = ask(studio, studio.path(1, "/mask"))
    wanted = "attachment; filename*=UTF-8''spot-0001-mask.png"
    assert answer.headers["content-disposition"] == wanted
    with Image.open(io.BytesIO(answer.content)) as file:
        np.testing.assert_array_equal(np.asarray(file), mask * np.uint8(255))
    answer = ask(studio, studio.path(1, "/cutout"))
    with Image.open(io.BytesIO(answer.content)) as file:
        pixels = np.asarray(file)
    np.testing.assert_array_equal(pixels[..., 3], mask * np.uint8(255))
    np.testing.assert_array_equal(pixels[..., :3], read_image(studio.gallery.images[1].path))
    outlines = ask(studio, studio.path(1, "/geojson")).json()
    assert sum(each["properties"]["area"] for each in outlines["features"]) == mask.sum()


def test_the_mask_is_the_one_in_the_data_until_somebody_corrects_it(studio: Served) -> None:
    image = studio.gallery.images[0]
    labels = image.labels()
    assert labels is not None
    with Image.open(io.BytesIO(ask(studio, studio.path(0, "/mask")).content)) as file:
        np.testing.assert_array_equal(np.asarray(file) > 0, labels.mask)
    accept(studio, 0)
    ask(studio, studio.path(0, "/journal"), "DELETE", json={})
    with (
        Image.open(io.BytesIO(ask(studio, studio.path(0, "/mask")).content)) as file,
        Image.open(studio.store.mask_path(image)) as accepted,
    ):
        np.testing.assert_array_equal(np.asarray(file) > 0, np.asarray(accepted) > 0)


def test_a_mask_of_another_size_makes_no_cutout(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "odd", 1, masks=1)
    Image.new("1", (30, 20)).save(folder / "masks" / "spot-0000.png")
    with serving(folder, tmp_path / "odd-corrections") as studio:
        answer = ask(studio, studio.path(0, "/cutout"))
        assert answer.status_code == 422
        assert "the mask in the data is 20x30, the image 300x340" in error_of(answer)


def test_accepted_masks_can_be_taken_in_every_format(studio: Served) -> None:
    assert ask(studio, "/api/datasets/coco").status_code == 409
    for name in ("nothing", "..", "coco.zip", "%2e%2e"):
        assert ask(studio, f"/api/datasets/{name}").status_code == 404
    bring(studio, "spot_0001.png", picture(3))
    rasters = {place: accept(studio, place) for place in (1, 2)}
    told = ask(studio, "/api/exchange").json()
    assert [each[0] for each in told["formats"]] == list(DATASETS)
    for name in DATASETS:
        answer = ask(studio, f"/api/datasets/{name}")
        assert answer.headers["content-type"] == "application/zip"
        assert f"corrected-{name}.zip" in answer.headers["content-disposition"]
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.testzip() is None
            assert ": 2 images" in archive.read("about.txt").decode()
            if name == "masks":
                found = {"masks/spot-0001.png": rasters[1], "masks/spot_0001.png": rasters[2]}
                for path, raster in found.items():
                    with Image.open(io.BytesIO(archive.read(path))) as file:
                        np.testing.assert_array_equal(np.asarray(file) > 0, mask_of(raster))


def test_an_image_whose_file_is_gone_is_left_out_and_said(studio: Served) -> None:
    for place in (0, 1):
        accept(studio, place)
    studio.gallery.images[0].path.unlink()
    content = ask(studio, "/api/datasets/folder").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert "images/spot-0001.png" in archive.namelist()
        assert "images/spot-0000.png" not in archive.namelist()
        assert "its file is gone: spot-0000" in archive.read("about.txt").decode()
