"""What probabilities are worth, against scikit-learn and against plain comparisons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, brier_score_loss

from notan.config import Data
from notan.data.folders import open_split
from notan.errors import ShapeError
from notan.metrics import Counts
from notan.metrics.probabilities import (
    EDGES,
    THRESHOLDS,
    ProbabilityHistogram,
    Ranking,
    ThresholdSweep,
    average_precision,
    brier,
    dice_at_thresholds,
    expected_calibration_error,
    reliability,
)
from notan.modelfile.postprocess import Postprocessing, sigmoid

if TYPE_CHECKING:
    from pathlib import Path

    from notan.types import Mask, Probability

CLOSE = 1e-3
"""How far a histogram's average precision may be from that of the pixels themselves."""


def histogram_of(
    probability: Probability, truth: Mask, ignore: Mask | None = None
) -> ProbabilityHistogram:
    return ProbabilityHistogram.of(Ranking.of(probability, truth, ignore))


def smooth(seed: int, width: float, size: tuple[int, int] = (120, 160)) -> Probability:
    """Even noise of standard deviation 1."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=size), (0, 0), width)
    return np.asarray(noise / noise.std(), np.float32)


def answer(truth: Mask, seed: int, sureness: float = 4.0) -> Probability:
    """Probabilities as a network gives them: sure inside, unsure along the edge, noisy."""
    edge = cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 3) - 0.5
    logits = sureness * (4 * edge + 0.7 * smooth(seed, 4, (truth.shape[0], truth.shape[1])))
    return sigmoid(np.asarray(logits, np.float32))


TRUTH = np.asarray(smooth(0, 12) > 0.5)
PAIRS = {
    "network": (answer(TRUTH, 1), TRUTH),
    "sure network": (answer(TRUTH, 2, 30), TRUTH),
    "unsure network": (answer(TRUTH, 3, 0.5), TRUTH),
    "network that knows nothing": (answer(np.asarray(smooth(5, 9) > 0), 4), TRUTH),
    "rare foreground": (answer(np.asarray(smooth(6, 9) > 1.6), 7), np.asarray(smooth(6, 9) > 1.9)),
    "one probability": (np.full(TRUTH.shape, 0.3, np.float32), TRUTH),
    "only 0 and 1": (TRUTH.astype(np.float32), TRUTH),
    "inverted": ((~TRUTH).astype(np.float32), TRUTH),
    "full": (answer(TRUTH, 8), np.ones_like(TRUTH)),
    "one pixel": (np.full((1, 1), 0.7, np.float32), np.ones((1, 1), np.bool_)),
    "four pixels": (
        np.array([[0.9, 0.4], [0.35, 0.1]], np.float32),
        np.array([[True, False], [True, False]]),
    ),
}


@pytest.mark.parametrize(("probability", "truth"), PAIRS.values(), ids=PAIRS.keys())
def test_average_precision_and_brier_agree_with_scikit_learn(
    probability: Probability, truth: Mask
) -> None:
    histogram = histogram_of(probability, truth)
    exact = average_precision_score(truth.ravel(), probability.ravel())
    assert Ranking.of(probability, truth).average_precision() == pytest.approx(exact, abs=1e-12)
    assert average_precision(histogram) == pytest.approx(exact, abs=CLOSE)
    loss = brier_score_loss(truth.ravel(), probability.ravel().astype(np.float64))
    assert brier(histogram) == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize(("probability", "truth"), PAIRS.values(), ids=PAIRS.keys())
def test_the_reliability_curve_agrees_with_scikit_learn(
    probability: Probability, truth: Mask
) -> None:
    curve = reliability(histogram_of(probability, truth))
    fractions, means = calibration_curve(truth.ravel(), probability.ravel(), n_bins=10)
    if probability.size > 4:  # scikit-learn's bins hold their upper end, ours their lower
        assert [each.foreground_fraction for each in curve] == pytest.approx(fractions)
    assert [each.mean_probability for each in curve] == pytest.approx(means, rel=1e-5)
    assert sum(each.pixels for each in curve) == truth.size


@pytest.mark.parametrize(("probability", "truth"), PAIRS.values(), ids=PAIRS.keys())
def test_ece_agrees_with_its_definition(probability: Probability, truth: Mask) -> None:
    tenth = np.minimum(np.floor(probability.astype(np.float64) * 10 + 1e-6), 9)
    total = sum(
        abs((probability[tenth == index] - truth[tenth == index]).sum(dtype=np.float64))
        for index in range(10)
    )
    found = expected_calibration_error(histogram_of(probability, truth))
    assert found == pytest.approx(total / truth.size, abs=1e-7)


def test_probabilities_that_mean_what_they_say_have_no_calibration_error() -> None:
    random = np.random.default_rng(0)
    probability = random.random((400, 500)).astype(np.float32)
    truth = random.random((400, 500)) < probability
    honest = histogram_of(probability, truth)
    boastful = histogram_of((probability > 0.5).astype(np.float32), truth)
    assert expected_calibration_error(honest) == pytest.approx(0, abs=0.005)
    assert expected_calibration_error(boastful) == pytest.approx(0.25, abs=0.01)


def around(thresholds: tuple[float, ...]) -> Probability:
    """Each threshold in float32, and the float32 numbers just below and above it."""
    exact = np.asarray(thresholds, np.float32)
    sides = [np.nextafter(exact, np.float32(end)) for end in (0, 1)]
    return np.concatenate([[np.float32(0), np.float32(1)], exact, *sides])[None]


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_probability_on_the_threshold_falls_where_the_mask_has_it(threshold: float) -> None:
    probability = around(THRESHOLDS)
    truth = np.asarray(np.random.default_rng(1).random(probability.shape) < 0.5)
    counts = Counts.of(Postprocessing(threshold=threshold).mask(probability), truth)
    index = THRESHOLDS.index(threshold)
    true_positive, false_positive = histogram_of(probability, truth).at_thresholds()
    assert true_positive[index] == counts.true_positive
    assert false_positive[index] == counts.false_positive


@pytest.mark.parametrize(("probability", "truth"), PAIRS.values(), ids=PAIRS.keys())
def test_dice_at_a_threshold_is_the_dice_of_its_mask(probability: Probability, truth: Mask) -> None:
    dice = dice_at_thresholds(histogram_of(probability, truth))
    for threshold, found in zip(THRESHOLDS, dice, strict=True):
        assert found == Counts.of(Postprocessing(threshold=threshold).mask(probability), truth).dice


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_adding_histograms_is_counting_the_images_as_one(
    seed: int, density: float, ignored: float
) -> None:
    random = np.random.default_rng(seed)
    probability = random.random((2, 9)).astype(np.float32)
    truth, ignore = random.random((2, 9)) < density, random.random((2, 9)) < ignored
    rows = [histogram_of(*(a[i] for a in (probability, truth, ignore))) for i in (0, 1)]
    both, whole = rows[0] + rows[1], histogram_of(probability, truth, ignore)
    np.testing.assert_array_equal(both.foreground, whole.foreground)
    np.testing.assert_array_equal(both.background, whole.background)
    assert both.squared_error == pytest.approx(whole.squared_error)
    assert both.pixels == np.count_nonzero(~ignore)
    left = histogram_of(probability[~ignore], truth[~ignore])
    np.testing.assert_array_equal(whole.foreground, left.foreground)


def test_without_foreground_or_without_pixels_there_is_nothing_to_say() -> None:
    empty = np.zeros_like(TRUTH)
    no_foreground = histogram_of(answer(TRUTH, 1), empty)
    assert average_precision(no_foreground) is None
    assert brier(no_foreground) is not None
    nothing = histogram_of(answer(TRUTH, 1), TRUTH, np.ones_like(TRUTH))
    assert Ranking.of(answer(TRUTH, 1), empty).average_precision() is None
    assert (average_precision(nothing), brier(nothing)) == (None, None)
    assert (expected_calibration_error(nothing), reliability(nothing)) == (None, ())
    np.testing.assert_array_equal(dice_at_thresholds(nothing), 1)
    assert ProbabilityHistogram.empty().pixels == nothing.pixels == 0


def test_an_empty_image_scores_one_at_thresholds_without_a_false_alarm() -> None:
    low = histogram_of(np.full((3, 3), 0.395, np.float32), np.zeros((3, 3), np.bool_))
    assert dice_at_thresholds(low).tolist() == [0.0] * 39 + [1.0] * 60


def test_the_area_of_the_sweep_is_its_mean_height() -> None:
    assert ThresholdSweep.of((0.7,) * 99).area == pytest.approx(0.7)
    assert ThresholdSweep.of(THRESHOLDS).area == pytest.approx(0.5)
    curve = np.random.default_rng(0).random(99)
    area = np.trapezoid(curve, THRESHOLDS) / 0.98
    assert ThresholdSweep.of(curve.tolist()).area == pytest.approx(area)


def test_real_masks_agree_with_scikit_learn(pets_folder: Path, nuclei_folder: Path) -> None:
    for folder in (pets_folder, nuclei_folder):
        source = open_split(Data(path=folder, trimap_border="ignore"), "test", seed=0)
        for index in range(3):
            sample = source[index]
            probability = answer(sample.mask, index)
            ranking = Ranking.of(probability, sample.mask, sample.ignore)
            histogram = ProbabilityHistogram.of(ranking)
            kept = ~sample.ignore if sample.ignore is not None else np.ones_like(sample.mask)
            truth, chance = sample.mask[kept], probability[kept]
            exact = average_precision_score(truth, chance)
            assert ranking.average_precision() == pytest.approx(exact, abs=1e-12)
            assert average_precision(histogram) == pytest.approx(exact, abs=CLOSE)
            assert brier(histogram) == pytest.approx(
                brier_score_loss(truth, chance.astype(np.float64)), abs=1e-12
            )


def test_every_threshold_and_both_ends_begin_a_bin() -> None:
    assert np.isin(np.asarray([0, 1, *THRESHOLDS], np.float32), EDGES).all()
    assert (np.diff(EDGES) > 0).all()


@pytest.mark.parametrize("wrong", [-0.1, 1.1, np.nan, np.inf])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    probability = np.full((2, 2), 0.5, np.float32)
    probability[1, 1] = wrong
    with pytest.raises(ShapeError, match=r"not in 0\.\.1; logits need a sigmoid first"):
        histogram_of(probability, np.ones((2, 2), np.bool_))


def test_probabilities_of_another_size_than_the_truth_are_refused() -> None:
    half = np.full((2, 2), 0.5, np.float32)
    with pytest.raises(ShapeError, match=r"shape \(2, 2\) and a truth of shape \(2, 3\)"):
        histogram_of(half, np.ones((2, 3), np.bool_))
    with pytest.raises(ShapeError, match="the ignored area, must be of one size"):
        histogram_of(half, half > 0, np.ones((2, 1), np.bool_))
