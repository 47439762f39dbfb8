"""Two models side by side: how much they differ, and the second one's masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from notan.errors import DivergedError
from notan.metrics.counts import Counts
from notan.studio.raster import mask_of, unpack_raster
from studio_runs import (
    SIZE,
    Served,
    red_finder,
    serving,
    wait_until,
    write_images,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("notan.studio.predictions.START_SECONDS", 0.0)


def ask(studio: Served, path: str, method: str = "GET", **more: Any) -> httpx.Response:
    where = path if path.startswith("http") else studio.url + path
    return httpx.request(method, where, headers=studio.headers, timeout=20.0, **more)


def compared(studio: Served, count: int) -> dict[str, list[Any]]:
    def rows() -> dict[str, list[Any]]:
        return {row[0]: row for row in ask(studio, "/api/compare").json()["images"]}

    wait_until(lambda: len(rows()) >= count)
    return rows()


def test_each_image_is_compared_and_what_is_new_is_told_once(tmp_path: Path) -> None:
    data = write_images(tmp_path / "cells", 3, masks=1)
    second = red_finder(threshold=0.8)
    with serving(data, tmp_path / "c", compare=second) as studio:
        rows = compared(studio, 3)
        for place, image in enumerate(studio.gallery.images):
            _, difference, expected, truth, fault = rows[image.id]
            one, other = (
                mask_of(unpack_raster(ask(studio, studio.path(place, rest)).content, SIZE))
                for rest in ("/model", "/other")
            )
            np.testing.assert_array_equal(other, second(image.path).mask)
            assert difference == pytest.approx(1 - Counts.of(other, one).dice, abs=1e-4)
            assert difference > 0.05
            assert 0.5 < expected < 1
            assert (truth is not None) == (place == 0)
            assert fault == ""
        told = ask(studio, "/api/compare").json()
        assert len(told["names"]) == 2
        since = f"/api/compare?since={told['revision']}"
        assert ask(studio, since).json()["images"] == []
        content = (data / "images" / "spot-0000.png").read_bytes() + b"more"
        answer = ask(studio, "/api/brought?name=x.png", "POST", content=content)
        assert answer.json()["is_new"]
        wait_until(lambda: bool(ask(studio, since).json()["images"]))


def test_the_same_model_twice_does_not_differ(tmp_path: Path) -> None:
    data = write_images(tmp_path / "cells", 2)
    with serving(data, tmp_path / "c", compare=red_finder()) as studio:
        assert {row[1] for row in compared(studio, 2).values()} == {0.0}


def test_a_second_model_that_fails_is_said_and_the_first_goes_on(tmp_path: Path) -> None:
    def diverges(_: Any) -> Any:
        raise DivergedError("the network returned NaN")

    data = write_images(tmp_path / "cells", 2)
    second = red_finder(threshold=0.8)
    second.backend = diverges  # type: ignore[assignment]
    with serving(data, tmp_path / "c", compare=second) as studio:
        rows = compared(studio, 2)
        assert all("NaN" in row[4] and row[1] is None for row in rows.values())
        assert ask(studio, studio.path(0, "/other")).status_code == 500
        assert ask(studio, studio.path(0, "/model")).is_success


def test_without_a_second_model_nothing_is_compared(tmp_path: Path) -> None:
    data = write_images(tmp_path / "cells", 1)
    with serving(data, tmp_path / "c") as studio:
        assert ask(studio, "/api/compare").json()["names"] is None
        answer = ask(studio, studio.path(0, "/other"))
        assert answer.status_code == 404
        assert "--compare" in answer.json()["error"]
        assert ask(studio, "/api/compare?since=x").json()["images"] == []
        assert ask(studio, studio.path(0, "/other")[:-7] + "none/other").status_code == 404
