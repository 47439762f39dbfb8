"""Pages: Jinja2 templates, escaped, that share one style and need nothing from outside."""

from __future__ import annotations

import base64
import math
from functools import cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from notan.report.charts import to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from notan.types import RGBImage

QUALITY = 82
TIMES = "\N{MULTIPLICATION SIGN}"


def fill(template: str, **values: object) -> str:
    """Fill in a template of ``notan.report``.

    Args:
        template: Its file name.
        values: What it shows; all text is escaped but what is ``Markup`` already.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("notan.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "breakable": breakable,
        "jpeg": as_jpeg,
        "svg": as_svg,
        "number": number,
    }
    return environment


def breakable(text: object) -> Markup:
    """Escape, and let long paths and names break after slashes and underscores."""
    return escape(text).replace("/", Markup("/<wbr>")).replace("_", Markup("_<wbr>"))


def number(value: float | None) -> str:
    """Write a score with three digits; a dash where it is not defined."""
    return "\N{EN DASH}" if value is None or math.isnan(value) else f"{value:.3f}"


def as_svg(figure: Figure, name: str) -> Markup:
    """Return a chart as an element that stands inside the page."""
    return Markup(to_svg(figure, name))  # noqa: S704 - drawn by matplotlib, which escapes its texts


def as_jpeg(image: RGBImage) -> str:
    """Return an RGB image as a JPEG in base64, ready for a ``data:image/jpeg`` address."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return base64.b64encode(encoded.tobytes()).decode("ascii")


def fitted(image: RGBImage, *, side: int, least_side: int) -> RGBImage:
    """Shrink an image so that its longer side is ``side``, or magnify what is tiny.

    Args:
        image: uint8, (height, width) or (height, width, 3).
        side: The most pixels of the longer side.
        least_side: Smaller ones are magnified to this, pixel by pixel.
    """
    height, width = image.shape[:2]
    longest = max(height, width)
    scale = min(1.0, side / longest) if longest >= least_side else least_side / longest
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, size, interpolation=way), np.uint8)
