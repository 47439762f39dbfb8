"""Each explanation is recognised on exact cases, and a healthy mask has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from notan.checking.alignment import shift_in_words
from notan.checking.suspicion import Explanation, Kind, Swaps, dilate, erode, explain, moved

if TYPE_CHECKING:
    from notan.types import Mask

SIDE = 64


def blobs(seed: int, *, size: tuple[int, int] = (SIDE, SIDE)) -> Mask:
    """Draw a few ellipses, a different arrangement for each seed."""
    rng = np.random.default_rng(seed)
    canvas = np.zeros(size, np.uint8)
    for _ in range(4):
        centre = [
            int(rng.integers(side // 2 - side // 8, side // 2 + side // 8)) for side in size[::-1]
        ]
        axes = [int(rng.integers(min(size) // 12, min(size) // 6)) for _ in range(2)]
        cv2.ellipse(canvas, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return np.asarray(canvas, bool)


def explained(given_mask: Mask, prediction: Mask) -> dict[Kind, Explanation]:
    return {each.kind: each for each in explain(given_mask, prediction)}


@given(seed=st.integers(0, 1000), down=st.integers(-12, 12), right=st.integers(-12, 12))
def test_a_shift_is_found_to_the_pixel(seed: int, down: int, right: int) -> None:
    truth = blobs(seed)
    found = explained(moved(truth, down, right), truth)
    if (down, right) == (0, 0):
        assert "shifted" not in found
    else:
        shift = found["shifted"]
        assert (shift.down, shift.right) == (down, right)
        assert shift.after == 1.0  # no foreground is near enough to the frame to be cut off


@given(seed=st.integers(0, 1000), pixels=st.integers(1, 3))
def test_a_dilation_is_found_and_undone(seed: int, pixels: int) -> None:
    truth = dilate(blobs(seed), 2)
    found = explained(dilate(truth, pixels), truth)["dilated"]
    assert abs(found.pixels - pixels) <= 1
    assert found.after > 0.95
    assert found.gain > 0


@given(seed=st.integers(0, 1000))
def test_an_erosion_is_found_and_undone(seed: int) -> None:
    truth = dilate(blobs(seed), 2)  # smooth enough to come back
    found = explained(erode(truth, 2), truth)["eroded"]
    assert 1 <= found.pixels <= 3
    assert found.after > 0.95
    assert found.gain > 0


@given(seed=st.integers(0, 1000))
def test_an_inverted_mask_agrees_wholly_once_it_is_turned_round(seed: int) -> None:
    truth = blobs(seed)
    found = explained(~truth, truth)["inverted"]
    assert (found.before, found.after) == (0.0, 1.0)


@given(seed=st.integers(0, 1000))
def test_nothing_explains_a_mask_that_agrees(seed: int) -> None:
    truth = blobs(seed)
    found = explained(truth, truth)
    assert "shifted" not in found
    assert all(each.gain <= 0 for each in found.values())


@given(seed=st.integers(0, 1000), pixels=st.integers(1, 6))
def test_eroding_is_dilating_the_background(seed: int, pixels: int) -> None:
    mask = blobs(seed)
    assert np.array_equal(erode(mask, pixels), ~dilate(~mask, pixels))
    assert not (erode(mask, pixels) & ~mask).any()
    assert not (mask & ~dilate(mask, pixels)).any()


def test_a_dilated_pixel_is_a_disc() -> None:
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    rows, columns = np.mgrid[-4:5, -4:5]
    assert np.array_equal(dilate(mask, 2), np.hypot(rows, columns) <= 2)


def test_what_is_ignored_neither_helps_nor_hurts() -> None:
    truth = blobs(3)
    ignore = np.zeros_like(truth)
    ignore[:10] = True
    given_mask = truth.copy()
    given_mask[:10] = ~truth[:10]
    found = {each.kind: each for each in explain(given_mask, truth, ignore)}
    assert found["inverted"].before == 1.0
    assert "shifted" not in found


def test_a_shift_of_a_large_image_is_given_in_its_own_pixels() -> None:
    truth = blobs(5, size=(900, 1200))
    found = explained(moved(truth, 60, -90), truth)["shifted"]
    assert abs(found.down - 60) <= 2
    assert abs(found.right + 90) <= 2
    assert found.after > 0.97


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (5, 5)])
@pytest.mark.parametrize("value", [True, False])
def test_tiny_empty_and_full_masks_are_no_trouble(size: tuple[int, int], value: bool) -> None:
    mask = np.full(size, value)
    for prediction in (mask, ~mask):
        for each in explain(mask, prediction):
            assert 0 <= each.before <= 1
            assert 0 <= each.after <= 1


def test_swapped_masks_are_traced_to_each_other() -> None:
    truths = {f"p{seed}": blobs(seed) for seed in range(6)}
    given_masks = {**truths, "p1": truths["p4"], "p4": truths["p1"]}
    swaps = Swaps()
    for name, truth in truths.items():
        swaps.add(name, given_masks[name], truth)
    swaps.add("alone", blobs(1, size=(40, 40)), blobs(2, size=(40, 40)))
    found = dict(swaps.explanations())
    assert (found["p1"].other, found["p4"].other) == ("p4", "p1")
    assert found["p1"].after == 1.0
    assert all(found[name].gain < 0 for name in ("p0", "p2", "p3", "p5"))
    assert "alone" not in found


def test_an_explanation_says_itself_in_words() -> None:
    shift = Explanation("shifted", 0.61, 0.88, down=12, right=7)
    assert shift.in_words() == (
        "looks shifted by 12 pixels down and 7 pixels to the right "
        "(Dice with the model 0.61 as it is, 0.88 shifted back)"
    )
    assert shift_in_words(-3, 0) == "3 pixels up"
    assert shift_in_words(0, -1) == "1 pixel to the left"
    assert "eroded by 1 pixel (" in Explanation("eroded", 0.5, 0.9, pixels=1).in_words()
    assert "with that of cat_7" in Explanation("swapped", 0.5, 0.9, other="cat_7").in_words()
