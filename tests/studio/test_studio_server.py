"""The studio's server: who may ask, what an id may be, and what the page is told."""

from __future__ import annotations

import io
import os
import re
import socket
import time
import zlib
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import Route

from notan.config import Data, Masks
from notan.errors import ConfigError, DivergedError, StorageError
from notan.io.digest import hash_content
from notan.prediction.pixels import probability_image
from notan.studio import store as store_module
from notan.studio.predictions import Predictions, prune, read_kept
from notan.studio.raster import checksum, mask_of, unpack_raster
from notan.studio.running import opened
from notan.studio.server import page_files
from studio_runs import (
    SIZE,
    Served,
    error_of,
    painted,
    red_finder,
    serving,
    stroke_between,
    write_images,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from notan.studio.raster import MaskRaster

PATIENCE = 20.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "cells", 5, masks=2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what is predicted in a folder of the test's own, and begin to predict at once."""
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("notan.studio.predictions.START_SECONDS", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def studio(data: Path, tmp_path: Path) -> Iterator[Served]:
    with serving(data, tmp_path / "corrections") as served:
        yield served


def ask(studio: Served, path: str, method: str = "GET", **more: Any) -> httpx.Response:
    where = path if path.startswith("http") else studio.url + path
    return httpx.request(method, where, headers=studio.headers, timeout=PATIENCE, **more)


def wait_for_predictions(studio: Served, count: int) -> list[list[Any]]:
    until = time.monotonic() + PATIENCE
    while True:
        images: list[list[Any]] = ask(studio, "/api/images").json()["images"]
        if sum(row[4] is not None or row[7] != "" for row in images) >= count:
            return images
        assert time.monotonic() < until, images
        time.sleep(0.05)


def send(studio: Served, entry: Any, version: int, place: int = 0) -> httpx.Response:
    path = studio.path(place, f"/entries?version={version}")
    return ask(studio, path, "POST", content=entry.model_dump_json())


def begin(studio: Served, origin: str = "model", place: int = 0) -> MaskRaster:
    answer = ask(studio, studio.path(place, "/journal"), "POST", json={"origin": origin})
    assert answer.status_code == 200, answer.text
    image = studio.gallery.images[place]
    return studio.store.open(image).raster()


def routes_of(data: Path, tmp_path: Path) -> list[tuple[str, str]]:
    with opened(red_finder(), Data(path=data), tmp_path / "for-routes") as studio:
        app = studio.app()
        assert isinstance(app, Starlette)
        return [
            (method, route.path.format(image=studio.gallery.images[0].id, name="main.js"))
            for route in app.routes
            if isinstance(route, Route)
            for method in route.methods or ()
        ]


def test_nobody_is_let_in_anywhere_without_the_token(
    studio: Served, data: Path, tmp_path: Path
) -> None:
    routes = routes_of(data, tmp_path)
    assert len(routes) > 12
    wrong: tuple[dict[str, str], ...] = (
        {},
        {"authorization": "Bearer wrong"},
        {"cookie": f"notan-{studio.port}=x"},
    )
    foreign = [{"origin": each} for each in ("null", "http://evil.test", "https://127.0.0.1")]
    foreign += [{"host": f"evil.test:{studio.port}"}, {"sec-fetch-site": "cross-site"}]
    with httpx.Client(base_url=studio.url, timeout=PATIENCE) as client:
        for method, path in routes:
            for headers in wrong:
                answer = client.request(method, path, headers=headers)
                assert answer.status_code == 401, (method, path)
                assert not [name for name in answer.headers if name.startswith("access-control")]
            for headers in foreign:
                answer = client.request(method, path, headers={**studio.headers, **headers})
                assert answer.status_code == 403, (method, path, headers)


def test_the_address_is_good_once_and_gives_a_cookie_that_scripts_cannot_read(
    studio: Served,
) -> None:
    with httpx.Client(follow_redirects=True) as browser:
        page = browser.get(studio.one_time)
        assert page.status_code == 200
        assert str(page.url) == f"{studio.url}/"
        assert "<title>notan studio</title>" in page.text
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
    assert httpx.get(studio.one_time).status_code == 401


HOSTILE = (
    *("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%252e%252e", ".", "..", "a/../../b"),
    *("C:%5Cx", "%5C%5Chost%5Cs", "%00", "f" * 300, "%E2%88%95etc", "0" * 16, "main.js/", "%2e"),
    *("studio.css%00.js", "/etc/passwd", "....//", "index.html/../../server.py"),
)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_id_names_nothing(studio: Served, name: str) -> None:
    # byte for byte: a client of HTTP would tidy the paths up
    for path in (f"/page/{name}", f"/api/images/{name}", f"/api/images/{name}/pixels"):
        request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{studio.port}\r\nConnection: close\r\n"
            f"Authorization: Bearer {studio.token}\r\n\r\n"
        )
        status = raw(studio.port, request.encode()).split(b" ", 2)[1]
        assert status in (b"404", b"400"), (path, status)


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(request)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    return answer


def test_the_page_is_a_fixed_table_of_files_and_small(studio: Served) -> None:
    found = page_files()
    assert {"index.html", "style.css", "main.js"} <= set(found)
    assert sum(len(zlib.compress(content, 9)) for content, _ in found.values()) < 80_000
    for name, (content, kind) in found.items():
        answer = ask(studio, f"/page/{name}")
        assert answer.content == content
        assert answer.headers["content-type"] == kind
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert b"http://" not in content.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in content
    ids = re.findall(rb'\bid="([^"]+)"', found["index.html"][0])
    assert len(ids) == len(set(ids))


def test_an_image_is_told_with_its_mask_probability_and_truth(studio: Served) -> None:
    image = studio.gallery.images[0]
    about = ask(studio, studio.path(0)).json()
    assert (about["height"], about["width"]) == SIZE
    assert about["journal"] is None
    assert about["has_truth"]
    prediction = red_finder()(image.path)
    pixels = ask(studio, studio.path(0, "/pixels"))
    assert pixels.headers["content-type"] == "image/png"
    with Image.open(image.path) as file, Image.open(io.BytesIO(pixels.content)) as sent:
        np.testing.assert_array_equal(np.asarray(sent), np.asarray(file))
    probability = zlib.decompress(ask(studio, studio.path(0, "/probability")).content)
    assert probability == probability_image(prediction.probability).tobytes()
    model = unpack_raster(ask(studio, studio.path(0, "/model")).content, SIZE)
    np.testing.assert_array_equal(mask_of(model), prediction.mask)
    labels = image.labels()
    assert labels is not None
    truth = unpack_raster(ask(studio, studio.path(0, "/truth")).content, SIZE)
    np.testing.assert_array_equal(mask_of(truth), labels.mask)
    assert ask(studio, studio.path(4, "/truth")).status_code == 204
    small = ask(studio, studio.path(0, "/thumbnail"))
    line = ask(studio, studio.path(0, "/outline"))
    with (
        Image.open(io.BytesIO(small.content)) as file,
        Image.open(io.BytesIO(line.content)) as drawn,
    ):
        assert max(file.size) == 320
        assert drawn.size == file.size
        opaque = np.asarray(drawn)[..., 3] == 255
        assert 0 < opaque.mean() < 0.1


def test_all_images_are_predicted_in_the_background_and_kept(
    data: Path, tmp_path: Path, cache: Path
) -> None:
    with serving(data, tmp_path / "c") as studio:
        rows = wait_for_predictions(studio, 5)
        scores = [(row[1], row[4], row[5]) for row in rows]
        assert [row[2] for row in rows] == [True, True, False, False, False]
        assert all(0.5 < expected < 1 for _, expected, _ in scores)
        assert [true is not None for *_, true in scores] == [True, True, False, False, False]
        about = ask(studio, "/api/images").json()
        known = f"/api/images?since={about['revision']}&edits={about['edits']}"
        assert ask(studio, known).json()["images"] == ([] if about["revision"] else rows)

    def fails(_: object) -> None:
        raise AssertionError("it was predicted already")

    again = red_finder()
    again.backend = fails  # type: ignore[assignment]
    with serving(data, tmp_path / "c", again) as studio:
        rows = wait_for_predictions(studio, 5)
        assert [(row[1], row[4], row[5]) for row in rows] == scores
    kept = list((cache / "studio" / "predictions").rglob("*.prediction"))
    assert len(kept) == 5
    for path in kept:
        path.write_bytes(path.read_bytes()[:50])
    assert read_kept(kept[0]) is None
    with serving(data, tmp_path / "c") as studio:
        assert wait_for_predictions(studio, 5)[0][4] == scores[0][1]


def test_masks_that_are_read_in_another_way_have_another_true_dice(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "cells", 1, masks=1)
    with Image.open(folder / "masks" / "spot-0000.png") as mask:
        truth = np.asarray(mask).astype(np.uint8)
    truth[: SIZE[0] // 2] *= 2  # two classes, of which either may be the foreground
    Image.fromarray(truth).save(folder / "masks" / "spot-0000.png")
    found = []
    for chosen in ((1, 2), (1,), (1, 2)):
        data = Data(path=folder, masks=Masks(foreground=chosen))
        with serving(folder, tmp_path / "c", data=data) as studio:
            wait_for_predictions(studio, 1)
            found.append(ask(studio, studio.path(0)).json()["true_dice"])
    assert found[0] is not None
    assert found[1] is not None
    assert found[0] > found[1] + 0.1
    assert found[2] == found[0]


def test_a_mask_of_another_size_is_no_truth_and_is_said(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "cells", 1, masks=1)
    Image.new("1", (30, 20)).save(folder / "masks" / "spot-0000.png")
    with serving(folder, tmp_path / "c") as studio:
        assert ask(studio, studio.path(0)).json()["true_dice"] is None
        answer = ask(studio, studio.path(0, "/truth"))
        assert answer.status_code == 422
        assert "the mask in the data is 20x30, the image 300x340" in error_of(answer)
        begun = ask(studio, studio.path(0, "/journal"), "POST", json={"origin": "mask"})
        assert begun.status_code == 422


def test_what_the_data_leave_out_of_the_score_is_told(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "cells", 1)
    (folder / "masks").mkdir()
    values = np.zeros(SIZE, np.uint8)
    values[50:100], values[100:120] = 1, 255
    Image.fromarray(values).save(folder / "masks" / "spot-0000.png")
    data = Data(path=folder, masks=Masks(foreground=(1,), ignore=(255,)))
    with serving(folder, tmp_path / "c", data=data) as studio:
        truth = unpack_raster(ask(studio, studio.path(0, "/truth")).content, SIZE)
        np.testing.assert_array_equal(truth, np.select([values == 1, values == 255], [1, 2], 0))
        assert not (begin(studio, "mask") & 2).any()


def test_an_image_that_cannot_be_used_says_why_and_stops_no_other(
    tmp_path: Path,
) -> None:
    folder = write_images(tmp_path / "cells", 3)
    (folder / "images" / "spot-0001.png").write_bytes(b"no image at all")
    page = "<img src=x onerror=alert(1)>"
    (folder / "images" / "spot-0000.png").rename(folder / "images" / f"{page}.png")
    with serving(folder, tmp_path / "c") as studio:
        rows = {row[1]: row for row in wait_for_predictions(studio, 3)}
        assert "spot-0001.png" in rows["spot-0001"][7]
        assert rows[page][4] is not None
        place = [image.name for image in studio.gallery.images].index("spot-0001")
        for rest in ("", "/pixels", "/thumbnail", "/model"):
            answer = ask(studio, studio.path(place, rest))
            assert answer.status_code == 422
            assert "spot-0001.png" in error_of(answer)


def test_strokes_come_in_and_an_accepted_mask_is_written(studio: Served, data: Path) -> None:
    before = {path: hash_content(path) for path in data.rglob("*.png")}
    raster = begin(studio, "mask")
    for number in range(3):
        after = painted(raster, number)
        answer = send(studio, stroke_between(raster, after, number), number)
        assert answer.json() == {"version": number + 1, "state": "draft"}
        raster = after
    image = studio.gallery.images[0]
    entry = {"op": "accept", "id": "acceptit", "checksum": checksum(raster)}
    path = studio.path(0, "/entries?version=3")
    wrong = ask(studio, path, "POST", json={**entry, "checksum": 5})
    assert wrong.status_code == 409
    assert not studio.store.mask_path(image).exists()
    assert ask(studio, path, "POST", json=entry).json() == {"version": 4, "state": "accepted"}
    with Image.open(studio.store.mask_path(image)) as mask:
        np.testing.assert_array_equal(np.asarray(mask) > 0, mask_of(raster))
    states = {row[0]: row[8] for row in ask(studio, "/api/images").json()["images"]}
    assert states[image.id] == "accepted"
    changed = stroke_between(raster, painted(raster, 4), 4)
    assert send(studio, changed, 4).json()["state"] == "changed"
    held = ask(studio, studio.path(0)).json()["journal"]
    assert (held["version"], len(held["applied"]), held["origin"]) == (5, 4, "mask")
    assert ask(studio, studio.path(0, "/journal"), "DELETE", json={}).json() == {
        "state": "accepted"
    }
    assert ask(studio, studio.path(0)).json()["journal"] is None
    assert {path: hash_content(path) for path in data.rglob("*.png")} == before


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{}", 400),
        (b"[]", 400),
        (b'{"origin": "mask", "path": "/etc/passwd"}', 400),
        (b'{"origin": "../../etc"}', 400),
        (b'{"origin": "mask"}', 422),
        (b"\xff", 400),
    ],
)
def test_a_beginning_that_there_is_not_is_refused(
    studio: Served, content: bytes, status: int
) -> None:
    answer = ask(studio, studio.path(4, "/journal"), "POST", content=content)
    assert answer.status_code == status, answer.text
    assert not studio.store.has_journal(studio.gallery.images[4])


def test_what_is_no_entry_is_refused(studio: Served) -> None:
    raster = begin(studio)
    path = studio.path(0, "/entries?version=")
    stroke = stroke_between(raster, painted(raster, 1), 1)
    assert ask(studio, f"{path}0", "POST", content=b"x").status_code == 422
    assert ask(studio, f"{path}x", "POST", content=stroke.model_dump_json()).status_code == 400
    assert ask(studio, f"{path}7", "POST", content=stroke.model_dump_json()).status_code == 409
    assert ask(studio, f"{path}0", "POST", content=bytes(2**26)).status_code == 413
    assert send(studio, stroke, 0, place=1).status_code == 409
    assert send(studio, stroke, 0).status_code == 200


def test_a_disk_that_takes_nothing_is_told_and_the_same_entry_works_later(
    studio: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    raster = begin(studio)
    after = painted(raster, 1)
    send(studio, stroke_between(raster, after, 1), 0)
    entry = {"op": "accept", "id": "acceptit", "checksum": checksum(after)}
    path, image = studio.path(0, "/entries?version=1"), studio.gallery.images[0]

    def full(path: Path, _: bytes) -> None:
        raise StorageError(f"{path}: could not be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_bytes", full)
        answer = ask(studio, path, "POST", json=entry)
        assert answer.status_code == 507
        assert "No space left" in error_of(answer)
        assert studio.store.row(image) is None
    assert ask(studio, path, "POST", json=entry).json() == {"version": 2, "state": "accepted"}
    assert studio.store.mask_path(image).is_file()


def test_a_network_that_diverges_is_a_fault_of_its_image(tmp_path: Path) -> None:
    broken = red_finder()

    def nan(_: Any) -> Any:
        raise DivergedError("the network returned NaN")

    broken.backend = nan  # type: ignore[assignment]
    with serving(write_images(tmp_path / "cells", 1), tmp_path / "c", broken) as studio:
        assert "NaN" in wait_for_predictions(studio, 1)[0][7]


def test_a_corrections_folder_among_the_data_is_refused(data: Path) -> None:
    for folder in (data, data / "masks", data / "new"):
        refused = pytest.raises(ConfigError, match="lies in the data folder")
        with refused, opened(red_finder(), Data(path=data), folder):
            pass


def test_the_cache_forgets_what_is_oldest(tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "deep" / f"{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))
    prune(tmp_path, 250)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["2", "3"]


def test_what_is_on_the_screen_is_predicted_first(data: Path, tmp_path: Path) -> None:
    with opened(red_finder(), Data(path=data), tmp_path / "c") as studio:
        gallery = studio.gallery
    seen: list[tuple[int, ...]] = []
    predictor = red_finder()
    predictions = Predictions(predictor, gallery, tmp_path / "fresh")

    def note(inputs: Any) -> Any:
        seen.append(inputs.shape)
        return inputs[:, :1]

    predictor.backend = note
    predictions.saw(gallery.images[4])
    predictions._run()
    assert len(seen) == 5
    by_revision = sorted(gallery.images, key=lambda image: predictions.outlook(image).revision)
    assert by_revision[0] is gallery.images[4]
