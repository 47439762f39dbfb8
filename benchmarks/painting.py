"""A person who paints in the studio's page, in a Chromium that can be killed, and what it says.

The page tells each change of the mask, and each time that its lamp says saved, with the moment and
a checksum: so it can be told afterwards what was on the screen, and for how long.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

    from playwright.async_api import Page

PATIENCE = 60.0
"""Seconds for anything to happen on a busy machine."""

LONGEST_STROKE = 3.0
"""Seconds."""

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

WATCH = """async () => {
  const { editor } = await import('/page/main.js');
  const { crc32 } = await import('/page/raster.js');
  const { raster, journal } = editor;
  const note = (kind) => tell([kind, Date.now() / 1000, crc32(raster.data), journal.version]);
  for (const name of ['capsule', 'flip', 'cancel']) {
    const work = raster[name].bind(raster);
    raster[name] = (...words) => { work(...words); note('painted'); };
  }
  const lamp = journal.onLamp;
  journal.onLamp = (state) => { if (state.lamp === 'saved') note('saved'); lamp(state); };
  note('saved');
}"""
"""Says whenever the mask changes and whenever the lamp says saved, with the time and a checksum."""

SETTLE = """async () => {
  const { editor } = await import('/page/main.js');
  const { crc32 } = await import('/page/raster.js');
  await editor.journal.idle();
  return [crc32(editor.raster.data), editor.journal.version, editor.journal.isClosed];
}"""


@dataclass
class Note:
    """What a page said of itself: the kind, when, the mask's checksum, the journal's version."""

    kind: str
    at: float
    checksum: int
    version: int


class Browser:
    """A Chromium in a process group of its own, with the studio open in it."""

    def __init__(self, playwright: Any, folder: Path) -> None:  # noqa: ANN401
        self._playwright, self._folder = playwright, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._remote: Any = None
        self.page: Page | None = None
        self.notes: list[Note] = []

    @property
    def lives(self) -> bool:
        """Whether there is one."""
        return self._process is not None

    async def start(self) -> None:
        """Start it, with one empty page."""
        program = next(found for name in NAMES if (found := shutil.which(name)))
        profile = Path(tempfile.mkdtemp(dir=self._folder))
        quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync")
        place = (f"--user-data-dir={profile}", "--remote-debugging-port=0")
        self._process = subprocess.Popen(  # noqa: S603
            [program, *quiet, *place, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        told, began = profile / "DevToolsActivePort", time.monotonic()
        while not told.exists() or "\n" not in told.read_text():
            if time.monotonic() - began > PATIENCE:
                raise TimeoutError("chromium did not start")
            await asyncio.sleep(0.05)
        address = f"http://127.0.0.1:{told.read_text().splitlines()[0]}"
        self._remote = await self._playwright.chromium.connect_over_cdp(address)
        context = self._remote.contexts[0]
        context.set_default_timeout(1000 * PATIENCE)
        self.page = await context.new_page()
        await self.page.expose_function("tell", lambda note: self.notes.append(Note(*note)))

    async def let_in(self, link: str) -> None:
        """Open the address of a studio that was started again, as a person does."""
        other = await self._remote.contexts[0].new_page()
        await other.goto(link)
        await other.close()

    async def open(self, link: str, image: str) -> None:
        """Open the studio and an image, and watch it from now on."""
        page = self.page
        assert page is not None  # noqa: S101
        await page.goto(link)
        await page.wait_for_selector("#grid li")
        await page.evaluate(f"location.hash = '#/image/{image}'")
        await page.wait_for_selector("#editor-page:not([hidden])")
        await page.wait_for_selector("#accept:not([disabled])")
        self.notes.clear()
        await page.evaluate(WATCH)

    async def settle(self) -> tuple[int, int, bool]:
        """Wait until all is saved; return the mask's checksum, the version, whether it gave up."""
        assert self.page is not None  # noqa: S101
        checksum, version, gave_up = await self.page.evaluate(SETTLE)
        return checksum, version, gave_up

    async def kill(self) -> None:
        """Kill every process of it."""
        assert self._process is not None  # noqa: S101
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE)
        await asyncio.sleep(0.2)  # what it said before it died arrives
        self._process = self.page = None


async def paint(page: Page, hand: random.Random) -> None:
    """Paint, take back and accept, until somebody stops it or the browser is gone."""
    from playwright.async_api import Error

    with contextlib.suppress(Error):
        box = await page.locator("#canvas").bounding_box()
        assert box is not None  # noqa: S101
        while True:
            await page.keyboard.press(hand.choice("bbbe"))
            await stroke(page, hand, box)
            for key, chance in (("Control+z", 0.3), ("Control+Shift+z", 0.2), ("Control+s", 0.2)):
                if hand.random() < chance:
                    await page.keyboard.press(key)


async def stroke(page: Page, hand: random.Random, box: Any) -> None:  # noqa: ANN401
    """Draw one line by hand: short, or as long as three seconds."""
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    reach = 0.35 * min(box["width"], box["height"])
    x, y = (centre + hand.uniform(-reach, reach) for centre in middle)
    await page.mouse.move(x, y)
    await page.mouse.down()
    ends = time.monotonic() + hand.choice((0.1, 0.5, LONGEST_STROKE)) * hand.random()
    while time.monotonic() < ends:
        x, y = (
            min(max(place + hand.uniform(-30, 30), centre - reach), centre + reach)
            for place, centre in zip((x, y), middle, strict=True)
        )
        await page.mouse.move(x, y)
        await asyncio.sleep(0.016)
    await page.mouse.up()
