"""Measure how time and memory grow with the work: larger images, and more of them.

Run by hand: OMP_NUM_THREADS=2 python benchmarks/growth.py
Each point is measured in a process of its own, from small to large. A point that would take longer
than --limit seconds, going by the two before it, is not measured, and its row says so.

Sides: one training step of a U-Net, with the memory at its highest over the idle program. Images:
a drawn folder of so many (64 drawings, linked again and again): what a training does before its
first step, the order of an epoch, and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from notan.config import load_run
from notan.data.batches import BalancedBatchSampler
from notan.data.synthetic import DrawnSource, write_folder
from notan.training.build import prepare
from results import best_device, spread, timed, wait_for_gpu, write_results

if TYPE_CHECKING:
    from collections.abc import Callable

SIDES = (64, 128, 256, 512, 1024, 2048)
COUNTS = (100, 1_000, 10_000, 100_000)
DRAWN, TURNS = 64, 3
FOLDER_SIDE = 32
GROWTH = {"side": 4.0, "images": 10.0}
"""How much larger a point is than the one before it."""


def resident() -> float:
    """Return the highest resident memory of this process so far, or a GPU's, in MB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step_of(side: int, width: int, batch: int) -> dict[str, Any]:
    """Take steps on images of a side; the first warms up."""
    from step import ours

    with tempfile.TemporaryDirectory() as place:
        for part, first in (("train", 0), ("val", 100)):
            drawn = DrawnSource(batch, size=(side, side), first=first)
            write_folder(drawn, Path(place) / part)
        step = ours({"name": "unet", "width": width}, Path(place), batch, side)
    idle = resident()
    step()
    wait_for_gpu()
    times = [timed(step)() for _ in range(TURNS)]
    work = (TURNS + 1) * max(times)
    return {"work": work, "seconds": times, "megabytes": resident() - idle}


def start_of(count: int) -> dict[str, Any]:
    """Open a folder of so many images as a training does, and order an epoch."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_folder(DrawnSource(DRAWN, size=(FOLDER_SIDE, FOLDER_SIDE)), folder / "drawn")
        for part in ("images", "masks"):
            (folder / "all" / part).mkdir(parents=True)
            files = sorted((folder / "drawn" / part).iterdir())
            for number in range(count):
                target = folder / "all" / part / f"i{number:06d}.png"
                os.link(files[number % DRAWN], target)
        idle = resident()
        flags: dict[str, object] = {"data.path": folder / "all", "model.width": 2}
        flags |= {"preprocess.image_size": FOLDER_SIDE, "train.batch_size": 16}
        begun = time.perf_counter()
        setup = prepare(load_run(flags=flags))
        started = time.perf_counter() - begun
        begun = time.perf_counter()
        next(iter(setup.training_batches))
        first = time.perf_counter() - begun
        images = len(setup.training)
        order = timed(lambda: list(BalancedBatchSampler(images, 16, seed=0, shuffle=True)))
        return {
            "work": started,
            "seconds": [started],
            "first batch": first,
            "order": order(),
            "megabytes": resident() - idle,
        }


def measured(kind: str, value: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Measure a point in a process of its own."""
    options = [f"--width={asked.width}", f"--batch={asked.batch}"]
    command = [sys.executable, __file__, *options, f"--one-{kind}={value}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def points(
    kind: str,
    values: tuple[int, ...],
    asked: argparse.Namespace,
    row: Callable[[int, dict[str, Any]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Measure points from small to large, while they are expected to be within the limit."""
    rows: list[dict[str, Any]] = []
    taken: list[float] = []
    for value in values:
        expected = taken[-1] if taken else 0.0
        if len(taken) > 1:  # what both took for anything else is no part of what grows
            expected += GROWTH[kind] * max(0.0, taken[-1] - taken[-2])
        if expected > asked.limit:
            said = f"not measured: about {expected:,.0f} s expected"
            rows.append({"what": kind, "size": f"{value:,}", "seconds": said})
            taken.append(expected)
            continue
        found = measured(kind, value, asked)
        taken.append(found["work"])
        rows.append({"what": kind, "size": f"{value:,}", **row(value, found)})
    return rows


def main() -> None:
    """Measure all points; write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64 if torch.cuda.is_available() else 8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--limit", type=float, default=120, help="seconds of a point")
    parser.add_argument("--what", nargs="*", default=["side", "images"], choices=GROWTH)
    parser.add_argument("--one-side", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one-images", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one_side or asked.one_images:
        found = (
            step_of(asked.one_side, asked.width, asked.batch)
            if asked.one_side
            else start_of(asked.one_images)
        )
        print(json.dumps(found))
        return

    def of_side(side: int, found: dict[str, Any]) -> dict[str, Any]:
        seconds = spread(found["seconds"])
        pixels = asked.batch * side * side / 1e6
        return {
            "seconds": seconds,
            "microseconds a pixel": seconds.median / pixels,
            "MB over idle": found["megabytes"],
        }

    def of_images(count: int, found: dict[str, Any]) -> dict[str, Any]:
        start = found["seconds"][0]
        return {
            "seconds": start,
            "ms an image": 1e3 * start / count,
            "first batch, s": found["first batch"],
            "order of an epoch, s": found["order"],
            "MB over idle": found["megabytes"],
        }

    kind = best_device().type
    if "side" in asked.what:
        write_results(
            f"growth-side-{kind}",
            f"A step as its images grow: U-Net of width {asked.width}, batch {asked.batch}",
            points("side", SIDES, asked, of_side),
            ["Seconds of a step; memory at its highest over the program before its first step."],
        )
    if "images" in asked.what:
        write_results(
            f"growth-images-{kind}",
            "The start of a training as its images become more",
            points("images", COUNTS, asked, of_images),
            [
                "Seconds from the settings to what the first step needs: listing, reading every "
                f"header and mask, dividing, hashing; {FOLDER_SIDE}x{FOLDER_SIDE} pixels an image."
            ],
        )


if __name__ == "__main__":
    main()
