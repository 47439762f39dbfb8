"""The page at ``/docs``: what the schema says, with nothing from elsewhere and no script."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STYLE_PATH = "/docs/style.css"


def docs_page(schema: Mapping[str, Any]) -> str:
    """Return the page of a schema.

    Args:
        schema: Of OpenAPI 3.1, as FastAPI makes it.
    """
    environment = Environment(
        loader=PackageLoader("notan.serve"), autoescape=True, undefined=StrictUndefined
    )
    template = environment.get_template("docs.html")
    return template.render(info=schema["info"], routes=list(_routes(schema)), style=STYLE_PATH)


@functools.cache
def style() -> str:
    """Return the style of the page."""
    return (files("notan.serve") / "templates" / "style.css").read_text(encoding="utf-8")


def _routes(schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            bodies = route.get("requestBody", {}).get("content", {})
            yield {
                "method": method.upper(),
                "path": path,
                "summary": route.get("summary", ""),
                "description": route.get("description", ""),
                "parameters": route.get("parameters", []),
                "bodies": {kind: _shown(each.get("schema", {})) for kind, each in bodies.items()},
                "responses": {
                    status: (each.get("description", ""), ", ".join(each.get("content", {})))
                    for status, each in route["responses"].items()
                },
            }


def _shown(schema: Mapping[str, Any]) -> str:
    """Return a body's schema for a reader; of bytes nothing need be said."""
    if schema.get("format") == "binary":
        return ""
    fields = {name: _kind(each) for name, each in schema.get("properties", {}).items()}
    return json.dumps(fields, indent=2)


def _kind(schema: Mapping[str, Any]) -> str:
    kinds = [str(each.get("type", "")) for each in schema.get("anyOf", [schema])]
    kind = " or ".join(filter(None, kinds))
    extra = schema.get("format") or schema.get("contentEncoding")
    return f"{kind} ({extra})" if extra else kind
