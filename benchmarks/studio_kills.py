"""Kill studio, browser and trainer at random moments of painting and teaching; see what is left.

Run by hand: python benchmarks/studio_kills.py --work FOLDER --kills 200
A real Chromium paints in the studio's page: strokes of up to three seconds, undo, redo and
acceptances; and often the studio trains on what was accepted. At a random moment ``kill -9`` ends
the server, the whole browser, or the training. Then:

- what the page's lamp had called saved is on the disk;
- after the death of the browser, the disk holds the mask as the page showed it at most
  ``MOST_SECONDS`` before the kill, or nothing was painted since; after the death of the server, the
  page that lived on brings everything to the next one, and both hold the same bytes;
- every file is whole: masks decode, have the image's size and are what was accepted, and the table
  and the journals can be read; hidden parts of files that were being written are counted;
- every training left its settings, its best model and its states whole, and is gone on with by the
  next studio, unless it had ended; the death of a training costs no painting at all;
- a page that is opened anew shows what the disk holds.

Writes ``benchmarks/results/studio_kills.json`` and ``.md``, and ends with 1 where a line of this is
not so. Needs playwright and a chromium. Give the command again to go on: each kill is written down
in the work folder. 200 kills take some 10 minutes on a quiet core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors import safe_open

from notan.config import Data, load_run
from notan.data.synthetic import DrawnSource, write_folder
from notan.io.masks import read_mask
from notan.modelfile.card import read_card
from notan.prediction.predictor import Predictor
from notan.run_folder import BEST, HISTORY, SETTINGS, STATES, is_in_use
from notan.studio.gallery import Gallery
from notan.studio.journal import Acceptance
from notan.studio.lessons import MODELS, Lessons
from notan.studio.raster import checksum, mask_of, raster_of
from notan.studio.running import serve_studio
from notan.studio.shelf import GivenModel
from notan.studio.store import OWN, Corrections
from notan.training import train
from notan.training.state import StateFolder
from painting import LONGEST_STROKE, PATIENCE, Browser, Note, paint
from results import spread, write_results

IMAGES, SIZE = 10, (300, 340)
MOST_SECONDS = 1.0
"""Of painting that a kill may cost."""

LONGEST_TRAINING = 20.0
"""Seconds after which a training is killed at the latest; a busy machine wants more."""

NEVER = 1e9
VICTIMS = ("server", "browser", "trainer")
TEACHES = 0.25
"""Of the times when somebody else is killed, a training is under way; to begin one takes long."""

TRAINING_SECONDS = 90
"""That a training may go on; it is killed before."""


TEACH = """async (seconds) => {
  const { getJson, sendJson } = await import('/page/api.js');
  const { phase, lessons: [last], spent } = await getJson('/api/teach');
  if (phase !== 'idle') return;
  const goesOn = last && ['stopped', 'failed'].includes(last.state);
  const limit = Math.ceil(seconds + (goesOn ? spent : 0));
  if (goesOn) await sendJson('/api/teach/resume', { number: last.number, seconds: limit });
  else await sendJson('/api/teach/begin', { seconds: limit });
}"""
"""Begins a training, or goes on with the one that was killed."""

TAUGHT = """async () => (await (await import('/page/api.js')).getJson('/api/teach'))"""


# -- the studio -------------------------------------------------------------------------------


def little_model(folder: Path) -> Path:
    """Train a model for a moment, for the studio to begin with, or find it."""
    flags = {
        "preprocess.image_size": 64,
        "model.width": 2,
        "train.epochs": 2,
        "train.batch_size": 4,
        "train.trackers": (),
        "device": "cpu",
    }
    if not (folder / BEST).exists():
        training, validation = DrawnSource(8), DrawnSource(4, first=8)
        run = load_run(flags=flags)
        train(run, out=folder, overwrite=True, training=training, validation=validation)
    return folder / BEST


def serve_in_forks(model: Path, data: Path, folder: Path, port: int) -> None:
    """Serve a studio in a fork for each line of the input, and say when somebody has ended it."""
    predictor = Predictor.load(model, device="cpu")
    given = GivenModel(model, load=partial(Predictor.load, device="cpu"), device="cpu")
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            serve_studio(
                predictor,
                Data(path=data),
                folder,
                given=given,
                ports=[port],
                on_ready=lambda link: print(os.getpid(), link, flush=True),
                say=lambda _: None,
            )
            os._exit(0)
        os.waitpid(child, 0)
        print("ended", flush=True)


class Server:
    """A studio that can be started again at the same address, quickly."""

    def __init__(self, model: Path, data: Path, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._nursery = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, __file__, "--serve", *map(str, (model, data, folder, port))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = f"http://127.0.0.1:{port}"
        self.pid = 0

    def start(self) -> str:
        """Start it; return the address that is good for one opening."""
        self._write("start\n")
        pid, link = self._line().split()
        self.pid = int(pid)
        return link

    def end(self, number: signal.Signals) -> None:
        """End it by a signal, and wait until it has."""
        os.kill(self.pid, number)
        if self._line() != "ended":
            raise RuntimeError("the studio did not start")

    def training(self) -> int | None:
        """Return the process of the training that is under way; None: there is none."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        children = [int(each) for task in tasks for each in task.read_text().split()]
        return children[0] if children else None

    def close(self) -> None:
        """End all of it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._nursery.stdin.close()  # type: ignore[union-attr]
        self._nursery.wait(PATIENCE)

    def _write(self, text: str) -> None:
        self._nursery.stdin.write(text)  # type: ignore[union-attr]
        self._nursery.stdin.flush()  # type: ignore[union-attr]

    def _line(self) -> str:
        return self._nursery.stdout.readline().strip()  # type: ignore[union-attr]


# -- what is left -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """What was found after one.

    Attributes:
        victim: Who was killed.
        lost: Seconds of painting.
        was_painting: Whether the page had changed the mask since the lamp said saved.
        strays: Hidden parts of files that it left.
        accepted: Masks that were accepted by then, and looked at.
        faults: What was not as it should be.
    """

    victim: str
    lost: float
    was_painting: bool
    strays: int
    accepted: int
    faults: list[str]


def seconds_lost(notes: list[Note], on_disk: int, version: int, killed_at: float) -> float:
    """Return how long ago what is not on the disk was begun; ``NEVER``: no page showed what is.

    The disk may be ahead of the last note, which died with the browser; then nothing was lost.
    """
    for place in reversed(range(len(notes))):
        if notes[place].checksum == on_disk:
            later = notes[place + 1 :]
            return killed_at - later[0].at if later else 0.0
    return 0.0 if version > notes[-1].version else NEVER


def strays_in(folder: Path) -> list[Path]:
    """Return the hidden files that a writer renames when they are whole: ``.NAME.SUFFIX.xxxx``."""
    return [
        path
        for path in folder.rglob(".*.*.*")
        if path.is_file() and path.suffix not in (".png", ".csv", ".json", ".journal")
    ]


def look(data: Path, folder: Path) -> tuple[dict[str, tuple[int, int]], list[str], int]:
    """Open a corrections folder as the next studio would, and read every file of it.

    Returns:
        Of each journal the checksum of its mask and its version; what is not whole; and how many
        masks were accepted.
    """
    gallery = Gallery.open(Data(path=data))
    store = Corrections(folder, gallery)
    try:
        found, faults, accepted = {}, [], 0
        for image in filter(store.has_journal, gallery.images):
            journal = store.open(image)
            found[image.id] = zlib.crc32(journal.raster().tobytes()), journal.version
            if journal.acceptance is None:
                continue
            accepted += 1
            mask = read_mask(store.mask_path(image)).mask
            if store.row(image) is None or mask.shape != SIZE:
                faults.append(f"{image.name}: accepted, and the table or the mask's size is wrong")
            elif not np.array_equal(mask, mask_of(journal.accepted_raster())):
                faults.append(f"{image.name}: its mask is not the one that was accepted")
        Lessons(folder, folder / OWN)  # refuses what it cannot read
        faults += [fault for run in (folder / MODELS).glob("*") for fault in look_at_run(run)]
        return found, faults, accepted
    finally:
        store.close()


def look_at_run(run: Path) -> list[str]:
    """Return what is not whole in the folder of a training that has ended."""
    faults = []
    if (run / SETTINGS).exists():
        load_run(run / SETTINGS)
    if (run / BEST).exists():
        read_card(run / BEST)
    states = StateFolder(run / STATES)
    for path in states.files():
        with safe_open(path, "pt") as state:
            for name in state.keys():  # noqa: SIM118 - it is no dict
                state.get_tensor(name)
    if states.files() and states.load() is None:
        faults.append(f"{run.name}: none of its states can be gone on with")
    history = (run / HISTORY).read_text("utf-8") if (run / HISTORY).exists() else ""
    for line in history.splitlines(keepends=True):
        if line.endswith("\n"):  # the last may be torn; who goes on writes it anew
            json.loads(line)
    return faults


def accept_all(data: Path, folder: Path) -> None:
    """Accept the masks that the data have, so that there is something to be taught."""
    gallery = Gallery.open(Data(path=data))
    store = Corrections(folder, gallery)
    for place, image in enumerate(gallery.images):
        labels = image.labels()
        assert labels is not None  # noqa: S101
        journal = store.begin(image, raster_of(labels.mask), "mask")
        entry = Acceptance(id=f"accept{place:06d}", checksum=checksum(journal.raster()))
        store.append(image, entry, version=journal.version)
    store.close()


class Trial:
    """Kills, one after the other, in one corrections folder."""

    def __init__(self, place: Path, playwright: Any, hand: random.Random, model: Path) -> None:  # noqa: ANN401
        self.data, self.folder = place / "cells", place / "cells-corrections"
        write_folder(DrawnSource(IMAGES, size=SIZE), self.data)
        self.images = [image.id for image in Gallery.open(Data(path=self.data)).images]
        accept_all(self.data, self.folder)
        self.server = Server(model, self.data, self.folder)
        self.browser = Browser(playwright, place)
        self.hand = hand
        self.on_disk: dict[str, tuple[int, int]] = {}

    async def once(self, victim: str) -> Kill:
        """Paint, kill, and look at what is left."""
        faults: list[str] = []
        if not self.browser.lives:
            await self.browser.start()
        image = self.hand.choice(self.images)
        await self.browser.open(self.server.start(), image)
        seen = (await self.browser.settle())[:2]
        if self.on_disk.get(image, seen) != seen:
            faults.append("a page that was opened anew shows another mask than the disk")
        page = self.browser.page
        assert page is not None  # noqa: S101
        if victim == "trainer" or self.hand.random() < TEACHES:
            await page.evaluate(TEACH, TRAINING_SECONDS)
        painting = asyncio.create_task(paint(page, self.hand))
        longest = 2 * LONGEST_STROKE if victim != "trainer" else LONGEST_TRAINING
        await asyncio.sleep(self.hand.uniform(0.05, longest))
        shown: int | None = None  # by a page that lives on
        strays, killed_at = len(strays_in(self.folder)), time.time()
        if victim == "trainer":
            notes = [*self.browser.notes]
            shown = await self._kill_training(painting, faults)
        elif victim == "server":
            self.server.end(signal.SIGKILL)
            strays = len(strays_in(self.folder)) - strays
            notes = [*self.browser.notes]
            await asyncio.sleep(self.hand.uniform(0, 1))  # the person has seen nothing yet
            painting.cancel()
            await asyncio.gather(painting, return_exceptions=True)
            await page.mouse.up()
            shown = await self._go_on(faults)
        else:
            await self.browser.kill()
            await asyncio.gather(painting, return_exceptions=True)
            notes = [each for each in self.browser.notes if each.at <= killed_at]
            self.server.end(signal.SIGTERM)
            strays = 0
        await self._until_no_training_runs()
        self.on_disk, more, accepted = look(self.data, self.folder)
        checksum, version = self.on_disk[image]  # every image has a journal from the start
        saved = [each.version for each in notes if each.kind == "saved"]
        if version < saved[-1]:
            more.append(f"entry {saved[-1]} was called saved, and the disk has {version}")
        if shown is None:
            lost = seconds_lost(notes, checksum, version, killed_at)
        else:
            lost = 0.0 if checksum == shown else NEVER
        if lost > MOST_SECONDS:
            more.append(f"{lost:.2f} seconds of painting were lost")
        is_painting = notes[-1].kind == "painted"
        return Kill(victim, lost, is_painting, strays, accepted, [*faults, *more])

    async def _go_on(self, faults: list[str]) -> int:
        """Let the page that lived on bring what it has to the next studio; end that in peace."""
        await self.browser.let_in(self.server.start())
        checksum, _, gave_up = await self.browser.settle()
        self.server.end(signal.SIGTERM)
        if gave_up:
            faults.append("the page gave up after its studio was killed")
        return int(checksum)

    async def _kill_training(self, painting: asyncio.Task[None], faults: list[str]) -> int:
        """Kill what trains, and let the page paint on; end the studio in peace."""
        page, process = self.browser.page, self.server.training()
        assert page is not None  # noqa: S101
        if process is not None:
            os.kill(process, signal.SIGKILL)
        await asyncio.sleep(self.hand.uniform(0, 1))
        painting.cancel()
        await asyncio.gather(painting, return_exceptions=True)
        await page.mouse.up()
        checksum, _, gave_up = await self.browser.settle()
        while (taught := await page.evaluate(TAUGHT))["phase"] != "idle":  # once() has a bound
            await asyncio.sleep(0.1)
        state, error = (taught["lessons"][0][name] for name in ("state", "error"))
        if gave_up or (process is not None and state != "done" and "SIGKILL" not in error):
            faults.append(f"the training that was killed is called {state}: {error}")
        self.server.end(signal.SIGTERM)
        return int(checksum)

    async def _until_no_training_runs(self) -> None:
        """Wait for a training to save its state, which its studio's death has told it to end."""
        until = time.monotonic() + PATIENCE
        while any(map(is_in_use, (self.folder / MODELS).glob("*"))):
            if time.monotonic() > until:
                raise TimeoutError("a training goes on without its studio")
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        """End everything."""
        if self.browser.lives:
            await self.browser.kill()
        self.server.close()


async def run(words: argparse.Namespace, kept: Path) -> None:
    """Kill until there have been so many, whom by chance; write each down."""
    from playwright.async_api import async_playwright

    began, hand = time.monotonic(), random.Random(f"{words.seed} {len(read_kills(kept))}")
    model = little_model(words.work / "base")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        os.environ["NOTAN_CACHE"] = str(Path(place) / "cache")
        async with async_playwright() as playwright:
            trial = Trial(Path(place), playwright, hand, model)
            try:
                while len(found := read_kills(kept)) < words.kills:
                    if time.monotonic() - began > 60 * words.minutes:
                        break
                    kill = await asyncio.wait_for(trial.once(hand.choice(words.victims)), 300)
                    with kept.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(kill)) + "\n")
                    print(f"{len(found) + 1}: {kill}", flush=True)
            finally:
                await trial.close()


def read_kills(kept: Path) -> list[Kill]:
    """Return the kills so far."""
    if not kept.exists():
        return []
    return [Kill(**json.loads(line)) for line in kept.read_text(encoding="utf-8").splitlines()]


def report(kills: list[Kill]) -> None:
    """Write the results, and end with 1 if they are bad ones."""
    rows = []
    for victim in VICTIMS:
        lost = [each.lost for each in kills if each.victim == victim]
        if lost:
            row = {
                "killed": victim,
                "kills": len(lost),
                "in the middle of a stroke": sum(
                    each.was_painting for each in kills if each.victim == victim
                ),
                "seconds of painting lost": spread(lost),
                "at most": f"{max(lost):.2f}",
            }
            rows.append(row)
    faults = [fault for each in kills for fault in each.faults]
    notes = [
        f"strokes of up to {LONGEST_STROKE:g} seconds, undo, redo and acceptances in {IMAGES} "
        f"images of {SIZE[0]} x {SIZE[1]} pixels",
        f"{sum(each.strays for each in kills)} hidden parts of files that were being written were "
        "left behind, which nothing reads",
        f"accepted masks read after a kill: {sum(each.accepted for each in kills)}",
        f"faults: {len(faults)}" + "".join(f"; {each}" for each in faults[:5]),
    ]
    write_results("studio_kills", f"{len(kills)} times kill -9", rows, notes)
    sys.exit(bool(faults))


def main() -> None:
    """Kill, look, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, metavar="FOLDER")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which none is begun")
    parser.add_argument("--seed", type=int, default=0, help="of hand and moments")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    words = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)  # a fork loses threads, and then waits for them
    if words.serve:
        model, data, folder, port = words.serve
        serve_in_forks(Path(model), Path(data), Path(folder), int(port))
        return
    if words.work is None:
        parser.error("--work: a folder is wanted, in which each kill is written down")
    words.work.mkdir(parents=True, exist_ok=True)
    kept = words.work / "kills.jsonl"
    asyncio.run(run(words, kept))
    report(read_kills(kept))


if __name__ == "__main__":
    main()
