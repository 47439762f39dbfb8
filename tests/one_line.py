"""Commands that must fail say so in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from notan.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Sequence


def refused(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command that must fail; return its exit code and its one line."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    text = capsys.readouterr().err
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("notan: ")]
    assert len(lines) == 1
    assert text.splitlines()[-1] == lines[0]
    assert isinstance(stop.value.code, int)
    return stop.value.code, lines[0].removeprefix("notan: ")
