"""The words of code, settings, messages and docs are the field's: image, foreground, background.

"Border" is the trimap's value 3 and nothing else; the rim of a mask is its boundary.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = sorted(
    path
    for pattern in (
        *(
            "src/**/*.py",
            "src/**/*.html",
            "src/**/*.css",
            "src/**/*.js",
            "src/**/*.md",
            "docs/**/*.md",
        ),
        *("docs/*.py", "recipes/*.toml", "benchmarks/*.py", "*.md", "pyproject.toml", "Makefile"),
    )
    for path in ROOT.glob(pattern)
    if not {"build", "reference"} & set(path.relative_to(ROOT).parts)
)
OLD_WORDS = {
    "picture": r"(?i)picture",
    "figure for the foreground": r"(?<![A-Za-z])figure(?!s)",
    "figures in the library": r"(?<![A-Za-z])figures",
    "ground for the background": r"(?<![A-Za-z])ground(?! truth)",
    "blind for the all-foreground baseline": r"(?<![A-Za-z-])blind",
    "words of the first version": r"(?i)(?<![A-Za-z])(hearsay|surprise|tidied|tidying|in the box)",
    "flags of the first version": r"--(border|budget|allow-seen|every)\b",
    "settings of the first version": (
        r"\b(average_decay|encoder_rate|layer_decay|encoder_statistics|most_returns|state_seconds"
        r"|state_steps|affine_shift|affine_degrees|light_probability|smallest_fraction"
        r"|hole_fraction|only_largest|check_below|please_check|budget_seconds)\b"
    ),
}
CHARTS = ("src/notan/report/", "src/notan/report/templates/")


def is_allowed(word: str, path: str, line: str) -> bool:
    """Say whether an old word means something else in a line."""
    if word == "picture":
        return "a picture reduced to two values" in line  # what the name means
    if word.startswith("figure for"):  # matplotlib's class, and the tag of HTML
        return path.startswith(CHARTS) or "matplotlib" in line
    if word.startswith("ground for"):  # a key of Label Studio's files
        return "ground_truth" in line
    if word.startswith("figures"):  # numbers, outside the library
        return not path.startswith("src/") or path.startswith(CHARTS)
    return False


def lines() -> list[tuple[str, int, str]]:
    return [
        (path.relative_to(ROOT).as_posix(), number, line)
        for path in TEXTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    ]


@pytest.mark.parametrize("word", OLD_WORDS)
def test_an_old_word_is_gone(word: str) -> None:
    found = [
        f"{path}:{number}: {line.strip()}"
        for path, number, line in lines()
        if re.search(OLD_WORDS[word], line) and not is_allowed(word, path, line)
    ]
    assert found == []


def test_a_border_is_the_trimaps() -> None:
    found = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(text):
            if not re.search(r"(?i)(?<![A-Za-z.])borders?(?![-:A-Za-z])", line):
                continue
            near = " ".join(text[max(0, number - 6) : number + 7]).lower()
            if "trimap" not in near and "pet" not in near and path.suffix not in {".css", ".html"}:
                found.append(f"{path.relative_to(ROOT)}:{number + 1}: {line.strip()}")
    assert found == []
