"""Traces: what a training step does, by kind of work, and where it reads from the device.

A trace of PyTorch's profiler names some thousand operations; a person wants ten lines. On a
processor the time of an operation is its own; on a GPU it is that of its kernels, and what is left
of the clock is idle time: after the host has waited for the device, or because launching kernels
takes it longer than running them.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import FrameType

    from torch.autograd.profiler_util import FunctionEvent

WAITS, LAUNCHES, OTHER = "waits for the device", "launches", "other"
OPTIMIZER, LOSS, NORMALISATION, COPIES = "optimizer", "loss", "normalisation", "copies"
FORWARD, BACKWARD = "convolution forward", "convolution backward"
ACTIVATION = "activation, pooling, joining"

KINDS = (
    (WAITS, r"aten::(item|_local_scalar_dense|is_nonzero|nonzero)$|synchronize"),
    (OPTIMIZER, r"^optimizer\.|_foreach_|_fused_adam|linalg_vector_norm|accumulategrad"),
    (BACKWARD, r"conv\w*backward|^aten::mkldnn\w*backward|(mm|bmm)backward"),
    (FORWARD, r"conv|^aten::(mm|bmm|addmm|linear|matmul)$"),
    (NORMALISATION, r"norm"),
    (LOSS, r"cross_entropy|log_sigmoid|crossentropy"),
    (
        ACTIVATION,
        r"relu|threshold|silu|hardtanh|sigmoid|gelu|pool|upsample|^aten::cat$|catbackward",
    ),
    (COPIES, r"copy|^aten::(to|clone|contiguous|empty\w*|zeros?|zeros_like|zero_|fill_)$|memcpy"),
)
"""Kinds of work, and the names of the operations that are of it; the first that fits counts."""

LOSS_SPAN = "notan: loss"
"""What the profiler calls the time in a loss."""

READS = {"_local_scalar_dense", "nonzero", "equal", "masked_select"}
"""Operations whose result depends on numbers that the host must see."""

TORCH = Path(torch.__file__).parent
MATRIX_SIDES = {"cpu": 1024}
GPU_MATRIX_SIDE = 8192
"""Rows of a matrix that keeps a device busy."""


def measure_kinds(step: Callable[[], object], steps: int, device: torch.device) -> dict[str, float]:
    """Trace steps, and return the share of their time (0..1) that each kind of work takes.

    Args:
        step: Takes a step; a loss that it computes runs in the span ``LOSS_SPAN``.
        steps: How many to trace.
        device: Where the network is.

    Returns:
        Shares that add up to 1, the largest first.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells on stderr that it starts and stops
    with profile(activities=activities) as profiler:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(device)
        seconds = time.perf_counter() - began
    events: Sequence[FunctionEvent] = profiler.events() or []
    shares = _of_gpu(events) if on_gpu else _of_processor(events, seconds)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was asked for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _of_processor(events: Iterable[FunctionEvent], seconds: float) -> dict[str, float]:
    """Share out the time of the clock: what no operation takes is Python's, between them."""
    times = Counter[str]()
    for event, kind in zip(events := list(events), kinds_of(events), strict=True):
        times[kind] += event.self_cpu_time_total / 1e6
    whole = max(seconds, times.total(), 1e-9)
    return {**{kind: each / whole for kind, each in times.items()}, LAUNCHES: _rest(times, whole)}


def _rest(times: Counter[str], whole: float) -> float:
    return max(0.0, 1 - times.total() / whole)


def _of_gpu(events: Sequence[FunctionEvent]) -> dict[str, float]:
    """Share out the time from the first kernel to the end of the last."""
    times = Counter[str]()
    for event, kind in zip(events, kinds_of(events), strict=True):
        if event.device_type == DeviceType.CPU:
            times[kind] += event.self_device_time_total
    kernels = [
        (event.time_range.start, event.time_range.end)
        for event in events
        # a span of ours or of the optimizer is shown on the GPU too, and is no work of it
        if event.device_type != DeviceType.CPU and not _is_span(event.name)
    ]
    waits = [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CPU and "Synchronize" in event.name
    ]
    busy, after_waits, launching = split_idle(kernels, waits)
    whole = max(busy + after_waits + launching, 1e-9)
    known = max(times.total(), 1e-9)
    shares = {kind: each / known * busy / whole for kind, each in times.items() if kind != WAITS}
    return {**shares, WAITS: after_waits / whole, LAUNCHES: launching / whole}


def _is_span(name: str) -> bool:
    return name == LOSS_SPAN or name.startswith(("Optimizer.", "ProfilerStep"))


Interval = tuple[float, float]


def split_idle(
    kernels: Iterable[Interval], waits: Iterable[Interval]
) -> tuple[float, float, float]:
    """Divide the time from the first kernel to the end of the last.

    A gap in which the host came back from a wait is due to it: it had let the queue run empty. Any
    other gap is one in which the host was not quick enough to fill the queue.

    Args:
        kernels: When each ran, (begin, end), in any order; those of several streams may overlap.
        waits: When the host waited for the device.

    Returns:
        Time with a kernel, idle time after waits, and other idle time.
    """
    ends = sorted(end for _, end in waits)
    busy = after_waits = launching = 0.0
    reached: float | None = None
    for begin, end in sorted(kernels):
        if reached is None:
            reached = begin
        if begin > reached:
            waited = any(reached <= moment <= begin for moment in ends)
            after_waits += (begin - reached) * waited
            launching += (begin - reached) * (not waited)
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return busy, after_waits, launching


def kinds_of(events: Iterable[FunctionEvent]) -> list[str]:
    """Return the kind of work that each operation of a trace is of.

    What runs in a loss or an optimizer is of that kind, whatever it is. So is the way back through
    a loss: PyTorch numbers each operation on the way there, and the way back has its number.
    """
    events = list(events)
    spans = [_span_of(event) for event in events]
    inside, outside = set[int](), set[int]()
    for event, (span, backward) in zip(events, spans, strict=True):
        if event.sequence_nr >= 0 and backward is None:
            (inside if span == LOSS else outside).add(event.sequence_nr)
    of_loss = inside - outside
    return [
        LOSS if backward in of_loss else _kind_of(event.name.lower(), span)
        for event, (span, backward) in zip(events, spans, strict=True)
    ]


def _kind_of(name: str, span: str | None) -> str:
    found = next((kind for kind, pattern in KINDS if re.search(pattern, name)), OTHER)
    if found == WAITS and span != OPTIMIZER:  # which reads its own counts, on the host
        return WAITS
    return span or found


def _span_of(event: FunctionEvent) -> tuple[str | None, int | None]:
    """Return whether an operation runs in a loss or an optimizer, and whose way back it is of."""
    node: Any = event
    while node is not None:
        if node.name == LOSS_SPAN:
            return LOSS, None
        if node.name.startswith("Optimizer."):
            return OPTIMIZER, None
        if node.name.startswith("autograd::engine"):
            return None, node.sequence_nr
        node = node.cpu_parent
    return None, None


class HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts where the host reads numbers from the device, while it is on; a context manager.

    Each waits until the device has done all that came before: ``.item()``, ``float()``, ``if`` of
    a tensor, an index of booleans, ``.cpu()``. A processor has no queue, so that there they cost
    nothing, and are counted all the same.

    Attributes:
        places: How often, by file and line.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.places = Counter[str]()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operation
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - what it returns
        """Run an operation, and count it if it is a read."""
        if self._reads(func.overloadpacket.__name__, args, kwargs or {}):
            place = _place(sys._getframe(1), on_host=self.device.type == "cpu")
            if place:
                self.places[place] += 1
        return func(*args, **(kwargs or {}))

    def _reads(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        tensors = [each for each in args if torch.is_tensor(each)]
        if name in READS:
            return any(each.device.type == self.device.type for each in tensors)
        if name.startswith(("index", "_index_put")) and isinstance(args[1], list | tuple):
            return any(each is not None and each.dtype is torch.bool for each in args[1])
        if self.device.type == "cpu" or kwargs.get("non_blocking"):
            return False
        if name == "_to_copy":
            target = kwargs.get("device")
            return target is not None and target.type == "cpu" != tensors[0].device.type
        return name == "copy_" and tensors[0].device.type == "cpu" != tensors[-1].device.type


def _place(frame: FrameType | None, *, on_host: bool) -> str | None:
    """Return the innermost line outside PyTorch, or None for what is no read of the device.

    PyTorch's optimizers keep their counts of steps on the host, and read them there.
    """
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if on_host and path.is_relative_to(TORCH / "optim"):
            return None
        if path != Path(__file__) and not path.is_relative_to(TORCH):
            short = "/".join(path.parts[-2:])
            return f"{short}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return "PyTorch"


def measure_matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Return how many floating-point operations a second a product of matrices reaches.

    Args:
        device: Where.
        dtype: Of the matrices.
        seconds: At least so long.
    """
    side = MATRIX_SIDES.get(device.type, GPU_MATRIX_SIDE)
    random = torch.Generator().manual_seed(0)  # zeros would be quicker: they take less power
    matrix = torch.rand(side, side, generator=random).to(device, dtype)
    done, began = 0, 0.0
    with torch.no_grad():
        while not done or time.perf_counter() - began < seconds:
            if done == 0:  # the first chooses its code
                torch.mm(matrix, matrix)
                synchronize(device)
                began = time.perf_counter()
            for _ in range(2):
                torch.mm(matrix, matrix)
            synchronize(device)
            done += 2
    return float(done * 2 * side**3 / (time.perf_counter() - began))
