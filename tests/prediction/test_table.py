"""The table beside written masks, and what the command says of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from notan.cli.main import main
from notan.modelfile.postprocess import Postprocessing
from notan.prediction.predictor import Prediction
from notan.prediction.table import PredictionTable, Row

if TYPE_CHECKING:
    from notan.types import Probability


def table_of(
    *probabilities: Probability, review_below: float | None = 0.8, folder: Path = Path()
) -> PredictionTable:
    table = PredictionTable(folder)
    for number, probability in enumerate(probabilities):
        prediction = Prediction(probability, Postprocessing(review_below=review_below))
        table.put(Row.of(f"p{number}", Path(f"in/p{number}.jpg"), prediction))
    return table


def half(sure: float, size: tuple[int, int] = (6, 8)) -> Probability:
    """A map whose left half is foreground, this sure."""
    probability = np.full(size, 1 - sure, np.float32)
    probability[:, : size[1] // 2] = sure
    return probability


def test_unsure_masks_are_named_the_least_sure_first() -> None:
    table = table_of(half(0.9), half(0.6), half(0.99), half(0.7))
    assert [row.needs_review for row in table.rows] == ["no", "yes", "no", "yes"]
    assert table.summary() == (
        f"please check, by expected Dice: p1 ({table.rows[1].expected_dice:.2f}), "
        f"p3 ({table.rows[3].expected_dice:.2f}); all in predictions.csv"
    )
    many = table_of(*[half(0.6)] * 7)
    assert " and 2 more; all in predictions.csv" in many.summary()


def test_sure_masks_need_no_words() -> None:
    assert table_of(half(0.99)).summary() == ""
    assert table_of().summary() == ""


def test_a_model_that_was_never_told_asks_for_no_check(tmp_path: Path) -> None:
    table = table_of(half(0.6), review_below=None, folder=tmp_path)
    table.save()
    (row,) = csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines())
    assert row["needs_review"] == ""
    assert table.summary() == ""


def test_the_command_writes_a_row_for_each_image_that_it_could_read(
    small_checkpoint: Path,
    drawn_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = drawn_folder / "test" / "images"
    out = tmp_path / "out"
    words = ["predict", str(images), str(tmp_path / "broken.png")]
    with pytest.raises(SystemExit) as end:
        main([*words, "--model", str(small_checkpoint), "--out", str(out)])
    assert end.value.code == 3
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [path.stem for path in sorted(images.iterdir())]
    for row in rows:
        assert 0 <= float(row["expected_dice"]) <= 1
        assert 0 <= float(row["foreground_fraction"]) <= 1
        assert (row["height"], row["width"]) == ("40", "48")
    asked = any(row["needs_review"] == "yes" for row in rows)
    assert ("please check" in capsys.readouterr().out) == asked


def test_where_nothing_could_be_read_there_is_no_table(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        main(
            [
                *("predict", str(tmp_path / "broken.png"), "--model", str(small_checkpoint)),
                *("--out", str(tmp_path / "out")),
            ]
        )
    assert not (tmp_path / "out" / "predictions.csv").exists()
