"""How quick the whole Predictor is on each runtime, against PyTorch in float32.

Run by hand: OMP_NUM_THREADS=1 python benchmarks/predictor_speed.py
One picture of 256x256 at a time, one thread, a U-Net of 31 million weights that has hardly been
trained (or --model). The ways take turns, so a busy machine slows all of them: ratios within one
run are what counts. A start is a process of its own that cannot import PyTorch, from nothing to
the first mask.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from notan.config import load_run
from notan.data.synthetic import DrawnSource
from notan.export import export
from notan.predict.predictor import Predictor
from notan.train import train

if TYPE_CHECKING:
    from notan.predict.backends import Array, Backend, Precision
    from notan.types import Picture

SIDE, WIDTH = 256, 64
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
START = """
import sys
sys.modules["torch"] = None  # an attempt to import it fails
from notan.data.synthetic import DrawnSource
from notan.predict.predictor import Predictor
predictor = Predictor.load(sys.argv[1], backend="openvino", precision=sys.argv[2], threads=1)
as_it_is = predictor.preprocessor.model_copy(update={"image_size": None})
predictor = Predictor(predictor.backend, as_it_is, decision=predictor.decision)
predictor(DrawnSource(1, size=(256, 256))[0].image).mask
"""


class Stopwatch:
    """A backend that notes how long the network itself took."""

    def __init__(self, backend: Backend) -> None:
        """Wrap a backend."""
        self.backend = backend
        self.seconds = 0.0

    def __call__(self, inputs: Array) -> Array:
        """Run the network."""
        begun = time.perf_counter()
        logits = self.backend(inputs)
        self.seconds = time.perf_counter() - begun
        return logits


class Way:
    """One way to run a model file, and the seconds that it took."""

    def __init__(self, name: str, file: Path, runtime: str, precision: Precision = "fp32") -> None:
        """Load the file."""
        loaded = Predictor.load(file, backend=runtime, precision=precision, threads=1)
        self.name = name
        self.watch = Stopwatch(loaded.backend)
        # Whatever size a model was trained at, it is timed on the picture as it is
        as_it_is = loaded.preprocessor.model_copy(update={"image_size": None})
        self.predictor = Predictor(self.watch, as_it_is, decision=loaded.decision)
        self.whole: list[float] = []
        self.own: list[float] = []

    def run(self, picture: Picture) -> None:
        """Predict a picture to its mask."""
        begun = time.perf_counter()
        _ = self.predictor(picture).mask
        self.whole.append(time.perf_counter() - begun)
        self.own.append(self.whole[-1] - self.watch.seconds)


def make_model(folder: Path) -> Path:
    """Train the wide U-Net for a moment on tiny pictures."""
    run = load_run(
        flags={
            "model.width": WIDTH,
            "preprocess.image_size": 32,
            "train.epochs": 1,
            "train.batch_size": 4,
            "train.tensorboard": False,
        }
    )
    training = DrawnSource(4, size=(32, 32))
    validation = DrawnSource(2, size=(32, 32), first=100)
    return train(run, out=folder / "run", training=training, validation=validation).checkpoint


def seconds_to_start(file: Path, precision: Precision) -> float:
    """Return the wall time of a process that imports, loads and predicts one picture."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", START, str(file), precision]
    subprocess.run(command, check=True)  # noqa: S603 - our own program
    return time.perf_counter() - begun


def processor() -> str:
    """Name the processor and those of its instructions that matter (Linux)."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    about = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    about = {name.strip(): value.strip() for name, value in about.items()}
    known = about.get("flags", "").split()
    name = about.get("model name", "a processor without a name")
    return f"{name}: {' '.join(flag for flag in CPU_FLAGS if flag in known)}"


def show(ways: list[Way]) -> None:
    """Print the table; the first way is what the others are compared with."""
    print(f"{'':24}{'median ms':>10}{'min ms':>9}{'ratio':>7}{'of mins':>9}{'own cost':>10}")
    for way in ways:
        pairs = zip(ways[0].whole, way.whole, strict=True)
        ratio = statistics.median(first / this for first, this in pairs)
        of_mins = min(ways[0].whole) / min(way.whole)
        own = statistics.median(a / b for a, b in zip(way.own, way.whole, strict=True))
        median = 1000 * statistics.median(way.whole)
        least = 1000 * min(way.whole)
        print(f"{way.name:24}{median:10.1f}{least:9.1f}{ratio:7.2f}{of_mins:9.2f}{own:10.1%}")


def main() -> None:
    """Make the files, let the ways take turns, print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--starts", type=int, default=3)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = wanted.model or make_model(folder)
        full, _ = export(model, folder / "full.onnx")
        half, _ = export(model, folder / "half.onnx", precision="half")
        ways = [
            Way("PyTorch fp32", model, "torch"),
            Way("PyTorch bf16", model, "torch", "bf16"),
            Way("ONNX Runtime fp32", full, "onnxruntime"),
            Way("OpenVINO fp32", full, "openvino"),
            Way("OpenVINO fp32, --half", half, "openvino"),
            Way("OpenVINO bf16", full, "openvino", "bf16"),
        ]
        picture = DrawnSource(1, size=(SIDE, SIDE))[0].image
        for turn in range(wanted.repeats + 1):
            for way in ways:
                way.run(picture)
                if turn == 0:  # the first picture pays for plans and memory
                    way.whole.clear()
                    way.own.clear()
        print(f"{processor()}\n{SIDE}x{SIDE}, 1 thread, {wanted.repeats} turns")
        show(ways)
        for precision in ("fp32", "bf16"):
            starts = [seconds_to_start(full, precision) for _ in range(wanted.starts)]
            print(
                f"start to first mask, OpenVINO {precision}, no PyTorch: median "
                f"{statistics.median(starts):.2f} s, min {min(starts):.2f} s"
            )


if __name__ == "__main__":
    main()
