"""The comparison's page stands alone, shows what differs, and cannot be broken by a name."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from notan.comparison import Comparison, compare
from notan.data.synthetic import DrawnSource
from notan.report.charts import compare_chart
from notan.report.compare import compare_page

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.data.samples import Source

EMPTY = {"meta", "img", "br", "wbr"}


class Balance(HTMLParser):
    """Notes every tag that is closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def comparison(seeded_runs: dict[str, Path], unseen: Source) -> Comparison:
    return compare(list(seeded_runs.values()), source=unseen)


def test_the_page_is_whole_and_refers_to_nothing_outside(comparison: Comparison) -> None:
    page = compare_page(comparison)
    balance = Balance()
    balance.feed(page)
    assert balance.open == balance.wrong == []
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_says_what_the_text_says(comparison: Comparison) -> None:
    page = compare_page(comparison)
    assert comparison.pairs[0].verdict in page
    assert "trained (2 seeds)" in page
    assert f"{comparison.models[0].mean_dice:.4f}" in page


def test_the_images_that_differ_most_are_shown_by_both_models(comparison: Comparison) -> None:
    page = compare_page(comparison)
    assert page.count("<img ") == 6
    for image in comparison.pairs[0].most_different[:3]:
        assert image.name in page


def test_the_charts_ink_is_the_pages_and_its_text_is_text(comparison: Comparison) -> None:
    chart = compare_chart(comparison)
    assert chart.startswith("<svg")
    assert "currentColor" in chart
    assert ">trained (2 seeds)</text>" in chart
    assert "difference in Dice" in chart
    assert compare_chart(comparison) == chart


def test_a_name_is_text_and_neither_markup_nor_mathematics(
    seeded_runs: dict[str, Path], unseen: Source, tmp_path: Path
) -> None:
    odd = tmp_path / "<b>$x_$ 濃淡"
    shutil.copytree(seeded_runs["raw-s0"], odd)
    models = [odd, seeded_runs["trained-s0"]]
    page = compare_page(compare(models, source=unseen))
    assert "<b>" not in page
    assert page.count("&lt;b&gt;$x_$ 濃淡") > 3


def test_models_that_agree_have_a_page_without_images(
    seeded_runs: dict[str, Path], unseen: Source
) -> None:
    models = [seeded_runs["raw-s0"]] * 2
    page = compare_page(compare(models, source=unseen))
    assert "no difference" in page
    assert "<img" not in page


def test_one_image_has_a_chart_without_intervals(seeded_runs: dict[str, Path]) -> None:
    models = [seeded_runs["raw-s0"], seeded_runs["trained-s0"]]
    one = DrawnSource(1, size=(24, 30), first=101)
    page = compare_page(compare(models, source=one))
    assert "nan" not in re.sub(r'base64,[^"]*', "", page)
