"""Results of benchmarks: variants take turns, and no time is kept without its machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import results

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_variants_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = results.take_turns({"a": lambda: measure("a"), "b": lambda: measure("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_spread_is_the_quartiles_or_of_a_few_the_extremes() -> None:
    assert results.spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0, 3)
    assert results.spread([1.0, 2.0, 3.0, 4.0, 100.0]) == (3.0, 2.0, 4.0, 5)
    rate = results.spread([0.5, 1.0, 2.0]).per_second(8)
    assert (rate.low, rate.median, rate.high) == (4.0, 8.0, 16.0)  # the longest time is the least
    assert str(rate) == "8.00 (4.00 .. 16.00)"


def test_a_table_has_every_column_and_names_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    rows: list[dict[str, object]] = [
        {"way": "ours", "images a second": results.spread([1.0, 2.0, 4.0])},
        {"way": "a|b", "note": "not installed: pip install b"},
    ]
    results.write_results("speed", "Speed", rows, ["Smaller than life."])
    page = (tmp_path / "results" / "speed.md").read_text()
    assert capsys.readouterr().out == f"{page}\n"
    assert "| way | images a second | note |" in page
    assert "| ours | 2.00 (1.00 .. 4.00) |  |" in page
    assert "| a\\|b |  | not installed: pip install b |" in page
    assert "- Smaller than life." in page
    kept = json.loads((tmp_path / "results" / "speed.json").read_text())
    assert kept["rows"][0]["images a second"]["median"] == 2.0
    for fact in ("date", "hardware", "threads", "python", "torch", "numpy", "opencv"):
        assert kept["machine"][fact] not in ("", "none"), fact
        assert kept["machine"][fact] in page
