"""What every benchmark shares: variants that take turns, medians with their spread, and results.

A machine is never quiet: other programs, clocks that follow the heat. So variants are never timed
one after the other but in turns (A B C, A B C, ...), and what is compared are medians of one run,
printed with their spread. ``write_results`` keeps them in ``benchmarks/results/`` with the date,
the machine and the versions, without which a time means nothing.
"""

from __future__ import annotations

import json
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, NamedTuple

import torch

from notan.io.write import write_bytes
from notan.runtime import describe_hardware

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

FOLDER = Path(__file__).parent / "results"

PACKAGES = {"torch": "torch", "numpy": "numpy", "opencv": "opencv-python-headless"}
"""What decides how quick a run is, and the name of its distribution."""


class Spread(NamedTuple):
    """The middle of repeated measurements, and how far they lie apart.

    Attributes:
        median: Half of them are smaller.
        low: A quarter of them are smaller; of fewer than four the smallest.
        high: A quarter of them are larger; of fewer than four the largest.
        repeats: How many there are.
    """

    median: float
    low: float
    high: float
    repeats: int

    def times(self, factor: float) -> Spread:
        """Return the same in another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.repeats)

    def per_second(self, things: float) -> Spread:
        """Return the rate of so many things in each of the times."""
        return Spread(things / self.median, things / self.high, things / self.low, self.repeats)

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)} .. {number(self.high)})"


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of measurements; of fewer than four, the extremes."""
    low, high = min(values), max(values)
    if len(values) >= 4:
        low, _, high = quantiles(values, n=4, method="inclusive")
    return Spread(median(values), low, high, len(values))


def take_turns(
    ways: Mapping[str, Callable[[], float]], *, rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Measure variants in turns: A B C, A B C, ...

    Args:
        ways: Of each variant what measures it once; see ``timed``.
        rounds: Measurements of each that count.
        warm_up: Rounds before them that do not: caches fill and libraries choose their code.

    Returns:
        The measurements of each variant in their order, so that those of one round are neighbours.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm_up + rounds):
        for name, measure in ways.items():
            value = measure()
            if turn >= warm_up:
                found[name].append(value)
    return found


def timed(action: Callable[[], object]) -> Callable[[], float]:
    """Return what measures an action: the seconds of one call, to the end of a GPU's work."""

    def measure() -> float:
        wait_for_gpu()
        begun = time.perf_counter()
        action()
        wait_for_gpu()
        return time.perf_counter() - begun

    return measure


def wait_for_gpu() -> None:
    """Wait until a GPU has done all that it was asked for; where there is none, return at once."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def best_device() -> torch.device:
    """Return the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> dict[str, str]:
    """Return what a time depends on beside the code: the day, the machine and the versions."""
    import cv2

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": describe_hardware(best_device()),
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[1]:.1f} programs at once in the last five minutes",
        "threads": f"torch {torch.get_num_threads()}, opencv {cv2.getNumThreads()}",
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version_of(package) for name, package in PACKAGES.items()},
    }


def version_of(package: str) -> str:
    """Return the version of a package, by the name that pip knows; ``none`` where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def write_results(
    name: str, title: str, rows: Sequence[Mapping[str, object]], notes: Sequence[str] = ()
) -> None:
    """Write ``results/NAME.json`` and ``results/NAME.md``, and print the table.

    Args:
        name: Of the files.
        title: What was measured, and in what unit.
        rows: Of the table, from a column's name to its value; a Spread, a number or words. A
            column that a row lacks stays empty.
        notes: Sentences below the table.
    """
    facts = machine()
    kept = [{key: _plain(value) for key, value in row.items()} for row in rows]
    content = {"title": title, "machine": facts, "rows": kept, "notes": list(notes)}
    text = markdown(title, rows, notes, facts)
    FOLDER.mkdir(exist_ok=True)
    write_bytes(FOLDER / f"{name}.json", (json.dumps(content, indent=1) + "\n").encode())
    write_bytes(FOLDER / f"{name}.md", text.encode())
    print(text)


def markdown(
    title: str,
    rows: Sequence[Mapping[str, object]],
    notes: Sequence[str],
    facts: Mapping[str, str],
) -> str:
    """Return a page with a table, notes and the machine."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column, "")) for column in columns] for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    below = "".join(f"\n- {note}" for note in notes)
    where = "; ".join(f"{key} {value}" for key, value in facts.items() if key != "date")
    spreads = any(isinstance(value, Spread) for row in rows for value in row.values())
    how = "Medians (quartiles; of fewer than four, extremes) of turns in one run. " * spreads
    return f"# {title}\n\n{table}\n{below}\n\n{how}{facts['date']}; {where}.\n"


def number(value: float) -> str:
    """Return a number with three digits that count, and no fewer before the point."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _cell(value: object) -> str:
    text = number(value) if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _plain(value: object) -> object:
    return value._asdict() if isinstance(value, Spread) else value
