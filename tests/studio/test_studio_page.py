"""The page in a real browser: what a person does there, and what is on the disk afterwards."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from notan.studio import journal as journal_module
from notan.studio.raster import checksum
from studio_runs import SIZE, disc, open_store, write_images
from studio_tabs import DESK, PHONE, TOKENS, UNNAMED, ZOOMED, Tab, within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

pytest_plugins = ("studio_windows",)
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None,
    reason="playwright is absent: pip install playwright (it drives the system's chromium)",
)


def test_a_long_stroke_is_on_the_disk_before_it_ends_and_is_one_to_take_back(
    tab: Callable[..., Tab],
) -> None:
    here, place = tab(), 5
    here.open(place)
    page, before = here.page, here.raster()

    def hold(*places: tuple[float, float]) -> None:
        """Press, and move on only when what was painted has been answered."""
        page.mouse.move(*here.client(*places[0]))
        page.mouse.down()
        for x, y in places:
            with page.expect_response("**/entries?*"):
                page.mouse.move(*here.client(x + 30, y))

    hold((40, 40), (120, 60))
    np.testing.assert_array_equal(here.on_disk(place), here.raster())
    page.mouse.move(*here.client(180, 90))
    page.mouse.up()
    here.wait_saved()
    painted = here.raster()
    np.testing.assert_array_equal(here.on_disk(place), painted)
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(here.raster(), before)
    page.reload()
    page.wait_for_selector("#accept:not([disabled])")
    np.testing.assert_array_equal(here.raster(), before)
    page.keyboard.press("Control+Shift+z")
    np.testing.assert_array_equal(here.raster(), painted)
    here.wait_saved()
    hold((60, 200), (140, 220))
    page.keyboard.press("Escape")
    page.mouse.up()
    here.wait_saved()
    np.testing.assert_array_equal(here.raster(), painted)
    np.testing.assert_array_equal(here.on_disk(place), painted)


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
