"""Pages: Jinja2 templates, escaped, that share one style and need nothing from outside."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

TIMES = "\N{MULTIPLICATION SIGN}"


def fill(template: str, **values: object) -> str:
    """Fill in a template of ``notan.report``.

    Args:
        template: Its file name.
        values: What it shows; all text is escaped but what is ``Markup`` already.
    """
    return _environment().get_template(template).render(values)


def breakable(text: object) -> Markup:
    """Escape, and let long paths and names break after slashes and underscores."""
    return escape(text).replace("/", Markup("/<wbr>")).replace("_", Markup("_<wbr>"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("notan.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment
