"""Measure prediction under Ray: what it costs, what a second worker brings, what kills cost.

Run by hand: python benchmarks/ray_prediction.py --images 3000 --kills 30
Takes the first of ../shared/data/pets-unlabelled/images and the default model (or --model). One
process, one worker and two workers write masks and overlays in turns, each with one thread for the
network; Ray is started once, before any time is taken. Then two workers do it again while workers
are killed at random, and every file is compared with the one process's, byte for byte. Writes
benchmarks/results/ray_prediction.json and .md.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import ray

import notan
from notan.io.digest import hash_file
from notan.prediction.formats import Writers
from notan.prediction.inputs import find_inputs
from notan.prediction.items import items_of
from notan.prediction.pipeline import Pipeline
from notan.prediction.table import PredictionTable, output_settings
from notan.runtime import count_cores
from notan.scale.ray_engine import RayPrediction
from results import spread, take_turns, timed, write_results

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from notan.prediction.inputs import Found
    from notan.prediction.predictor import Predictor

IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "pets-unlabelled" / "images"
FORMATS = ("mask", "overlay")
ONE_PROCESS = "one process"


class Killer(threading.Thread):
    """Kills a worker at random, so and so many times in about so many seconds.

    Attributes:
        killed: How many there were so far.
    """

    def __init__(self, kills: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self.killed = 0
        self._kills = kills
        self._pause = seconds / (kills + 1)
        self._ended = threading.Event()
        self._chance = random.Random(0)

    def run(self) -> None:
        """Kill, wait, kill."""
        while self.killed < self._kills:
            if self._ended.wait(self._chance.uniform(0.5, 1.5) * self._pause):
                return
            if workers := worker_processes():
                os.kill(self._chance.choice(workers), signal.SIGKILL)
                self.killed += 1

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        self._ended.set()
        self.join()


def worker_processes() -> list[int]:
    """Return the processes of this machine's workers, by what Ray calls them (Linux)."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cmdline").read_bytes().startswith(b"ray::BlockWorker"):
                found.append(int(place.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def in_one_process(predictor: Predictor, found: Sequence[Found], out: Path) -> None:
    """Do what ``notan predict`` does."""
    table = PredictionTable.begin(out, output_settings(predictor), resume=False)
    pipeline = Pipeline(predictor, Writers(FORMATS, out), table, images=len(found))
    reading = predictor.preprocessor.reading
    pipeline.run(itertools.chain.from_iterable(items_of(file, reading=reading) for file in found))


def under_ray(
    load: Callable[[], Predictor], found: Sequence[Found], out: Path, *, workers: int, block: int
) -> None:
    """Do what ``notan predict --engine ray --threads 1`` does; loading the models counts."""
    prediction = RayPrediction(load, out, FORMATS, images_in_block=block)
    prediction.run(found, device="cpu", cores=1, most_workers=workers)


def content(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def main() -> None:
    """Measure in turns, then with kills, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=IMAGES)
    parser.add_argument("--images", type=int, default=3000, help="the first so many")
    parser.add_argument("--model", type=Path, help="a model file; None: the default model")
    parser.add_argument("--block", type=int, default=64, help="images in a block")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    load = functools.partial(notan.load, wanted.model, device="cpu", threads=1)
    found = find_inputs(sorted(wanted.folder.iterdir())[: wanted.images])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    begun = time.perf_counter()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    start_seconds = time.perf_counter() - begun
    predictor = load()
    with tempfile.TemporaryDirectory() as place:
        outs = {name: Path(place) / name for name in (ONE_PROCESS, "1 worker", "2 workers")}
        ways = {ONE_PROCESS: timed(lambda: in_one_process(predictor, found, outs[ONE_PROCESS]))}
        for count, name in ((1, "1 worker"), (2, "2 workers")):
            work = functools.partial(under_ray, load, found, outs[name], workers=count)
            ways[name] = timed(functools.partial(work, block=wanted.block))
        taken = take_turns(ways, rounds=wanted.rounds, warm_up=0)
        outs["2 workers, killed"] = Path(place) / "killed"
        killer = Killer(wanted.kills, spread(taken["2 workers"]).median)
        killer.start()
        taken["2 workers, killed"] = [
            timed(
                lambda: under_ray(
                    load, found, outs["2 workers, killed"], workers=2, block=wanted.block
                )
            )()
        ]
        killer.stop()
        files = {name: content(out) for name, out in outs.items()}
    ray.shutdown()
    rows = [
        {
            "what": name,
            "images a second": spread(seconds).per_second(len(found)),
            "seconds": spread(seconds),
            "files as one process writes them": "all"
            if files[name] == files[ONE_PROCESS]
            else "NOT all",
        }
        for name, seconds in taken.items()
    ]
    one, alone = spread(taken["1 worker"]).median, spread(taken[ONE_PROCESS]).median
    write_results(
        "ray_prediction",
        f"Prediction of {len(found)} photographs under Ray {ray.__version__}, in blocks of "
        f"{wanted.block}",
        rows,
        [
            f"One worker takes {one - alone:.1f} s more than one process: to start a worker, load "
            f"the model there, hand out {-(-len(found) // wanted.block)} blocks and publish them.",
            f"Starting Ray took {start_seconds:.1f} s, which no row counts.",
            f"{killer.killed} workers were killed in the last row, {count_cores()} cores were "
            "there for all.",
        ],
    )


if __name__ == "__main__":
    main()
