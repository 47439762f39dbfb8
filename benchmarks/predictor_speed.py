"""Measure a whole Predictor by runtime and arithmetic, relative to PyTorch's fp32, in one run.

Run by hand: OMP_NUM_THREADS=1 python benchmarks/predictor_speed.py
Makes a U-Net of 31 million parameters (or takes --model), exports it as ``notan export`` does,
and segments one image of 256 x 256 pixels at its own size on one thread, the kinds taking turns.
It is trained and exported at 32 x 32, which is fast and does not change the speed. Prints
medians, and the median of the ratios of neighbours in time, since other programs may share the
machine. Then a fresh process without PyTorch opens the ONNX model and segments its first image.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from notan.config import load_run
from notan.data.synthetic import DrawnSource, write_folder
from notan.exporting import export
from notan.prediction.predictor import Predictor
from notan.runtime import describe_hardware
from notan.training import train

if TYPE_CHECKING:
    from notan.types import RGBImage

SIDE = 256
TRAINED_SIDE = 32
TURNS = 9
KINDS: dict[str, tuple[str, str, str]] = {
    "torch fp32": ("checkpoint", "torch", "fp32"),
    "torch bf16": ("checkpoint", "torch", "bf16"),
    "ONNX Runtime fp32": ("portable", "onnxruntime", "fp32"),
    "OpenVINO fp32": ("portable", "openvino", "fp32"),
    "OpenVINO fp32, --half": ("half", "openvino", "fp32"),
    "OpenVINO bf16": ("portable", "openvino", "bf16"),
    "OpenVINO int8": ("int8", "openvino", "fp32"),
    "OpenVINO int8 and bf16": ("int8", "openvino", "bf16"),
    "ONNX Runtime int8": ("int8", "onnxruntime", "fp32"),
}
"""File, runtime and arithmetic; the first is what the others are measured against."""

FIRST = """
import sys, time
begun = time.perf_counter()
import numpy as np
from notan.prediction.predictor import Predictor
predictor = Predictor.load(sys.argv[1], backend=sys.argv[2], precision=sys.argv[3], threads=1)
kept = predictor.preprocessor.model_copy(update={"image_size": None})
predictor.preprocessor = kept
predictor(np.zeros((256, 256, 3), np.uint8)).mask
assert "torch" not in sys.modules
print(time.perf_counter() - begun)
"""
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def make_model(folder: Path, width: int) -> Path:
    """Train a U-Net for a moment: speed does not depend on what it has learned."""
    for part, first in (("train", 0), ("val", 100)):
        write_folder(DrawnSource(16, size=(48, 48), first=first), folder / "data" / part)
    run = load_run(
        flags={
            "data.path": folder / "data",
            "model.width": width,
            "preprocess.image_size": TRAINED_SIDE,
            "train.epochs": 2,
            "train.batch_size": 4,
            "train.trackers": (),
        }
    )
    return train(run, out=folder / "run").checkpoint


def open_file(path: Path, runtime: str, precision: str) -> Predictor:
    """Open a model file so that images keep their own size."""
    predictor = Predictor.load(path, backend=runtime, precision=precision, threads=1)  # type: ignore[arg-type]
    kept = predictor.preprocessor.model_copy(update={"image_size": None})
    predictor.preprocessor = kept
    return predictor


def seconds(predictor: Predictor, image: RGBImage) -> float:
    """Time one image, from its pixels to its mask."""
    begun = time.perf_counter()
    _ = predictor(image).mask  # made only when asked for
    return time.perf_counter() - begun


def network_seconds(predictor: Predictor, image: RGBImage) -> float:
    """Time the network alone, on the same image made ready."""
    inputs = predictor.preprocessor(image)[0][np.newaxis]
    begun = time.perf_counter()
    predictor.backend(inputs)
    return time.perf_counter() - begun


def first_seconds(portable: Path, runtime: str, precision: str) -> float:
    """Time a fresh process from its first import to its first mask; the quicker of two."""
    words = [sys.executable, "-c", FIRST, str(portable), runtime, precision]
    return min(float(subprocess.check_output(words, text=True)) for _ in range(2))  # noqa: S603


def flags() -> str:
    """Name what the processor has for such arithmetic (Linux)."""
    file = Path("/proc/cpuinfo")
    known = set(file.read_text().split()) if file.exists() else set()
    return ", ".join(flag for flag in FLAGS if flag in known) or "unknown"


def main() -> None:
    """Make the files, let the kinds take turns, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a checkpoint; None: a U-Net of --width")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--turns", type=int, default=TURNS)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    image = DrawnSource(1, size=(SIDE, SIDE), seed=7)[0].image
    with tempfile.TemporaryDirectory() as place:
        checkpoint = wanted.model or make_model(Path(place), wanted.width)
        portable, _ = export(checkpoint, Path(place) / "model.onnx")
        half, _ = export(checkpoint, Path(place) / "half.onnx", precision="half")
        int8, _ = export(checkpoint, Path(place) / "int8.onnx", precision="int8")
        files = {"checkpoint": checkpoint, "portable": portable, "half": half, "int8": int8}
        predictors = {
            name: open_file(files[file], runtime, precision)
            for name, (file, runtime, precision) in KINDS.items()
        }
        whole: dict[str, list[float]] = {name: [] for name in KINDS}
        alone: dict[str, list[float]] = {name: [] for name in KINDS}
        for turn in range(wanted.turns + 1):  # the first is for getting warm
            for name, predictor in predictors.items():
                times = seconds(predictor, image), network_seconds(predictor, image)
                if turn:
                    whole[name].append(times[0])
                    alone[name].append(times[1])
        report(whole, alone)
        for name in ("OpenVINO fp32", "OpenVINO bf16", "OpenVINO int8"):
            file, runtime, precision = KINDS[name]
            taken = first_seconds(files[file], runtime, precision)
            print(f"without PyTorch, {name}: first mask after {taken:.2f} s")
    print(f"{describe_hardware(torch.device('cpu'))}; {flags()}")


def report(whole: dict[str, list[float]], alone: dict[str, list[float]]) -> None:
    """Print a line for each kind."""
    reference = next(iter(KINDS))
    print(f"{'one image, one thread':24}{'ms':>8}{'quickest':>10}{'times':>7}{'own cost':>10}")
    for name, times in whole.items():
        ratio = median(one / own for one, own in zip(whole[reference], times, strict=True))
        own = (min(times) - min(alone[name])) / min(alone[name])
        line = f"{name:24}{1e3 * median(times):8.0f}{1e3 * min(times):10.0f}{ratio:7.2f}"
        print(f"{line}{max(0.0, own):10.1%}")


if __name__ == "__main__":
    main()
