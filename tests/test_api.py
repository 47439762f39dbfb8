"""Times, as the functions and the commands take them."""

from __future__ import annotations

import pytest

from notan.config import seconds_of
from notan.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h1s", 3601),
        ("1.5h", 5400),
        ("0.5m", 30),
        ("600", 600),
        (" 2.5 ", 2.5),
    ],
)
def test_a_time_limit_is_hours_minutes_and_seconds_or_seconds_alone(
    text: str, seconds: float
) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0s",
        "0",
        "m",
        "-5m",
        "-90",
        "1h30",
        "30m1h",
        "5 minutes",
        "1d",
        "٣m",
        "30M",
        "1.m",
        "nan",
        "inf",
        "1e3",
        "9" * 400,
    ],
)
def test_any_other_time_is_refused_with_words(text: str) -> None:
    with pytest.raises(ConfigError, match=r"a time above zero is wanted, such as 90s, 10m, 1\.5h"):
        seconds_of(text)
