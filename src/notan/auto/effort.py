"""What training costs, in time and memory, as far as it can be told beforehand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from notan.auto.case import Case
    from notan.types import Size

USUAL_SIDE = 256
SECONDS = {"efficientnet_lite0": (0.025, 0.012), "resnet34": (0.17, 0.016), None: (0.0, 0.014)}
"""By encoder: seconds of a training step for a picture of 256x256 on one thread, fixed and for each
channel of width. Measured on an AMD EPYC in fp32 (2026-11-24): EfficientNet-Lite0 0.121 with width
8 and 0.216 with 16, ResNet34 0.424 with 16."""

THREAD_GAIN = 0.85
"""What a network gains from threads, as a power of their number."""

GPU_GAIN = 60.0
"""How many threads' worth a GPU is, at the least."""

BYTES = 3000
"""Of memory that a training step takes for a pixel of its input; 1,800 to 2,800 were measured."""

MEMORY_SHARE = 0.5
USABLE_SHARE = 0.8
"""Of a budget of time, what is left for training steps beside reading, validation and the end."""


def seconds_for(case: Case, size: Size) -> float:
    """Return the seconds that one picture of an input size takes in training, roughly."""
    fixed, each = SECONDS.get(case.get("model.encoder"), SECONDS["resnet34"])
    one_thread = fixed + each * int(case.get("model.width"))
    threads = GPU_GAIN if case.machine.device != "cpu" else float(case.machine.threads)
    seconds: float = one_thread / threads**THREAD_GAIN * _area(size) / USUAL_SIDE**2
    return seconds


def passes_within(case: Case, size: Size) -> float | None:
    """Return how many pictures can be trained on in the budget; None without one."""
    budget = case.get("train.budget_seconds")
    return None if budget is None else budget * USABLE_SHARE / seconds_for(case, size)


def pictures_in_memory(case: Case, size: Size) -> int | None:
    """Return how many pictures of an input size a step can have; None where that is unknown."""
    memory = case.machine.memory_bytes
    return None if memory is None else math.floor(memory * MEMORY_SHARE / (BYTES * _area(size)))


def _area(size: Size) -> int:
    return size[0] * size[1]
