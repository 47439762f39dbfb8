"""From an image to a model's input and back: sizes, values and places, whatever the size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from notan.errors import ShapeError
from notan.modelfile.preprocess import Placement, Preprocessor, pad, resize, resize_mask

if TYPE_CHECKING:
    from notan.types import Mask, Probability, RGBImage, Size

sizes = st.tuples(st.integers(1, 70), st.integers(1, 70))
strides = st.sampled_from([1, 2, 16, 64])
seeds = st.integers(0, 2**32 - 1)


def random_image(size: Size, seed: int = 0) -> RGBImage:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def random_map(size: Size, seed: int = 0) -> Probability:
    return np.random.default_rng(seed).random(size, dtype=np.float32)


def black_and_white(mask: Mask) -> RGBImage:
    return np.repeat(np.where(mask, np.uint8(255), np.uint8(0))[..., None], 3, axis=2)


def box_mask(size: Size, box: tuple[int, int, int, int]) -> Mask:
    mask = np.zeros(size, dtype=np.bool_)
    top, bottom, left, right = box
    mask[top:bottom, left:right] = True
    return mask


def extent(mask: Mask) -> npt.NDArray[np.float64]:
    """Return top, bottom, left and right of the foreground."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1], dtype=np.float64)


@settings(max_examples=60, deadline=None)
@given(size=sizes, image_size=st.none() | sizes, stride=strides, seed=seeds)
def test_an_input_is_a_multiple_of_the_stride_and_comes_back_in_its_own_size(
    size: Size, image_size: Size | None, stride: int, seed: int
) -> None:
    preprocessor = Preprocessor(image_size=image_size, stride=stride)
    array, placement = preprocessor(random_image(size, seed))
    assert placement == preprocessor.place(size)
    assert placement.original == size
    assert placement.resized == (image_size or size)
    for padded, resized in zip(placement.padded, placement.resized, strict=True):
        assert padded % stride == 0
        assert 0 <= padded - resized < stride
    assert array.shape == (3, *placement.padded)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    restored = placement.restore(random_map(placement.padded, seed))
    assert restored.shape == size
    assert restored.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(size=sizes, image_size=sizes, stride=strides, seed=seeds)
def test_a_restored_map_stays_in_the_range_of_its_values(
    size: Size, image_size: Size, stride: int, seed: int
) -> None:
    placement = Preprocessor(image_size=image_size, stride=stride).place(size)
    values = random_map(placement.padded, seed)
    restored = placement.restore(values)
    assert restored.min() >= values.min() - 1e-6
    assert restored.max() <= values.max() + 1e-6


@settings(max_examples=60, deadline=None)
@given(size=sizes, image_size=sizes, stride=strides, value=st.floats(0, 1, width=32))
def test_a_constant_map_comes_back_constant(
    size: Size, image_size: Size, stride: int, value: float
) -> None:
    placement = Preprocessor(image_size=image_size, stride=stride).place(size)
    constant = np.full(placement.padded, value, dtype=np.float32)
    np.testing.assert_allclose(placement.restore(constant), value, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(size=sizes, image_size=sizes, stride=strides)
def test_nothing_of_the_padding_comes_back(size: Size, image_size: Size, stride: int) -> None:
    placement = Preprocessor(image_size=image_size, stride=stride).place(size)
    values = np.full(placement.padded, np.nan, dtype=np.float32)
    values[: image_size[0], : image_size[1]] = 0.25
    np.testing.assert_allclose(placement.restore(values), 0.25, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(size=sizes, stride=strides, seed=seeds)
def test_a_map_of_an_image_that_kept_its_size_comes_back_untouched(
    size: Size, stride: int, seed: int
) -> None:
    placement = Preprocessor(image_size=None, stride=stride).place(size)
    values = random_map(placement.padded, seed)
    np.testing.assert_array_equal(placement.restore(values), values[: size[0], : size[1]])


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.1, 2)] * 3),
)
def test_normalising_is_the_textbook_formula(
    seed: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    image = random_image((5, 7), seed)
    array, _ = Preprocessor(image_size=None, mean=mean, std=std, stride=1)(image)
    expected = (image.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(array, expected.transpose(2, 0, 1), atol=1e-5)


def test_an_image_that_has_the_size_already_is_only_normalised() -> None:
    image = random_image((32, 48))
    fixed, own = (Preprocessor(image_size=size, stride=16) for size in ((32, 48), None))
    array, placement = fixed(image)
    assert placement == Placement(original=(32, 48), resized=(32, 48), padded=(32, 48))
    np.testing.assert_array_equal(array, fixed.normalize(image))
    np.testing.assert_array_equal(array, own(image)[0])
    assert resize(image, (32, 48)) is image


def test_padding_is_below_and_to_the_right_and_repeats_the_edge() -> None:
    image = random_image((3, 5))
    padded = pad(image, (8, 8))
    np.testing.assert_array_equal(padded[:3, :5], image)
    np.testing.assert_array_equal(padded[3:, :5], np.broadcast_to(image[2], (5, 5, 3)))
    np.testing.assert_array_equal(padded[:, 5:], np.repeat(padded[:, 4:5], 3, axis=1))
    preprocessor = Preprocessor(image_size=None, stride=8)
    np.testing.assert_array_equal(preprocessor(image)[0], preprocessor.normalize(padded))


@settings(max_examples=60, deadline=None)
@given(size=sizes, smaller=sizes, seed=seeds)
def test_shrinking_averages_areas_so_the_mean_stays(size: Size, smaller: Size, seed: int) -> None:
    values = random_map(size, seed)
    target = (min(size[0], smaller[0]), min(size[1], smaller[1]))
    assert resize(values, target).mean() == pytest.approx(values.mean(), abs=1e-4)


def test_shrinking_to_a_third_averages_nine_pixels() -> None:
    values = random_map((12, 18))
    nine = values.reshape(4, 3, 6, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resize(values, (4, 6)), nine, atol=1e-6)


@pytest.mark.parametrize("target", [(4, 128), (4, 64), (4, 16)])
def test_fine_stripes_turn_grey_whatever_the_other_side_does(target: Size) -> None:
    stripes = np.zeros((60, 64, 3), dtype=np.uint8)
    stripes[::2] = 255
    shrunk = resize(stripes, target)
    assert shrunk.shape == (*target, 3)
    assert shrunk.min() >= 255 * 7 // 15
    assert shrunk.max() <= 255 * 8 // 15 + 1


@settings(max_examples=60, deadline=None)
@given(size=sizes, image_size=st.none() | sizes, stride=strides, seed=seeds)
def test_a_mask_is_resized_as_its_image_is(
    size: Size, image_size: Size | None, stride: int, seed: int
) -> None:
    mask = random_map(size, seed) > 0.5
    preprocessor = Preprocessor(image_size=image_size, mean=(0, 0, 0), std=(1, 1, 1), stride=stride)
    array, placement = preprocessor(black_and_white(mask))
    resized = preprocessor.mask(mask)
    assert resized.shape == placement.padded
    assert resized.dtype == np.bool_
    rows, columns = placement.resized
    np.testing.assert_array_equal(resized[:rows, :columns], array[0, :rows, :columns] > 0.5)
    assert not resized[rows:].any()
    assert not resized[:, columns:].any()


@settings(max_examples=60, deadline=None)
@given(
    image_size=st.tuples(st.integers(16, 150), st.integers(16, 150)),
    box=st.tuples(st.integers(0, 20), st.integers(40, 60), st.integers(0, 20), st.integers(40, 50)),
)
def test_a_foreground_keeps_its_place_there_and_back(
    image_size: Size, box: tuple[int, int, int, int]
) -> None:
    """Edges land where the ratio of the sizes puts them, and return to where they were."""
    mask = box_mask((60, 50), box)
    preprocessor = Preprocessor(image_size=image_size, stride=16)
    ratio = np.repeat(np.array(image_size) / mask.shape, 2)
    there = preprocessor.mask(mask)
    np.testing.assert_allclose(extent(there), extent(mask) * ratio, atol=1.0)
    back = preprocessor.place((60, 50)).restore(there.astype(np.float32)) >= 0.5
    coarsest = max(1.0, float((1 / ratio).max()))
    np.testing.assert_allclose(extent(back), extent(mask), atol=coarsest)


@settings(max_examples=200, deadline=None)
@given(size=sizes, image_size=sizes, stride=strides)
def test_with_its_proportions_kept_an_image_fits_in_and_is_never_enlarged(
    size: Size, image_size: Size, stride: int
) -> None:
    preprocessor = Preprocessor(image_size=image_size, keep_aspect_ratio=True, stride=stride)
    placement = preprocessor.place(size)
    resized = placement.resized
    for side, own, most in zip(resized, size, image_size, strict=True):
        assert 1 <= side <= min(own, most)
    fits = size[0] <= image_size[0] and size[1] <= image_size[1]
    assert (resized == size) == fits
    if not fits:
        assert any(side == most for side, most in zip(resized, image_size, strict=True))
        # half a pixel's rounding of either side, and a line that would vanish stays one pixel
        assert abs(resized[0] * size[1] - resized[1] * size[0]) <= 0.5 * sum(size) + max(size)
    assert preprocessor.fit(resized) == resized
    assert placement.padded == Preprocessor(image_size=None, stride=stride).place(resized).padded
    assert placement.restore(random_map(placement.padded)).shape == size


def test_a_size_of_its_own_wins_over_proportions() -> None:
    assert Preprocessor(image_size=None, keep_aspect_ratio=True).fit((900, 7)) == (900, 7)


def test_a_pixel_half_covered_is_foreground() -> None:
    mask = np.array([[True, False, False, False], [True, False, False, False]])
    np.testing.assert_array_equal(resize_mask(mask, (1, 2)), [[True, False]])
    np.testing.assert_array_equal(resize_mask(mask, (1, 1)), [[False]])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3), dtype=np.float32), r"shape \(4, 4, 3\) and type float32"),
        (np.zeros((4, 4, 3), dtype=np.uint16), r"shape \(4, 4, 3\) and type uint16"),
        (np.zeros((4, 5), dtype=np.uint8), r"shape \(4, 5\) and type uint8"),
        (np.zeros((4, 4, 4), dtype=np.uint8), r"shape \(4, 4, 4\) and type uint8"),
        (np.zeros((3, 8, 8), dtype=np.uint8), r"shape \(3, 8, 8\)"),
        (np.zeros((0, 4, 3), dtype=np.uint8), r"shape \(0, 4, 3\)"),
    ],
)
def test_what_is_no_image_is_refused_with_what_was_wanted(
    image: npt.NDArray[np.generic], words: str
) -> None:
    with pytest.raises(ShapeError, match=words + ".*uint8 of shape .height, width, 3. is wanted"):
        Preprocessor()(image)  # type: ignore[arg-type]


def test_a_map_of_another_size_than_the_input_is_refused() -> None:
    placement = Preprocessor(image_size=(20, 20), stride=16).place((7, 9))
    with pytest.raises(ShapeError, match=r"shape \(20, 20\) came back.*\(32, 32\)"):
        placement.restore(np.zeros((20, 20), dtype=np.float32))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mean": (0.5,)}, "mean has 1 values for 3 channels"),
        ({"channels": 4}, "mean has 3 values for 4 channels"),
        ({"ranges": ((0, 1),)}, "ranges has 1 values for 3 channels"),
        ({"ranges": ((0, 1), (1, 1), (0, 1))}, "from its lower end to its upper"),
    ],
)
def test_a_card_whose_channels_disagree_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Preprocessor.model_validate(fields)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
def test_any_number_of_channels_is_resized_each_as_it_would_be_alone(channels: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (31, 47, channels), dtype=np.uint8)
    half = (0.5,) * channels
    preprocessor = Preprocessor(image_size=(16, 64), channels=channels, mean=half, std=half)
    array, _ = preprocessor(image)
    assert array.shape == (channels, 16, 64)
    one = Preprocessor(image_size=(16, 64), channels=1, mean=(0.5,), std=(0.5,))
    for number in range(channels):
        alone, _ = one(image[..., number : number + 1])
        np.testing.assert_array_equal(array[number], alone[0])
