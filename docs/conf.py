"""How Sphinx builds these pages; `make docs` does, with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from make_reference import write_reference
from notan.version import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "notan"
author = "The notan developers"
copyright = author  # noqa: A001 - Sphinx's name
version = release = __version__

extensions = ["myst_parser"]
exclude_patterns = ["build"]
myst_heading_anchors = 3  # links such as predict.md#memory
smartquotes = False  # a flag keeps its two hyphens
html_theme = "furo"
html_title = f"notan {__version__}"
html_show_sphinx = False
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Write the reference from the code before the pages are read."""
    app.connect("builder-inited", lambda app: write_reference(Path(app.srcdir) / "reference"))
