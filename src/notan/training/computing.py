"""How a training computes: device and arithmetic, threads, and what of PyTorch is kept away."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from notan.models.blocks import guard_convolutions
from notan.runtime import (
    Precision,
    choose_precision,
    find_device,
    has_quick_bf16,
    keep_freed_memory,
    leave_out_compiler,
    limit_threads,
    seed_everything,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from notan.config import Train

logger = logging.getLogger("notan")

WORTH_IT = 1.05
"""How many times as fast bf16 must be measured to be taken. Few images show less of it than a batch
does: of a U-Net on EfficientNet-Lite0, 256x256, ``measure_gain`` finds 1.2 to 1.6 with two and 1.6
to 1.8 with eight (AMD EPYC, one core). A training that found 1.1 lost a third of its steps."""

MOST_SECONDS, OF_THE_LIMIT = 6.0, 0.01
"""Of the processor that measuring takes, and the share of a time limit that this may be, where two
images are not slower already."""

TURNS = 2
"""Steps in each arithmetic that are timed, after one that is not; the quicker one counts."""


def begin_computing(device: str, settings: Train, *, seed: int) -> Precision:
    """Seed every random generator, and return the device and arithmetic of a training.

    Raises:
        ConfigError: There is no such device, or it lacks the arithmetic.
    """
    precision = choose_precision(settings.precision, find_device(device))
    seed_everything(seed, deterministic=settings.deterministic)
    if precision.device.type == "cpu":
        keep_freed_memory()
        leave_out_compiler()
        limit_threads()
    return precision


@contextlib.contextmanager
def flushing_denormals() -> Iterator[None]:
    """Compute with zero in place of numbers below 1e-38, as far as this thread does.

    They take a processor a hundred times as long as others, and change nothing. The rest of the
    process has not asked for it.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def avoid_faults(network: nn.Module, device: torch.device) -> None:
    """Have a network learn past a fault of oneDNN, which computes on a processor."""
    if device.type == "cpu" and (guarded := guard_convolutions(network)):
        layers = "1 layer" if guarded == 1 else f"{guarded} layers"
        logger.info("%s: computed in another way, past a fault of oneDNN", layers)


NARROW = 32
"""Channels after a network's first convolution, from which dense ones lose by lying channels last:
benchmarks/layouts.py, in float32. Networks with depthwise convolutions gain, and so do narrow ones;
in prediction nearly all do."""


def lay_out(network: nn.Module, precision: Precision) -> None:
    """Lay a network's weights out as it trains quickest; what it computes lies as they do.

    A rule and no trial: the two round otherwise, and the same seed is to give the same weights.
    """
    convolutions = [each for each in network.modules() if isinstance(each, nn.Conv2d)]
    plain = (
        precision.device.type == "cpu"
        and precision.dtype is torch.float32
        and bool(convolutions)
        and convolutions[0].out_channels >= NARROW
        and all(each.groups == 1 for each in convolutions)
    )
    network.to(memory_format=torch.contiguous_format if plain else torch.channels_last)  # type: ignore[call-overload]


def precision_of_state(precision: Precision) -> dict[str, str]:
    """Return what a state keeps of an arithmetic."""
    dtype = str(precision.dtype).removeprefix("torch.")
    return {"device": precision.device.type, "dtype": dtype, "why": precision.why}


def confirm_precision(
    precision: Precision,
    network: nn.Module,
    shape: tuple[int, int, int, int],
    state: Mapping[str, Any] | None,
    limit: float | None,
) -> Precision:
    """Return the arithmetic of a training on a processor to which the choice was left.

    A measurement may come out otherwise the next time, so a training that goes on computes as it
    began.

    Args:
        precision: The choice that is safe.
        network: What will be trained, on the processor; it stays as it is.
        shape: Of a batch: (images, channels, height, width).
        state: What the training goes on from; None: it begins.
        limit: Of the training, in seconds; None: there is none.
    """
    if state is not None:
        kept = state.get("precision")
        if not kept or kept["device"] != precision.device.type:
            return precision
        return Precision(precision.device, getattr(torch, kept["dtype"]), kept["why"])
    if not has_quick_bf16():
        return precision
    most = MOST_SECONDS if limit is None else min(MOST_SECONDS, OF_THE_LIMIT * limit)
    gain = measure_gain(network, shape, most)
    why = f"measured {gain:.1f} times as fast as float32"
    if gain >= WORTH_IT:
        return Precision(precision.device, torch.bfloat16, why)
    return Precision(precision.device, torch.float32, f"bfloat16 {why}")


def measure_gain(
    network: nn.Module, shape: tuple[int, int, int, int], seconds: float = MOST_SECONDS
) -> float:
    """Return how many times as fast in bf16 as in float32 a network goes forward and backward."""
    twin = copy.deepcopy(network).train()
    with torch.random.fork_rng(devices=[]):

        def step(images: int, dtype: torch.dtype) -> float:
            batch = torch.rand(images, *shape[1:])
            lay_out(twin, Precision(batch.device, dtype, ""))
            began = time.process_time()  # what another program has of the core decides nothing
            with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
                answer = twin(batch)
            answer.float().mean().backward()
            return time.process_time() - began

        took: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
        few = min(2, shape[0])  # one alone may leave batch norm a single value
        one = sum(step(few, dtype) for dtype in took) / few
        images = max(few, min(shape[0], int(seconds / ((2 + TURNS) * one))))
        for _ in range(1 + TURNS):  # the first of a kind takes longer
            for dtype, found in took.items():
                found.append(step(images, dtype))
        return min(took[torch.float32][1:]) / min(took[torch.bfloat16][1:])
