"""Counts of a server in Prometheus' text, and what they are counted with."""

from __future__ import annotations

import bisect
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from notan.serve.jobs import Jobs

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds of an answer, upper edges."""

STATUS_FACTS = Path("/proc/self/status")
TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Requests:
    """Counts answers by route and status; stands before the guard, so it sees refusals too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.counts: Counter[tuple[str, int]] = Counter()
        self.seconds: Counter[int] = Counter()
        self.total_seconds = 0.0
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            self._count(scope, status, time.monotonic() - began)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # by route, not by path: a client can invent any number of paths, and each would be kept
        route = getattr(scope.get("route"), "path", "none")
        with self._lock:
            self.counts[route, status] += 1
            self.seconds[bisect.bisect_left(BUCKETS, seconds)] += 1
            self.total_seconds += seconds


def metrics_text(requests: Requests, jobs: Jobs, model: dict[str, str]) -> str:
    """Return everything that is counted.

    Args:
        requests: Of all routes.
        jobs: The queue.
        model: What tells the model from others; labels of a gauge that is always 1.

    Source: Prometheus' text format 0.0.4.
    """
    return "\n".join([*_lines(requests, jobs, model), ""])


def _lines(requests: Requests, jobs: Jobs, model: dict[str, str]) -> Iterator[str]:
    counts, seconds = requests.counts.copy(), requests.seconds.copy()
    yield from _head("notan_requests_total", "counter", "Answers by route and status.")
    for (route, status), count in sorted(counts.items()):
        yield f'notan_requests_total{{route="{_escaped(route)}",status="{status}"}} {count}'
    yield from _head("notan_request_seconds", "histogram", "Seconds from a request to its answer.")
    below = 0
    for number, edge in enumerate(BUCKETS):
        below += seconds[number]
        yield f'notan_request_seconds_bucket{{le="{edge:g}"}} {below}'
    total = sum(seconds.values())
    yield f'notan_request_seconds_bucket{{le="+Inf"}} {total}'
    yield f"notan_request_seconds_sum {requests.total_seconds:.6f}"
    yield f"notan_request_seconds_count {total}"
    for name, kind, about, value in (
        ("images_total", "counter", "Images predicted.", jobs.images),
        ("pixels_total", "counter", "Pixels of them.", jobs.pixels),
        ("batches_total", "counter", "Runs of the network for them.", jobs.batches),
        ("waiting", "gauge", "Images that wait.", jobs.waiting),
        ("waiting_limit", "gauge", "Images that may wait.", jobs.most_waiting),
        ("in_work", "gauge", "Images that are being predicted.", jobs.in_work),
    ):
        yield from _head(f"notan_{name}", kind, about)
        yield f"notan_{name} {value}"
    if (resident := resident_bytes()) is not None:
        name = "process_resident_memory_bytes"
        yield from _head(name, "gauge", "Memory of the process.")
        yield f"{name} {resident}"
    yield from _head("notan_model_info", "gauge", "The model that is served.")
    labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in model.items())
    yield f"notan_model_info{{{labels}}} 1"


def _head(name: str, kind: str, about: str) -> tuple[str, str]:
    return f"# HELP {name} {about}", f"# TYPE {name} {kind}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def resident_bytes(facts: Path = STATUS_FACTS) -> int | None:
    """Return the memory of this process; None where only Linux could tell."""
    try:
        lines = facts.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return next((int(kilobytes) * 1024 for kilobytes in found), None)
