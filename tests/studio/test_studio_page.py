"""The page in a real browser: what a person does there, and what is on the disk afterwards."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import itertools
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from browser import find_browser
from notan.studio import journal as journal_module
from notan.studio.raster import checksum, mask_of
from studio_runs import SIZE, Served, disc, open_store, serving, write_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext, Page

    from notan.studio.raster import MaskRaster

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None,
    reason="playwright is absent: pip install playwright (it drives the system's chromium)",
)

DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
RATIO = 1.25
ZOOMED = 1.25 * 1.1
"""What the page is told of a screen of 1.25 whose browser is at 110 %."""

TOKENS = "const {editor, view, gallery} = await import('/page/main.js');"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("studio")
    data = write_images(folder / "cells", 12, masks=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTAN_CACHE", str(folder / "cache"))
        patch.setattr("notan.studio.predictions.START_SECONDS", 0.0)
        with serving(data, folder / "cells-corrections") as studio:
            yield studio


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


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


@pytest.fixture
def tab(chromium: Browser, served: Served) -> Iterator[Callable[..., Tab]]:
    """Open the studio in a window; at the end nothing was wrong, and nobody else was asked."""
    contexts: list[BrowserContext] = []
    said: list[str] = []
    hosts: set[str] = set()

    def open_tab(ratio: float = 1.0, **settings: Any) -> Tab:
        context = chromium.new_context(
            device_scale_factor=ratio,
            **{"viewport": DESK, **settings},
        )
        contexts.append(context)
        context.set_extra_http_headers({"authorization": f"Bearer {served.token}"})
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        page.goto(served.url)
        page.wait_for_selector("#grid li")
        return Tab(page, served)

    yield open_tab
    for context in contexts:
        context.close()
    faults = [line for line in said if "507" not in line]  # which one test provokes
    assert faults == []
    assert hosts == {f"127.0.0.1:{served.port}"}


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


def test_the_whole_story_from_the_gallery_to_the_bytes_on_the_disk(
    tab: Callable[..., Tab], served: Served
) -> None:
    here, place = tab(RATIO), 4
    page = here.page
    assert page.locator("#grid li").count() == 12
    page.click(f"a[href='#/image/{served.gallery.images[place].id}']")
    page.wait_for_selector("#accept:not([disabled])")
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
    seed = (SIZE[1] * 0.55 + 60, SIZE[0] * 0.45)
    before = here.raster()
    here.drag(seed, (seed[0] + 30, seed[1]))
    after = here.raster()
    assert (after != before).sum() > 200
    reached = (after == 3) & (after != before)
    assert reached[int(seed[1]), int(seed[0])] or before[int(seed[1]), int(seed[0])] == 1

    here.wait_saved()
    np.testing.assert_array_equal(here.on_disk(place), after)
    page.reload()
    page.wait_for_selector("#accept:not([disabled])")
    np.testing.assert_array_equal(here.raster(), after)
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(here.raster(), before)
    page.keyboard.press("Control+y")
    page.keyboard.press("Control+s")
    page.wait_for_selector("#scores:has-text('accepted')")
    image = served.gallery.images[place]
    with Image.open(served.store.mask_path(image)) as mask:
        assert mask.size == SIZE[::-1]
        np.testing.assert_array_equal(np.asarray(mask) > 0, mask_of(after))
    row = served.store.row(image)
    assert row is not None
    assert (row.origin, row.strokes) == ("model+hand", "5")


def test_screen_scaling_and_zoom_change_no_pixel(tab: Callable[..., Tab]) -> None:
    here, place = tab(ZOOMED, viewport={"width": 1160, "height": 720}), 6
    here.open(place)
    path = [(40.2, 33.3), (200.7, 90.1), (60.6, 250.9)]
    here.page.keyboard.press("0")
    before = here.raster()
    here.drag(*path)
    radius = here.run("return editor.size") / 2
    np.testing.assert_array_equal(here.raster(), np.where(within(path, radius), 3, before))
    here.wait_saved()
    np.testing.assert_array_equal(here.on_disk(place), here.raster())


def test_wheel_and_space_move_the_view_and_never_the_mask(tab: Callable[..., Tab]) -> None:
    here = tab()
    here.open(7)
    page, before = here.page, here.raster()
    x, y = map(round, here.client(100.5, 120.5))  # a wheel's event knows whole pixels only
    page.mouse.move(x, y)
    place = here.run("return [editor.cursor.x, editor.cursor.y]")
    page.mouse.wheel(0, -900)
    page.wait_for_timeout(100)
    assert here.run("return view.scale") > 3
    assert here.client(*place) == pytest.approx((x, y), abs=0.01)
    page.keyboard.down("Space")
    page.mouse.down()
    page.mouse.move(x + 50, y + 30)
    page.mouse.up()
    page.keyboard.up("Space")
    assert here.client(*place) == pytest.approx((x + 50, y + 30), abs=0.01)
    page.mouse.down()
    page.mouse.move(x + 90, y)
    page.keyboard.press("Escape")
    page.mouse.up()
    np.testing.assert_array_equal(here.raster(), before)
    assert here.run("return editor.journal.isBegun") is False


def test_fingers_move_a_pen_paints_and_a_palm_does_not(tab: Callable[..., Tab]) -> None:
    here = tab(2.0, viewport=PHONE, has_touch=True, is_mobile=True)
    here.open(8)
    cdp = here.page.context.new_cdp_session(here.page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        cdp.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    before, scale = here.raster(), here.run("return view.scale")
    x, y = here.client(170, 150)
    touch("Start", (x - 20, y))
    touch("Start", (x - 20, y), (x + 20, y))
    touch("Move", (x - 80, y), (x + 80, y))
    touch("End")
    assert here.run("return view.scale") == pytest.approx(4 * scale, rel=0.05)
    np.testing.assert_array_equal(here.raster(), before)
    here.page.click("#fit")
    x, y = here.client(30, 30)
    touch("Start", (x, y))
    touch("Move", (x + 30, y))
    touch("End")
    painted = here.raster()
    assert (painted != before).any()
    pen = {"button": "left", "clickCount": 1, "pointerType": "pen"}
    for kind, dx in (("mousePressed", 0), ("mouseMoved", 20), ("mouseReleased", 20)):
        cdp.send("Input.dispatchMouseEvent", {"type": kind, "x": x + dx, "y": y + 60, **pen})
    with_pen = here.raster()
    assert (with_pen != painted).any()
    touch("Start", (x, y + 90))
    touch("Move", (x + 30, y + 100))
    touch("End")
    np.testing.assert_array_equal(here.raster(), with_pen)
    here.wait_saved()


def test_a_disk_that_is_full_turns_the_lamp_red_until_it_is_not(
    tab: Callable[..., Tab], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tab()
    here.open(9)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    here.drag((30, 30), (80, 80))
    here.wait_saved()
    append = journal_module._append
    monkeypatch.setattr(journal_module, "_append", full)
    here.drag((130, 30), (180, 80))
    lamp = here.page.wait_for_selector("#lamp[data-lamp=failed]")
    assert lamp is not None
    assert "No space left on device" in (lamp.text_content() or "")
    here.drag((30, 130), (80, 180))
    monkeypatch.setattr(journal_module, "_append", append)
    here.wait_saved()
    np.testing.assert_array_equal(here.on_disk(9), here.raster())


@contextlib.contextmanager
def command(data: Path, port: int) -> Iterator[str]:
    """Run the command itself, and kill it; yields the address that it prints."""
    words = [sys.executable, "-u", "-m", "notan", "studio", str(data), "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.stdout.readline().split()[1]
        finally:
            process.kill()


def test_a_page_whose_studio_was_killed_goes_on_with_the_next_one(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    data = write_images(tmp_path / "cells", 1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = "await editor.journal.idle(); return editor.raster.checksum()"
    idle = f"async () => {{ {TOKENS} {script} }}"
    context = chromium.new_context(viewport=DESK)  # type: ignore[arg-type]
    page = context.new_page()

    def paint(dx: float) -> None:
        canvas = page.locator("#canvas").bounding_box()
        assert canvas is not None
        x, y = canvas["x"] + canvas["width"] / 2 + dx, canvas["y"] + canvas["height"] / 2
        page.mouse.move(x, y - 60)
        page.mouse.down()
        page.mouse.move(x + 30, y + 60)
        page.mouse.up()

    with command(data, port) as link:
        page.goto(link)
        page.click("#grid li a")
        page.wait_for_selector("#accept:not([disabled])")
        page.keyboard.press("x")
        paint(-90)
        page.evaluate(idle)
    paint(60)
    lamp = page.wait_for_selector("#lamp[data-lamp=failed]")
    assert lamp is not None
    assert "is it still running?" in (lamp.text_content() or "")
    with command(data, port) as link:
        context.new_page().goto(link)
        wanted = page.evaluate(idle)
        assert page.locator("#lamp").get_attribute("data-lamp") == "saved"
    context.close()
    store, image = open_store(data, tmp_path / "cells-corrections")
    journal = store.open(image)
    assert (journal.version, checksum(journal.raster())) == (2, wanted)
    store.close()


def test_two_tabs_on_one_image_do_not_write_over_each_other(tab: Callable[..., Tab]) -> None:
    one, other = tab(), tab()
    for each in (one, other):
        each.open(10)
    one.drag((30, 30), (80, 80))
    one.wait_saved()
    other.drag((130, 30), (180, 80))
    lamp = other.page.wait_for_selector("#lamp[data-lamp=failed]")
    assert lamp is not None
    assert "another tab" in (lamp.text_content() or "")
    np.testing.assert_array_equal(one.on_disk(10), one.raster())


PAINTED_IN_THE_PAGE = """
const {Raster, crc32} = await import('/page/raster.js');
const {Wand, fillHoles, keepLargest} = await import('/page/regions.js');
const lines = [];
for (const [x0, y0, x1, y1] of [[3.5, 4.5, 60.5, 20.5], [60.2, 70.9, 5.1, 10.2], [8, 8, 8, 60]]) {
  const raster = new Raster(70, 80, new Uint8Array(70 * 80));
  raster.capsule(x0, y0, x1, y1, 1, true);
  lines.push([...raster.data]);
}
const ring = new Raster(70, 80, new Uint8Array(70 * 80));
ring.polygon([{x: 5, y: 5}, {x: 40, y: 5}, {x: 40, y: 40}, {x: 5, y: 40}], true);
ring.polygon([{x: 15, y: 15}, {x: 30, y: 15}, {x: 30, y: 30}, {x: 15, y: 30}], false);
ring.polygon([{x: 50.3, y: 50}, {x: 60, y: 50}, {x: 60, y: 60}], true);
const drawn = [...ring.data];
fillHoles(ring);
const filled = [...ring.data];
keepLargest(ring);
const chance = Uint8Array.from({length: 5600}, (_, place) => 255 - 3 * (place % 70));
const wand = new Wand(chance, 70, 80, 20, true);
const counts = [0, 9, 60, 30].map((level) => wand.reach(level));
return {lines, drawn, filled, kept: [...ring.data], counts, crc: crc32(new Uint8Array([1, 2, 3]))};
"""


def test_lines_of_one_pixel_polygons_holes_and_the_wand_are_exact(tab: Callable[..., Tab]) -> None:
    found = tab().run(PAINTED_IN_THE_PAGE)
    for points, (x0, y0, x1, y1) in zip(
        found["lines"], [(3, 4, 60, 20), (60, 70, 5, 10), (8, 8, 8, 60)], strict=True
    ):
        rows, columns = np.nonzero(np.array(points).reshape(80, 70))
        assert len(rows) == max(abs(x1 - x0), abs(y1 - y0)) + 1
        length = np.hypot(x1 - x0, y1 - y0)
        apart = np.abs((x1 - x0) * (rows - y0) - (y1 - y0) * (columns - x0)) / length
        assert apart.max() <= 0.5
    names = ("drawn", "filled", "kept")
    drawn, filled, kept = (np.array(found[name]).reshape(80, 70) for name in names)
    wanted = np.zeros((80, 70), np.bool_)
    wanted[5:40, 5:40] = True
    wanted[15:30, 15:30] = False
    rows, columns = np.mgrid[:80, :70] + 0.5
    triangle = (columns < 60) & (rows > 50) & (columns > 50.3 + 0.97 * (rows - 50))
    np.testing.assert_array_equal(drawn & 1, wanted | triangle)
    wanted[15:30, 15:30] = True
    np.testing.assert_array_equal(filled & 1, wanted | triangle)
    np.testing.assert_array_equal(kept & 1, wanted)
    # 3 a column: the columns left of the start are likelier, those right of it within the level
    assert found["counts"] == [80 * 21, 80 * 24, 80 * 41, 80 * 31]
    assert found["crc"] == 0x55BC801D


def test_on_a_telephone_everything_is_there_and_large_enough(tab: Callable[..., Tab]) -> None:
    here = tab(2.0, viewport=PHONE, has_touch=True, is_mobile=True, color_scheme="dark")
    page = here.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    here.open(11)
    page.click("#open-panel")
    page.check("[name=style][value=outline]")
    boxes = page.evaluate(
        "[...document.querySelectorAll('#editor-page button, #editor-page a')]"
        ".filter((each) => each.checkVisibility() && !each.closest('#panel'))"
        ".map((each) => [each.id || each.dataset.tool, each.getBoundingClientRect().toJSON()])"
    )
    assert len(boxes) >= 11
    for name, box in boxes:
        assert min(box["width"], box["height"]) >= 40, name
        assert box["left"] >= 0, name
        assert box["right"] <= 390, name
        assert box["bottom"] <= 844, name


UNNAMED = """
const named = (each) => (each.getAttribute('aria-label') || each.textContent.trim()
  || each.labels?.[0]?.textContent.trim() || each.placeholder || '').length > 0;
return [...document.querySelectorAll('button, a, input, select, canvas')]
  .filter((each) => !named(each)).map((each) => each.outerHTML);
"""


def test_keys_alone_reach_everything(tab: Callable[..., Tab]) -> None:
    here = tab()
    page = here.page
    assert here.run(UNNAMED) == []
    page.focus("#grid li a")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    page.keyboard.press("Home")
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert "expected Dice" in focused
    page.keyboard.press("Enter")
    page.wait_for_selector("#accept:not([disabled])")
    page.focus("#canvas")
    before = here.raster()
    for key in ("[", "ArrowRight", "Shift+ArrowDown", "d"):
        page.keyboard.press(key)
    after = here.raster()
    size = here.run("return editor.size")
    x, y = here.run("return [editor.cursor.x, editor.cursor.y]")
    spot = disc(SIZE, y, x, size / 2)
    np.testing.assert_array_equal(after, np.where(spot, 3, before))
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.wait_for_selector("#gallery-page:not([hidden])")
    assert page.evaluate("document.activeElement.closest('li') !== null")
