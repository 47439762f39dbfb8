"""Metrics against scikit-learn, and by properties where no library shares our empty rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from notan.errors import ShapeError
from notan.metrics import Counts

if TYPE_CHECKING:
    from notan.types import Mask

NONE = np.zeros((6, 8), np.bool_)
ALL = np.ones((6, 8), np.bool_)


def one_pixel(row: int, column: int) -> Mask:
    mask = NONE.copy()
    mask[row, column] = True
    return mask


def random_mask(seed: int, fraction: float = 0.4) -> Mask:
    return np.asarray(np.random.default_rng(seed).random((6, 8)) < fraction)


def disc(row: float, column: float, radius: float) -> Mask:
    """A round foreground of about the size a pet has in its image."""
    rows, columns = np.mgrid[:75, :100]
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 < radius**2)


PAIRS = {
    "random": (random_mask(1), random_mask(2)),
    "sparse": (random_mask(3, 0.2), random_mask(4, 0.2)),
    "one pixel, hit": (one_pixel(2, 3), one_pixel(2, 3)),
    "one pixel among many": (random_mask(5), one_pixel(2, 3)),
    "full against random": (ALL, random_mask(6)),
    "shifted disc": (disc(36, 52, 25), disc(38, 48, 27)),
}


@st.composite
def mask_triples(draw: st.DrawFn) -> tuple[Mask, Mask, Mask]:
    """Three masks of one random size, of any density from empty to full."""
    size = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    densities = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
    first, second, third = (np.asarray(random.random(size) < draw(densities)) for _ in range(3))
    return first, second, third


@pytest.mark.parametrize(("prediction", "truth"), PAIRS.values(), ids=PAIRS.keys())
def test_scores_agree_with_scikit_learn(prediction: Mask, truth: Mask) -> None:
    counts = Counts.of(prediction, truth)
    y, p = truth.ravel(), prediction.ravel()
    assert counts.dice == pytest.approx(sklearn_metrics.f1_score(y, p))
    assert counts.iou == pytest.approx(sklearn_metrics.jaccard_score(y, p))
    assert counts.precision == pytest.approx(sklearn_metrics.precision_score(y, p))
    assert counts.recall == pytest.approx(sklearn_metrics.recall_score(y, p))
    assert counts.accuracy == pytest.approx(sklearn_metrics.accuracy_score(y, p))
    if not y.all():  # scikit-learn has no specificity; it is the recall of background
        background = sklearn_metrics.recall_score(y, p, pos_label=False)
        assert counts.specificity == pytest.approx(background)


@pytest.mark.parametrize(("prediction", "truth"), PAIRS.values(), ids=PAIRS.keys())
def test_counts_agree_with_scikit_learn_where_pixels_are_ignored(
    prediction: Mask, truth: Mask
) -> None:
    ignore = np.asarray(np.random.default_rng(9).random(truth.shape) < 0.3)
    counts = Counts.of(prediction, truth, ignore)
    matrix = sklearn_metrics.confusion_matrix(
        truth[~ignore], prediction[~ignore], labels=[False, True]
    )
    assert [
        [counts.true_negative, counts.false_positive],
        [counts.false_negative, counts.true_positive],
    ] == matrix.tolist()


def test_an_empty_image_predicted_empty_scores_1() -> None:
    counts = Counts.of(NONE, NONE)
    assert (counts.dice, counts.iou, counts.precision, counts.recall) == (1, 1, 1, 1)


def test_a_false_alarm_on_an_empty_image_scores_0() -> None:
    counts = Counts.of(one_pixel(0, 0), NONE)
    assert (counts.dice, counts.iou, counts.precision, counts.recall) == (0, 0, 0, 0)


def test_an_empty_prediction_on_a_foreground_scores_0() -> None:
    counts = Counts.of(NONE, one_pixel(0, 0))
    assert (counts.dice, counts.iou, counts.precision, counts.recall) == (0, 0, 0, 0)


def test_an_image_ignored_whole_counts_as_empty() -> None:
    counts = Counts.of(ALL, NONE, ALL)
    assert counts == Counts(0, 0, 0, 0)
    assert (counts.dice, counts.iou, counts.accuracy) == (1, 1, 1)


@given(mask_triples())
def test_the_four_counts_are_every_pixel_not_ignored(masks: tuple[Mask, Mask, Mask]) -> None:
    prediction, truth, ignore = masks
    counts = Counts.of(prediction, truth, ignore)
    total = (
        counts.true_positive + counts.false_positive + counts.false_negative + counts.true_negative
    )
    assert total == np.count_nonzero(~ignore)


@given(mask_triples())
def test_what_stands_at_ignored_pixels_does_not_matter(masks: tuple[Mask, Mask, Mask]) -> None:
    prediction, truth, ignore = masks
    assert Counts.of(prediction, truth, ignore) == Counts.of(
        prediction ^ ignore, truth | ignore, ignore
    )


@given(mask_triples())
def test_every_score_is_between_0_and_1(masks: tuple[Mask, Mask, Mask]) -> None:
    counts = Counts.of(*masks)
    for score in (counts.dice, counts.iou, counts.precision, counts.recall, counts.accuracy):
        assert 0 <= score <= 1


@given(mask_triples())
def test_dice_follows_from_iou(masks: tuple[Mask, Mask, Mask]) -> None:
    counts = Counts.of(*masks)
    assert counts.dice == pytest.approx(2 * counts.iou / (1 + counts.iou))


@given(mask_triples())
def test_swapping_truth_and_prediction_swaps_precision_and_recall_only(
    masks: tuple[Mask, Mask, Mask],
) -> None:
    prediction, truth, ignore = masks
    one, other = Counts.of(prediction, truth, ignore), Counts.of(truth, prediction, ignore)
    assert (one.dice, one.iou, one.accuracy) == (other.dice, other.iou, other.accuracy)
    assert (one.precision, one.recall) == (other.recall, other.precision)


@given(mask_triples(), mask_triples())
def test_adding_counts_is_counting_the_images_as_one(
    first: tuple[Mask, Mask, Mask], second: tuple[Mask, Mask, Mask]
) -> None:
    prediction, truth, ignore = (
        np.concatenate([one.ravel(), other.ravel()])[None]
        for one, other in zip(first, second, strict=True)
    )
    assert Counts.of(*first) + Counts.of(*second) == Counts.of(prediction, truth, ignore)


def test_counting_leaves_the_masks_as_they_were() -> None:
    prediction, truth, ignore = random_mask(1), random_mask(2), random_mask(3)
    copies = prediction.copy(), truth.copy(), ignore.copy()
    Counts.of(prediction, truth, ignore)
    for mask, copy in zip((prediction, truth, ignore), copies, strict=True):
        np.testing.assert_array_equal(mask, copy)


def test_masks_of_different_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"prediction has shape \(6, 1\) and the truth \(6, 8\)"):
        Counts.of(NONE[:, :1], NONE)
    with pytest.raises(ShapeError, match=r"ignored area has shape \(1, 8\)"):
        Counts.of(NONE, NONE, NONE[:1])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_mask_that_is_not_bool_is_refused(dtype: type[np.generic]) -> None:
    with pytest.raises(ShapeError, match=rf"prediction holds {dtype.__name__}; a mask is bool"):
        Counts.of(NONE.astype(dtype), NONE)
    with pytest.raises(ShapeError, match=rf"truth holds {dtype.__name__}; a mask is bool"):
        Counts.of(NONE, NONE.astype(dtype))
    with pytest.raises(ShapeError, match=rf"ignored area holds {dtype.__name__}"):
        Counts.of(NONE, NONE, NONE.astype(dtype))
