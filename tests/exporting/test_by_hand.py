"""The exported file by hand: the lines in the docs give the bytes that predict gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import notan
from notan.modelfile.postprocess import Postprocessing
from notan.modelfile.preprocess import Preprocessor
from without_notan import with_card, write_images

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "without-notan.md"
PLAIN = Postprocessing().model_dump()
CALIBRATED = {**PLAIN, "temperature": 1.386, "bias": -0.536}
COMPONENTS = {**CALIBRATED, "min_component_fraction": 0.01, "fill_holes_fraction": 0.02}


def by_hand(model: Path) -> dict[str, Any]:
    """Run the page's lines on a model; return what they define."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    code = "\n".join(block for block in blocks if "session" in block or "components" in block)
    assert "notan" not in re.findall(r"(?:import|from) (\w+)", code)
    assert '"best.onnx"' in code
    defined: dict[str, Any] = {}
    exec(code.replace('"best.onnx"', repr(str(model))), defined)  # noqa: S102 - our own page
    return defined


def compare(model: Path, paths: list[Path]) -> float:
    """Require the same bytes of both; return the mean share of foreground."""
    lines = by_hand(model)
    predict: Callable[[Path], Any] = lines["predict"]
    predictor = notan.load(model, backend="onnxruntime")
    shares = []
    for path in paths:
        expected = predictor(path)
        probability, mask = predict(path)
        np.testing.assert_array_equal(probability, expected.probability, strict=True)
        np.testing.assert_array_equal(lines["clean"](mask), expected.mask, strict=True)
        shares.append(expected.foreground_fraction)
    return float(np.mean(shares))


@pytest.mark.parametrize(
    "changes",
    [
        PLAIN,
        {**CALIBRATED, "image_size": (48, 32), "stride": 32},
        {**CALIBRATED, "keep_aspect_ratio": True},
        {**PLAIN, "image_size": None},
        COMPONENTS,
        {**COMPONENTS, "keep_largest": True, "keep_aspect_ratio": True},
        {**COMPONENTS, "min_foreground_fraction": 0.4},
    ],
    ids=["squashed", "calibrated", "in proportion", "own size", "components", "largest", "least"],
)
def test_the_lines_in_the_docs_give_the_bytes_of_predict(
    changes: dict[str, Any], portable: Path, tmp_path: Path
) -> None:
    model = with_card(portable, tmp_path / "best.onnx", **changes)
    paths = write_images(tmp_path)
    assert len(paths) == 30
    assert 0.02 < compare(model, paths) < 0.98


def test_they_give_them_on_photographs_and_the_default_model(
    pets_folder: Path, default_model: Path
) -> None:
    photographs = sorted((pets_folder / "images").glob("*.jpg"))[:6]
    assert len(photographs) == 6
    assert 0.02 < compare(default_model, photographs) < 0.98


def test_they_stop_where_each_image_has_a_threshold_of_its_own(
    portable: Path, tmp_path: Path
) -> None:
    model = with_card(portable, tmp_path / "best.onnx", threshold_rule="dice")
    with pytest.raises(AssertionError, match="use notan"):
        by_hand(model)["predict"](write_images(tmp_path)[20])


def test_the_card_that_they_read_has_no_setting_that_they_do_not_know() -> None:
    """A new setting of the preprocessing or postprocessing belongs into the page."""
    text = PAGE.read_text(encoding="utf-8")
    for settings in (Preprocessor, Postprocessing):
        for name in set(settings.model_fields) - {"review_below"}:
            assert name in text, name
