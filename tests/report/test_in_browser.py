"""The report in a real browser: it renders, complains of nothing and asks no network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from browser import QUIET, find_browser
from notan.report.run import write_report
from report_runs import full_score, keep_incidents, keep_score

if TYPE_CHECKING:
    from pathlib import Path

POLICY = r"<meta http-equiv.*?>"
OWN = "not an origin"
PHONE, NARROW = 390, 500
"""Pixels: a phone's width, and the least that some builds of Chromium give a window."""
PROBE = """<script>
const box = each => each.getBoundingClientRect();
const all = selector => [...document.querySelectorAll(selector)];
onload = () => document.documentElement.setAttribute("data-probe", JSON.stringify({
  images: [...document.images].map(each => each.naturalWidth),
  charts: all("svg").map(each => box(each).height),
  ink: getComputedStyle(document.querySelector("svg text")).fill,
  paper: getComputedStyle(document.body).backgroundColor,
  width: innerWidth,
  wide: all("body *").filter(each => box(each).right > innerWidth + 1).map(each => each.tagName),
}));
</script></body>"""


class Browser:
    """Chromium without a window."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program, self.folder = program, folder

    def open(self, page: Path, *flags: str) -> tuple[str, str]:
        """Return the page's elements as they are once loaded, and what the browser logged."""
        done = subprocess.run(
            [
                *(self.program, *QUIET, f"--user-data-dir={self.folder / 'profile'}"),
                *(f"--log-net-log={self.folder / 'net.json'}", *flags),
                *("--dump-dom", page.as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout, done.stderr

    def requests(self) -> set[str]:
        """Return what the last page asked for; not what the browser did of its own accord."""
        log = json.loads((self.folder / "net.json").read_text(encoding="utf-8"))
        asked = (event.get("params", {}) for event in log["events"])
        return {each["url"] for each in asked if each.get("initiator", OWN) != OWN}

    def probe(self, page: Path, *flags: str) -> dict[str, Any]:
        """Measure a copy of the page, which may run a script as the page itself may not."""
        text = re.sub(POLICY, "", page.read_text("utf-8"))
        copy = self.folder / "probed.html"
        copy.write_text(text.replace("</body>", PROBE), encoding="utf-8")
        elements, _ = self.open(copy, *flags)
        found = re.search(r'data-probe="([^"]*)"', elements)
        assert found
        measures: dict[str, Any] = json.loads(found[1].replace("&quot;", '"').replace("&gt;", ">"))
        return measures


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(find_browser(), tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def page(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("shown") / "run"
    shutil.copytree(small_checkpoint.parent, run)
    keep_score(run, full_score([f"drawn-00{number}" for number in range(24, 30)]))
    keep_incidents(run, {})
    return write_report(run)


def test_the_page_opens_without_a_complaint_or_a_request(browser: Browser, page: Path) -> None:
    elements, log = browser.open(page)
    for heading in ("What was trained on what", "Incidents", "Scores", "Images", "reproduce"):
        assert heading in elements
    assert "CONSOLE" not in log
    assert browser.requests() == set()


def test_what_a_page_does_wrong_would_be_seen(browser: Browser, page: Path) -> None:
    nobody = "https://localhost:1/a.png"
    text = page.read_text("utf-8").replace("<main>", f'<main><img src="{nobody}">')
    guarded, open_to_all = page.with_name("guarded.html"), page.with_name("open.html")
    guarded.write_text(text, "utf-8")
    open_to_all.write_text(re.sub(POLICY, "", text), "utf-8")
    _, log = browser.open(guarded)
    assert "CONSOLE" in log
    assert "Content Security Policy" in log
    browser.open(open_to_all)
    assert browser.requests() == {nobody}


def test_images_and_charts_are_there(browser: Browser, page: Path) -> None:
    measures = browser.probe(page, "--window-size=1200,900")
    assert len(measures["images"]) == 6 * 4
    assert min(measures["images"]) > 0
    assert len(measures["charts"]) == 9
    assert min(measures["charts"]) > 100
    assert measures["wide"] == []


def test_the_charts_follow_the_page_into_the_dark(browser: Browser, page: Path) -> None:
    light = browser.probe(page, "--blink-settings=preferredColorScheme=1")
    dark = browser.probe(page, "--blink-settings=preferredColorScheme=0")
    assert brightness(light["ink"]) < 80 < 200 < brightness(light["paper"])
    assert brightness(dark["paper"]) < 80 < 200 < brightness(dark["ink"])


def brightness(colour: str) -> float:
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    return (red + green + blue) / 3


def test_nothing_stands_out_of_a_phone(browser: Browser, page: Path) -> None:
    measures = browser.probe(page, f"--window-size={PHONE},800")
    assert measures["width"] <= NARROW
    assert measures["wide"] == []
