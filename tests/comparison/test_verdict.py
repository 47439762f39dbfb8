"""A verdict claims a difference as rarely as it says where there is none, and says it plainly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import binom

from notan.comparison.comparison import SIGNIFICANCE, Outcome, decide, in_words
from notan.metrics.statistics import compare_paired

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGES, REPETITIONS = 60, 200


def scores_of_twins(random: np.random.Generator, gain: float = 0.0) -> tuple[list[float], ...]:
    """Draw the Dice of two models that are alike, as real ones are: skewed, and hard together.

    An image's difficulty is common to both; what each makes of it is drawn by one rule, so that
    the two could be exchanged on every image. ``gain`` makes the second better.
    """
    difficulty = random.beta(6, 1.5, IMAGES)
    concentration = 40.0
    shape = (difficulty * concentration, (1 - difficulty) * concentration + 0.1)
    first, second = random.beta(*shape), random.beta(*shape)
    return first.tolist(), np.clip(second + gain, 0, 1).tolist()


def decided(first: Sequence[float], second: Sequence[float]) -> Outcome:
    compared = compare_paired(first, second)
    return decide(compared, compared.p_value)


def test_models_that_are_alike_are_called_different_about_one_time_in_twenty() -> None:
    """Within the range that 200 draws at 5 % stay in with a probability of 99 %: 3 to 19."""
    random = np.random.default_rng(20)
    claims = sum(decided(*scores_of_twins(random)) != "none" for _ in range(REPETITIONS))
    low, high = binom.ppf([0.005, 0.995], REPETITIONS, SIGNIFICANCE)
    assert low <= claims <= high


def test_neither_of_two_models_that_are_alike_is_favoured() -> None:
    random = np.random.default_rng(21)
    claims = [decided(*scores_of_twins(random)) for _ in range(REPETITIONS)]
    most = binom.ppf(0.995, REPETITIONS, SIGNIFICANCE / 2)
    assert claims.count("first") <= most
    assert claims.count("second") <= most


def test_a_model_that_is_better_is_mostly_found() -> None:
    random = np.random.default_rng(22)
    claims = [decided(*scores_of_twins(random, gain=0.04)) for _ in range(50)]
    assert claims.count("second") > 40
    assert claims.count("first") == 0


@pytest.mark.parametrize("swapped", [False, True])
def test_the_better_one_is_named_with_what_it_gains(swapped: bool) -> None:
    low = np.random.default_rng(1).uniform(0.3, 0.6, 40)
    first, second = low.tolist(), (low + np.linspace(0.1, 0.2, 40)).tolist()
    if swapped:
        first, second = second, first
    compared = compare_paired(first, second)
    words = in_words(compared, compared.p_value, "A", "B")
    assert words.startswith(f"{'A' if swapped else 'B'} is better by 0.150 [0.14")
    assert words.endswith("]")


def test_noise_is_said_to_be_noise() -> None:
    compared = compare_paired(*scores_of_twins(np.random.default_rng(3)))
    assert in_words(compared, 0.05, "A", "B") == "no difference beyond noise on these 60 images"


def test_equal_scores_are_no_difference() -> None:
    compared = compare_paired([0.5] * 8, [0.5] * 8)
    words = in_words(compared, compared.p_value, "A", "B")
    assert words == "no difference: A and B score the same on each of these 8 images"


def test_many_small_gains_against_a_few_great_losses_are_no_victory() -> None:
    gains = np.r_[np.linspace(0.01, 0.02, 50), [-0.4, -0.5]]
    compared = compare_paired([0.5] * 52, (0.5 + gains).tolist())
    assert decide(compared, compared.p_value) == "unclear"
    words = in_words(compared, compared.p_value, "A", "B")
    assert "A and B differ, but neither is better in the mean" in words
    assert "B scores higher on 50 and lower on 2 of these 52 images" in words


def test_five_images_are_too_few() -> None:
    compared = compare_paired([0.1] * 5, [0.9, 0.8, 0.9, 0.8, 0.7])
    assert compared.p_value > SIGNIFICANCE
    words = in_words(compared, compared.p_value, "A", "B")
    assert words == "too few images to tell: 5, where 6 are the least"


def test_six_images_can_tell() -> None:
    compared = compare_paired([0.1] * 6, [0.9, 0.8, 0.9, 0.8, 0.7, 0.6])
    assert decide(compared, compared.p_value) == "second"
