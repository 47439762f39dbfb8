"""What a score could not compute is said, with the reason, and is null in the JSON."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scores import ALL, NONE, random_mask, random_pairs, random_probability, tallied

if TYPE_CHECKING:
    from notan.metrics import Score


def check_undefined(score: Score, *lines: str) -> None:
    text = score.model_dump_json()
    for line in lines:
        assert line in score.undefined
    assert json.loads(text)["undefined"] == list(score.undefined)
    assert "nan" not in score.summary()
    assert len(score.summary().splitlines()) <= 25


def test_one_image_has_no_intervals() -> None:
    score = tallied(*random_pairs(1))
    check_undefined(score, "intervals: one image has no spread, at least 2 are needed")
    assert json.loads(score.model_dump_json())["means"]["dice"] == {
        "images": 1,
        "mean": score.mean_dice,
        "low": None,
        "high": None,
    }


def test_without_any_foreground_recall_and_average_precision_are_undefined() -> None:
    score = tallied((random_probability(1), NONE), (random_probability(2), NONE))
    check_undefined(
        score,
        "recall: no image has a foreground",
        "average precision: there is no foreground",
        "Hausdorff 95, pixels: one of truth and prediction is empty, the other is not",
    )
    assert score.pooled["recall"] is None
    assert math.isnan(score.means["recall"].mean)
    assert (score.pooled_dice, score.mean_dice) == (0, 0)


def test_where_every_prediction_is_empty_precision_is_undefined() -> None:
    low = np.full((6, 8), 0.1, np.float32)
    score = tallied((low, random_mask(1)), (low, random_mask(2)))
    check_undefined(score, "precision: every prediction is empty")
    assert score.pooled["precision"] is None
    assert score.pooled["recall"] == 0
    assert score.means["boundary_f"].mean == 0


def test_where_there_is_no_background_specificity_is_undefined() -> None:
    score = tallied((random_probability(1), ALL), (random_probability(2), ALL))
    check_undefined(score, "specificity: no image has background")
    assert score.pooled["specificity"] is None


def test_where_every_pixel_is_ignored_nothing_is_claimed() -> None:
    score = tallied(*random_pairs(2), ignore=ALL)
    check_undefined(
        score,
        "every score: all pixels are ignored, so that each 1 is the empty rule's alone",
        "accuracy: every pixel is ignored",
        "Brier: all pixels are ignored",
    )
    assert score.pooled["ece"] is None
    assert score.mean_dice == 1


def test_an_image_that_lacks_a_measure_is_counted_and_said() -> None:
    score = tallied(*random_pairs(3), (random_probability(9), NONE))
    check_undefined(
        score,
        "Hausdorff 95, pixels of 1 of 4 images: "
        "one of truth and prediction is empty, the other is not",
        "average precision of 1 of 4 images: there is no foreground",
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5))
def test_any_score_can_be_told(densities: list[tuple[float, float]]) -> None:
    random = np.random.default_rng(0)
    score = tallied(
        *(
            (random.random((6, 8)).astype(np.float32) * np.float32(high), random_mask(3, density))
            for high, density in densities
        )
    )
    check_undefined(score)


def test_an_expectation_without_spread_or_without_flags_is_said_to_be_undefined() -> None:
    score = tallied(*random_pairs(3), expected=(0.7, 0.7, 0.7))
    assert score.expected is not None
    assert (score.expected.rank_correlation, score.expected.flagged) == (None, 0)
    assert score.expected.flagged_mean_dice is None
    text = "\n".join(score.undefined)
    assert "rank correlation of expected and true Dice: one of them is the same" in text
    assert "mean Dice of images to check: the model asked for none" in text
    anxious = tallied(*random_pairs(3), expected=(0.7, 0.6, 0.7), review_below=0.9)
    never = tallied(*random_pairs(3), expected=(0.7, 0.7, 0.7), review_below=None)
    assert "images to check: the model was never told how sure is usual" in never.undefined
    assert "the model asked to check all" in "\n".join(anxious.undefined)
