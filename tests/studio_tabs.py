"""A page of the studio in a browser, with what a test asks of it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from studio_runs import SIZE, Served

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from notan.studio.raster import MaskRaster

DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
RATIO = 1.25
ZOOMED = 1.25 * 1.1
"""What the page is told of a screen of 1.25 whose browser is at 110 %."""

TOKENS = "const {editor, view, gallery} = await import('/page/main.js');"


UNNAMED = """
const named = (each) => (each.getAttribute('aria-label') || each.textContent.trim()
  || each.labels?.[0]?.textContent.trim() || each.placeholder || '').length > 0;
return [...document.querySelectorAll('button, a, input, select, canvas')]
  .filter((each) => !named(each)).map((each) => each.outerHTML);
"""


class Tab(NamedTuple):
    """A page of the studio with what a test asks of it."""

    page: Page
    studio: Served

    def run(self, script: str) -> Any:
        return self.page.evaluate(f"async () => {{ {TOKENS} {script} }}")

    def open(self, place: int) -> None:
        image = self.studio.gallery.images[place]
        self.page.evaluate(f"location.hash = '#/image/{image.id}'")
        self.page.wait_for_selector("#editor-page:not([hidden])")
        self.page.wait_for_selector("#busy", state="hidden")
        self.page.wait_for_selector("#accept:not([disabled])")

    def raster(self) -> MaskRaster:
        # each pixel a digit of a text: a list of numbers takes a second to arrive
        text = self.run("return new TextDecoder().decode(editor.raster.data.map((v) => v + 48))")
        return np.frombuffer(text.encode(), np.uint8).reshape(SIZE) - np.uint8(48)

    def on_disk(self, place: int) -> MaskRaster:
        return self.studio.store.open(self.studio.gallery.images[place]).raster()

    def client(self, x: float, y: float) -> tuple[float, float]:
        """Return where a place of the image is in the window."""
        script = (
            "const box = editor.canvas.getBoundingClientRect();"
            "return [box.left, box.top, view.x, view.y, view.scale]"
        )
        left, top, view_x, view_y, scale = self.run(script)
        return left + view_x + x * scale, top + view_y + y * scale

    def drag(self, *places: tuple[float, float]) -> None:
        mouse = self.page.mouse
        mouse.move(*self.client(*places[0]))
        mouse.down()
        for place in places[1:]:
            mouse.move(*self.client(*place))
        mouse.up()

    def wait_saved(self) -> None:
        self.run("await editor.journal.idle()")
        assert self.page.locator("#lamp").get_attribute("data-lamp") == "saved"


def within(places: list[tuple[float, float]], radius: float) -> np.ndarray[Any, Any]:
    """Return the pixels whose centres lie within a radius of a line through places."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    found = np.zeros(SIZE, np.bool_)
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        along = (columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)
        share = np.clip(along / max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-12), 0, 1)
        x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
        found |= (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return found
