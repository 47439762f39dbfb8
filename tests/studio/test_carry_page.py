"""Bring and take, two models, and the doctor in a real browser."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from notan.studio import findings as findings_module
from studio_runs import SIZE, Served, red_finder, serving, wait_until, write_images
from studio_tabs import DESK, PHONE, TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

pytest_plugins = ("studio_windows",)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None,
    reason="playwright is absent: pip install playwright (it drives the system's chromium)",
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("studio")
    data = write_images(folder / "cells", 5, masks=3)
    Image.new("1", (30, 20)).save(data / "masks" / "spot-0002.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTAN_CACHE", str(folder / "cache"))
        patch.setattr("notan.studio.predictions.START_SECONDS", 0.0)
        patch.setattr(findings_module, "START_SECONDS", 0.0)
        with serving(
            data, folder / "cells-corrections", compare=red_finder(threshold=0.8)
        ) as studio:
            yield studio


class Window(NamedTuple):
    page: Page
    said: list[str]

    def run(self, script: str) -> Any:
        return self.page.evaluate(f"async () => {{ {TOKENS} {script} }}")

    def open(self, studio: Served, name: str) -> None:
        image = next(each for each in studio.gallery.images if each.name == name)
        self.page.evaluate(f"location.hash = '#/image/{image.id}'")
        self.page.wait_for_selector("#busy", state="hidden")
        self.page.wait_for_selector("#accept:not([disabled])")


@pytest.fixture(scope="module")
def cookie(chromium: Browser, served: Served) -> Any:
    """Open the address that is printed; a download has the browser's cookie and no other key."""
    context = chromium.new_context()
    context.new_page().goto(served.one_time)
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def window(chromium: Browser, served: Served, cookie: Any, request: Any) -> Iterator[Window]:
    """Open the studio; at the end nothing was wrong but what a broken file provokes."""
    settings: dict[str, Any] = getattr(request, "param", {"viewport": DESK})
    context = chromium.new_context(storage_state=cookie, **settings)
    context.set_default_timeout(15_000)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.goto(served.url)
    page.wait_for_selector("#grid li")
    page.wait_for_selector("#sort option[value=difference]", state="attached")
    yield Window(page, said)
    context.close()
    expected = ("422 (Unprocessable", "willReadFrequently")  # a broken file, and a test's reading
    assert [line for line in said if not any(each in line for each in expected)] == []


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_chosen_folder_comes_in_and_what_did_not_is_named(
    window: Window, served: Served, tmp_path: Path
) -> None:
    page, folder = window.page, tmp_path / "trip"
    (folder / "inside").mkdir(parents=True)
    for number, place in enumerate(("a.png", "inside/b.png", "inside/again.png", ".hidden.png")):
        (folder / place).write_bytes(picture(min(number, 1)))
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("notes")
    page.click("#files")
    page.set_input_files("#choose-folder-input", str(folder))
    words = "2 images added, 1 here already, 1 file of other kinds passed over, 1 not taken."
    page.wait_for_selector(f"#bring-said:has-text('{words}')")
    assert page.locator("#bring-faults li").all_inner_texts()[0].startswith("broken.png: ")
    page.keyboard.press("Escape")
    names = page.locator("#grid .name").all_inner_texts()
    assert {"a"} | ({"b", "again"} & {*names}) < {*names}
    assert len(names) == len(served.gallery) == 7


DROPPED = """
const entry = (name, bytes) => ({name, isFile: true, file: (take) => take(
  new File([Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0))], name))});
const folder = (name, ...inside) => {
  const parts = [inside, []];
  return {name, isFile: false, createReader: () => ({readEntries: (take) => take(parts.shift())})};
};
const items = [folder('trip', folder('deep', entry('c.png', CONTENT)), entry('.hidden.png', ''))]
  .map((each) => ({webkitGetAsEntry: () => each}));
for (const kind of ['dragover', 'drop']) {
  const event = new Event(kind, {bubbles: true, cancelable: true});
  event.dataTransfer = {types: ['Files'], items, files: []};
  document.body.dispatchEvent(event);
  if (kind === 'dragover' && document.getElementById('dropping').hidden) throw Error('not shown');
}
"""


def test_a_folder_that_is_dropped_on_the_page_comes_in(window: Window, served: Served) -> None:
    import base64

    content = base64.b64encode(picture(9)).decode()
    window.run(DROPPED.replace("CONTENT", f"'{content}'"))
    window.page.wait_for_selector("#bring-said:has-text('1 image added.')")
    assert window.page.locator("#dropping").is_hidden()
    assert (served.store.folder / "brought" / "c.png").read_bytes() == picture(9)


def test_a_mask_and_the_data_set_are_taken(window: Window, served: Served, tmp_path: Path) -> None:
    page = window.page
    page.click("#files")
    assert page.locator("#take-dataset").is_hidden()
    page.keyboard.press("Escape")
    window.open(served, "spot-0003")
    with page.expect_download() as mask:
        page.click("#take-mask")
    mask.value.save_as(tmp_path / "mask.png")
    assert mask.value.suggested_filename == "spot-0003-mask.png"
    with Image.open(tmp_path / "mask.png") as file:
        shown = np.asarray(file) > 0
    page.keyboard.press("Control+s")
    page.wait_for_selector("#scores:has-text('accepted')")
    page.keyboard.press("g")
    page.click("#files")
    page.select_option("#format", "yolo")
    assert "holes comes in pieces" in page.inner_text("#format-loses")
    page.select_option("#format", "masks")
    with page.expect_download() as dataset:
        page.click("#take-dataset")
    dataset.value.save_as(tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["about.txt", "masks/spot-0003.png"]
        with Image.open(io.BytesIO(archive.read("masks/spot-0003.png"))) as file:
            np.testing.assert_array_equal(np.asarray(file) > 0, shown)


COLOURS = """
view.drawNow();
const {width, height} = view.canvas, ratio = window.devicePixelRatio;
const pixels = view.context.getImageData(0, 0, width, height).data;
const found = [];
for (let y = 0; y < 300; y += 1) {
  for (let x = 0; x < 340; x += 1) {
    const at = (Math.floor((view.y + (y + 0.5) * view.scale) * ratio) * width
      + Math.floor((view.x + (x + 0.5) * view.scale) * ratio)) * 4;
    found.push(pixels[at], pixels[at + 1], pixels[at + 2]);
  }
}
return found;
"""


def test_the_divider_shows_one_model_left_and_the_other_right(
    window: Window, served: Served
) -> None:
    page = window.page
    window.open(served, "spot-0004")
    page.click("#swipe-choice")
    page.wait_for_selector("#swipe:not([hidden])")
    page.wait_for_function("() => document.getElementById('swipe-b').textContent.length > 3")
    page.wait_for_load_state("networkidle")
    image = next(each for each in served.gallery.images if each.name == "spot-0004")
    first, second = red_finder()(image.path).mask, red_finder(threshold=0.8)(image.path).mask
    assert (first != second).any()
    window.run("view.setLook({opacity: 1}); document.getElementById('swipe').focus();")
    for keys, place in (([], 50), (["ArrowRight"] * 5, 60), (["Shift+ArrowLeft"] * 3, 30)):
        for key in keys:
            page.keyboard.press(key)
        assert page.get_attribute("#swipe", "aria-valuenow") == str(place)
        colours = np.array(window.run(COLOURS), np.uint8).reshape(*SIZE, 3)
        edge = window.run(f"return view.toImage(view.width * {place / 100}, 0).x")
        left = np.arange(SIZE[1]) + 1 < edge
        right = np.arange(SIZE[1]) > edge + 1
        pink, blue = ((colours == hue).all(axis=2) for hue in ((204, 121, 167), (86, 180, 233)))
        np.testing.assert_array_equal(pink[:, left], first[:, left])
        np.testing.assert_array_equal(blue[:, right], second[:, right])
        assert not pink[:, right].any()
        assert not blue[:, left].any()
    assert window.run("return view.look.layer") == "swipe"
    box = page.locator("#swipe").bounding_box()
    stage = page.locator("#stage").bounding_box()
    assert box is not None
    assert stage is not None
    page.mouse.move(box["x"] + 22, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] * 0.75, box["y"] + 90, steps=3)
    page.mouse.up()
    assert page.get_attribute("#swipe", "aria-valuenow") == "75"
    page.check("[name=layer][value=mask]", force=True)
    assert page.locator("#swipe").is_hidden()


@pytest.mark.parametrize(
    "window",
    [{"viewport": PHONE, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}],
    indirect=True,
)
def test_a_finger_moves_the_divider_and_nothing_else(window: Window, served: Served) -> None:
    page = window.page
    window.open(served, "spot-0004")
    page.click("#open-panel")
    page.locator("#swipe-choice").scroll_into_view_if_needed()
    page.locator("#swipe-choice").tap()
    page.click("#open-panel")
    page.wait_for_selector("#swipe:not([hidden])")
    before = window.run("return [view.scale, view.x, editor.journal.isBegun]")
    cdp = page.context.new_cdp_session(page)
    x, y = 195, 300
    for kind, places in (
        ("touchStart", [(x, y)]),
        ("touchMove", [(x - 60, y + 5)]),
        ("touchMove", [(x - 117, y)]),
        ("touchEnd", []),
    ):
        points = [{"x": at, "y": down, "id": 1} for at, down in places]
        cdp.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert page.get_attribute("#swipe", "aria-valuenow") == "20"
    assert window.run("return [view.scale, view.x, editor.journal.isBegun]") == before


def test_the_gallery_sorts_by_the_difference_and_by_the_doctors_findings(window: Window) -> None:
    page = window.page
    names = page.locator("#grid .name")
    page.wait_for_selector("#sort option[value=findings]", state="attached", timeout=60_000)
    page.select_option("#sort", "findings")
    assert names.first.inner_text() == "spot-0002"
    cell = page.locator("#grid a").first
    assert cell.get_attribute("data-finding") == "error"
    assert "doctor's error" in (cell.get_attribute("aria-label") or "")
    kind = page.locator("#filter optgroup option").first
    page.select_option("#filter", kind.get_attribute("value"))
    assert names.all_inner_texts() == ["spot-0002"]
    cell.click()
    page.wait_for_selector("#doctor:not([hidden])")
    assert "20x30" in page.inner_text("#doctor-says")
    page.keyboard.press("g")
    page.select_option("#filter", "all")
    known = "return [...gallery.items.values()].every((item) => item.difference !== undefined)"
    wait_until(lambda: bool(window.run(known)))
    page.select_option("#sort", "difference")
    shown = window.run("return gallery.shown.map((item) => item.difference)")
    assert shown == sorted(shown, reverse=True)
    assert "models differ by" in page.locator("#grid .score").first.inner_text()
