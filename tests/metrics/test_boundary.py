"""Boundary scores against brute force over all pairs of boundary pixels, and where they end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.spatial.distance import cdist, directed_hausdorff

from notan.config import Data
from notan.data.folders import open_split
from notan.errors import ConfigError
from notan.metrics import BoundaryScore, Tolerance
from notan.metrics.boundary import boundary_distances, boundary_pixels

if TYPE_CHECKING:
    from pathlib import Path

    from notan.types import Mask

NEAR = Tolerance(2, percent=False)
NONE, ALL = np.zeros((7, 9), np.bool_), np.ones((7, 9), np.bool_)
PIXEL = NONE.copy()
PIXEL[2, 3] = True


def brute_force(prediction: Mask, truth: Mask, near: float) -> BoundaryScore:
    """Every boundary pixel against every other, by SciPy; both masks have a foreground."""
    edges = [np.argwhere(mask & ~binary_erosion(mask)) for mask in (prediction, truth)]
    between = cdist(*edges)
    predicted, actual = between.min(axis=1), between.min(axis=0)
    precision, recall = (predicted <= near).mean(), (actual <= near).mean()
    return BoundaryScore(
        2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        np.concatenate([predicted <= near, actual <= near]).mean(),
        max(np.percentile(predicted, 95), np.percentile(actual, 95)),
    )


def check(prediction: Mask, truth: Mask, tolerance: Tolerance = NEAR) -> None:
    found = BoundaryScore.of(prediction, truth, tolerance=tolerance)
    near = tolerance.pixels((truth.shape[0], truth.shape[1]))
    wanted = brute_force(prediction, truth, near)
    assert found.boundary_f == pytest.approx(wanted.boundary_f, abs=1e-12)
    assert found.surface_dice == pytest.approx(wanted.surface_dice, abs=1e-12)
    assert found.hausdorff95 == pytest.approx(wanted.hausdorff95, abs=1e-9)


def blob(seed: int, size: tuple[int, int] = (60, 80)) -> Mask:
    noise = np.random.default_rng(seed).normal(size=size)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 6) > 0)


def moved(mask: Mask, rows: float, columns: float, scale: float = 1.0) -> Mask:
    """The same foreground elsewhere: a mask as a fair model would answer it."""
    warp = np.array([[scale, 0.02, columns], [-0.01, scale, rows]], np.float32)
    size = (mask.shape[1], mask.shape[0])
    return np.asarray(cv2.warpAffine(mask.astype(np.uint8), warp, size) > 0)


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[Mask, Mask]:
    size = (draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    densities = st.sampled_from([0.05, 0.3, 0.7, 0.95, 1.0])
    first, second = (np.asarray(random.random(size) < draw(densities)) for _ in range(2))
    return first, second


@given(mask_pairs(), st.sampled_from([1.0, 1.5, 2.0, 3.7]))
def test_small_masks_agree_with_brute_force(masks: tuple[Mask, Mask], near: float) -> None:
    if all(mask.any() for mask in masks):
        check(*masks, Tolerance(near, percent=False))


@pytest.mark.parametrize("seed", range(5))
def test_smooth_masks_agree_with_brute_force(seed: int) -> None:
    check(blob(seed), blob(seed + 100))
    check(moved(blob(seed), 2, -1), blob(seed))


@pytest.mark.parametrize("masks", [(ALL, ALL), (ALL, PIXEL), (PIXEL, ALL), (PIXEL, PIXEL)], ids=str)
def test_full_and_one_pixel_masks_agree_with_brute_force(masks: tuple[Mask, Mask]) -> None:
    check(*masks)


def test_pets_agree_with_brute_force(pets_folder: Path) -> None:
    source = open_split(Data(path=pets_folder, trimap_border="foreground"), "test", seed=0)
    for index in range(0, 12, 4):
        truth = source[index].mask
        check(moved(truth, 3, -4, 1.02), truth, Tolerance())


def test_nuclei_agree_with_brute_force(nuclei_folder: Path) -> None:
    source = open_split(Data(path=nuclei_folder), "test", seed=0)
    for index in range(3):
        truth = source[index].mask
        check(moved(truth, 1, 1), truth, Tolerance())


@given(mask_pairs())
def test_the_boundary_is_the_mask_without_its_erosion(masks: tuple[Mask, Mask]) -> None:
    mask, _ = masks
    np.testing.assert_array_equal(boundary_pixels(mask), mask & ~binary_erosion(mask))
    assert boundary_pixels(mask).any() == mask.any()


def test_distances_are_exact_and_their_largest_is_the_hausdorff_distance() -> None:
    prediction, truth = blob(1, (300, 400)), blob(2, (300, 400))
    predicted, actual = boundary_distances(prediction, truth)
    edges = boundary_pixels(prediction), boundary_pixels(truth)
    np.testing.assert_array_equal(predicted, distance_transform_edt(~edges[1])[edges[0]])
    points = [np.argwhere(edge) for edge in edges]
    assert predicted.max() == directed_hausdorff(*points)[0]
    assert actual.max() == directed_hausdorff(*points[::-1])[0]


def test_a_lone_foreground_far_off_does_not_move_the_score_of_the_box() -> None:
    """Only the box around both foregrounds is looked at; that must not show."""
    truth = np.zeros((200, 300), np.bool_)
    truth[150:160, 200:230] = True
    for prediction in (moved(truth, 2, 2), np.roll(truth, (-140, -190), axis=(0, 1))):
        check(prediction, truth)
        padded = [np.pad(mask, 40) for mask in (prediction, truth)]
        assert BoundaryScore.of(*padded, tolerance=NEAR) == BoundaryScore.of(
            prediction, truth, tolerance=NEAR
        )


def test_both_empty_is_perfect_and_one_empty_is_nothing_without_a_distance() -> None:
    assert BoundaryScore.of(NONE, NONE) == BoundaryScore(1, 1, 0)
    assert BoundaryScore.of(PIXEL, NONE) == BoundaryScore(0, 0, None)
    assert BoundaryScore.of(NONE, PIXEL) == BoundaryScore(0, 0, None)


@given(mask_pairs())
def test_a_perfect_prediction_scores_one(masks: tuple[Mask, Mask]) -> None:
    mask, _ = masks
    assert BoundaryScore.of(mask, mask) == BoundaryScore(1, 1, 0)


@given(mask_pairs())
def test_boundary_scores_do_not_care_which_mask_is_the_truth(masks: tuple[Mask, Mask]) -> None:
    one, other = BoundaryScore.of(*masks), BoundaryScore.of(*masks[::-1])
    assert one.boundary_f == pytest.approx(other.boundary_f)
    assert (one.surface_dice, one.hausdorff95) == (other.surface_dice, other.hausdorff95)


@given(mask_pairs(), mask_pairs())
def test_what_is_predicted_inside_the_ignored_area_changes_nothing(
    masks: tuple[Mask, Mask], others: tuple[Mask, Mask]
) -> None:
    prediction, truth = masks
    ignore = np.resize(others[0], truth.shape)
    score = BoundaryScore.of(prediction, truth, ignore)
    assert score == BoundaryScore.of(prediction ^ ignore, truth, ignore)
    assert score == BoundaryScore.of(np.where(ignore, truth, prediction), truth)
    assert BoundaryScore.of(prediction, truth, np.ones_like(truth)) == BoundaryScore(1, 1, 0)


def test_the_ignored_border_of_the_pets_hides_a_wrong_outline(pets_folder: Path) -> None:
    """A mask that follows the trimap's outer line is off by the border, and not told so."""
    ignored = open_split(Data(path=pets_folder, trimap_border="ignore"), "test", seed=0)[0]
    outer = open_split(Data(path=pets_folder, trimap_border="foreground"), "test", seed=0)[0].mask
    assert BoundaryScore.of(outer, ignored.mask, ignored.ignore) == BoundaryScore(1, 1, 0)
    assert BoundaryScore.of(outer, ignored.mask).boundary_f < 0.9


def test_comparing_leaves_the_masks_as_they_were() -> None:
    masks = [blob(seed) for seed in range(3)]
    copies = [mask.copy() for mask in masks]
    BoundaryScore.of(*masks)
    for mask, copy in zip(masks, copies, strict=True):
        np.testing.assert_array_equal(mask, copy)


@pytest.mark.parametrize(
    ("words", "amount", "percent"),
    [("2", 2, False), ("0.75%", 0.75, True), (" 1.5 ", 1.5, False), ("100%", 100, True)],
)
def test_a_tolerance_is_read_and_written_back(words: str, amount: float, percent: bool) -> None:
    tolerance = Tolerance.parse(words)
    assert tolerance == Tolerance(amount, percent=percent)
    assert str(tolerance) == words.strip()
    assert Tolerance.parse(str(tolerance)) == tolerance


@pytest.mark.parametrize(
    "words", ["-1", "abc", "nan%", "0", "", "%", "nan", "inf", "inf%", "101%", "-2%", "2px", "2%%"]
)
def test_a_tolerance_that_is_none_is_refused(words: str) -> None:
    with pytest.raises(ConfigError, match=r"the tolerance is .*; pixels above 0 \(2\) or a part"):
        Tolerance.parse(words)


def test_a_tolerance_in_percent_is_of_the_diagonal_and_at_least_a_pixel() -> None:
    assert Tolerance().pixels((300, 400)) == pytest.approx(3.75)
    assert Tolerance().pixels((16, 16)) == 1
    assert Tolerance(0.5, percent=False).pixels((300, 400)) == 0.5
    assert Tolerance(1).in_words() == "1% of the diagonal, at least 1 pixel"
    assert Tolerance(1, percent=False).in_words() == "1 pixel"
    assert Tolerance(2.5, percent=False).in_words() == "2.5 pixels"


def test_the_tolerance_decides_from_where_a_boundary_counts_as_near() -> None:
    truth = np.zeros((30, 30), np.bool_)
    truth[10:20, 10:20] = True
    shifted = np.roll(truth, 2, axis=1)
    within, beyond = (
        BoundaryScore.of(shifted, truth, tolerance=Tolerance(amount, percent=False))
        for amount in (2, math.nextafter(2, 0))
    )
    assert within.surface_dice == 1
    assert beyond.surface_dice < 1
    assert within.hausdorff95 == beyond.hausdorff95 == 2
