"""Show a fault of oneDNN: the weight gradient of a strided 1x1 convolution of few channels.

Run by hand: python benchmarks/onednn_strided.py
Each case runs in a process of its own, for the fault may end it: nn.Conv2d of PyTorch forward and
backward, a few times, against the same in float64, which oneDNN does not compute. Prints for each
``fine``, ``wrong gradient``, or the signal that ended it; last a layer that notan guards.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import NamedTuple

import torch

from notan.models.blocks import guard_convolutions

TURNS = 30
TOLERANCE = 1e-3


class Case(NamedTuple):
    """A layer and its input, which show the fault unless said otherwise."""

    inputs: int = 4
    outputs: int = 8
    kernel: int = 1
    stride: int = 2
    images: int = 2
    side: int = 16
    channels_last: bool = True
    guarded: bool = False


CASES = {
    "4 -> 8 channels, 1x1, stride 2, 2 images of 16x16": Case(),
    "the same, channels first": Case(channels_last=False),
    "the same, stride 1": Case(stride=1),
    "the same, kernel of 3x3": Case(kernel=3),
    "the same, 3 inputs": Case(inputs=3),
    "the same, 7 inputs": Case(inputs=7),
    "the same, 8 inputs": Case(inputs=8),
    "the same, 4x4": Case(side=4),
    "the same, guarded by notan": Case(guarded=True),
}


def largest_error(case: Case) -> float:
    """Return how far the gradient is from that in float64, over the largest there."""
    torch.manual_seed(0)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    worst = 0.0
    for _ in range(TURNS):
        shape = case.inputs, case.outputs, case.kernel, case.stride, case.kernel // 2
        layer = torch.nn.Conv2d(*shape, bias=False)
        exact = torch.nn.Conv2d(*shape, bias=False).double()
        exact.load_state_dict(layer.state_dict())
        images = torch.randn(case.images, case.inputs, case.side, case.side)
        wanted = exact(images.double())
        gradient = torch.randn(wanted.shape)
        wanted.backward(gradient.double())
        layer.to(memory_format=layout)  # type: ignore[call-overload]
        if case.guarded:
            guard_convolutions(layer)
        layer(images.contiguous(memory_format=layout)).backward(
            gradient.contiguous(memory_format=layout)
        )
        if layer.weight.grad is None or exact.weight.grad is None:
            raise RuntimeError("no gradient")
        difference = (layer.weight.grad.double() - exact.weight.grad).abs().max()
        worst = max(worst, float(difference / exact.weight.grad.abs().max()))
    return worst


def verdict(case: Case) -> str:
    """Say in a few words what became of a case in a process of its own."""
    code = f"from onednn_strided import *; print(largest_error(Case(*{tuple(case)!r})))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode < 0:
        said = done.stderr.strip().splitlines()
        return f"ended by {signal.Signals(-done.returncode).name}: {said[-1] if said else ''}"
    if done.returncode:
        sys.exit(done.stderr)
    error = float(done.stdout)
    return f"{'fine' if error < TOLERANCE else 'wrong gradient'} (error {error:.1e})"


def main() -> None:
    """Run all cases."""
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    for name, case in CASES.items():
        print(f"{name:<50} {verdict(case)}", flush=True)


if __name__ == "__main__":
    main()
