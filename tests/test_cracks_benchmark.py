"""The benchmark of drawn cracks scores as it says, and says in a line what it cannot do."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

import cracks
from notan.data.synthetic import DrawnSource

if TYPE_CHECKING:
    from pathlib import Path

    from notan.types import Mask


def line(*, gap: int = 0, around: int = 0) -> Mask:
    mask = np.zeros((12, 40), dtype=np.bool_)
    mask[5 - around : 6 + around, 5 : 35 - gap] = True
    return mask


def test_cldice_is_the_harmonic_mean_of_what_each_skeleton_finds() -> None:
    assert cracks.hard_cldice(line(), line()) == 1
    # all of 15 pixels are true, and half of the 30 true ones are found
    assert cracks.hard_cldice(line(gap=15), line()) == pytest.approx(2 * 0.5 / 1.5)
    # three times as wide, as well placed: 28 of its skeleton's 29 pixels, the last at a corner
    assert cracks.hard_cldice(line(around=1), line()) == pytest.approx(2 * (28 / 29) / (57 / 29))
    assert cracks.hard_cldice(~line(around=3), line()) == 0


def test_an_empty_mask_is_right_only_where_there_is_nothing() -> None:
    nothing = line(gap=30)
    assert not nothing.any()
    assert cracks.score(nothing, nothing) == {"Dice": 1.0, "clDice": 1.0}
    assert cracks.score(nothing, line()) == cracks.score(line(), nothing)
    assert cracks.score(line(), nothing) == {"Dice": 0.0, "clDice": 0.0}


def test_a_row_holds_the_paired_difference_to_the_yardstick() -> None:
    def seed(dice: float) -> dict[str, dict[str, float]]:
        return {f"{n}": {"Dice": dice + n / 100, "clDice": 0.5} for n in range(9)}

    rows = cracks.rows({"yardstick": [seed(0.5)], "as chosen": [seed(0.6), seed(0.7)]})
    assert rows[0] == {"variant": "yardstick", "Dice": "0.5400", "clDice": "0.5000"}
    assert rows[1]["Dice"] == "0.6900"
    assert rows[1]["Dice minus yardstick"].startswith("+0.1500 (")
    assert rows[1]["clDice minus yardstick"] == "+0.0000 (+0.0000 .. +0.0000)"
    assert "Dice minus yardstick" not in cracks.rows({"as chosen": [seed(0.6)]})[0]


def test_a_row_says_what_images_without_cracks_decide() -> None:
    one = {"a": {"Dice": 0.6, "clDice": 0.8}, "b": {"Dice": 0.4, "clDice": 0.2}}
    luck = {name: {"Dice": right, "clDice": right} for name, right in (("c", 1.0), ("d", 0.0))}
    (row,) = cracks.rows({"as chosen": [one | luck]}, ["c", "d"])
    assert row["Dice"] == row["clDice"] == "0.5000"
    assert row["clDice of images with cracks"] == "0.5000"
    assert row["right of 2 without"] == "50%"


def test_what_was_scored_is_not_trained_again(tmp_path: Path) -> None:
    test = list(DrawnSource(2, size=(32, 32), kind="cracks"))
    bench = cracks.Bench(tmp_path, 90, "no-such-python", test)
    kept = {sample.name: {"Dice": 0.25, "clDice": 0.5} for sample in test}
    (tmp_path / "yardstick-90s-s0").mkdir()
    (tmp_path / "yardstick-90s-s0" / "scores.json").write_text(json.dumps(kept))
    assert bench.scores("yardstick", 0) == kept
    with pytest.raises(SystemExit, match=r"no-such-python cannot be run .*--python-of-yardstick"):
        bench.scores("yardstick", 1)


def test_the_last_words_of_a_failed_command_are_said(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with pytest.raises(SystemExit, match=r"cracks: out of luck \(.*log.txt\)"):
        cracks.spend([sys.executable, "-c", "raise SystemExit('a\\nout of luck')"], log)


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--images", "1", "4"], ["--seeds", "-1"]])
def test_numbers_that_cannot_be_meant_are_refused_before_anything_is_drawn(
    tmp_path: Path, words: list[str]
) -> None:
    with pytest.raises(SystemExit, match="cracks: wants minutes above 0"):
        cracks.main(["--work", str(tmp_path / "work"), *words])
    assert not (tmp_path / "work").exists()
