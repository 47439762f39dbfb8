"""Cutting by colour and snapping to edges in a real browser, and who cannot see or point."""

from __future__ import annotations

import importlib.util
import itertools
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from notan.studio.raster import MaskRaster, difference
from studio_runs import Served, disc, serving
from studio_tabs import DESK, PHONE, TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext, Page

pytest_plugins = ("studio_windows",)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None,
    reason="playwright is absent: pip install playwright (it drives the system's chromium)",
)

SIZE = (181, 233)
"""Of the drawn images; odd, so that no row begins where a word does."""

BOX = (slice(50, 130), slice(60, 170))
"""A thing with straight edges: rows and columns."""


def write_things(folder: Path) -> Path:
    """Write a noisy disc and a box, each on another colour; both are blue: no red to be found."""
    (folder / "images").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(-6, 7, (*SIZE, 3))
    box = np.zeros(SIZE, np.bool_)
    box[BOX] = True
    for name, thing in (("box", box), ("disc", disc(SIZE, 90, 120, 40))):
        plain = np.where(thing[..., np.newaxis], (30, 60, 210), (60, 170, 90)) + noise
        Image.fromarray(plain.astype(np.uint8)).save(folder / "images" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTAN_CACHE", str(folder / "cache"))
        patch.setattr("notan.studio.predictions.START_SECONDS", 0.0)
        with serving(write_things(folder / "things"), folder / "corrections") as studio:
            yield studio


class Window(NamedTuple):
    """A page of the studio with what a test asks of it."""

    page: Page
    studio: Served

    def run(self, script: str) -> Any:
        return self.page.evaluate(f"async () => {{ {TOKENS} {script} }}")

    def open(self, name: str) -> None:
        """Open an image and begin it anew, whatever an earlier test made of it."""
        image = next(each for each in self.studio.gallery.images if each.name == name)
        self.studio.store.begin_anew(image)
        self.page.evaluate("location.hash = '#/'")
        self.page.wait_for_selector("#gallery-page:not([hidden])")
        self.page.evaluate(f"location.hash = '#/image/{image.id}'")
        self.page.wait_for_selector("#busy", state="hidden")
        self.page.wait_for_selector("#accept:not([disabled])")

    def raster(self) -> MaskRaster:
        text = self.run("return new TextDecoder().decode(editor.raster.data.map((v) => v + 48))")
        return np.frombuffer(text.encode(), np.uint8).reshape(SIZE) - np.uint8(48)

    def on_disk(self, name: str) -> tuple[MaskRaster, list[str]]:
        """Return the mask in the journal, and what its strokes were made with."""
        self.run("await editor.answered; await editor.journal.idle()")
        image = next(each for each in self.studio.gallery.images if each.name == name)
        journal = self.studio.store.open(image)
        return journal.raster(), [stroke.tool for stroke in journal.applied]

    def client(self, x: float, y: float) -> tuple[float, float]:
        """Return where a place of the image is in the window."""
        script = "const box = editor.canvas.getBoundingClientRect();"
        script += "return [box.left, box.top, view.x, view.y, view.scale]"
        left, top, view_x, view_y, scale = self.run(script)
        return left + view_x + x * scale, top + view_y + y * scale

    def drag(self, *places: tuple[float, float]) -> None:
        self.page.mouse.move(*self.client(*places[0]))
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*self.client(*place))
        self.page.mouse.up()


@pytest.fixture
def window(chromium: Browser, served: Served) -> Iterator[Callable[..., Window]]:
    contexts: list[BrowserContext] = []
    said: list[str] = []

    def open_window(**settings: Any) -> Window:
        context = chromium.new_context(**{"viewport": DESK, **settings})
        contexts.append(context)
        context.set_extra_http_headers({"authorization": f"Bearer {served.token}"})
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.goto(served.url)
        page.wait_for_selector("#grid li")
        return Window(page, served)

    yield open_window
    for context in contexts:
        context.close()
    assert said == []


def test_a_scribble_over_a_thing_becomes_the_thing_in_one_step(
    window: Callable[..., Window],
) -> None:
    here, thing = window(), disc(SIZE, 90, 120, 40)
    here.open("disc")
    np.testing.assert_array_equal(here.raster(), 0)
    here.page.keyboard.press("c")
    here.run("editor.setSize(56)")
    here.drag((100, 70), (140, 70), (142, 110), (100, 110), (100, 75))
    here.run("await editor.answered")
    found = here.raster()
    np.testing.assert_array_equal(found, np.where(thing, 3, 0))
    kept, tools = here.on_disk("disc")
    np.testing.assert_array_equal(kept, found)
    assert tools == ["cut"]
    # taken away again where it leaks: the half to the right goes, by colour
    here.page.keyboard.press("b")
    here.run("editor.setSize(24)")
    here.drag((120, 150), (180, 150))
    here.page.keyboard.press("c")
    here.page.keyboard.press("x")
    here.run("editor.setSize(44)")
    here.drag((118, 152), (182, 152))
    here.run("await editor.answered")
    np.testing.assert_array_equal(here.raster() & 1, thing)
    for _ in range(2):
        here.page.keyboard.press("Control+z")
    np.testing.assert_array_equal(here.raster(), found)
    here.page.keyboard.press("Control+z")
    np.testing.assert_array_equal(here.raster(), 0)


def test_what_is_being_told_apart_can_be_taken_back_and_is_awaited(
    window: Callable[..., Window],
) -> None:
    here = window()
    here.open("disc")
    here.page.route("**/cut", lambda _: None)  # an answer that does not come
    here.page.keyboard.press("c")
    here.drag((100, 70), (140, 110))
    assert here.run("return editor.asking !== null")
    here.page.keyboard.press("Escape")
    assert here.run("return [editor.asking, editor.scribble]") == [None, None]
    np.testing.assert_array_equal(here.raster(), 0)
    here.page.unroute("**/cut")
    here.run("editor.setSize(100)")
    here.drag((115, 85), (125, 95))
    here.page.keyboard.press("Control+s")
    here.page.wait_for_selector("#scores:has-text('accepted')")
    kept, tools = here.on_disk("disc")
    assert tools == ["cut"]
    assert kept.any()


def test_a_fault_of_the_server_is_said_and_changes_nothing(window: Callable[..., Window]) -> None:
    here = window()
    here.open("disc")
    body = '{"error": "another cut did not end; try again"}'
    here.page.route("**/cut", lambda route: route.fulfill(status=200, body=body))
    here.page.keyboard.press("c")
    here.drag((100, 70), (140, 110))
    here.run("await editor.answered")
    assert here.page.locator("#hint").text_content()
    np.testing.assert_array_equal(here.raster(), 0)
    assert here.run("return [editor.asking, editor.scribble]") == [None, None]


def require_box(raster: MaskRaster) -> None:
    """The sides are exact; a way aslant may save a pixel or two right at a corner."""
    wanted = np.zeros(SIZE, np.bool_)
    wanted[BOX] = True
    rows, columns = np.nonzero((raster & 1) != wanted)
    assert len(rows) <= 12
    assert (np.minimum(abs(rows - 50), abs(rows - 129)) <= 2).all()
    assert (np.minimum(abs(columns - 60), abs(columns - 169)) <= 2).all()


def test_an_outline_follows_edges_round_corners_from_click_to_click(
    window: Callable[..., Window],
) -> None:
    here = window()
    here.open("box")
    here.page.keyboard.press("s")
    here.page.wait_for_function(  # by a function: text would be forbidden by the page's policy
        "() => document.getElementById('hint').textContent === ''"
    )
    # beside the middle of each side: the corners are found on the way
    for place in ((115.3, 48.1), (171.4, 90.2), (114.8, 131.6), (58.7, 91.1)):
        here.page.mouse.click(*here.client(*place))
    here.page.keyboard.press("Enter")
    found = here.raster()
    assert set(np.unique(found)) == {0, 3}
    require_box(found)
    kept, tools = here.on_disk("box")
    np.testing.assert_array_equal(kept, found)
    assert tools == ["snap"]
    here.page.keyboard.press("Control+z")
    here.page.mouse.click(*here.client(115, 50))
    here.page.mouse.click(*here.client(170, 90))
    here.page.keyboard.press("Backspace")
    assert here.run("return editor.points.length") == 1
    here.page.keyboard.press("Escape")
    assert here.run("return [editor.points.length, editor.line]") == [0, None]
    np.testing.assert_array_equal(here.raster(), 0)


def test_keys_alone_cut_and_outline(window: Callable[..., Window]) -> None:
    here = window()
    here.open("disc")
    page = here.page
    page.keyboard.press("c")
    here.run("editor.setSize(100); editor.cursor = {x: 120.5, y: 90.5}")
    page.focus("#canvas")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("d")
    here.run("await editor.answered")
    np.testing.assert_array_equal(here.raster() & 1, disc(SIZE, 90, 120, 40))
    here.open("box")
    page.keyboard.press("s")
    page.wait_for_function("() => document.getElementById('hint').textContent === ''")
    page.focus("#canvas")
    for x, y in ((60, 50), (170, 50), (170, 130), (60, 130)):
        here.run(f"editor.cursor = {{x: {x - 1}, y: {y}}}")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("d")
    page.keyboard.press("Enter")
    require_box(here.raster())


CHANGED = """
const {Raster, packPlane, unpack} = await import('/page/raster.js');
const [before, after] = BYTES, width = WIDTH, height = HEIGHT;
const raster = new Raster(width, height, Uint8Array.from(before));
raster.begin();
raster.touchAll();
raster.data.set(after);
raster.cancel();
const cancelled = [...raster.data];
raster.begin();
raster.touchAll();
raster.data.set(after);
const {tiles, planes} = raster.commit('brush');
raster.flip({tiles, planes});
const back = [...raster.data];
raster.flip({tiles, planes});
const plane = packPlane(raster.data), other = packPlane(raster.data.map((value) => value >> 1));
const packed = Uint8Array.from([...plane, ...other]);
return {cancelled, tiles, planes: [...planes], back, again: [...raster.data],
  unpacked: [...unpack(packed, width * height)]};
"""


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 300), (259, 9), (40, 40)])
def test_page_and_server_write_a_change_with_the_same_bytes(
    window: Callable[..., Window], size: tuple[int, int]
) -> None:
    random = np.random.default_rng(1)
    before, after = random.integers(0, 4, (2, *size), np.uint8)
    after[0, 0] = before[0, 0] ^ 3
    script = CHANGED.replace("BYTES", str([each.ravel().tolist() for each in (before, after)]))
    script = script.replace("WIDTH", str(size[1])).replace("HEIGHT", str(size[0]))
    found = window().run(script)
    tiles, bits = difference(before, after)
    assert found["tiles"] == tiles
    assert bytes(found["planes"]) == zlib.decompress(bits)
    for name in ("cancelled", "back"):
        assert found[name] == before.ravel().tolist()
    for name in ("again", "unpacked"):
        assert found[name] == after.ravel().tolist()


def shown(page: Page) -> npt.NDArray[np.uint8]:
    """Return what is on the screen where the editor's canvas is."""
    import io

    return np.asarray(Image.open(io.BytesIO(page.locator("#canvas").screenshot())).convert("RGB"))


def test_an_image_shown_small_has_its_mask_where_it_is(window: Callable[..., Window]) -> None:
    here = window()
    here.open("box")
    here.run("editor.setSize(40)")
    here.drag((70, 60), (150, 60))
    here.run("view.zoomAt(0.2); view.setLook({style: 'isolate'})")
    assert here.run("return view.level") == 2
    here.page.mouse.move(1, 1)
    here.page.wait_for_timeout(200)
    colours = shown(here.page).astype(int)
    box = here.page.locator("#canvas").bounding_box()
    assert box is not None
    for place, is_in in (((110, 60), True), ((110, 100), False), ((30, 60), False)):
        x, y = here.client(*place)
        red, green, blue = colours[round(y - box["y"]), round(x - box["x"])]
        assert (max(red, green, blue) > 80) == is_in, place


def violations(page: Page) -> list[str]:
    """Return what axe finds serious in what is on the screen."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe-playwright-python is absent: pip install axe-playwright-python",
    )
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): {node['target']} {node['failureSummary']}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


LOOKS = [
    pytest.param({"viewport": size, "color_scheme": scheme}, id=f"{size['width']}-{scheme}")
    for size, scheme in itertools.product((DESK, PHONE), ("light", "dark"))
]


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_serious(window: Callable[..., Window], look: dict[str, Any]) -> None:
    here = window(**look, reduced_motion="reduce")
    page = here.page
    page.wait_for_selector("#grid .score:has-text('expected')")
    found = {"gallery": violations(page)}
    page.fill("#search", "nothing is called so")
    found["empty gallery"] = violations(page)
    page.fill("#search", "")
    here.open("box")
    if look["viewport"] == PHONE:
        page.click("#open-panel")
    for tool in ("brush", "cut", "snap"):
        page.click(f"[data-tool={tool}]")
        found[tool] = violations(page)
    page.click("#layers label:has-text('Errors')")
    found["errors"] = violations(page)
    page.keyboard.press("?")
    page.wait_for_selector("#keys[open]")
    found["keys"] = violations(page)
    page.keyboard.press("Escape")
    here.drag((70, 60), (150, 60))
    here.run("document.getElementById('confirm').showModal()")
    found["confirm"] = violations(page)
    page.keyboard.press("Escape")
    here.run("const lamp = document.getElementById('lamp'); lamp.dataset.lamp = 'failed'")
    found["a red lamp"] = violations(page)
    assert {name: each for name, each in found.items() if each} == {}


FOCUSED = """
const each = document.activeElement, style = getComputedStyle(each);
const mark = each.matches('.segments input') ? getComputedStyle(each.nextElementSibling) : style;
return [each.id || each.dataset.tool || each.name || each.tagName, mark.outlineStyle,
  parseFloat(mark.outlineWidth)];
"""


def test_tab_goes_round_the_editor_and_where_one_is_can_be_seen(
    window: Callable[..., Window],
) -> None:
    here = window()
    here.open("box")
    here.page.focus("#to-gallery")
    seen = {}
    for _ in range(45):
        here.page.keyboard.press("Tab")
        name, style, width = here.run(FOCUSED)
        if name != "BODY":
            seen[name] = (style, width)
    wanted = {"next", "accept", "brush", "snap", "cut", "wand", "canvas", "threshold", "help"}
    assert wanted <= set(seen)
    assert {name: mark for name, mark in seen.items() if mark[0] == "none" or mark[1] < 1} == {}
