"""Augmentation: what every transform keeps to, and what each one does and leaves alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise_samples import FIT, OUT, once, random_sample, to
from notan.config import Augment
from notan.data.samples import Sample
from notan.data.transforms import (
    Blur,
    BrightnessContrast,
    Colour,
    Geometry,
    GridDropout,
    Matrix,
    OwnPipeline,
    Transform,
    augment,
    build_transforms,
)
from notan.modelfile.preprocess import Preprocessor

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from notan.types import Mask, RGBImage, Size

STILL = Augment(
    scale_probability=0,
    flip_probability=0,
    affine_scale=0,
    translate=0,
    rotate_degrees=0,
    crop_probability=0,
    brightness_contrast_probability=0,
    grid_dropout_probability=0,
)
ALWAYS = Augment(
    scale_probability=1,
    flip_probability=1,
    crop_probability=1,
    brightness_contrast_probability=1,
    grid_dropout_probability=1,
)
seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 70), st.integers(1, 70))


def still(**changes: float) -> Augment:
    return STILL.model_copy(update=changes)


def turned(image: RGBImage, mask: Mask) -> dict[str, Any]:
    return {"image": np.rot90(image), "mask": np.rot90(mask)}


TRANSFORMS: dict[type[Transform[Any]], Callable[[Augment], Transform[Any]]] = {
    Geometry: lambda augment: Geometry(augment, FIT),
    BrightnessContrast: BrightnessContrast,
    GridDropout: GridDropout,
    OwnPipeline: lambda _: OwnPipeline(turned, FIT),
    Colour: lambda _: Colour(),
    Blur: lambda _: Blur(),
}
every_transform = pytest.mark.parametrize("kind", TRANSFORMS, ids=lambda kind: kind.__name__)


def blob_sample(size: Size, centre: tuple[float, float], radius: float) -> Sample:
    """One white disc on black; its mask and its ignored area are the disc."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    mask: Mask = np.hypot(columns - centre[0], rows - centre[1]) <= radius
    return Sample("blob", np.repeat(np.uint8(255) * mask[..., None], 3, axis=2), mask, mask.copy())


def assert_same(one: Sample, other: Sample) -> None:
    assert one.name == other.name
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_equal(one.ignore, other.ignore)


def test_every_transform_there_is_keeps_the_contract_below() -> None:
    assert set(TRANSFORMS) == set(Transform.__subclasses__())
    built = {type(transform) for transform in build_transforms(Augment(), FIT)}
    assert built == set(TRANSFORMS) - {OwnPipeline, Colour, Blur}
    assert build_transforms(Augment(enabled=False), FIT) == ()


@every_transform
@settings(max_examples=15, deadline=None)
@given(size=sizes, seed=seeds, ignore=st.booleans())
def test_the_same_draw_gives_the_same_sample(
    kind: type[Transform[Any]], size: Size, seed: int, ignore: bool
) -> None:
    transform, sample = TRANSFORMS[kind](ALWAYS), random_sample(size, seed, ignore=ignore)
    before = random_sample(size, seed, ignore=ignore)
    draw = transform.draw(np.random.default_rng(seed), size)
    result = transform.apply(sample, draw)
    assert_same(result, transform.apply(sample, draw))
    assert_same(result, once(TRANSFORMS[kind](ALWAYS), sample, seed))
    assert_same(sample, before)
    assert result.name == "cat"
    assert result.image.dtype == np.uint8
    assert result.image.shape == (*result.size, 3)
    assert result.mask.dtype == np.bool_
    assert (result.ignore is None) == (not ignore)
    assert result.ignore is None or result.ignore.dtype == np.bool_
    if kind in (Geometry, OwnPipeline):
        assert result.size == OUT
    else:
        assert result.mask is sample.mask
        assert result.ignore is sample.ignore


@pytest.mark.parametrize(
    "kind", [Geometry, BrightnessContrast, GridDropout], ids=lambda kind: kind.__name__
)
def test_another_draw_gives_another_sample(kind: type[Transform[Any]]) -> None:
    transform, sample = TRANSFORMS[kind](ALWAYS), random_sample((64, 64))
    results = {once(transform, sample, seed).image.tobytes() for seed in range(6)}
    assert len(results) >= 5


@settings(max_examples=60, deadline=None)
@given(size=sizes, seed=seeds)
def test_geometry_moves_image_mask_and_ignored_area_alike(size: Size, seed: int) -> None:
    mask = np.random.default_rng(seed).random(size) > 0.5
    white = np.repeat(np.where(mask, np.uint8(255), np.uint8(0))[..., None], 3, axis=2)
    result = once(Geometry(ALWAYS, FIT), Sample("cat", white, mask, mask.copy()), seed)
    np.testing.assert_array_equal(result.image[..., 0] >= 128, result.mask)
    np.testing.assert_equal(result.ignore, result.mask)


@settings(max_examples=80, deadline=None)
@given(
    seed=seeds,
    size=st.tuples(st.integers(60, 130), st.integers(60, 130)),
    where=st.tuples(st.floats(0.45, 0.55), st.floats(0.45, 0.55)),
)
def test_geometry_puts_a_foreground_where_its_matrix_says(
    seed: int, size: Size, where: tuple[float, float]
) -> None:
    centre = (where[0] * size[1], where[1] * size[0])
    geometry = Geometry(Augment(translate=0.05, crop_probability=0), to((64, 80)))
    matrix = geometry.draw(np.random.default_rng(seed), size)
    result = geometry.apply(blob_sample(size, centre, min(size) / 8), matrix)
    expected_x, expected_y, _ = matrix @ (*centre, 1.0)
    # the foreground itself, not its mirror images beyond the image's edges
    _, parts = cv2.connectedComponents(result.mask.astype(np.uint8))
    rows, columns = np.nonzero(parts == parts[int(expected_y), int(expected_x)])
    assert columns.mean() + 0.5 == pytest.approx(expected_x, abs=1.0)
    assert rows.mean() + 0.5 == pytest.approx(expected_y, abs=1.0)


@pytest.mark.parametrize("size", [OUT, (64, 80), (65, 43), (33, 300), (500, 41)])
def test_without_variation_geometry_shrinks_as_the_preprocessor_does(size: Size) -> None:
    sample = random_sample(size, ignore=True)
    result = once(Geometry(STILL, FIT), sample)
    plain = Preprocessor(image_size=OUT, mean=(0, 0, 0), std=(1, 1, 1), stride=1)
    expected = plain(sample.image)[0].transpose(1, 2, 0) * 255
    np.testing.assert_allclose(result.image, expected, atol=1.01)
    np.testing.assert_array_equal(result.mask, plain.mask(sample.mask))
    assert sample.ignore is not None
    np.testing.assert_array_equal(result.ignore, plain.mask(sample.ignore))


@pytest.mark.parametrize("size", [(16, 20), (20, 24), (64, 20)])
def test_without_variation_geometry_enlarges_as_the_preprocessor_does(size: Size) -> None:
    sample = random_sample(size)
    result = once(Geometry(STILL, FIT), sample)
    plain = Preprocessor(image_size=OUT, mean=(0, 0, 0), std=(1, 1, 1), stride=1)
    expected = plain(sample.image)[0].transpose(1, 2, 0) * 255
    # a warp knows places to 1/32 pixel only
    np.testing.assert_allclose(result.image, expected, atol=255 / 32)


def test_with_every_probability_at_zero_the_image_is_left_alone() -> None:
    sample = random_sample(OUT, ignore=True)
    assert_same(augment(sample, build_transforms(STILL, FIT), np.random.default_rng(0)), sample)


def test_a_flip_alone_mirrors_left_and_right() -> None:
    sample = random_sample(OUT)
    result = once(Geometry(still(flip_probability=1), FIT), sample)
    np.testing.assert_array_equal(result.image, sample.image[:, ::-1])
    np.testing.assert_array_equal(result.mask, sample.mask[:, ::-1])


@pytest.mark.parametrize(("size", "quarters"), [((40, 40), {1, 2, 3}), ((40, 30), {2})])
def test_quarter_turns_change_no_pixel(size: Size, quarters: set[int]) -> None:
    sample, rng = random_sample(size, ignore=True), np.random.default_rng(0)
    assert sample.ignore is not None
    geometry, seen = Geometry(still(quarter_turn_probability=1), to(size)), set()
    for _ in range(20):
        result = geometry.apply(sample, geometry.draw(rng, size))
        ways = [
            each for each in (1, 2, 3) if np.array_equal(np.rot90(sample.image, each), result.image)
        ]
        seen.update(ways)
        np.testing.assert_array_equal(np.rot90(sample.mask, ways[0]), result.mask)
        np.testing.assert_array_equal(np.rot90(sample.ignore, ways[0]), result.ignore)
    assert seen == quarters


def matrices(augment: Augment, size: Size, count: int = 400) -> npt.NDArray[np.float64]:
    """Draw matrices of a geometry that ends at the image's own size."""
    rng, geometry = np.random.default_rng(0), Geometry(augment, to(size))
    drawn: list[Matrix] = [geometry.draw(rng, size) for _ in range(count)]
    return np.stack(drawn)


def test_zooms_keep_to_their_range_and_to_the_centre() -> None:
    for zoomed in (still(scale=0.2, scale_probability=1), still(affine_scale=0.2)):
        drawn = matrices(zoomed, (60, 90))
        zooms = drawn[:, 0, 0]
        np.testing.assert_allclose(drawn[:, 1, 1], zooms)
        assert 0.8 <= zooms.min() < 0.81
        assert 1.19 < zooms.max() <= 1.2
        np.testing.assert_allclose(drawn @ [45, 30, 1], np.tile([45, 30, 1], (400, 1)))


def test_rotations_keep_to_their_range_and_change_no_lengths() -> None:
    drawn = matrices(still(rotate_degrees=30), (60, 90))
    degrees = np.degrees(np.arctan2(drawn[:, 1, 0], drawn[:, 0, 0]))
    assert -30 <= degrees.min() < -29
    assert 29 < degrees.max() <= 30
    np.testing.assert_allclose(np.linalg.norm(drawn[:, :2, :2], axis=1), 1)
    np.testing.assert_allclose(drawn @ [45, 30, 1], np.tile([45, 30, 1], (400, 1)))


def test_shifts_are_a_share_of_width_and_height() -> None:
    drawn = matrices(still(translate=0.1), (60, 90))
    for axis, furthest in ((0, 9), (1, 6)):
        shifts = drawn[:, axis, 2]
        assert -furthest <= shifts.min() < -0.95 * furthest
        assert 0.95 * furthest < shifts.max() <= furthest


@pytest.mark.parametrize("least", [0.2, 0.8, 0.95, 1.0])
def test_a_crop_keeps_its_share_of_the_area_and_stays_inside(least: float) -> None:
    size = (60, 90)
    back = np.linalg.inv(matrices(still(crop_area=least, crop_probability=1), size))
    top_left, bottom_right = back @ [0, 0, 1], back @ [90, 60, 1]
    assert top_left.min() >= -1e-9
    assert (bottom_right[:, :2] <= np.array([90, 60]) + 1e-9).all()
    areas = np.prod((bottom_right - top_left)[:, :2], axis=1) / (60 * 90)
    assert areas.min() >= least - 1e-9
    assert areas.max() <= 1 + 1e-9


@settings(max_examples=40, deadline=None)
@given(seed=seeds, shrunk=st.integers(20, 60))
def test_shrinking_a_fine_chequerboard_gives_grey_and_not_stripes(seed: int, shrunk: int) -> None:
    rows, columns = np.mgrid[:128, :128]
    board = np.repeat((255 * ((rows + columns) % 2)).astype(np.uint8)[..., None], 3, axis=2)
    sample = Sample("board", board, np.ones((128, 128), dtype=np.bool_))
    # zooming in only as far as the warp still shrinks
    augment = Augment(scale=0.1, affine_scale=0.1)
    result = once(Geometry(augment, to((shrunk, shrunk))), sample, seed)
    inside = cv2.erode(result.mask.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0) > 0
    assert inside.any()
    assert np.abs(result.image[inside].astype(int) - 127).max() <= 32


def test_light_scales_and_shifts_grey_levels_and_clips() -> None:
    sample = random_sample((8, 8), ignore=True)
    light = BrightnessContrast(Augment())
    for contrast, offset in ((1.2, 51.0), (0.8, -51.0), (1.0, 0.0), (1.13, -7.7)):
        result = light.apply(sample, (contrast, offset))
        expected = np.clip(np.rint(sample.image.astype(float) * contrast + offset), 0, 255)
        np.testing.assert_array_equal(result.image, expected)
        np.testing.assert_array_equal(result.mask, sample.mask)


def test_light_draws_from_its_ranges_as_often_as_it_is_told() -> None:
    light = BrightnessContrast(
        Augment(brightness=0.2, contrast=0.1, brightness_contrast_probability=0.5)
    )
    rng = np.random.default_rng(0)
    drawn = [light.draw(rng, (8, 8)) for _ in range(2000)]
    pairs = np.array([pair for pair in drawn if pair is not None])
    assert 900 < len(pairs) < 1100
    low, high = pairs.min(axis=0), pairs.max(axis=0)
    assert (low >= [0.9, -51]).all()
    assert (high <= [1.1, 51]).all()
    np.testing.assert_allclose([low, high], [[0.9, -51], [1.1, 51]], rtol=0.02)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("size", [(256, 256), (200, 320), (1000, 300)])
def test_grid_dropout_blackens_its_share_of_the_image_and_no_mask(size: Size, ratio: float) -> None:
    white = Sample("white", np.full((*size, 3), 255, np.uint8), np.ones(size, dtype=np.bool_))
    dropout = GridDropout(Augment(grid_dropout_ratio=ratio, grid_dropout_probability=1))
    results = [once(dropout, white, seed) for seed in range(8)]
    black = [float((result.image == 0).all(axis=2).mean()) for result in results]
    assert np.mean(black) == pytest.approx(ratio**2, abs=0.04)
    assert len({result.image.tobytes() for result in results}) > 1, "the grid never moved"
    for result in results:
        assert set(np.unique(result.image)) == {0, 255}
        assert result.mask.all()


def test_grid_dropout_never_blackens_all_of_a_tiny_image() -> None:
    dropout = GridDropout(Augment(grid_dropout_ratio=0.99, grid_dropout_probability=1))
    image = np.full((2, 2, 3), 255, np.uint8)
    result = once(dropout, Sample("tiny", image, np.ones((2, 2), dtype=np.bool_)))
    assert (result.image == 0).all(axis=2).sum() == 1
    nothing = GridDropout(Augment(grid_dropout_ratio=0, grid_dropout_probability=1))
    assert nothing.draw(np.random.default_rng(0), (64, 64)) is None


def test_what_lies_outside_the_image_is_its_mirror_image() -> None:
    sample = random_sample(OUT, ignore=True)
    shifted = Geometry(STILL, FIT).apply(sample, np.array([[1, 0, 5], [0, 1, 0], [0, 0, 1.0]]))
    for part in ("image", "mask", "ignore"):
        before, after = getattr(sample, part), getattr(shifted, part)
        np.testing.assert_array_equal(after[:, 5:], before[:, :-5])
        np.testing.assert_array_equal(after[:, :5], before[:, :5][:, ::-1])
