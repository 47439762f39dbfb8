"""Postprocessing: calibration, masks and their expected Dice, against slow references."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.special import expit

from notan.modelfile.postprocess import (
    Postprocessing,
    dice_threshold,
    foretold_dice,
    foretold_dice_of_each,
    label_components,
    logit,
    sigmoid,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from notan.types import Mask, Probability


def random_map(seed: int, size: tuple[int, int], sharp: float = 2.0) -> Probability:
    """Return smooth blobs of probability, as a network's are."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=size), min(size) / 8)
    field = (field - field.mean()) / (field.std() + 1e-9)
    return np.asarray(expit(sharp * field), dtype=np.float32)


def exact_expectation(probability: Probability, mask: Mask) -> float:
    """Go through every truth there can be."""
    chance, taken = probability.ravel().astype(float), mask.ravel()
    total = 0.0
    for truth in itertools.product((False, True), repeat=chance.size):
        foreground = np.array(truth)
        both = 2 * np.count_nonzero(foreground & taken)
        whole = np.count_nonzero(foreground) + np.count_nonzero(taken)
        total += float(np.prod(np.where(foreground, chance, 1 - chance))) * (
            both / whole if whole else 1.0
        )
    return total


def sampled_expectation(probability: Probability, mask: Mask, draws: int = 4000) -> float:
    rng = np.random.default_rng(0)
    truths = rng.random((draws, *probability.shape)) < probability
    both = 2 * (truths & mask).sum(axis=(1, 2))
    return float(np.mean(both / (truths.sum(axis=(1, 2)) + mask.sum())))


def test_a_decision_of_nothing_is_a_threshold_of_a_half() -> None:
    probability = random_map(0, (20, 30))
    plain = Postprocessing()
    assert plain.calibrate(probability) is probability
    np.testing.assert_array_equal(plain.mask(probability), probability >= 0.5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), temperature=st.floats(0.3, 5.0), bias=st.floats(-3.0, 3.0))
def test_calibration_moves_logits_and_keeps_the_order(
    seed: int, temperature: float, bias: float
) -> None:
    probability = random_map(seed, (9, 11), sharp=2)
    calibrated = Postprocessing(temperature=temperature, bias=bias).calibrate(probability)
    expected = expit(np.log(probability / (1 - probability.astype(float))) / temperature + bias)
    np.testing.assert_allclose(calibrated, expected, atol=3e-4)  # float32 near 1 is that coarse
    order = np.argsort(probability.ravel(), kind="stable")
    assert (np.diff(calibrated.ravel()[order]) >= 0).all()
    assert calibrated.dtype == np.float32


def test_certainty_stays_finite() -> None:
    probability = np.array([[0.0, 1.0, 0.5]], np.float32)
    assert np.isfinite(logit(probability)).all()
    calibrated = Postprocessing(temperature=2.0).calibrate(probability)
    assert 0 < calibrated[0, 0] < 0.001
    assert 0.999 < calibrated[0, 1] < 1
    np.testing.assert_allclose(
        sigmoid(logit(random_map(1, (8, 8)))), random_map(1, (8, 8)), atol=1e-6
    )


@pytest.mark.parametrize("seed", range(6))
def test_the_foretold_dice_is_that_over_all_truths(seed: int) -> None:
    probability = random_map(seed, (3, 4))
    for threshold in (0.2, 0.5, 0.8):
        mask = probability >= threshold
        exact = exact_expectation(probability, mask)
        assert foretold_dice(probability, mask) == pytest.approx(exact, abs=0.03)
    nothing = np.zeros((3, 4), np.bool_)
    assert foretold_dice(probability, nothing) == pytest.approx(
        exact_expectation(probability, nothing), abs=1e-9
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_foretold_dice_of_an_image_is_that_of_drawn_truths(seed: int) -> None:
    probability = random_map(seed, (24, 30))
    mask = probability >= 0.4
    sampled = sampled_expectation(probability, mask)
    assert foretold_dice(probability, mask) == pytest.approx(sampled, abs=0.002)


def test_sure_and_right_is_expected_to_be_perfect() -> None:
    mask = np.zeros((10, 12), np.bool_)
    mask[2:6, 3:9] = True
    assert foretold_dice(mask.astype(np.float32), mask) == 1
    assert foretold_dice(mask.astype(np.float32), ~mask) == 0
    assert foretold_dice(np.zeros((4, 4), np.float32), np.zeros((4, 4), np.bool_)) == 1


@pytest.mark.parametrize("seed", range(6))
def test_the_dice_optimal_cut_is_the_best_of_all_cuts(seed: int) -> None:
    probability = random_map(seed, (17, 23), sharp=1.0 + seed) * np.float32(0.9)
    chosen = foretold_dice(probability, probability >= dice_threshold(probability))
    best = max(foretold_dice(probability, probability >= cut) for cut in np.unique(probability))
    assert chosen == pytest.approx(best, abs=1e-4)


def test_the_dice_optimal_cut_lies_at_half_the_dice_that_it_reaches() -> None:
    """Lipton et al. 2014: so where a network is unsure everywhere, the cut is below a half."""
    probability = random_map(3, (60, 60), sharp=1.0)
    threshold = dice_threshold(probability)
    reached = foretold_dice(probability, probability >= threshold)
    assert threshold == pytest.approx(reached / 2, abs=0.01)
    mask = Postprocessing(threshold_rule="dice").mask(probability)
    np.testing.assert_array_equal(mask, probability >= threshold)


def test_where_foreground_is_unlikely_everywhere_the_best_mask_is_empty() -> None:
    probability = np.full((5, 5), 0.001, np.float32)
    assert not Postprocessing(threshold_rule="dice").mask(probability).any()
    assert Postprocessing(threshold_rule="dice").mask(np.full((1, 1), 0.9, np.float32)).all()
    assert Postprocessing(threshold_rule="dice").mask(np.ones((2, 2), np.float32)).all()


def specks_and_holes() -> npt.NDArray[np.bool_]:
    """A block of 20x20 with a hole of 2x2 and one of 4x4, a speck of 1 and one of 3x3."""
    mask = np.zeros((40, 50), np.bool_)
    mask[5:25, 5:25] = True
    mask[8:10, 8:10] = False
    mask[14:18, 14:18] = False
    mask[30, 30] = True
    mask[33:36, 40:43] = True
    return mask


def test_small_components_go_and_the_others_stay_as_they_are() -> None:
    mask = specks_and_holes()
    changed = Postprocessing(min_component_fraction=4 / mask.size).postprocess(mask)
    assert not changed[30, 30]
    np.testing.assert_array_equal(changed[31:], mask[31:])
    np.testing.assert_array_equal(changed[:26], mask[:26])


def test_small_holes_are_filled_and_large_ones_and_the_edge_are_not() -> None:
    mask = specks_and_holes()
    changed = Postprocessing(fill_holes_fraction=5 / mask.size).postprocess(mask)
    assert changed[8:10, 8:10].all()
    assert not changed[14:18, 14:18].any()
    assert Postprocessing(fill_holes_fraction=0.9).postprocess(mask)[14:18, 14:18].all()
    corner = np.ones((10, 10), np.bool_)
    corner[0, 0] = False
    np.testing.assert_array_equal(
        Postprocessing(fill_holes_fraction=0.5).postprocess(corner), corner
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), density=st.floats(0.0, 1.0))
def test_the_largest_component_is_what_scipy_finds(seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((13, 17)) < density
    labels, number = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=number + 1)[1:]
    changed = Postprocessing(keep_largest=True).postprocess(mask)
    assert np.count_nonzero(changed) == max(areas, default=0)
    assert len(set(labels[changed])) <= 1
    assert not (changed & ~mask).any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), smallest=st.floats(0, 0.3), hole=st.floats(0, 0.3))
def test_postprocessing_twice_changes_nothing_more(seed: int, smallest: float, hole: float) -> None:
    mask = random_map(seed, (21, 18), sharp=5) > 0.5
    rule = Postprocessing(
        min_component_fraction=smallest, fill_holes_fraction=hole, min_foreground_fraction=0.2
    )
    changed = rule.postprocess(mask)
    np.testing.assert_array_equal(rule.postprocess(changed), changed)


def test_a_mask_that_covers_too_little_is_left_empty() -> None:
    mask = np.zeros((20, 10), np.bool_)
    mask[0, :4] = mask[10, :4] = True  # 8 of 200 pixels
    assert Postprocessing(min_foreground_fraction=0.04).postprocess(mask).sum() == 8
    assert not Postprocessing(min_foreground_fraction=0.041).postprocess(mask).any()
    # what other rules leave is what counts
    rule = Postprocessing(keep_largest=True, min_foreground_fraction=0.021)
    assert not rule.postprocess(mask).any()


def test_an_empty_mask_is_expected_to_be_right_where_little_foreground_is_left() -> None:
    """An image with any has 0.2 of it: by Markov's inequality so many can be there at most."""
    nothing = np.zeros((100, 80), np.bool_)
    rule = Postprocessing(min_foreground_fraction=0.02, review_below=0.5)
    for chance, expected in ((0.001, 0.995), (0.01, 0.95), (0.15, 0.25), (0.3, 0.0)):
        probability = np.full(nothing.shape, chance, np.float32)
        assert rule.expected_dice(probability, nothing) == pytest.approx(expected, abs=1e-6)
        # independent pixels would never leave so large an image empty
        assert Postprocessing().expected_dice(probability, nothing) < 0.001
    assert not rule.needs_review(0.95)
    some = np.zeros_like(nothing)
    some[:50] = True
    probability = np.where(some, np.float32(0.9), np.float32(0.1))
    alone = Postprocessing().expected_dice(probability, some)
    assert rule.expected_dice(probability, some) == alone


def test_rules_for_a_part_of_an_image_are_for_its_pixels() -> None:
    whole = Postprocessing(
        threshold=0.3,
        min_component_fraction=0.2,
        fill_holes_fraction=0.1,
        min_foreground_fraction=0.04,
        keep_largest=True,
    )
    assert whole.in_parts(1.0) is whole
    assert Postprocessing(threshold=0.3).in_parts(0.1) == Postprocessing(threshold=0.3)
    assert whole.in_parts(0.25) == Postprocessing(
        threshold=0.3,
        min_component_fraction=0.05,
        fill_holes_fraction=0.025,
        min_foreground_fraction=0.01,
    )


def test_an_empty_and_a_full_mask_are_no_trouble() -> None:
    everything = Postprocessing(
        keep_largest=True,
        min_component_fraction=0.1,
        fill_holes_fraction=0.1,
        min_foreground_fraction=0.1,
    )
    for mask in (np.zeros((3, 4), np.bool_), np.ones((3, 4), np.bool_), np.ones((1, 1), np.bool_)):
        np.testing.assert_array_equal(everything.postprocess(mask), mask)


def test_a_postprocessing_says_itself() -> None:
    assert Postprocessing().in_words() == "threshold 0.5"
    words = Postprocessing(
        threshold_rule="dice",
        temperature=1.3,
        keep_largest=True,
        min_component_fraction=0.01,
        fill_holes_fraction=0.001,
        min_foreground_fraction=0.02,
    ).in_words()
    assert words == (
        "the Dice-optimal threshold of each image, temperature 1.3, largest component only, "
        "components under 1.00% of the image removed, holes under 0.10% of the image filled, "
        "no foreground where it is under 2.00% of the image"
    )


def test_masks_of_one_map_are_expected_what_each_is_alone() -> None:
    probability = random_map(3, (30, 40))
    masks = [probability >= cut for cut in (0.2, 0.5, 0.9, 2.0)]
    alone = [foretold_dice(probability, mask) for mask in masks]
    assert [*foretold_dice_of_each(probability, masks)] == alone


@pytest.mark.parametrize("connectivity", [4, 8])
@given(seed=st.integers(0, 2**16), height=st.integers(1, 12), width=st.integers(1, 12))
def test_components_are_those_of_scipy(
    connectivity: Literal[4, 8], seed: int, height: int, width: int
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    labels, areas, sides, top, bottom = label_components(mask, connectivity)
    structure = np.ones((3, 3)) if connectivity == 8 else None
    pieces, number = ndimage.label(mask, structure)
    assert len(areas) == number + 1
    assert areas[0] == 0
    for piece, place in enumerate(ndimage.find_objects(pieces), start=1):
        (label,) = np.unique(labels[pieces == piece])
        rows, columns = place
        assert label > 0
        assert areas[label] == np.count_nonzero(pieces == piece)
        assert sides[label] == (columns.start == 0 or columns.stop == width)
        assert (top[label], bottom[label]) == (rows.start == 0, rows.stop == height)


def test_an_expected_dice_is_the_foretold_one_until_validation_has_said_otherwise() -> None:
    assert [Postprocessing().temper(each) for each in (0.0, 0.3, 1.0)] == [0.0, 0.3, 1.0]


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.125, 4), st.floats(-5, 5))
def test_tempering_keeps_the_order_and_stays_a_dice(
    one: float, other: float, scale: float, bias: float
) -> None:
    rule = Postprocessing(expectation_scale=scale, expectation_bias=bias)
    low, high = sorted((one, other))
    assert 0 <= rule.temper(low) <= rule.temper(high) <= 1


def test_another_threshold_keeps_what_is_known_of_expectations() -> None:
    rule = Postprocessing(expectation_scale=2.0, expectation_bias=-2.0).with_threshold(0.3)
    assert rule.temper(0.9) == pytest.approx(expit(2 * np.log(9) - 2), rel=1e-5)
