from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from image_files import (
    FOREGROUND,
    VOC,
    Array,
    blurred,
    coloured,
    disc,
    grey,
    indexed,
    photo,
    saved,
)
from notan.errors import DataError
from notan.io.masks import read_mask

if TYPE_CHECKING:
    from pathlib import Path

# Masks that are accepted


def test_one_bit_masks_are_taken_as_they_are(tmp_path: Path) -> None:
    for suffix in ("png", "bmp", "tif", "pbm"):
        path = saved(tmp_path / f"mask.{suffix}", Image.fromarray(FOREGROUND))
        reading = read_mask(path)
        np.testing.assert_array_equal(reading.mask, FOREGROUND)
        assert reading.mask.dtype == np.bool_
        assert reading.encoding == "bool"


@pytest.mark.parametrize(
    ("background", "foreground", "dtype", "encoding"),
    [
        (0, 1, np.uint8, "0/1"),
        (0, 255, np.uint8, "0/255"),
        (0, 128, np.uint8, "0/128"),
        (0, 7, np.uint8, "0/7"),
        (0, 1, np.uint16, "0/1"),
        (0, 255, np.uint16, "0/255"),
        (0, 65535, np.uint16, "0/65535"),
        (0, 65535, np.int32, "0/65535"),
        (0, 1, np.float32, "0/1"),
        (0, 255, np.float32, "0/255"),
        (0, 0.5, np.float32, "0/0.5"),
        (0, 0, np.uint8, "empty"),
        (0, 0, np.float32, "empty"),
        (1, 1, np.uint8, "full"),
        (1, 1, np.uint16, "full"),
        (255, 255, np.uint8, "full"),
        (65535, 65535, np.uint16, "full"),
        (1, 1, np.float32, "full"),
    ],
)
def test_two_grey_values_are_read(
    tmp_path: Path, background: float, foreground: float, dtype: Any, encoding: str
) -> None:
    path = grey(tmp_path / "mask.tif", np.where(FOREGROUND, foreground, background), dtype)
    reading = read_mask(path)
    assert reading.encoding == encoding
    expected = {"empty": FOREGROUND & False, "full": FOREGROUND | True}.get(encoding, FOREGROUND)
    np.testing.assert_array_equal(reading.mask, expected)


@pytest.mark.parametrize("value", [False, True])
def test_one_bit_masks_of_one_value_are_empty_or_full(tmp_path: Path, value: bool) -> None:
    path = saved(tmp_path / "mask.png", Image.fromarray(np.full((3, 4), value)))
    assert read_mask(path).encoding == ("full" if value else "empty")


def test_a_palette_of_greys_is_read_by_its_greys(tmp_path: Path) -> None:
    path = indexed(tmp_path / "mask.png", ~FOREGROUND, [255, 255, 255, 0, 0, 0])
    assert read_mask(path).encoding == "0/255"
    np.testing.assert_array_equal(read_mask(path).mask, FOREGROUND)


@pytest.mark.parametrize("index", [1, 3])
def test_a_palette_of_colours_is_read_by_its_indices(tmp_path: Path, index: int) -> None:
    path = indexed(tmp_path / "mask.png", FOREGROUND * index, VOC)
    assert read_mask(path).encoding == f"palette 0/{index}"
    np.testing.assert_array_equal(read_mask(path).mask, FOREGROUND)


def test_a_palette_that_is_all_black_is_read_by_its_indices(tmp_path: Path) -> None:
    path = indexed(tmp_path / "mask.png", FOREGROUND * 1, [0] * 6)
    assert read_mask(path).encoding == "palette 0/1"
    np.testing.assert_array_equal(read_mask(path).mask, FOREGROUND)


def test_a_palette_may_hold_one_class_only(tmp_path: Path) -> None:
    assert read_mask(indexed(tmp_path / "a.png", FOREGROUND * 0, VOC)).encoding == "empty"
    assert read_mask(indexed(tmp_path / "b.png", FOREGROUND * 0 + 1, VOC)).encoding == "full"


def test_grey_stored_as_colour_is_read_as_grey(tmp_path: Path) -> None:
    path = coloured(tmp_path / "mask.png", FOREGROUND, (255, 255, 255))
    assert read_mask(path).encoding == "0/255"
    np.testing.assert_array_equal(read_mask(path).mask, FOREGROUND)


def test_black_and_one_colour_are_read(tmp_path: Path) -> None:
    path = coloured(tmp_path / "mask.png", FOREGROUND, (0, 0, 200))
    assert read_mask(path).encoding == "black/colour"
    np.testing.assert_array_equal(read_mask(path).mask, FOREGROUND)


@pytest.mark.parametrize("alpha", [0, 77, 255])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_constant_alpha_is_ignored(tmp_path: Path, mode: str, alpha: int) -> None:
    image = Image.fromarray(FOREGROUND.astype(np.uint8) * 255).convert(mode)
    image.putalpha(alpha)
    reading = read_mask(saved(tmp_path / "mask.png", image))
    assert reading.encoding == "0/255"
    np.testing.assert_array_equal(reading.mask, FOREGROUND)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "gif"])
def test_soft_edges_are_cut_at_half(tmp_path: Path, suffix: str) -> None:
    soft = blurred(disc())
    reading = read_mask(grey(tmp_path / f"mask.{suffix}", soft))
    assert reading.encoding == "soft edges, cut at half"
    clear = (soft < 80) | (soft > 175)
    np.testing.assert_array_equal(reading.mask[clear], (soft > 127)[clear])


def test_soft_edges_of_sixteen_bits_and_of_floats_are_cut_at_half(tmp_path: Path) -> None:
    soft = blurred(disc())
    deep = grey(tmp_path / "deep.png", soft.astype(np.uint16) * 257, np.uint16)
    fraction = grey(tmp_path / "fraction.tif", soft / np.float32(255), np.float32)
    for path in (deep, fraction):
        assert read_mask(path).encoding == "soft edges, cut at half"
        np.testing.assert_array_equal(read_mask(path).mask, soft > 127)


def test_a_jpeg_mask_is_read_through_its_noise(tmp_path: Path) -> None:
    large = np.kron(disc(), np.ones((4, 4), dtype=bool))
    for mode in ("L", "RGB"):
        image = Image.fromarray(large).convert(mode)
        reading = read_mask(saved(tmp_path / f"{mode}.jpg", image, quality=75))
        assert reading.encoding == "soft edges, cut at half"
        np.testing.assert_array_equal(reading.mask, large)


def test_an_empty_jpeg_mask_with_noise_is_empty(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 9, (64, 64))
    reading = read_mask(grey(tmp_path / "mask.jpg", noise, quality=95))
    assert not reading.mask.any()
    assert reading.encoding == "soft edges, cut at half"
    assert read_mask(grey(tmp_path / "zero.jpg", noise * 0)).encoding == "empty"


def test_colour_noise_of_a_jpeg_counts_as_grey(tmp_path: Path) -> None:
    pixels = np.repeat(np.where(disc(), 245, 5).astype(np.uint8)[..., None], 3, axis=2)
    pixels[..., 2] += 4
    reading = read_mask(saved(tmp_path / "mask.jpg", Image.fromarray(pixels), quality=95))
    np.testing.assert_array_equal(reading.mask, disc())
    with pytest.raises(DataError, match="holds colours"):
        read_mask(saved(tmp_path / "mask.png", Image.fromarray(pixels)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    mask=arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12)),
    way=st.sampled_from(["0/1", "0/255", "bool", "palette", "RGB", "0/65535", "float"]),
)
def test_any_mask_written_in_a_known_way_comes_back(tmp_path: Path, mask: Array, way: str) -> None:
    path = tmp_path / ("mask.tif" if way == "float" else "mask.png")
    if way == "palette":
        indexed(path, mask, VOC)
    elif way == "RGB":
        coloured(path, mask, (255, 255, 255))
    elif way == "bool":
        saved(path, Image.fromarray(mask))
    else:
        factor = {"0/1": 1, "0/255": 255, "0/65535": 65535, "float": 1}[way]
        dtype = {"0/65535": np.uint16, "float": np.float32}.get(way, np.uint8)
        grey(path, mask * np.asarray(factor, dtype=dtype), dtype)
    np.testing.assert_array_equal(read_mask(path).mask, mask)


# Masks that are refused


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 1, 255], "values 0, 1, 255; three values look like three classes; .* trimap"),
        ([0, 128, 255], "values 0, 128, 255; three values"),
        ([1, 2, 3], "values 1, 2, 3; three values"),
        ([1, 2], "values 1, 2; neither is 0"),
        ([128, 255], "values 128, 255; neither is 0"),
        ([7], "value 7; one value alone"),
        ([0, 1, 2, 3], "values 0, 1, 2, 3; that looks like instance labels"),
        (list(range(37)), r"values 0, 1, 2, 3, 4, 5, 6, 7, \.\.\. \(37 values\); that looks"),
        (list(range(0, 256, 5)), r"\(52 values\); that looks like instance labels"),
    ],
)
def test_ambiguous_grey_values_are_refused(tmp_path: Path, values: list[int], words: str) -> None:
    path = grey(tmp_path / "mask.png", [values])
    with pytest.raises(DataError, match=rf"mask\.png: not a mask of two classes: .* {words}"):
        read_mask(path)


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    path = grey(tmp_path / "mask.png", [[0, 1, 2, 3]])
    with pytest.raises(
        DataError, match=r"save it as a PNG of 0 \(background\) and 255 \(foreground\)"
    ):
        read_mask(path)


def test_instance_labels_on_a_wide_background_are_not_taken_for_soft_edges(tmp_path: Path) -> None:
    labels = np.zeros((100, 100), dtype=np.uint8)
    labels.ravel()[:500] = np.linspace(1, 255, 500)
    with pytest.raises(DataError, match="instance labels"):
        read_mask(grey(tmp_path / "mask.png", labels))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.0, 0.5, 1.0], "values 0, 0.5, 1; three values"),
        ([0.0, 0.3, 0.5, 0.7], "values 0, 0.3, 0.5, 0.7; that looks like"),
        ([0.5, 17.25], "values 0.5, 17.2; fractions are understood within 0..1"),
        ([0.0, float("nan")], "not all of them are numbers"),
        ([0.0, float("inf")], "not all of them are numbers"),
        ([-1.0, 0.0], "values -1, 0; a mask has no negative values"),
        ([0.7], "value 0.7; one value alone"),
    ],
)
def test_ambiguous_float_values_are_refused(
    tmp_path: Path, values: list[float], words: str
) -> None:
    path = grey(tmp_path / "mask.tif", [values], np.float32)
    with pytest.raises(DataError, match=words):
        read_mask(path)


@pytest.mark.parametrize(
    ("indices", "colours", "words"),
    [
        ([0, 1, 2], VOC, "palette indices 0, 1, 2; two classes are index 0 and one other"),
        ([1, 2], VOC, "palette indices 1, 2"),
        ([2], VOC, "palette indices 2"),
        ([0, 1], [255, 0, 0, 0, 0, 0], "index 1 in black and index 0 in #ff0000; .* disagree"),
        ([0], [255, 0, 0], "palette indices 0"),
    ],
)
def test_ambiguous_palettes_are_refused(
    tmp_path: Path, indices: list[int], colours: list[int], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read_mask(indexed(tmp_path / "mask.png", [indices], colours))


def test_several_colours_are_refused(tmp_path: Path) -> None:
    pixels = np.array([[[0, 0, 0], [255, 0, 0], [0, 255, 0]]], dtype=np.uint8)
    three = saved(tmp_path / "three.png", Image.fromarray(pixels))
    with pytest.raises(DataError, match=r"three\.png: .* colours #000000, #00ff00, #ff0000; two"):
        read_mask(three)
    two = saved(tmp_path / "two.png", Image.fromarray(pixels[:, 1:]))
    with pytest.raises(DataError, match="colours #00ff00, #ff0000; two classes are black"):
        read_mask(two)
    one = saved(tmp_path / "one.png", Image.fromarray(pixels[:, 1:2]))
    with pytest.raises(DataError, match="colour #ff0000; two classes"):
        read_mask(one)
    with pytest.raises(DataError, match=r"#.*, \.\.\. \(600 colours\)|\(600 values\)"):
        read_mask(saved(tmp_path / "photo.png", Image.fromarray(photo())))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_varying_alpha_is_refused(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (3, 2))
    image.putalpha(Image.fromarray(FOREGROUND.astype(np.uint8) * 200))
    with pytest.raises(DataError, match=r"a transparency that varies \(0 to 200\); either"):
        read_mask(saved(tmp_path / "mask.png", image))


@pytest.mark.parametrize("quality", [75, 90, 100])
def test_a_jpeg_that_may_be_a_ruined_mask_of_0_and_1_is_refused(
    tmp_path: Path, quality: int
) -> None:
    path = grey(tmp_path / "mask.jpg", disc(), quality=quality)
    with pytest.raises(DataError, match="either noise or a ruined mask of 0 and 1"):
        read_mask(path)


def test_a_grey_photograph_is_refused(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    for suffix in ("jpg", "png"):
        with pytest.raises(DataError, match="or an image"):
            read_mask(grey(tmp_path / f"photo.{suffix}", ramp))
