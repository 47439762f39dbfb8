"""Run a command in a process of its own where some packages cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import sys
from importlib.abc import MetaPathFinder

class Forbids(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Forbids())
from notan.cli.main import main
main(sys.argv[2:])
"""


def run_without(packages: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``notan WORDS`` where packages (names with commas between) are not installed."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, packages, *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
    )
