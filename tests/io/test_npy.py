"""NPY files: what numpy.save wrote is read as an image, or named as what it is."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from notan.errors import DataError, UnsupportedError
from notan.io.headers import read_contents, read_size
from notan.io.images import ImageReading, read_image
from notan.io.masks import read_mask

if TYPE_CHECKING:
    from pathlib import Path

LEVELS = np.random.default_rng(1).integers(0, 256, (20, 30, 4), dtype=np.uint8)


def saved(path: Path, values: Any) -> Path:
    np.save(path, values)
    return path


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("first", [False, True])
def test_channels_may_be_first_or_last_and_bytes_in_rows_or_columns(
    tmp_path: Path, channels: int, *, first: bool, by_columns: bool
) -> None:
    values = LEVELS[..., :channels]
    stored = values.transpose(2, 0, 1) if first else values
    path = saved(tmp_path / "a.npy", np.asarray(stored, order="F" if by_columns else "C"))
    image = read_image(path, ImageReading(channels=channels))
    np.testing.assert_array_equal(image, values)
    assert read_size(path) == (20, 30)
    assert read_contents(path).channels == ((1, 3) if channels == 1 else (channels,))


def test_a_plane_is_grey_and_widened_where_colours_are_wanted(tmp_path: Path) -> None:
    path = saved(tmp_path / "grey.npy", LEVELS[..., 0])
    np.testing.assert_array_equal(read_image(path), np.repeat(LEVELS[..., :1], 3, axis=2))


def test_a_mask_may_be_an_array_too(tmp_path: Path) -> None:
    mask = LEVELS[..., 0] > 128
    for values in (mask, mask.astype(np.int64), mask.astype(np.float32)):
        np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.npy", values)).mask, mask)
    with pytest.raises(DataError, match=r"4 channels.*--mask-channel 3"):
        read_mask(saved(tmp_path / "m.npy", LEVELS))


@pytest.mark.parametrize(
    "shape", [(20,), (4, 4, 4), (64, 64, 64), (40, 90, 90), (2, 20, 30, 3), (4, 30, 4)]
)
def test_axes_that_could_be_either_are_refused_with_the_remedy(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = saved(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UnsupportedError, match=r"unclear which axes.*tifffile\.imwrite"):
        read_size(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((9, 9), np.complex64), "complex64; wanted numbers or bool"),
        (np.zeros((9, 9), "U3"), "wanted numbers or bool"),
        (np.array([[{}, None]], dtype=object), "object; wanted numbers or bool"),
        (np.zeros((9, 9), [("red", "u1")]), "wanted numbers or bool"),
        (np.zeros((9, 9), [("\u7ea2", "u1")]), r"NPY of version 3\.0"),
        (np.zeros((0, 9), np.uint8), "at least 1x1"),
    ],
)
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_what_is_no_image_is_named(tmp_path: Path, values: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_image(saved(tmp_path / "a.npy", values))


def test_an_array_that_is_cut_short_or_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", LEVELS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"a\.npy: is cut short \(2,399 of 2,400 bytes"):
        read_image(path, ImageReading(channels=4))
    for length in (0, 6, 9, 40, 100):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.npy"):
            read_image(path, ImageReading(channels=4))
    claim = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(claim, header)
    path.write_bytes(claim.getvalue())
    with pytest.raises(DataError, match=r"1,000,000,000,000 bytes"):
        read_image(path)
