"""Record what must not change in a refactoring: masks, trainings, a score, an export.

Run by hand: python benchmarks/golden_facts.py --data ../shared/data
Writes tests/golden_facts.json; tests/test_golden_facts.py compares it with what the code gives.
Takes two or three minutes on one core. Each fact has a SHA-256 of its bytes and a few figures.
The bytes are the same with one set of libraries on one maker's processors that have AVX2, for none
may use what only some have; the figures are nearly so on all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import cv2
import numpy as np
import onnxruntime
import safetensors.numpy
import tifffile
import torch
from PIL import Image

from notan.cli.main import main as notan
from notan.config import load_run
from notan.io import tiff
from notan.io.images import read_image
from notan.io.masks import read_mask
from notan.runtime import describe_hardware
from notan.training import train

if TYPE_CHECKING:
    from collections.abc import Mapping

FACTS = Path(__file__).resolve().parents[1] / "tests" / "golden_facts.json"
ARITHMETIC = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
"""Environment of this process from its start, for libraries read it once."""

STEPS = 20
TINY = (
    *("preprocess.image_size=64", f"train.epochs={STEPS}", "train.batch_size=8", "seed=3"),
    *("train.learning_rate=3e-3", "device=cpu", "train.precision=fp32", "data.limit=8"),
    *("model.width=4", "train.trackers=[]"),
)
"""Eight images in one batch: an epoch is a step, so the history is the loss curve."""

NETWORKS: dict[str, dict[str, object]] = {
    "unet": {"model.name": "unet"},
    "attention_unet": {"model.name": "attention_unet"},
    "resnet34_unet": {"model.name": "resnet34_unet"},
    "unet-resnet34": {"model.name": "unet", "model.encoder": "resnet34"},
    "unet-lite0": {"model.encoder": "efficientnet_lite0", "train.pretrained": True},
}
SHORT = (
    *("--image-size", "64", "--epochs", "4", "--batch-size", "8", "--seed", "3", "--device", "cpu"),
    *("--learning-rate", "2e-3", "model.width=8", "train.trackers=[]", "train.precision=fp32"),
    *("--encoder", "efficientnet_lite0", "--pretrained", "train.encoder_lr_multiplier=0.15"),
)
"""From what the encoder knows it learns the masks in a few steps; from scratch, another processor's
rounding would have grown into other masks by then."""

IMAGES = ("oxford-iiit-pet/images", "nuclei/test/images", "camvid-road/test/images")
EACH = 4


def machine() -> dict[str, str]:
    """Say what the bytes depend on."""
    maker = describe_hardware(torch.device("cpu")).split()[0]
    arithmetic = torch.backends.cpu.get_cpu_capability()
    return {
        "processor": f"{maker} {platform.machine()} {arithmetic}",
        "torch": torch.__version__.partition("+")[0],
        "onnxruntime": onnxruntime.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
    }


def collect(data: Path, folder: Path) -> dict[str, Any]:
    """Return all facts, of the code as it is.

    Args:
        data: The folder with oxford-iiit-pet, nuclei and camvid-road.
        folder: Where the trainings and masks go.
    """
    torch.set_num_threads(1)
    images = [
        path for part in IMAGES for path in sorted((data / part).iterdir())[:: _stride(data / part)]
    ]
    chelsea = _chelsea(folder / "chelsea.png")
    large = _large(data, folder / "large.tif")
    trained = {name: _train(data, folder / name, settings) for name, settings in NETWORKS.items()}
    model = folder / "short" / "best.safetensors"
    notan(["train", "--data-path", str(data / "nuclei"), "--out", str(model.parent), *SHORT])
    onnx = folder / "short.onnx"
    notan(["export", "--model", str(model), "--out", str(onnx)])
    ort = ("--backend", "onnxruntime", "--threads", "1")
    return {
        "networks": trained,
        "default model": _predict(folder / "a", [*images, chelsea], *ort),
        "short model": _predict(folder / "b", images, "--model", str(model), "--device", "cpu"),
        "short model, mirrored and turned": _predict(
            folder / "c", images[:4], "--model", str(model), "--tta", "hflip,vflip,rot90"
        ),
        "short model, tiles": _predict(
            folder / "d", [*images[:2], large], "--model", str(model), "--tiles"
        ),
        "short model, streamed": _predict_streamed(folder / "f", large, model),
        "exported": _predict(folder / "e", images, "--model", str(onnx), *ort),
        "score": _score(data, model, folder / "score"),
    }


def _stride(folder: Path) -> int:
    return -(-len(list(folder.iterdir())) // EACH)


def _chelsea(path: Path) -> Path:
    from skimage.data import chelsea

    Image.fromarray(chelsea()).save(path)  # type: ignore[no-untyped-call]
    return path


def _large(data: Path, path: Path) -> Path:
    """Write a TIFF of 2880x2880 pixels."""
    image = np.asarray(Image.open(min((data / IMAGES[2]).iterdir())).convert("RGB"))
    tifffile.imwrite(path, np.tile(image, (8, 6, 1)), tile=(256, 256), compression="zlib")
    return path


def _train(data: Path, out: Path, settings: Mapping[str, object]) -> dict[str, Any]:
    flags = {"data.path": data / "nuclei", **settings}
    train(load_run(flags=flags, overrides=TINY), out=out)  # the command would draw a report too
    history = (out / "history.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["train/loss"] for line in history]
    weights = safetensors.numpy.load_file(out / "best.safetensors")
    # by content alone: a weight may be called something else tomorrow
    parts = sorted(hashlib.sha256(weight.tobytes()).hexdigest() for weight in weights.values())
    return {
        "losses": [round(loss, 7) for loss in losses],
        "weights": hashlib.sha256("".join(parts).encode()).hexdigest(),
        "parameters": sum(weight.size for weight in weights.values()),
    }


def _predict(out: Path, images: list[Path], *words: str) -> dict[str, Any]:
    notan(["predict", *map(str, images), "--out", str(out), "--format", "mask", *words])
    facts = {}
    for path in sorted((out / "masks").iterdir()):
        mask = tifffile.imread(path) if path.suffix == ".tif" else cv2.imread(str(path), 0)
        mask = np.asarray(mask) > 0
        facts[path.stem] = {
            "size": list(mask.shape),
            "foreground": int(mask.sum()),
            "sha256": hashlib.sha256(np.packbits(mask).tobytes()).hexdigest(),
        }
    return facts


def _predict_streamed(out: Path, large: Path, model: Path) -> dict[str, Any]:
    """Predict a TIFF as one that does not fit into the memory."""
    with mock.patch.object(tiff, "MAX_PIXELS", 1_000_000):
        return _predict(out, [large], "--model", str(model))


def _score(data: Path, model: Path, out: Path) -> dict[str, float]:
    notan(
        ["evaluate", "--model", str(model), "--data-path", str(data / "nuclei"), "--out", str(out)]
    )
    card = json.loads((out / "score.json").read_text(encoding="utf-8"))
    facts = {name: card[name] for name in ("mean_dice", "mean_iou", "pooled_dice", "pooled_iou")}
    for measure, interval in card["means"].items():
        facts |= {f"means {measure} {end}": interval[end] for end in ("mean", "low", "high")}
    facts |= {f"pooled {measure}": value for measure, value in card["pooled"].items()}
    return {name: round(value, 7) for name, value in facts.items()}


def main() -> None:
    """Write the facts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=FACTS.parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, default=FACTS)
    arguments = parser.parse_args()
    if not ARITHMETIC.items() <= os.environ.items():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ARITHMETIC})  # noqa: S606 - itself
    with (
        tempfile.TemporaryDirectory() as folder,
        # each epoch of six trainings opens the same files, and no fact is of the report
        mock.patch("notan.io.images.read_image", cache(read_image)),
        mock.patch("notan.data.annotations.labels.read_mask", cache(read_mask)),
        mock.patch("notan.cli.train._report"),
    ):
        facts = {"machine": machine(), **collect(arguments.data, Path(folder))}
    arguments.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
