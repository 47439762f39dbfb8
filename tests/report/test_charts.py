"""Charts: in the page's own ink, and whole whatever the numbers are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.metrics import Score
from notan.report.charts import (
    CAPTIONS,
    CARD,
    INK,
    LINE,
    QUIET,
    caption_of,
    score_charts,
    to_png,
    to_svg,
    training_charts,
)
from report_runs import NOT_DEFINED, full_score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HISTORY = [
    {"epoch": 1.0, "train/loss": 0.9, "validation/loss": 0.8, "learning_rate": 1e-3},
    {"epoch": 2.0, "train/loss": float("nan"), "validation/loss": 0.7, "validation/dice": 0.5},
]


@pytest.fixture(scope="module")
def charts() -> dict[str, Figure]:
    score = Score.model_validate(full_score(["a", "b", "c"]))
    return {**dict(training_charts(HISTORY, 2)), **dict(score_charts(score))}


def test_every_chart_has_a_title_and_says_what_to_see(charts: dict[str, Figure]) -> None:
    assert {name.removesuffix("-1") for name in charts} == set(CAPTIONS)
    for name in charts:
        assert all(caption_of(name))


def test_a_chart_takes_its_ink_from_the_page(charts: dict[str, Figure]) -> None:
    for name, chart in charts.items():
        text = to_svg(chart, name)
        assert "currentColor" in text
        assert "var(--line)" in text
        assert not any(colour in text for colour in (INK, QUIET, LINE, CARD))
        assert not re.search(r"(?:fill|stroke): ?(?:#0{3,6}\b|black|#fff)", text)


def test_a_chart_is_one_element_whose_text_stays_text(charts: dict[str, Figure]) -> None:
    for name, chart in charts.items():
        text = to_svg(chart, name).replace("xlink:href", "href")
        element = ET.fromstring(text)  # noqa: S314 - our own text
        assert element.tag == "svg"
        assert element.find(".//text") is not None


def test_no_two_charts_share_an_id_and_each_reference_is_answered(
    charts: dict[str, Figure],
) -> None:
    text = "".join(to_svg(chart, name) for name, chart in charts.items())
    ids = re.findall(r' id="([^"]+)"', text)
    asked = {*re.findall(r'href="#([^"]+)"', text), *re.findall(r"url\(#([^)]+)\)", text)}
    assert len(ids) == len(set(ids))
    assert asked
    assert asked <= set(ids)
    assert "http" not in text


def test_a_line_goes_on_over_epochs_without_validation() -> None:
    """And breaks where a loss was no number. A time limit leaves many epochs unvalidated."""
    history = [{"epoch": float(epoch), "train/loss": 0.5} for epoch in range(1, 7)]
    history[1]["train/loss"] = float("nan")
    for place in (0, 3, 5):
        history[place]["validation/dice"] = 0.7
    charts = dict(training_charts(history, 4))
    lines = {
        line.get_label(): np.asarray(line.get_xydata())
        for chart in charts.values()
        for line in chart.axes[0].lines
    }
    assert lines["Dice"].tolist() == [[1, 0.7], [4, 0.7], [6, 0.7]]
    assert lines["training"].shape == (6, 2)
    assert np.isnan(lines["training"][1, 1])


@pytest.mark.parametrize("epochs", [1, 2])
def test_epochs_are_counted_in_whole_numbers(epochs: int) -> None:
    for name, chart in training_charts(HISTORY[:epochs], 1):
        to_svg(chart, name)
        (axes,) = chart.axes
        assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_a_chart_is_the_same_whatever_was_drawn_before() -> None:
    (name, chart), *_ = training_charts(HISTORY, 2)
    first = to_svg(chart, name)
    to_png(chart)
    assert to_svg(chart, name) == first


def test_no_history_means_no_charts() -> None:
    assert list(training_charts([], None)) == []


def test_values_that_are_missing_leave_gaps_only() -> None:
    for history in ([{"epoch": 3.0}], HISTORY[:1], HISTORY):
        for name, chart in training_charts(history, None):
            assert to_svg(chart, name).startswith("<svg")


@settings(max_examples=5, deadline=None)
@given(
    dice=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    threshold=st.one_of(st.none(), st.floats(0, 1)),
)
def test_any_score_can_be_drawn(dice: list[float], threshold: float | None) -> None:
    score = full_score([str(number) for number in range(len(dice))])
    for row, value in zip(score["images"], dice, strict=True):
        row.update(dice=value, expected_dice=1 - value)
    for name, chart in score_charts(Score.model_validate(score), threshold):
        assert to_svg(chart, name).endswith("</svg>\n")


def test_a_groups_name_is_text_and_nothing_else() -> None:
    score = full_score(["a"])
    score["groups"] = {"<i>kind</i>": {"<script>$\\x_{$ --> ": {**NOT_DEFINED, "mean": 0.5}}}
    charts = dict(score_charts(Score.model_validate(score)))
    text = to_svg(charts["groups-1"], "groups-1")
    assert "<script>" not in text
    assert "<i>" not in text
    assert "&lt;script&gt;$\\x_{$ --&gt;" in text
