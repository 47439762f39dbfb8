"""Cutting by colour and edges to snap to: what the server says, and what broken requests get."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from notan.studio import edges as edges_module
from notan.studio.edges import edges_of, grab
from notan.studio.raster import as_text, from_text
from studio_runs import Served, disc, error_of, serving, write_images

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.types import RGBImage

PATIENCE = 20.0
SIZE = (120, 140)
DEEP, DOT = 1, 2
"""Places of the image of 16 bits a channel and of the one of one pixel."""


def two_coloured(noise: int = 12) -> tuple[RGBImage, npt.NDArray[np.bool_]]:
    """Return a noisy image of a disc on another colour, and the disc."""
    thing = disc(SIZE, 60, 70, 30)
    plain = np.where(thing[..., np.newaxis], (200, 70, 50), (60, 120, 100))
    random = np.random.default_rng(0)
    noisy = plain + random.integers(-noise, noise + 1, plain.shape)
    return noisy.clip(0, 255).astype(np.uint8), thing


def scribbled(mask: npt.NDArray[np.bool_], where: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Return the labels of a scribble that adds to a mask."""
    return np.where(where & ~mask, 3, mask).astype(np.uint8)


def test_a_scribble_beyond_a_thing_takes_in_the_thing_alone() -> None:
    pixels, thing = two_coloured()
    labels = scribbled(np.zeros(SIZE, np.bool_), disc(SIZE, 62, 68, 45))
    found, step = grab(pixels, labels)
    assert step == 1
    np.testing.assert_array_equal(found, thing)
    np.testing.assert_array_equal(grab(pixels, labels)[0], found)


def test_what_is_certain_stays_whatever_its_colour() -> None:
    pixels, thing = two_coloured()
    wrong = np.zeros(SIZE, np.bool_)
    wrong[:10] = True
    removing = np.where(disc(SIZE, 60, 70, 40), 2 * thing, thing | wrong).astype(np.uint8)
    found, _ = grab(pixels, removing)
    assert found[:10].all()
    assert not found[removing == 0].any()


@pytest.mark.parametrize("label", [0, 1, 2, 3])
def test_where_nothing_is_there_to_tell_it_from_all_stays_as_it_is_labelled(label: int) -> None:
    for size in ((1, 1), (2, 3), (40, 40)):
        pixels = np.zeros((*size, 3), np.uint8)
        found, _ = grab(pixels, np.full(size, label, np.uint8))
        assert (found == (label & 1)).all()


def test_a_large_crop_is_told_apart_at_a_smaller_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges_module, "MOST_CUT_PIXELS", 5000)
    pixels, thing = two_coloured()
    found, step = grab(pixels, scribbled(np.zeros(SIZE, np.bool_), disc(SIZE, 62, 68, 45)))
    assert step == 2
    assert (found != thing).sum() < 0.06 * thing.sum()
    speck = np.zeros(SIZE, np.uint8)
    speck[61, 71] = 3
    np.testing.assert_array_equal(grab(pixels, speck)[0], speck == 3)


def test_edges_lie_on_the_corners_between_pixels() -> None:
    pixels = np.full((20, 30, 3), 40, np.uint8)
    pixels[5:15, 8:22] = (40, 90, 40)
    edges = edges_of(pixels)
    assert edges.shape == (21, 31)
    assert edges[10].argmax() in (8, 22)
    assert edges[10, 8] > 1.2 * edges[10, 7]
    assert edges[5, 15] == edges[10, 8] == edges[10, 22] == edges[15, 15]
    assert not edges[:, [0, -1]].any()
    assert not edges[[0, -1]].any()
    strips = np.tile(pixels, (60, 1, 1))  # more rows than are computed at once
    np.testing.assert_array_equal(
        edges_of(strips)[10:1190, 8], np.tile(edges_of(strips)[10:30, 8], 59)
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_the_smallest_images_have_edges_too(size: tuple[int, int]) -> None:
    assert edges_of(np.zeros((*size, 3), np.uint8)).shape == (size[0] + 1, size[1] + 1)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("studio")
    data = write_images(folder / "cells", 1, SIZE)
    pixels, _ = two_coloured()
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(data / "images" / "x-deep.png")
    Image.fromarray(np.full((1, 1, 3), 9, np.uint8)).save(data / "images" / "y-dot.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTAN_CACHE", str(folder / "cache"))
        with serving(data, folder / "cells-corrections") as served:
            yield served


def crop_of(labels: npt.NDArray[np.uint8], left: int = 0, top: int = 0) -> dict[str, Any]:
    packed = as_text(zlib.compress(labels.tobytes()))
    height, width = labels.shape
    return {"left": left, "top": top, "width": width, "height": height, "labels": packed}


def ask(studio: Served, place: int, content: bytes | dict[str, Any]) -> httpx.Response:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    where = studio.path(place, "/cut")
    return httpx.post(where, headers=studio.headers, content=body, timeout=PATIENCE)


def foreground_of(answer: httpx.Response, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    bits = np.frombuffer(zlib.decompress(from_text(answer.json()["foreground"])), np.uint8)
    return np.unpackbits(bits, count=size[0] * size[1]).reshape(size).astype(np.bool_)


def test_a_crop_of_an_image_of_sixteen_bits_is_cut(studio: Served) -> None:
    _, thing = two_coloured()
    labels = scribbled(np.zeros(SIZE, np.bool_), disc(SIZE, 62, 68, 45))[10:110, 20:130]
    answer = ask(studio, DEEP, crop_of(labels, left=20, top=10))
    assert answer.status_code == 200, answer.text
    assert answer.json()["step"] == 1
    np.testing.assert_array_equal(foreground_of(answer, labels.shape), thing[10:110, 20:130])


def test_an_image_of_one_pixel_is_cut_and_has_edges(studio: Served) -> None:
    answer = ask(studio, DOT, crop_of(np.full((1, 1), 3, np.uint8)))
    assert foreground_of(answer, (1, 1)).all()
    edges = httpx.get(studio.path(DOT, "/edges"), headers=studio.headers, timeout=PATIENCE)
    assert zlib.decompress(edges.content) == bytes(4)


GOOD = crop_of(np.zeros((4, 5), np.uint8))
BOMB = as_text(zlib.compress(bytes(30_000_000)))
BROKEN: tuple[tuple[str, dict[str, Any] | bytes, int], ...] = (
    ("no JSON", b"{", 400),
    ("no object", b"[1]", 400),
    ("nothing", b"{}", 400),
    ("NaN", json.dumps({**GOOD, "left": float("nan")}).encode(), 400),
    ("infinite", json.dumps({**GOOD, "width": float("inf")}).encode(), 400),
    ("a fraction", {**GOOD, "left": 0.5}, 400),
    ("text", {**GOOD, "top": "0"}, 400),
    ("a truth", {**GOOD, "top": True}, 400),
    ("negative", {**GOOD, "left": -1}, 400),
    ("empty", {**GOOD, "width": 0}, 400),
    ("a stranger", {**GOOD, "path": "/etc/passwd"}, 400),
    ("labels of another kind", {**GOOD, "labels": [0] * 20}, 400),
    ("out of the image", {**GOOD, "left": 136}, 422),
    ("below it", {**GOOD, "top": SIZE[0]}, 422),
    ("huge", {**GOOD, "width": 10**12, "height": 10**12}, 422),
    ("no base64", {**GOOD, "labels": "%%"}, 422),
    ("not compressed", {**GOOD, "labels": as_text(b"0" * 20)}, 422),
    ("too few", {**GOOD, "height": 5}, 422),
    ("a bomb", {**GOOD, "labels": BOMB}, 422),
    ("no such label", crop_of(np.full((4, 5), 4, np.uint8)), 422),
)


@pytest.mark.parametrize(
    ("content", "status"), [each[1:] for each in BROKEN], ids=[each[0] for each in BROKEN]
)
def test_a_broken_request_is_told_so_in_one_line(
    studio: Served, content: dict[str, Any] | bytes, status: int
) -> None:
    answer = ask(studio, 0, content)
    assert answer.status_code == status, answer.text
    assert 10 < len(error_of(answer)) < 200
    assert ask(studio, 0, GOOD).status_code == 200
