"""The recipe file says what was chosen, and reads back."""

from __future__ import annotations

import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from notan.auto.choose import ChosenSetting, ChosenSettings
from notan.auto.recipe import recipe_to_toml
from notan.config import load_run

DECISIONS = (
    ChosenSetting("data.path", Path("with 'quotes' and \\"), "as asked"),
    ChosenSetting("train.epochs", 7, "a reason " * 30),
    ChosenSetting("seed", 3, "as asked"),
    ChosenSetting("preprocess.image_size", (64, 96), "a shape"),
    ChosenSetting("train.pretrained", True, "learned from others"),
    ChosenSetting("train.patience", None, "as asked"),
    ChosenSetting("train.learning_rate", 1e-3, "what suits"),
)


def test_a_recipe_reads_back_to_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_to_toml(ChosenSettings(DECISIONS), ["A header"]), encoding="utf-8")
    wanted = load_run(flags={each.setting: each.value for each in DECISIONS})
    assert load_run(path) == wanted


def test_each_reason_stands_above_its_setting() -> None:
    lines = recipe_to_toml(
        ChosenSettings(DECISIONS), ["A header", "", "of three lines"]
    ).splitlines()
    assert lines[:3] == ["# A header", "#", "# of three lines"]
    place = lines.index("image_size = [64, 96]")
    assert lines[place - 2 : place] == ["[preprocess]", "# a shape"]
    assert max(map(len, lines)) <= 100


def test_settings_of_no_section_come_before_the_first_section() -> None:
    lines = recipe_to_toml(ChosenSettings(DECISIONS), []).splitlines()
    assert lines.index("seed = 3") < min(i for i, line in enumerate(lines) if line.startswith("["))


READABLE = st.characters(codec="utf-8", exclude_categories=["Cc"])


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.text(READABLE, max_size=200))
def test_no_text_breaks_the_file(value: str, why: str) -> None:
    text = recipe_to_toml(ChosenSettings((ChosenSetting("model.name", value, why),)), [why])
    assert tomllib.loads(text) == {"model": {"name": value}}
