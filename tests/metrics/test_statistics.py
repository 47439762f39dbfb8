"""Intervals and paired comparisons agree with hand and SciPy, and claim no more than they know."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm, wilcoxon

from notan.errors import ShapeError
from notan.metrics.statistics import PairedComparison, compare_paired, holm, mean_interval

dice = st.floats(0, 1, width=32)
scores = st.lists(dice, min_size=2, max_size=25)
pairs = st.lists(st.tuples(dice, dice), min_size=2, max_size=25)


def sides(couples: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [first for first, _ in couples], [second for _, second in couples]


def by_hand(differences: list[int]) -> float:
    """Try every choice of signs for the ranks of distinct differences."""
    order = sorted(differences, key=abs)
    total = sum(rank * np.sign(value) for rank, value in enumerate(order, start=1))
    signs = product((-1, 1), repeat=len(order))
    sums = [sum(sign * rank for rank, sign in enumerate(each, start=1)) for each in signs]
    as_far = [bool(abs(value) >= abs(total)) for value in sums]
    return sum(as_far) / len(as_far)


@given(scores)
@example([0.0, 1.0])
@example([0.9] * 24 + [0.0])
@example([0.3, 0.1 + 0.2])
@settings(deadline=None)
def test_an_interval_contains_its_mean_and_stays_among_the_values(values: list[float]) -> None:
    interval = mean_interval(values)
    assert interval.low <= interval.mean + 1e-12
    assert interval.mean - 1e-12 <= interval.high
    assert min(values) - 1e-12 <= interval.low
    assert interval.high <= max(values) + 1e-12
    assert interval.images == len(values)


def test_an_interval_is_about_what_the_normal_approximation_says() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.05, 400)
    interval = mean_interval(values.tolist())
    reach = norm.ppf(0.975) * values.std(ddof=1) / math.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - reach, abs=0.1 * reach)
    assert interval.high == pytest.approx(values.mean() + reach, abs=0.1 * reach)


def test_an_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        interval = mean_interval(random.beta(8, 2, 60).tolist(), resamples=500)
        covered += interval.low <= 0.8 <= interval.high
    assert covered >= binom.ppf(0.001, 200, 0.93)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(2).beta(8, 2, 30).tolist()
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_a_higher_confidence_makes_a_wider_interval() -> None:
    values = np.random.default_rng(2).beta(8, 2, 30).tolist()
    wide, narrow = (mean_interval(values, confidence=level) for level in (0.99, 0.8))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_image_has_a_mean_and_no_interval() -> None:
    interval = mean_interval([0.7])
    assert (interval.mean, interval.images) == (0.7, 1)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_equal_values_have_an_interval_of_no_width() -> None:
    interval = mean_interval([0.7] * 5)
    assert interval.low == interval.mean == interval.high


@given(pairs)
@settings(deadline=None)
def test_swapping_the_two_turns_the_comparison_round(couples: list[tuple[float, float]]) -> None:
    first, second = sides(couples)
    there, back = compare_paired(first, second), compare_paired(second, first)
    assert back.p_value == pytest.approx(there.p_value)
    assert (back.wins, back.ties, back.losses) == (there.losses, there.ties, there.wins)
    assert back.effect_size == pytest.approx(-there.effect_size)
    assert back.difference.mean == pytest.approx(-there.difference.mean)
    assert back.difference.low == pytest.approx(-there.difference.high, abs=1e-9)
    assert back.difference.high == pytest.approx(-there.difference.low, abs=1e-9)


@given(pairs)
@settings(deadline=None)
def test_a_comparison_is_within_its_bounds(couples: list[tuple[float, float]]) -> None:
    compared = compare_paired(*sides(couples))
    assert 0 < compared.p_value <= 1
    assert compared.wins + compared.ties + compared.losses == len(couples)
    assert compared.difference.low <= compared.difference.high


@given(scores)
@settings(deadline=None)
def test_a_model_against_itself_shows_no_difference(values: list[float]) -> None:
    assert_no_difference(compare_paired(values, values), ties=len(values))


def assert_no_difference(compared: PairedComparison, *, ties: int) -> None:
    assert compared.p_value == 1
    assert compared.effect_size == 0
    assert (compared.wins, compared.ties, compared.losses) == (0, ties, 0)
    interval = compared.difference
    assert interval.low == interval.mean == interval.high == 0


def test_rounding_is_no_difference() -> None:
    assert_no_difference(compare_paired([0.3, 0.6], [0.1 + 0.2, 0.1 + 0.5]), ties=2)


@pytest.mark.parametrize(
    "differences", [[1, 2, 3, 4, 5], [-1, 2, 3, 4, 5, 6, 7], [5, -3, 2, -1, 9, 8], [1, -2]]
)
def test_few_images_are_tested_as_by_hand(differences: list[int]) -> None:
    second = [0.5 + value / 100 for value in differences]
    p_value = compare_paired([0.5] * len(differences), second).p_value
    assert p_value == pytest.approx(by_hand(differences))
    assert p_value == pytest.approx(wilcoxon(differences).pvalue)


def test_many_images_are_tested_as_by_scipy() -> None:
    random = np.random.default_rng(5)
    first = random.beta(8, 2, 120)
    second = np.clip(first + random.normal(0.01, 0.05, 120), 0, 1)
    compared = compare_paired(first.tolist(), second.tolist())
    differences = second - first
    assert compared.p_value == pytest.approx(wilcoxon(differences, zero_method="pratt").pvalue)
    assert compared.effect_size == pytest.approx(differences.mean() / differences.std(ddof=1))


def test_a_plain_difference_is_found() -> None:
    random = np.random.default_rng(6)
    first = random.beta(8, 2, 100) * 0.9
    compared = compare_paired(first.tolist(), (first + random.normal(0.03, 0.05, 100)).tolist())
    assert compared.p_value < 0.001
    assert compared.difference.low > 0
    assert compared.wins > compared.losses


def test_one_image_that_differs_among_many_says_nothing() -> None:
    compared = compare_paired([0.5] * 100, [0.9] + [0.5] * 99)
    assert compared.p_value == 1
    assert (compared.wins, compared.ties, compared.losses) == (1, 99, 0)


@pytest.mark.parametrize(("differing", "p_value"), [(2, 0.5), (5, 2 / 32), (6, 2 / 64)])
def test_a_few_that_differ_among_many_are_as_likely_as_their_signs(
    differing: int, p_value: float
) -> None:
    compared = compare_paired([0.5] * 100, [0.6] * differing + [0.5] * (100 - differing))
    assert compared.p_value == pytest.approx(p_value)


def test_one_image_alone_has_no_spread_and_proves_nothing() -> None:
    compared = compare_paired([0.5], [0.9])
    assert compared.p_value == 1
    assert math.isnan(compared.effect_size)
    assert math.isnan(compared.difference.low)


def test_the_same_gain_on_every_image_is_an_endless_effect() -> None:
    first = np.random.default_rng(7).random(20) / 2
    compared = compare_paired(first.tolist(), (first + 0.1).tolist())
    assert compared.effect_size == math.inf
    assert compared.difference.low == pytest.approx(0.1)
    assert compare_paired((first + 0.1).tolist(), first.tolist()).effect_size == -math.inf


def test_scores_of_other_images_are_refused() -> None:
    with pytest.raises(ShapeError, match="2 scores against 1; a paired comparison wants one of"):
        compare_paired([0.1, 0.2], [0.3])


def test_holm_multiplies_the_smallest_by_all_and_never_falls() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.5]) == [1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_no_correction_and_bonferronis(p_values: list[float]) -> None:
    for before, after in zip(p_values, holm(p_values), strict=True):
        assert before <= after <= min(1, len(p_values) * before)
