"""Compare training steps on the processor with and without what notan does to speed them up.

Run by hand: OMP_NUM_THREADS=2 python benchmarks/training_step.py
Prints milliseconds an image of a U-Net on EfficientNet-Lite0, in bf16 and fp32: as PyTorch has
it; with the memory kept (``notan.runtime.keep_freed_memory``); with the depthwise layers'
gradients in float32 as well (``notan.models.blocks``); and with the encoder's two finest stages
frozen. All of them have notan's batch norm. The variants take turns, and each has the median of
its steps: compare the ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from statistics import median

import torch
from torch import nn
from torch.nn import functional

from notan.config import Model, Train
from notan.models.base import encoder_of
from notan.models.blocks import DepthwiseConv2d
from notan.models.build import build_model
from notan.runtime import describe_hardware, keep_freed_memory
from notan.training.fine_tuning import Freezing

WAYS = {
    "as PyTorch has it": (),
    "memory kept": ("memory",),
    "and quick depthwise gradients": ("memory", "depthwise"),
    "and two finest stages frozen": ("memory", "depthwise", "frozen"),
}
ROUNDS = 3


def seconds_a_step(tricks: list[str], size: int, batch: int, *, bf16: bool, steps: int) -> float:
    """Return the median time of a step in this process."""
    if "memory" in tricks:
        keep_freed_memory()
    if "depthwise" not in tricks:
        DepthwiseConv2d.forward = nn.Conv2d.forward  # type: ignore[method-assign]
    torch.manual_seed(0)
    model = build_model(Model(name="unet", encoder="efficientnet_lite0", width=8))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    freezing = Freezing(encoder_of(model), stages=2 if "frozen" in tricks else 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=Train().learning_rate)
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    targets = (torch.rand(batch, 1, size, size) > 0.5).float()
    times = list[float]()
    with freezing.during_steps():
        for _ in range(2 + steps):
            start = time.perf_counter()
            freezing.set_mode(model, frozen=False)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(images)
            loss = functional.binary_cross_entropy_with_logits(logits.float(), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            times.append(time.perf_counter() - start)
    return median(times[2:])


def in_a_process_of_its_own(arguments: argparse.Namespace, way: str, precision: str) -> float:
    """Return what ``seconds_a_step`` says: a C library cannot be told to forget."""
    options = [f"--{name}={getattr(arguments, name)}" for name in ("size", "batch", "steps")]
    command = [sys.executable, __file__, *options, f"--way={way}", f"--precision={precision}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return float(json.loads(done.stdout))


def main() -> None:
    """Time every way in turn, several times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=320, help="side of the images")
    parser.add_argument("--batch", type=int, default=8, help="images in a step")
    parser.add_argument("--steps", type=int, default=6, help="steps to time, of each way and turn")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--precision", choices=("bf16", "fp32"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        bf16 = asked.precision == "bf16"
        tricks = list(WAYS[asked.way])
        print(seconds_a_step(tricks, asked.size, asked.batch, bf16=bf16, steps=asked.steps))
        return
    print(f"{describe_hardware(torch.device('cpu'))}; {asked.batch} x {asked.size}x{asked.size}")
    for precision in ("bf16", "fp32"):
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way, times in found.items():
                times.append(in_a_process_of_its_own(asked, way, precision))
        first = median(next(iter(found.values())))
        for way, times in found.items():
            each = 1000 * median(times) / asked.batch
            print(f"{precision}  {way:32}{each:7.1f} ms an image {first / median(times):6.2f}x")


if __name__ == "__main__":
    main()
