"""What training costs, in time and memory, as far as it can be told beforehand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from notan.auto.case import Case
    from notan.types import Size

USUAL_SIDE = 256
SECONDS = {
    "fp32": {"efficientnet_lite0": (0.04, 0.006), "resnet34": (0.105, 0.008), None: (0.0, 0.0096)},
    "bf16": {"efficientnet_lite0": (0.07, 0.0017), "resnet34": (0.07, 0.0036), None: (0.0, 0.0048)},
}
"""By precision and encoder: seconds of a training step for an image of 256x256 on one thread,
fixed and for each channel of width. Measured with widths 8 and 16 on an AMD EPYC that computes in
bf16 (2026-11-26)."""

THREAD_GAIN = 0.85
"""What a network gains from threads, as a power of their number."""

GPU_GAIN = 60.0
"""How many threads' worth a GPU is, at the least."""

UNLABELLED = 1.8
"""What a step costs with as many images without masks as with, over what it costs without."""

BYTES = 3000
"""Of memory that a training step takes for a pixel of its input; 1,800 to 2,800 were measured."""

MEMORY_SHARE = 0.5
USABLE_SHARE = 0.8
"""Of a time limit, what is left for training steps beside reading, validation and the end."""


def seconds_for(case: Case, size: Size) -> float:
    """Return the seconds that one image of an input size takes in training, roughly."""
    seconds_of = SECONDS["bf16" if computes_in_bf16(case) else "fp32"]
    fixed, each = seconds_of.get(case.get("model.encoder"), seconds_of["resnet34"])
    one_thread = fixed + each * int(case.get("model.width"))
    threads = GPU_GAIN if case.machine.device != "cpu" else float(case.machine.threads)
    seconds: float = one_thread / threads**THREAD_GAIN * _area(size) / USUAL_SIDE**2
    return seconds * (UNLABELLED if case.get("train.unlabelled") is not None else 1)


def computes_in_bf16(case: Case) -> bool:
    """Say whether the processor computes in bf16 itself and nobody asked for anything else."""
    asked = case.settings.get("train.precision", "bf16")
    return case.machine.device == "cpu" and case.machine.quick_bf16 and asked == "bf16"


def passes_within(case: Case, size: Size) -> float | None:
    """Return how many images can be trained on in the time limit; None without one."""
    time_limit = case.get("train.time_limit_seconds")
    return None if time_limit is None else time_limit * USABLE_SHARE / seconds_for(case, size)


def images_in_memory(case: Case, size: Size) -> int | None:
    """Return how many images of an input size a step can have; None where that is unknown."""
    memory = case.machine.memory_bytes
    return None if memory is None else math.floor(memory * MEMORY_SHARE / (BYTES * _area(size)))


def _area(size: Size) -> int:
    return size[0] * size[1]
