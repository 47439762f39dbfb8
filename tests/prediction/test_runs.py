"""Run lengths, against a naive reader and against pycocotools."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from notan.errors import DataError
from notan.prediction.formats.rows import coco_rle, decode_rle, kaggle_rle, read_runs

if TYPE_CHECKING:
    from notan.types import Mask, Size

# pycocotools' own arrays have not followed NumPy 2 yet
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda size: arrays(np.bool_, size))


def naive(text: str, size: Size) -> Mask:
    """Set pixels one by one: number 1 is the top left, 2 is the one below it."""
    height, width = size
    mask = np.zeros(size, np.bool_)
    numbers = [int(word) for word in text.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for number in range(start, start + length):
            column, row = divmod(number - 1, height)
            assert column < width
            mask[row, column] = True
    return mask


@settings(deadline=None)
@given(MASKS)
def test_run_lengths_are_read_the_same_by_a_naive_reader_and_by_ours(mask: Mask) -> None:
    text, size = kaggle_rle(mask), mask.shape
    np.testing.assert_array_equal(naive(text, size), mask)
    np.testing.assert_array_equal(decode_rle(text, size), mask)
    runs = read_runs(text)
    assert all(sum(one) < other[0] for one, other in itertools.pairwise(runs))


def test_runs_go_down_the_columns_and_count_from_1() -> None:
    mask = np.array([[0, 1, 0], [1, 1, 0]], np.bool_)
    assert kaggle_rle(mask) == "2 3"
    assert kaggle_rle(np.ones((2, 3), np.bool_)) == "1 6"
    assert kaggle_rle(np.zeros((2, 3), np.bool_)) == ""


@settings(deadline=None)
@given(MASKS)
def test_pycocotools_reads_and_writes_the_same_counts(mask: Mask) -> None:
    ours = coco_rle(mask)
    np.testing.assert_array_equal(coco.decode(ours), mask)
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert ours == {"size": theirs["size"], "counts": theirs["counts"].decode()}


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_long_and_ragged_counts_are_those_of_pycocotools(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = np.repeat(random.random(40) > 0.5, random.integers(1, 4000, 40))[None]
    assert (
        coco_rle(mask)["counts"]
        == coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 2 3", "3 numbers; an even count is wanted"),
        ("1 x", "'x' is no whole number"),
        ("-1 2", "'-1' is no whole number"),
        ("1.5 2", "'1.5' is no whole number"),
        ("٣ 2", "is no whole number"),
        ("0 2", "a run starts at 0; the first pixel is number 1"),
        ("3 0", "the run at 3 is of length 0"),
        ("1 3 3 1", "the run at 3 begins before the one before it ends, at 3"),
        ("5 1 1 1", "the run at 1 begins before"),
        ("5 3", r"the run at 5 reaches pixel 7, but the image has 6 \(2x3"),
        ("7 1", "reaches pixel 7"),
        ("1 " + "9" * 5000, "a number of 5000 digits"),
    ],
)
def test_a_broken_text_is_refused_with_its_reason(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        decode_rle(text, (2, 3))


def test_runs_that_touch_are_read_as_one() -> None:
    np.testing.assert_array_equal(decode_rle("1 2 3 1", (3, 1)), np.ones((3, 1), np.bool_))
