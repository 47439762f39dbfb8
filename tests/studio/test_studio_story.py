"""The whole story in a browser: look, correct, teach, compare, swap and back."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from notan import run_process
from notan.studio.raster import mask_of
from studio_runs import SIZE, Served
from studio_tabs import PHONE, UNNAMED, ZOOMED, Tab, within

if TYPE_CHECKING:
    from collections.abc import Callable

    from notan.studio.raster import MaskRaster

pytest_plugins = ("studio_windows",)
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None,
    reason="playwright is absent: pip install playwright (it drives the system's chromium)",
)

WINDOWS = {
    "desk": (1.0, {}, 4),
    "telephone": (1.0, {"viewport": PHONE}, 12),
    "zoomed": (ZOOMED, {"viewport": {"width": 1160, "height": 720}}, 13),
}
"""Device pixel ratio, settings of the window, and the image that is corrected in it."""


def correct(here: Tab, place: int) -> tuple[MaskRaster, MaskRaster]:
    """Correct an image by slider, brush, eraser, polygon and wand; return it before the last."""
    page = here.page
    if page.locator("#open-panel").is_visible():
        page.click("#open-panel")
    model = here.raster()
    assert 0.05 < mask_of(model).mean() < 0.6
    page.focus("#threshold")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert page.locator("[name=layer][value=model]").is_checked()
    np.testing.assert_array_equal(here.raster(), model)
    page.click("#use-model")
    narrow = here.raster()
    assert mask_of(narrow).sum() < mask_of(model).sum()

    page.keyboard.press("b")
    path = [(20.3, 20.7), (150.2, 25.1), (155.9, 140.4)]
    here.drag(*path)
    size = here.run("return editor.size")
    brushed = within(path, size / 2)
    np.testing.assert_array_equal(here.raster(), np.where(brushed, 3, narrow))
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(here.raster(), narrow)
    page.keyboard.press("Control+Shift+z")
    page.keyboard.press("x")
    here.drag((150.0, 30.0), (150.1, 60.0))
    erased = here.raster()
    assert (erased[within([(150.0, 30.0), (150.1, 60.0)], size / 2 - 1)] == 2).all()

    page.keyboard.press("p")
    page.click("[name=mode][value=add]")
    for corner in ((220.0, 200.0), (300.0, 210.0), (250.0, 280.0)):
        page.mouse.click(*here.client(*corner))
    page.keyboard.press("Enter")
    assert here.raster()[230, 255] == 3

    page.keyboard.press("w")
    seed = (SIZE[1] * 0.55 + 60, SIZE[0] * 0.45 + 3 * (place - 4))
    before = here.raster()
    here.drag(seed, (seed[0] + 30, seed[1]))
    after = here.raster()
    assert (after != before).sum() > 200
    reached = (after == 3) & (after != before)
    assert reached[int(seed[1]), int(seed[0])] or before[int(seed[1]), int(seed[0])] == 1
    return before, after


def teach(here: Tab) -> None:
    """Train for a moment where nobody has yet, and see what the model is worth."""
    page = here.page
    page.click("#to-teach")
    page.wait_for_selector("#teach-counts:has-text('1 test image')")
    if page.locator("#teach-models table").count() == 0:
        page.fill("#teach-minutes", "0.2")
        page.keyboard.press("Enter")
        page.wait_for_selector("#teach-stop:not([hidden])")
        page.wait_for_selector("#teach-form:not([hidden])", timeout=180_000)
        assert page.locator("#teach-error").is_hidden()
        assert " " in (page.locator("#teach-dice-line").get_attribute("points") or "")
    words = page.inner_text("#teach-models")
    assert "too few images to tell: 1, where 6 are the least" in words
    assert re.search(r"test images\s+1\s+[01]\.\d\d\s+[01]\.\d\d", words)
    assert re.search(r"validation\s+[12]\s+[01]\.\d\d\s+[01]\.\d\d", words)
    width = page.evaluate("document.querySelector('.column').scrollWidth - innerWidth")
    assert width <= 0


def swap_and_back(here: Tab) -> None:
    """Take the taught model and give it back; what is expected of an image changes with it."""
    page = here.page
    other = here.studio.gallery.images[7].id
    known = f"gallery.items.get('{other}').expected"
    here.run(f"while ({known} === null) await gallery.poll();")
    expected = here.run(f"return {known}")
    assert page.inner_text("#teach-in-use") == "In use: best.safetensors."
    footer = "document.getElementById('about').textContent"
    first = json.dumps(here.run(f"return {footer}"))
    page.click("#teach-models [aria-label='Use model 1']")
    page.wait_for_selector("#teach-in-use:has-text('In use: model 1.')")
    # by a function: a text that is asked again and again would be forbidden by the page's policy
    page.wait_for_function(f"() => {footer} !== {first}")
    here.run(f"while ({known} === null || {known} === {expected}) await gallery.poll();")
    page.click("#teach-back:has-text('Back to best.safetensors')")
    page.wait_for_selector("#teach-in-use:has-text('In use: best.safetensors.')")
    here.run(f"while ({known} !== {expected}) await gallery.poll();")
    page.wait_for_function(f"() => {footer} === {first}")


@pytest.mark.parametrize("window", WINDOWS)
def test_the_whole_story_from_the_gallery_to_a_better_model_and_back(
    tab: Callable[..., Tab], served: Served, window: str
) -> None:
    ratio, settings, place = WINDOWS[window]
    here = tab(ratio, **settings)
    page, image = here.page, served.gallery.images[place]
    page.fill("#search", image.name)
    page.click(f"a[href='#/image/{image.id}']")
    page.wait_for_selector("#accept:not([disabled])")
    before, after = correct(here, place)
    here.wait_saved()
    np.testing.assert_array_equal(here.on_disk(place), after)
    page.reload()
    page.wait_for_selector("#accept:not([disabled])")
    np.testing.assert_array_equal(here.raster(), after)
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(here.raster(), before)
    page.keyboard.press("Control+y")
    page.keyboard.press("Control+s")
    page.wait_for_selector("#scores:has-text('accepted')", state="attached")
    kept = served.store.mask_path(image).read_bytes()
    with Image.open(io.BytesIO(kept)) as mask:
        assert mask.size == SIZE[::-1]
        np.testing.assert_array_equal(np.asarray(mask) > 0, mask_of(after))
    row = served.store.row(image)
    assert row is not None
    assert (row.origin, row.strokes) == ("model+hand", "5")

    page.click("#to-gallery")
    teach(here)
    swap_and_back(here)
    assert served.store.mask_path(image).read_bytes() == kept
    np.testing.assert_array_equal(here.on_disk(place), after)
    here.open(place)
    np.testing.assert_array_equal(here.raster(), after)


def test_what_is_offered_next_is_least_sure_and_every_fifth_is_drawn(
    tab: Callable[..., Tab], served: Served
) -> None:
    here = tab()
    offered = here.run(
        "const {queueOf} = await import('/page/queue.js');"
        "const item = (n, more) => ({id: `i${n}`, name: `${n}`, expected: n / 100, fault: '',"
        " state: 'open', ...more});"
        "const items = [...Array(17).keys()].map((n) => item(n, {}));"
        "items[3].state = 'accepted'; items[9].state = 'changed'; items[5].fault = 'torn';"
        "items[7].expected = null; items[2].state = 'draft';"
        "const drawn = new Map([['i16', 0], ['i1', 1], ['i9', 2], ['i8', 3]]);"
        "return queueOf(items, drawn).map(({id}) => Number(id.slice(1)));"
    )
    # two are accepted, one of them drawn; so the drawn ones are the 10th, the 15th and what is left
    assert offered == [0, 2, 4, 6, 10, 11, 12, 16, 13, 14, 15, 7, 1, 8, 3, 9, 5]
    drawn = [served.gallery.find(image) for image in served.store.draw.drawn]
    names = here.run(
        "gallery.choose({filter: 'drawn'});return gallery.shown.map(({name}) => name);"
    )
    assert {*names} == {each.name for each in drawn if each}
    label = here.page.locator("#grid li a").first.get_attribute("aria-label") or ""
    assert "test image, drawn at random" in label
    here.open(6)
    assert here.page.locator("#drawn").is_visible()
    here.open(7)
    assert here.page.locator("#drawn").is_hidden()


def test_the_view_of_teaching_says_what_goes_wrong(
    tab: Callable[..., Tab], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "print('notan: <b>no</b> room'); raise SystemExit(9)"
    monkeypatch.setattr(run_process, "COMMAND", (sys.executable, "-c", script))
    here = tab(1.0, viewport=PHONE, color_scheme="dark")
    page = here.page
    page.evaluate("location.hash = '#/teach'")
    page.wait_for_selector("#teach-begin:not([disabled])")
    assert here.run(UNNAMED) == []
    page.fill("#teach-minutes", "0.01")
    page.click("#teach-begin")  # the field says what is wrong, and nothing begins
    assert page.evaluate("document.getElementById('teach-minutes').validity.rangeUnderflow")
    page.fill("#teach-minutes", "1")
    page.click("#teach-begin")
    page.wait_for_selector("#teach-error:not([hidden])")
    assert page.inner_text("#teach-error") == "<b>no</b> room"
    monkeypatch.setattr(run_process, "COMMAND", (sys.executable, "-c", "raise SystemExit(5)"))
    page.click("#teach-resume")
    page.wait_for_selector("#teach-error:has-text('exit code 5')")
    (served.store.folder / "masks").rename(served.store.folder / "gone")
    page.click("#teach-begin")
    page.wait_for_selector("#teach-said:has-text('are no longer there')")
    (served.store.folder / "gone").rename(served.store.folder / "masks")
