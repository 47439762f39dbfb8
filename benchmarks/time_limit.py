"""Measure where a time limit goes: before the first step, steps, validation, the end, and unused.

Run by hand: python benchmarks/time_limit.py ../shared/data/oxford-iiit-pet ../shared/data/nuclei
--seconds 300. Trains each set once with ``notan train --auto --time-limit``, in a process of its
own on one core, alone and beside another process that keeps the same core busy; with --cores 0,1 on
two, each with a busy neighbour. A run takes as long as its limit. The share of its time that a run
was given a processor stands beside it: without it nobody can tell a slow program from a busy
machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notan.modelfile.card import read_card
from notan.run_folder import BEST, HISTORY, PAGE, STATES
from notan.training.state import StateFolder
from notan.training.trainer import UNDECIDED
from results import write_results

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BUSY = "while True: pass"
BESIDES = {"alone": 0, "busy": 1}


@contextlib.contextmanager
def neighbours(cores: Sequence[int], each: int) -> Iterator[None]:
    """Keep cores busy with so many processes each."""
    with contextlib.ExitStack() as stack:
        for core in [*cores] * each:
            command = [sys.executable, "-c", BUSY]
            process = stack.enter_context(subprocess.Popen(command))  # noqa: S603 - our own words
            stack.callback(process.kill)
            os.sched_setaffinity(process.pid, {core})
        yield


def run(data: Path, seconds: float, cores: Sequence[int], out: Path) -> tuple[float, float]:
    """Train in a process of its own.

    Returns:
        Its seconds, and those of them in which it had a processor.
    """
    words = ["notan", "train", "--auto", "--time-limit", f"{seconds:g}s", "--data-path", str(data)]
    code = f"import sys; sys.argv = {[*words, '--out', str(out)]!r}; "
    code += "from notan.cli.main import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(cores))}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment) as process:  # noqa: S603 - our own program
        os.sched_setaffinity(process.pid, cores)
    took, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        sys.exit(f"{data}: the training failed")
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def account(folder: Path, seconds: float, took: float) -> dict[str, Any]:
    """Say where a run's time went, in seconds, and what it was worth."""
    lines = [json.loads(line) for line in (folder / HISTORY).read_text().splitlines()]
    state = StateFolder(folder / STATES).load()
    if state is None:
        sys.exit(f"{folder}: no state was written")
    steps = float(state["time limit"]["spent"]["trained"])
    first, last = lines[0], lines[-1]
    validating = sum(line["seconds"] for line in lines) - steps
    card = read_card(folder / BEST)
    return {
        "before the first step": first["time_limit/seconds"] - first["seconds"],
        "steps": steps,
        "validation": validating,
        "end": took - last["time_limit/seconds"],
        "unused": seconds - took,
        "steps and validation of the limit": f"{(steps + validating) / seconds:.1%}",
        "epochs": len(lines),
        "Dice": card.scores["dice"],
        "threshold chosen": "no" if card.choices == (UNDECIDED,) else "yes",
        "report": "yes" if (folder / PAGE).is_file() else "no",
    }


def main() -> None:
    """Run all, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cores", default="0", help="where trainings run, such as 0 or 0,1")
    parser.add_argument("--beside", nargs="+", choices=BESIDES, default=[*BESIDES])
    parser.add_argument("--name", default="time_limit", help="of the files of results")
    options = parser.parse_args()
    cores, rows = [int(core) for core in options.cores.split(",")], []
    for data in options.data:
        for beside in options.beside:
            with tempfile.TemporaryDirectory() as folder, neighbours(cores, BESIDES[beside]):
                out = Path(folder) / "run"
                took, computing = run(data, options.seconds, cores, out)
                row = {"data": data.name, "limit": options.seconds, "cores": len(cores)}
                row |= {"neighbour": beside, "had a processor": f"{computing / took:.0%}"}
                rows.append(row | account(out, options.seconds, took))
    notes = [
        "seconds; the end is the choice of threshold, the report, leaving, and the interpreter's "
        "start before notan's clock begins",
        "had a processor: seconds of a processor over those on the clock; of threads together",
    ]
    write_results(options.name, "Where a time limit goes", rows, notes)


if __name__ == "__main__":
    main()
