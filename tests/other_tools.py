"""Tools that notan works with, each in an environment of its own; without it a test skips.

They pin what they need, or bring more than a test suite should. ``NOTAN_PYTHON_REMBG`` names the
python of an environment that has rembg, and so on: see docs/how-to/other-tools.md.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def python_of(tool: str) -> Path:
    """Return the python that has a tool, or skip the test where none is named."""
    name = f"NOTAN_PYTHON_{tool.upper().replace('-', '_')}"
    if name not in os.environ:
        pytest.skip(f"{tool} is absent: install it in an environment of its own, set {name}")
    return Path(os.environ[name])


def run_theirs(tool: str, program: str, given: str = "", *paths: Path) -> str:
    """Run a program with a tool's python; return what it prints."""
    settings = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "QT_QPA_PLATFORM": "offscreen"}
    done = subprocess.run(
        [python_of(tool), "-c", program],
        input=given,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, **settings},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
