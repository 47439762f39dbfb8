"""What a server bears: many clients for a minute, then damaged uploads; and what it costs.

Starts ``notan serve`` in a process of its own and has clients ask it without a pause (one that is
told to come again waits as long as it is told). Then the server's rate is compared with that of the
Predictor in this process, on the same images and in turns, for a machine's speed changes by a tenth
from one minute to the next. Both share the cores that this program may use; --client-core gives the
clients, which are usually other machines, one that is theirs alone.

    python benchmarks/serve_load.py --threads 1 --core 0 --client-core 1
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, quantiles
from typing import TYPE_CHECKING

import cv2

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from damaged_files import damaged
from notan.api import load
from notan.data.synthetic import DrawnSource
from notan.io.images import decode_image
from notan.prediction.pixels import encode_png, mask_image
from results import write_results

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from notan.prediction.predictor import Predictor

SIZE = (375, 500)
"""(height, width): a photograph of the usual data sets."""

PATIENCE = 60.0
"""Seconds for an answer: a server that stands still must end the benchmark, not stop it."""

WARM = 100
"""Requests until memory is measured for the first time."""

DAMAGED = 500

TURNS = 5
"""Of the server and the Predictor, in which their rates are compared."""


def make_images(count: int) -> list[bytes]:
    """Return JPEG files, the same each time."""
    source = DrawnSource(count, size=SIZE, seed=3)
    encoded = (cv2.imencode(".jpg", source[at].image[..., ::-1])[1] for at in range(count))
    return [each.tobytes() for each in encoded]


@dataclass
class Load:
    """What the clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


class Client:
    """A connection that is kept; no library, whose work would count as the server's."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes, bytes]:
        """Return the status, the headers and the body of an answer."""
        for _ in range(2):
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                return await asyncio.wait_for(self._ask(method, path, body), PATIENCE)
            self._streams = None  # kept for too long: the server had closed it
        return await asyncio.wait_for(self._ask(method, path, body), PATIENCE)

    async def _ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        headers = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", headers)
        content = await reader.readexactly(int(length[1]) if length else 0)
        if b"connection: close" in headers.lower():
            writer.close()
            self._streams = None
        return int(headers.split(b" ", 2)[1]), headers, content


async def ask_for(port: int, images: Sequence[bytes], until: float, first: int, load: Load) -> None:
    """Ask for one mask after another until a time has come."""
    client, number = Client(port), first
    while time.monotonic() < until:
        began = time.monotonic()
        status, headers, _ = await client.ask("POST", "/v1/masks", images[number % len(images)])
        load.statuses[status] += 1
        number += 1
        if status == 200:
            load.seconds.append(time.monotonic() - began)
        elif status == 429:
            wait = re.search(rb"retry-after: (\d+)", headers)
            await asyncio.sleep(float(wait[1]) if wait else 1)


async def look(
    port: int, until: float, health: list[float], memory: list[tuple[int, float]]
) -> None:
    """Ask twice a second whether the server lives, and how much memory it has."""
    client = Client(port)
    while time.monotonic() < until:
        began = time.monotonic()
        await client.ask("GET", "/healthz")
        health.append(time.monotonic() - began)
        _, _, text = await client.ask("GET", "/metrics")
        memory.append((int(_metric(text, "notan_images_total")),
                       _metric(text, "process_resident_memory_bytes") / 2**20))  # fmt: skip
        await asyncio.sleep(0.5)


def _metric(text: bytes, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$".encode(), text, re.MULTILINE)
    assert found  # noqa: S101 - the server's own text
    return float(found[1])


def rate_of(work: Callable[[], int], seconds: float) -> float:
    """Return how many things a second are done."""
    work()
    began, done = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        done += work()
    return done / (time.monotonic() - began)


def own_rates(predictor: Predictor, files: Sequence[bytes], seconds: float) -> tuple[float, float]:
    """Return the Predictor's images a second: of pixels to masks, and of files to files."""
    images = [decode_image(each, "drawn") for each in files]
    size = predictor.choose_batch_size()

    def masks() -> int:
        return sum(1 for each in predictor.predict_many(images, batch_size=size) if each.mask.size)

    def whole() -> int:
        decoded = (decode_image(each, "drawn") for each in files)
        for each in predictor.predict_many(decoded, batch_size=size):
            encode_png(mask_image(each.mask))
        return len(files)

    return rate_of(masks, seconds), rate_of(whole, seconds)


def start(arguments: argparse.Namespace) -> tuple[subprocess.Popen[str], int]:
    """Start the server; return its process and port."""
    words = [sys.executable, "-m", "notan", "serve", "--port", "0"]
    words += ["--backend", arguments.backend]
    words += ["--model", arguments.model] if arguments.model else []
    words += ["--threads", str(arguments.threads)] if arguments.threads else []
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
    assert server.stdout  # noqa: S101 - it is a pipe
    found = re.match(r"http://127\.0\.0\.1:(\d+)", server.stdout.readline())
    assert found  # noqa: S101
    time.sleep(1)
    return server, int(found[1])


async def run_load(
    port: int, images: Sequence[bytes], seconds: float, clients: int
) -> tuple[Load, list[float], list[tuple[int, float]]]:
    """Have clients ask for a while."""
    load, health, memory = Load(), list[float](), list[tuple[int, float]]()
    until = time.monotonic() + seconds
    asking = [ask_for(port, images, until, number * 7, load) for number in range(clients)]
    await asyncio.gather(*asking, look(port, until, health, memory))
    return load, health, memory


async def send_damaged(port: int) -> Counter[int]:
    """Send damaged files and count the answers."""
    client, statuses = Client(port), Counter[int]()
    files = [content for _, content in damaged()]
    for number in range(DAMAGED):
        status, _, _ = await client.ask("POST", "/v1/masks", files[number % len(files)])
        statuses[status] += 1
    status, _, _ = await client.ask("GET", "/healthz")
    assert status == 200  # noqa: S101 - it lives
    return statuses


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--threads", type=int, help="of the network, there and here")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--model", help="the default model where it is left out")
    parser.add_argument("--core", type=int, help="the only one of the server and the Predictor")
    parser.add_argument("--client-core", type=int, help="one for the clients alone")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    cores = os.sched_getaffinity(0)
    images = make_images(32)
    predictor = load(arguments.model, threads=arguments.threads, backend=arguments.backend)
    server, port = start(arguments)

    def put_load(seconds: float) -> tuple[Load, list[float], list[tuple[int, float]]]:
        if arguments.client_core is not None:
            os.sched_setaffinity(0, {arguments.client_core})
        try:
            return asyncio.run(run_load(port, images, seconds, arguments.clients))
        finally:
            os.sched_setaffinity(0, cores)

    try:
        load_, health, memory = put_load(arguments.seconds)
        turns = []
        for _ in range(TURNS):
            served = put_load(arguments.seconds / 6)[0].statuses[200] / (arguments.seconds / 6)
            turns.append((served, *own_rates(predictor, images, arguments.seconds / 12)))
        statuses = asyncio.run(send_damaged(port))
        server.send_signal(signal.SIGTERM)
        code = server.wait(30)
    finally:
        server.kill()
    rate, masks, files = (mean(each) for each in zip(*turns, strict=True))
    of_turns = [f"{served / own:.0%}" for served, own, _ in turns]
    begun = next(size for done, size in memory if done >= WARM)
    shares = quantiles(load_.seconds, n=100)
    where = "the same" if arguments.client_core is None else "another"
    rows = [
        {"what": "images a second", "value": load_.statuses[200] / arguments.seconds},
        {"what": "images a second, server, in turns", "value": rate},
        {"what": "images a second, Predictor, pixels to masks", "value": masks},
        {"what": "images a second, Predictor, files to files", "value": files},
        {"what": "the server's share of pixels to masks", "value": f"{rate / masks:.1%}"},
        {"what": "the same of each turn", "value": ", ".join(of_turns)},
        {"what": "the server's share of files to files", "value": f"{rate / files:.1%}"},
        {"what": "seconds to an answer, half of them", "value": shares[49]},
        {"what": "seconds to an answer, 95 of 100", "value": shares[94]},
        {"what": "seconds of /healthz, 99 of 100", "value": quantiles(health, n=100)[98]},
        {"what": f"MiB after {WARM} requests", "value": begun},
        {"what": "MiB at the end", "value": memory[-1][1]},
        {"what": "growth", "value": f"{memory[-1][1] / begun - 1:+.1%}"},
        {"what": "answers", "value": _counts(load_.statuses)},
        {"what": f"answers to {DAMAGED} damaged files", "value": _counts(statuses)},
        {"what": "exit code after SIGTERM", "value": code},
    ]
    write_results(
        "serve_load",
        f"{arguments.clients} clients of notan serve for {arguments.seconds:g} seconds",
        rows,
        [
            f"images of {SIZE[0]}x{SIZE[1]} (height x width) as JPEG; the server has {len(cores)} "
            f"core(s), the clients {where}",
            f"rates in turns are means of {TURNS} turns of {arguments.seconds / 6:g} s, after the "
            "minute that all other rows are of",
        ],
    )


def _counts(statuses: Counter[int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))


if __name__ == "__main__":
    main()
