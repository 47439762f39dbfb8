"""One image from Python: a path, bytes, a Pillow image, an array, and nothing else."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from image_files import photo, saved
from notan.errors import DataError, ShapeError
from notan.modelfile.preprocess import Preprocessor
from notan.prediction.predictor import Predictor, as_image

if TYPE_CHECKING:
    from pathlib import Path


def sideways(path: Path) -> Path:
    """An image that its EXIF turns by a quarter."""
    exif = Image.Exif()
    exif[274] = 6
    return saved(path, Image.fromarray(photo()), exif=exif)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_every_kind_of_image_is_the_same_upright_image(tmp_path: Path, suffix: str) -> None:
    path = sideways(tmp_path / f"a.{suffix}")
    upright = as_image(path)
    assert upright.shape == (30, 20, 3)
    if suffix != "webp":
        np.testing.assert_array_equal(upright, np.rot90(photo(), 3))
    for thing in (str(path), path.read_bytes(), bytearray(path.read_bytes()), Image.open(path)):
        np.testing.assert_array_equal(as_image(thing), upright)
    np.testing.assert_array_equal(as_image(upright), upright)


def test_a_pillow_image_that_was_opened_is_not_changed(tmp_path: Path) -> None:
    with Image.open(sideways(tmp_path / "a.png")) as image:
        as_image(image)
        assert image.size == (30, 20)
        np.testing.assert_array_equal(as_image(image), np.rot90(photo(), 3))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_a_pillow_image_of_any_mode_is_read_as_from_a_file(tmp_path: Path, mode: str) -> None:
    grey = np.asarray(Image.fromarray(photo()).convert("L"))
    image = (
        Image.fromarray(grey.astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(photo()).convert(mode)
    )
    path = saved(tmp_path / "a.tif", image)
    np.testing.assert_array_equal(as_image(image), as_image(path))


def test_an_array_of_grey_or_with_alpha_is_taken_as_files_are() -> None:
    grey = photo()[..., 0]
    np.testing.assert_array_equal(as_image(grey), np.dstack([grey] * 3))
    with_alpha = np.dstack([photo(), np.zeros((20, 30), np.uint8)])
    np.testing.assert_array_equal(as_image(with_alpha), photo())


def test_a_view_of_an_array_is_as_good_as_a_copy() -> None:
    predictor = Predictor(lambda inputs: inputs[:, :1], Preprocessor(image_size=None))
    flipped = photo()[::-1, ::-1, ::-1]
    np.testing.assert_array_equal(
        predictor(flipped).probability, predictor(flipped.copy()).probability
    )


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((8, 8, 2), np.uint8), r"shape \(8, 8, 2\) and type uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"channels come last: array\.transpose\(1, 2, 0\)"),
        (np.zeros((8, 8, 3), np.float32), r"give \(array \* 255\)\.round\(\)"),
        (np.zeros((8, 8), np.bool_), r"array\.astype\('uint8'\) \* 255"),
        (np.zeros((8, 8), np.uint16), r"give \(array / 257\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "several to predict_many"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 of shape \(height, width, 3\) is wanted"),
        (np.zeros(8, np.uint8), r"uint8 of shape \(height, width, 3\) is wanted"),
        (np.zeros((8, 8, 3), np.int64), r"uint8 of shape \(height, width, 3\) is wanted"),
    ],
)
def test_another_array_is_refused_with_advice(array: Any, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        as_image(array)


@pytest.mark.parametrize("thing", [None, 7, [[1, 2]], {"a": 1}])
def test_what_holds_no_image_is_refused(thing: Any) -> None:
    with pytest.raises(ShapeError, match=f"a {type(thing).__name__} was given as an image"):
        as_image(thing)


def test_what_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: there is no such file"):
        as_image(str(tmp_path / "gone.jpg"))
    with pytest.raises(DataError, match="the bytes that were given: begins with b'text'"):
        as_image(b"text")
    with pytest.raises(DataError, match="the bytes that were given: is empty"):
        as_image(b"")
    path = saved(tmp_path / "cut.png", Image.fromarray(photo()))
    path.write_bytes(path.read_bytes()[:99])
    with (
        Image.open(path) as image,
        pytest.raises(DataError, match=r"cut\.png: is damaged or cut short"),
    ):
        as_image(image)


def test_a_pillow_image_of_too_large_a_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notan.io.images.MAX_PIXELS", 599)
    with pytest.raises(DataError, match=r"the Pillow image that was given: .* 600 pixels"):
        as_image(Image.fromarray(photo()))


def test_the_predictor_takes_all_of_them(tmp_path: Path, small_checkpoint: Path) -> None:
    predictor = Predictor.load(str(small_checkpoint))
    path = saved(tmp_path / "a.png", Image.fromarray(photo()))
    wanted = predictor(photo()).probability
    for thing in (path, str(path), path.read_bytes(), Image.open(path), photo()):
        np.testing.assert_array_equal(predictor(thing).probability, wanted)


def test_a_file_like_object_is_refused_with_what_is_wanted() -> None:
    with pytest.raises(ShapeError, match=r"a BytesIO was given.*the bytes of a file"):
        as_image(io.BytesIO(b"x"))  # type: ignore[arg-type]
