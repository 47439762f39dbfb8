"""Examples: which images are shown, and what their error maps say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from notan.metrics import ImageScore
from notan.prediction.formats import PREDICTION, TRUTH
from notan.report.examples import choose, error_map
from notan.report.page import as_jpeg, fitted
from report_runs import image_row

GREY = np.full((2, 2, 3), 100, np.uint8)
MASK = np.array([[True, True], [False, False]])
TRUE = np.array([[True, False], [True, False]])


def test_an_error_map_tells_false_alarms_from_misses() -> None:
    shown = error_map(GREY, MASK, TRUE)
    assert tuple(shown[0, 1]) == PREDICTION
    assert tuple(shown[1, 0]) == TRUTH
    for right in (shown[0, 0], shown[1, 1]):
        assert len(set(right.tolist())) == 1
    assert shown[0, 0, 0] < shown[1, 1, 0]


def test_ignored_pixels_are_no_errors() -> None:
    shown = error_map(GREY, MASK, TRUE, ignore=np.ones((2, 2), np.bool_))
    assert not np.isin(shown.reshape(-1, 3), [PREDICTION, TRUTH]).all(axis=1).any()


def test_the_two_kinds_of_error_differ_in_lightness_and_not_in_red_and_green_alone() -> None:
    assert abs(PREDICTION[2] - TRUTH[2]) > 200


@given(dice=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_no_image_is_shown_twice_and_the_order_is_by_dice(dice: list[float]) -> None:
    images = [
        ImageScore.model_validate(image_row(str(number), value))
        for number, value in enumerate(dice)
    ]
    chosen = choose(images)
    names = [image.name for _, image in chosen]
    assert len(names) == len(set(names)) == min(9, len(dice))
    assert chosen[0][1].dice == min(dice)
    by_place = {
        place: [image.dice for each, image in chosen if each == place]
        for place in ("worst", "median", "best")
    }
    assert max(by_place["worst"]) <= min(by_place["best"], default=1)
    assert max(by_place["worst"]) <= min(by_place["median"], default=1)
    assert max(by_place["median"], default=0) <= min(by_place["best"], default=1)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((800, 400), (400, 200)),
        ((300, 200), (300, 200)),
        ((10, 20), (80, 160)),
        ((1, 5000), (1, 400)),
    ],
)
def test_panels_fit_the_page(size: tuple[int, int], shown: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    assert fitted(image, side=400, least_side=160).shape == (*shown, 3)


def test_an_image_in_a_page_is_a_jpeg() -> None:
    assert as_jpeg(GREY).startswith("/9j/")
