"""What the studio's page is like in use: frames while painting, the gallery, the server's memory.

Starts ``notan studio`` in a process of its own and drives the system's Chromium as a person does,
with a mouse whose moves go through the browser's own queue. Frames are timed in the page; the mask
is read from the disk afterwards and compared with the same strokes, painted by numpy.

Where other programs take the cores, a gap between two frames says more of them than of the page. So
the processor time of the page's longest task is measured too, by the browser's own tracing: what a
frame would wait for on a machine with nothing else to do.

    python benchmarks/studio_page.py --data shared/data/pets-unlabelled
    python benchmarks/studio_page.py --only painting --rounds 1
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from playwright.sync_api import sync_playwright

from notan.studio.journal import Journal
from notan.studio.raster import mask_of
from results import spread, write_results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from playwright.sync_api import Browser, Page

    from notan.types import Mask

SIDE, BRUSH = 4096, 200
"""Of the image that is painted on, and of the brush, in its pixels."""

SMOOTH, LATE = 33.0, 100.0
"""Milliseconds between frames: nearly all shall be below the one, all below the other."""

PATIENCE = 120.0
"""Seconds for the page to get where it is wanted."""

MOVES_A_SECOND = 60
WHEEL, TURNS_A_SECOND = 240, 15
WINDOW = {"width": 1280, "height": 800}

TIMES_FRAMES = """
window.frames = [];
const tick = () => { window.frames.push(performance.now()); requestAnimationFrame(tick); };
requestAnimationFrame(tick);
"""
NOTES_MOVES = """
const canvas = document.getElementById('canvas');
window.moves = [];
const note = (event) => {
  const box = canvas.getBoundingClientRect();
  const events = event.type === 'pointermove' ? event.getCoalescedEvents() : [event];
  for (const each of events) {
    window.moves.push([event.type, each.clientX - box.left, each.clientY - box.top]);
  }
};
for (const kind of ['pointerdown', 'pointermove']) canvas.addEventListener(kind, note);
"""
AWAITS_FIRST_SCREEN = """
window.firstScreen = null;
const look = () => {
  const scroller = document.getElementById('scroller');
  const seen = [...document.querySelectorAll('#grid li img:first-child')].filter((image) =>
    image.getBoundingClientRect().top < scroller.getBoundingClientRect().bottom);
  const isThere = (image) => image.complete && image.naturalWidth > 0;
  if (seen.length && seen.every(isThere)) window.firstScreen = performance.now();
  else requestAnimationFrame(look);
};
document.addEventListener('DOMContentLoaded', look);
"""
TOKENS = "const {editor, view} = await import('/page/main.js');"


class Frames(NamedTuple):
    """Milliseconds between one frame and the next."""

    gaps: list[float]

    @property
    def nearly_all(self) -> float:
        """Ninety-five of a hundred gaps are no longer."""
        return quantiles(self.gaps, n=20)[-1]

    @property
    def late(self) -> int:
        """How many were too long for an eye."""
        return sum(gap > LATE for gap in self.gaps)


class Running(NamedTuple):
    """A studio in a process of its own."""

    process: subprocess.Popen[str]
    link: str

    def mebibytes(self, name: str) -> float:
        """Return a line of the system's word on its memory, such as ``VmHWM``, the peak."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        line = next(each for each in lines if each.startswith(f"{name}:"))
        return int(line.split()[1]) / 1024


@contextlib.contextmanager
def studio(data: Path, corrections: Path, cache: Path) -> Iterator[Running]:
    """Run ``notan studio`` with the default model, and end it."""
    words = [sys.executable, "-u", "-m", "notan", "studio", str(data), "--port", "8600"]
    words += ["--corrections", str(corrections)]
    environment = {**os.environ, "NOTAN_CACHE": str(cache)}
    with subprocess.Popen(  # noqa: S603 - this interpreter
        words, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            for line in process.stdout or ():
                if line.startswith("open "):
                    yield Running(process, line.split()[1])
                    return
            raise RuntimeError("notan studio ended before it said where it is")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def busy_share(seconds: float = 1.0) -> float:
    """Return how much of the cores that this program may use others take, 0..1."""

    def ticks() -> tuple[float, float]:
        mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        found = [[float(word) for word in row[1:9]] for row in rows if row[0] in mine]
        idle = sum(row[3] + row[4] for row in found)
        return sum(map(sum, found)), idle

    total, idle = ticks()
    time.sleep(seconds)
    total_after, idle_after = ticks()
    return 1 - (idle_after - idle) / max(1.0, total_after - total)


def frames_since(page: Page, since: float, until: float = math.inf) -> Frames:
    """Return the gaps between the frames of a time, in the page's own clock."""
    times = [each for each in page.evaluate("window.frames") if since <= each <= until]
    return Frames([later - sooner for sooner, later in itertools.pairwise(times)])


def now(page: Page) -> float:
    """Return the page's clock in milliseconds."""
    return float(page.evaluate("performance.now()"))


@contextlib.contextmanager
def traced(browser: Browser, page: Page) -> Iterator[list[float]]:
    """Yield a list that holds afterwards what each task of the page took, in processor ms."""
    found: list[float] = []
    browser.start_tracing(page=page, categories=["toplevel"])
    yield found
    events = json.loads(browser.stop_tracing())["traceEvents"]
    named = [each for each in events if each.get("name") == "thread_name"]
    mains = {
        (each["pid"], each["tid"]) for each in named if each["args"]["name"] == "CrRendererMain"
    }
    found += [
        each["tdur"] / 1000
        for each in events
        if "tdur" in each and "RunTask" in each["name"] and (each["pid"], each["tid"]) in mains
    ]


@contextlib.contextmanager
def opened(browser: Browser, link: str, *scripts: str) -> Iterator[Page]:
    """Open the studio in a window of its own, with scripts that measure."""
    context = browser.new_context(viewport=WINDOW)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE * 1000)
    page = context.new_page()
    for script in (TIMES_FRAMES, *scripts):
        page.add_init_script(script)
    page.goto(link)
    try:
        yield page
    finally:
        context.close()


# -- painting -----------------------------------------------------------------------------------


def write_large_image(folder: Path) -> Path:
    """Write an image such as a microscope's: blobs under noise, the same each time."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (64, 64, 3), np.uint8)
    pixels = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    pixels += random.integers(-20, 20, pixels.shape, np.int16)
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "tissue.png"), np.clip(pixels, 0, 255).astype(np.uint8))
    return folder


def place_of(along: float, box: dict[str, float]) -> tuple[float, float]:
    """Return where a hand is that goes to and fro over all of a canvas, from 0 to 1 of its way."""
    reach = 0.46 * min(box["width"], box["height"])
    x = box["x"] + box["width"] / 2 + reach * math.sin(2 * math.pi * 9 * along)
    return x, box["y"] + box["height"] / 2 + reach * (2 * along - 1)


def paint(page: Page, seconds: float) -> tuple[float, float]:
    """Paint one stroke; returns when it began and ended by the page's clock."""
    size = page.locator("#canvas").bounding_box() or {"x": 0, "y": 0, "width": 1, "height": 1}
    box = {name: float(value) for name, value in size.items()}  # type: ignore[arg-type]
    page.mouse.move(*place_of(0.0, box))
    since = now(page)
    page.mouse.down()
    begun = time.monotonic()
    while (along := (time.monotonic() - begun) / seconds) < 1:
        page.mouse.move(*place_of(along, box))  # returns when the page has seen it
        left = 1 / MOVES_A_SECOND - (time.monotonic() - begun) % (1 / MOVES_A_SECOND)
        time.sleep(left)
    page.mouse.up()
    return since, now(page)


def capsules(places: npt.NDArray[np.float64], radius: float) -> Mask:
    """Return the pixels whose centres lie within a radius of a line through places (x, y)."""
    found = np.zeros((SIDE, SIDE), np.bool_)
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        top = max(0, math.floor(min(y0, y1) - radius))
        left = max(0, math.floor(min(x0, x1) - radius))
        part = found[top : math.ceil(max(y0, y1) + radius) + 1, left:]
        part = part[:, : math.ceil(max(x0, x1) + radius) + 1 - left]
        rows, columns = np.ogrid[: part.shape[0], : part.shape[1]]
        y, x = rows + top + 0.5, columns + left + 0.5
        length = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-12)
        share = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1)
        apart = (x - x0 - share * (x1 - x0)) ** 2 + (y - y0 - share * (y1 - y0)) ** 2
        part |= apart <= radius**2
    return found


def replayed(page: Page) -> Mask:
    """Return what the hand's moves, as the page was told of them, paint on an empty mask."""
    script = f"async () => {{ {TOKENS} return [window.moves, view.x, view.y, view.scale]; }}"
    moves, left, top, scale = page.evaluate(script)
    begun = next(place for place, move in enumerate(moves) if move[0] == "pointerdown")
    places = np.array([move[1:] for move in moves[begun:]], np.float64)
    return capsules((places - (left, top)) / scale, BRUSH / 2)


def painting(browser: Browser, folder: Path, seconds: float) -> dict[str, float]:
    """Measure a long stroke on a large image."""
    data, corrections = folder / "tissue", folder / f"corrections-{time.monotonic_ns()}"
    if not data.exists():
        write_large_image(data)
    with studio(data, corrections, folder / "cache") as server:
        with opened(browser, server.link) as page:
            page.click("#grid li a")
            page.wait_for_selector("#accept:not([disabled])")
            page.select_option("#origin", "empty")
            page.evaluate(f"async () => {{ {TOKENS} editor.setSize({BRUSH}); }}")
            page.evaluate(NOTES_MOVES)
            page.wait_for_timeout(1500)
            others = busy_share()
            with traced(browser, page) as tasks:
                began, ended = paint(page, seconds)
                page.wait_for_timeout(1500)
                page.evaluate(f"async () => {{ {TOKENS} await editor.journal.idle(); }}")
            stroke, after = frames_since(page, began, ended), frames_since(page, ended - 30)
            wanted = replayed(page)
        memory = server.mebibytes("VmHWM")
    [path] = (corrections / ".studio" / "journals").glob("*.journal")
    saved = mask_of(Journal.open(path).raster())
    shutil.rmtree(corrections)
    return {
        "others": 100 * others,
        "frames": len(stroke.gaps),
        "nearly all": stroke.nearly_all,
        "longest": max(stroke.gaps),
        "late": stroke.late,
        "end": max(after.gaps),
        "task": max(tasks),
        "painted": 100 * float(wanted.mean()),
        "different": float((saved != wanted).sum()),
        "memory": memory,
    }


# -- the gallery --------------------------------------------------------------------------------


def wait_for_first_screen(page: Page) -> None:
    """Wait without asking for more than a number: the page's policy forbids conditions as text."""
    until = time.monotonic() + PATIENCE
    while page.evaluate("window.firstScreen") is None:
        if time.monotonic() > until:
            raise TimeoutError(f"the gallery's first screen was not there within {PATIENCE:.0f} s")
        time.sleep(0.2)


def scroll(page: Page, seconds: float) -> None:
    """Turn the wheel fifteen times a second, as far as a hurried hand does."""
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < seconds:
        page.mouse.wheel(0, WHEEL)
        time.sleep(1 / TURNS_A_SECOND - passed % (1 / TURNS_A_SECOND))


def gallery(
    browser: Browser, folder: Path, data: Path, seconds: float, *, warm: bool
) -> dict[str, float]:
    """Measure the gallery's first screen and how it scrolls; not warm: nothing is kept yet."""
    cache = folder / "gallery-cache"
    if not warm:
        shutil.rmtree(cache, ignore_errors=True)
    corrections = folder / f"gallery-{time.monotonic_ns()}"
    with studio(data, corrections, cache) as server:
        others = busy_share()
        at_rest = server.mebibytes("VmRSS")
        with opened(browser, server.link, AWAITS_FIRST_SCREEN) as page:
            wait_for_first_screen(page)
            first = float(page.evaluate("window.firstScreen"))
            page.mouse.move(WINDOW["width"] / 2, WINDOW["height"] / 2)
            page.wait_for_timeout(500)
            with traced(browser, page) as tasks:
                since = now(page)
                scroll(page, seconds)
                frames = frames_since(page, since, now(page))
            rows = float(page.evaluate("document.getElementById('scroller').scrollTop"))
        peak = server.mebibytes("VmHWM")
    shutil.rmtree(corrections, ignore_errors=True)
    return {
        "others": 100 * others,
        "first screen": first,
        "scrolled": rows,
        "nearly all": frames.nearly_all,
        "longest": max(frames.gaps),
        "late": frames.late,
        "task": max(tasks),
        "at rest": at_rest,
        "memory": peak,
    }


PAINTING_ROWS = (
    ("others", "other programs on the same cores, % just before", ""),
    ("frames", "frames while painting", ""),
    ("nearly all", "95 % of frames within, ms", f"{SMOOTH:.0f}"),
    ("longest", "longest gap while painting, ms", f"{LATE:.0f}"),
    ("late", f"gaps above {LATE:.0f} ms while painting", "0"),
    ("end", "longest gap after the stroke's end, ms", f"{LATE:.0f}"),
    ("task", "longest task, painting or after it, processor ms", f"{LATE:.0f}"),
    ("painted", "of the image painted, %", ""),
    ("different", "pixels of the saved mask that differ from the strokes replayed", "0"),
    ("memory", "server's peak memory, MiB", ""),
)
GALLERY_ROWS = (
    ("others", "other programs on the same cores, % just before", ""),
    ("first screen", "first screen with all its images, ms", "2000"),
    ("nearly all", "scrolling: 95 % of frames within, ms", ""),
    ("longest", "scrolling: longest gap, ms", f"{LATE:.0f}"),
    ("late", f"scrolling: gaps above {LATE:.0f} ms", "0"),
    ("task", "scrolling: longest task, processor ms", f"{LATE:.0f}"),
    ("at rest", "server's memory before the page is opened, MiB", ""),
    ("memory", "server's peak memory, MiB", ""),
)


def rows_of(
    what: str, found: Sequence[dict[str, float]], wanted: Sequence[tuple[str, str, str]]
) -> list[dict[str, object]]:
    """Return the table's rows of one measurement, repeated."""
    return [
        {
            "what": what,
            "measured": words,
            "value": spread([each[name] for each in found]),
            "at most": goal,
        }
        for name, words, goal in wanted
    ]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder of thousands of images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of painting, and of scrolling")
    parser.add_argument("--only", choices=("painting", "gallery"))
    parser.add_argument("--name", default="studio_page", help="of the result's files")
    parser.add_argument("--note", help="a sentence on how it was run, for the page of results")
    return parser.parse_args()


def main() -> None:
    """Measure in turns, and write the table."""
    chosen = parse()
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))))
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        folder = Path(place)
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        ways: dict[str, Callable[[], dict[str, float]]] = {}
        if chosen.only != "gallery":
            ways["painting"] = lambda: painting(browser, folder, chosen.seconds)
        if chosen.only != "painting" and chosen.data:
            for name, warm in (("gallery, first time", False), ("gallery, again", True)):
                ways[name] = lambda warm=warm: gallery(  # type: ignore[misc]
                    browser, folder, chosen.data, chosen.seconds, warm=warm
                )
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for turn in range(chosen.rounds):
            for name, measure in ways.items():
                found[name].append(measure())
                print(turn, name, {key: round(value, 1) for key, value in found[name][-1].items()})
        version = browser.version
        browser.close()
    rows = []
    for name, values in found.items():
        rows += rows_of(name, values, PAINTING_ROWS if name == "painting" else GALLERY_ROWS)
    cores = sorted(os.sched_getaffinity(0))
    notes = [
        f"Painting: one stroke of {chosen.seconds:.0f} s with a brush of {BRUSH} pixels to and fro "
        f"over {SIDE} x {SIDE}, at most {MOVES_A_SECOND} moves a second.",
        f"Server, browser (Chromium {version}, no GPU) and the hand shared {len(cores)} core"
        f"{'s' * (len(cores) > 1)}; the value of other programs is what they took of it.",
    ]
    notes += [chosen.note] if chosen.note else []
    write_results(chosen.name, "The studio's page in use", rows, notes)


if __name__ == "__main__":
    main()
