"""The simulated person of the story about corrections: what is mended, and what it costs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from corrections import STROKE_SECONDS, Effort, correct, draw

PACE = 0.1


def boxes(*places: tuple[int, int, int]) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Return squares on an empty image, by row, column and side."""
    mask = np.zeros((80, 80), np.bool_)
    for row, column, side in places:
        mask[row : row + side, column : column + side] = True
    return mask


TRUTH = boxes((10, 10, 20), (50, 50, 20))


def test_drawing_follows_the_outline_of_every_object() -> None:
    assert draw(TRUTH) == Effort(images=1, strokes=2, traced=2 * 4 * 19)
    assert draw(boxes()) == Effort(images=1)
    slow = draw(TRUTH).seconds(2 * PACE) - draw(TRUTH).seconds(PACE)
    assert slow == pytest.approx(PACE * 2 * 4 * 19)


def test_errors_of_a_pixel_along_the_outline_are_left() -> None:
    wide = cv2.dilate(TRUTH.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    mask, effort = correct(wide, TRUTH, PACE)
    np.testing.assert_array_equal(mask, wide)
    assert effort == Effort(images=1)


def test_a_false_object_or_a_hole_is_one_stroke_and_no_outline() -> None:
    model = TRUTH | boxes((60, 5, 6))
    model &= ~boxes((16, 16, 5))
    mask, effort = correct(model, TRUTH, PACE)
    np.testing.assert_array_equal(mask, TRUTH)
    assert effort == Effort(images=1, strokes=2)


def test_a_missed_object_costs_what_drawing_it_costs_however_small_it_is() -> None:
    small = TRUTH | boxes((70, 5, 2))
    mask, effort = correct(boxes((10, 10, 20)), small, PACE)
    np.testing.assert_array_equal(mask, small)
    assert effort == Effort(images=1, strokes=2, traced=4 * 19 + 4)


def test_a_part_of_an_outline_is_traced_where_it_is_wrong() -> None:
    mask, effort = correct(TRUTH | boxes((10, 30, 6)), TRUTH, PACE)
    np.testing.assert_array_equal(mask, TRUTH)
    assert effort.strokes == 1
    assert 6 <= effort.traced <= 8  # its side, and a pixel more at either end


def test_who_would_mend_more_than_there_is_to_draw_draws() -> None:
    speckled = TRUTH.copy()
    speckled[::6, ::6] ^= True
    mask, effort = correct(speckled, TRUTH, PACE)
    np.testing.assert_array_equal(mask, TRUTH)
    assert effort == draw(TRUTH)
    assert effort.seconds(PACE) < 100 * STROKE_SECONDS
