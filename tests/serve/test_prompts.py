"""What points, a box and an initial mask make of a probability."""

from __future__ import annotations

import numpy as np
import pytest

from notan.modelfile.postprocess import Postprocessing
from notan.serve.prompts import Prompts, prompted
from notan.web.answers import RefusedError

RULE = Postprocessing(threshold=0.5)


def hills() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Two sure regions with a bridge at 0.6 between them, and a faint third one."""
    probability = np.full((20, 40), 0.05, np.float32)
    probability[4:10, 4:12] = 0.9
    probability[4:10, 20:28] = 0.8
    probability[6:8, 12:20] = 0.6
    probability[14:18, 30:36] = 0.3
    return probability


def test_without_prompts_the_mask_is_the_usual_one() -> None:
    probability, mask = prompted(hills(), RULE, Prompts())
    assert (probability == hills()).all()
    assert (mask == (hills() >= 0.5)).all()


def test_a_box_leaves_nothing_outside() -> None:
    probability, mask = prompted(hills(), RULE, Prompts(box=(2.0, 2.0, 7.2, 6.0)))
    assert mask.sum() == (8 - 4) * (6 - 4)  # columns to the eighth, which it touches
    assert not probability[:, 8:].any()


def test_a_foreground_point_selects_its_region_alone() -> None:
    _, mask = prompted(hills(), RULE, Prompts(points=((5, 5),)))
    assert (mask == (hills() >= 0.5)).all()  # the bridge joins both
    _, mask = prompted(hills(), RULE, Prompts(points=((31, 15),)))
    assert mask[14:18, 30:36].all()
    assert mask.sum() == 24  # as low as the point needs, and nothing of the sure ones


def test_a_background_point_cuts_the_region_of_a_foreground_point() -> None:
    _, mask = prompted(hills(), RULE, Prompts(points=((5, 5), (25, 5)), labels=(1, 0)))
    assert mask[4:10, 4:12].all()
    assert mask.sum() == 48


def test_background_points_alone_take_their_regions_away() -> None:
    probability = hills()
    probability[6:8, 12:20] = 0.1
    _, mask = prompted(probability, RULE, Prompts(points=((25, 5),), labels=(0,)))
    assert mask.sum() == 48
    assert not mask[5, 25]
    _, mask = prompted(probability, RULE, Prompts(points=((0, 0),), labels=(0,)))
    assert mask.sum() == 96  # it lies in no region


def test_points_that_the_probability_does_not_tell_apart_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"does not tell the foreground point .5, 5. from"):
        prompted(hills(), RULE, Prompts(points=((5, 5), (6, 6)), labels=(1, 0)))
    flat = np.full((9, 9), 0.8, np.float32)
    with pytest.raises(RefusedError, match="does not tell"):  # the way from 0.8 leads over 0.8
        prompted(flat, RULE, Prompts(points=((1, 1), (7, 7)), labels=(1, 0)))


def test_a_point_outside_the_box_selects_nothing() -> None:
    _, mask = prompted(hills(), RULE, Prompts(points=((31, 15),), box=(0, 0, 20, 20)))
    assert not mask.any()


def test_an_initial_mask_is_worth_nine_to_one() -> None:
    initial = np.zeros((20, 40), np.bool_)
    initial[:, :20] = True
    probability, mask = prompted(np.full((20, 40), 0.5, np.float32), RULE, Prompts(), initial)
    assert np.allclose(probability[:, :20], 0.9)
    assert np.allclose(probability[:, 20:], 0.1)
    assert (mask == initial).all()
    strong, _ = prompted(np.full((20, 40), 0.99, np.float32), RULE, Prompts(), ~initial)
    assert (strong[:, :20] > 0.9).all()  # a sure network is not overruled


def test_the_rules_of_the_model_hold_where_no_point_says_otherwise() -> None:
    rule = Postprocessing(threshold=0.5, keep_largest=True)
    probability = hills()
    probability[6:8, 12:20] = 0.1
    probability[4:10, 20:27] = 0.8
    probability[4:10, 27] = 0.1
    _, mask = prompted(probability, rule, Prompts(box=(0, 0, 40, 20)))
    assert mask.sum() == 48
    _, mask = prompted(probability, rule, Prompts(points=((25, 5),)))
    assert mask.sum() == 42


def test_the_same_prompts_give_the_same_mask() -> None:
    asked = Prompts(points=((5, 5), (25, 5)), labels=(1, 0))
    one, other = (prompted(hills(), RULE, asked)[1] for _ in range(2))
    assert (one == other).all()
