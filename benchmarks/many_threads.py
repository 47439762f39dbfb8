"""Call one Predictor from many threads, on every runtime: same bytes, same weights, flat memory.

Run by hand: OMP_WAIT_POLICY=PASSIVE python benchmarks/many_threads.py
Trains a small U-Net for a moment, exports it, and makes --calls calls (500) at 1, 2 and 8 threads,
with the setting ``threads`` unset and 1, each in a process of its own. Prints for each how many
answers differ from those of calls in turn (probabilities, byte for byte), whether weights and
buffers are as they were, and the resident memory after a fifth of the calls and after all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from notan.config import load_run
from notan.data.synthetic import DrawnSource, write_folder
from notan.prediction.backends import TorchBackend
from notan.prediction.predictor import Predictor
from notan.runtime import describe_hardware, find_device

THREADS, SETTINGS = (1, 2, 8), (None, 1)
RUNTIMES = ("torch", "onnxruntime", "openvino")
SIZES = ((48, 64), (75, 45), (32, 32), (17, 100))
"""Of the images, so that the network's inputs differ in shape too."""

IMAGES = 20
MEBIBYTE = 2**20


def make_models(folder: Path) -> tuple[Path, Path]:
    """Train for a moment and export: what was learned does not matter here."""
    from notan.exporting import export
    from notan.training import train

    for part, first in (("train", 0), ("val", 100)):
        write_folder(DrawnSource(16, size=(48, 48), first=first), folder / "data" / part)
    run = load_run(
        flags={
            "data.path": folder / "data",
            "model.width": 4,
            "preprocess.image_size": 32,
            "train.epochs": 2,
            "train.batch_size": 4,
            "train.trackers": (),
        }
    )
    checkpoint = train(run, out=folder / "run").checkpoint
    portable = folder / "model.onnx"
    export(checkpoint, out=portable)
    return checkpoint, portable


def resident() -> float:
    """Return the resident memory of this process in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE


def weights(predictor: Predictor) -> dict[str, bytes]:
    """Return all weights and buffers of a PyTorch model; other runtimes do not show theirs."""
    if not isinstance(predictor.backend, TorchBackend):
        return {}
    return {
        name: tensor.cpu().numpy().tobytes()
        for name, tensor in predictor.backend.model.state_dict().items()
    }


def measure(model: Path, runtime: str, setting: int | None, threads: int, calls: int) -> None:
    """Make the calls in this process, and print what came of them as JSON."""
    random = np.random.default_rng(7)
    images = [
        random.integers(0, 256, (*SIZES[number % len(SIZES)], 3), dtype=np.uint8)
        for number in range(IMAGES)
    ]
    predictor = Predictor.load(model, backend=runtime, threads=setting)
    before = weights(predictor)
    expected = [predictor(image).probability.tobytes() for image in images]
    barrier = threading.Barrier(threads)

    def work(part: range) -> int:
        barrier.wait(60)
        return sum(
            predictor(images[number % IMAGES]).probability.tobytes() != expected[number % IMAGES]
            for number in part
        )

    def differing(first: int, end: int) -> int:
        parts = [range(first + number, end, threads) for number in range(threads)]
        return sum(pool.map(work, parts))

    with ThreadPoolExecutor(threads) as pool:
        differ = differing(0, calls // 5)
        early = resident()
        differ += differing(calls // 5, calls)
        late = resident()
    kept = weights(predictor) == before if before else None
    print(json.dumps({"differ": differ, "kept": kept, "early": early, "late": late}))


def main() -> None:
    """Measure every runtime that is installed, at every number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        model, runtime, setting, threads = arguments.one
        limit = None if setting == "None" else int(setting)
        measure(Path(model), runtime, limit, int(threads), arguments.calls)
        return
    print(describe_hardware(find_device("cpu")))
    calls = arguments.calls
    print(
        f"| runtime | `threads` | threads that call | of {calls} calls differ | weights kept | "
        f"MiB after {calls // 5} | after {calls} |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, portable = make_models(Path(folder))
        for runtime in RUNTIMES:
            for setting in SETTINGS:
                for threads in THREADS:
                    model = checkpoint if runtime == "torch" else portable
                    words = [str(each) for each in (model, runtime, setting, threads)]
                    command = [sys.executable, __file__, "--calls", str(calls), "--one", *words]
                    answer = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
                    found = json.loads(answer.stdout.splitlines()[-1])
                    print(
                        f"| {runtime} | {setting or 'unset'} | {threads} | {found['differ']} | "
                        f"{found['kept']} | {found['early']:.0f} | {found['late']:.0f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
