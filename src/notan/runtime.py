"""The machine under a run: device, precision, seed and random states.

PyTorch is imported only where it is asked, so that an ONNX model runs on a machine without it.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import platform
import random
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from notan.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from contextlib import AbstractContextManager

    import torch

logger = logging.getLogger("notan")

MOST_WORKERS = 8

PROCESSOR_FACTS = Path("/proc/cpuinfo")
QUICK_BF16 = {"avx512_bf16", "amx_bf16"}

MEMORY_FACTS = Path("/proc/meminfo")
OWN_GROUPS, CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""Where Linux tells the limits of containers and batch systems: of which groups a process is one,
and what these may take."""

KEPT_OUT = "__dynamo_disable"
"""Where torch keeps the form of a function that its compiler leaves alone, once it is made."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""As <malloc.h> of the GNU C library numbers them."""


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a network on a device, and why it was chosen.

    Attributes:
        device: Where the network runs.
        dtype: float32, bfloat16 or float16; weights stay float32.
        why: A few words for the log.
    """

    device: torch.device
    dtype: torch.dtype
    why: str

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} ({self.why})"

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context to run the network in."""
        import torch

        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients must be scaled not to vanish: float16 only."""
        import torch

        return self.dtype is torch.float16


def processes() -> int:
    """Return how many processes torchrun, or whoever sets its variables, has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def find_device(name: str) -> torch.device:
    """Return the device of a name: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        ConfigError: There is no such name, or no such device on this machine.
    """
    import torch

    present = _present_devices()
    if name == "auto":
        return torch.device(present[-1] if len(present) > 1 else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise ConfigError(
            f"--device {name}: there is no such device"
            + nearest(name, ("auto", "cpu", "cuda", "cuda:1", "mps"))
        )
    if (f"{kind}:{number or 0}" if kind == "cuda" else name) not in present:
        raise ConfigError(
            f"--device {name}: this machine and its PyTorch ({torch.__version__}) offer "
            f"{', '.join(present)}; choose one of them, or auto"
        )
    return torch.device(name)


def _present_devices() -> list[str]:
    """Name the devices of this machine, the one to prefer last."""
    import torch

    devices = ["cpu"]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices + [f"cuda:{number}" for number in reversed(range(torch.cuda.device_count()))]


def describe_hardware(device: torch.device) -> str:
    """Name the GPU, where the device is one, then the processor and how many threads it may use.

    Returns:
        For example ``"AMD EPYC 7763, 1 thread"``.
    """
    import torch

    threads = torch.get_num_threads()
    words = f"{_processor()}, {threads} thread{'' if threads == 1 else 's'}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}; {words}"
    return f"Apple GPU; {words}" if device.type == "mps" else words


def _processor(facts: Path = PROCESSOR_FACTS) -> str:
    """Name the processor; Linux tells its model only in a file."""
    try:
        lines = facts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(models), "") or platform.processor() or platform.machine() or "a processor"


def has_quick_bf16(facts: Path | None = None) -> bool | None:
    """Say whether the processor computes in bf16 itself.

    Args:
        facts: Where Linux tells it, of processors of the x86 family.

    Returns:
        None where it cannot be told.
    """
    try:
        lines = (facts or PROCESSOR_FACTS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    flags = [line.partition(":")[2].split() for line in lines if line.startswith("flags")]
    return not QUICK_BF16.isdisjoint(flags[0]) if flags else None


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """Choose the arithmetic of a network.

    Args:
        wanted: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: Where the network will run.

    Raises:
        ConfigError: The device cannot do what is wanted.

    A processor that can only imitate bf16 is slower in it than in fp32; a warning says so.
    """
    import torch

    if wanted == "auto":
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(device, torch.bfloat16, "this GPU computes in bf16")
        return Precision(device, torch.float32, f"the safe choice on {device.type}")
    if wanted == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision=fp16: not on a CPU; choose bf16 or fp32")
    if wanted == "bf16" and device.type == "cpu" and has_quick_bf16() is False:
        logger.warning(
            "precision bf16: this processor imitates it, which takes longer than fp32; begin the "
            "run with train.precision=fp32 instead (notan pretrain: pretrain.precision=fp32)"
        )
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return Precision(device, names[wanted], "as asked for")


def choose_workers(wanted: int | None, device: torch.device) -> int:
    """Choose how many processes read images: None means none on a CPU, else up to 8."""
    if wanted is not None:
        return wanted
    return 0 if device.type == "cpu" else min(MOST_WORKERS, count_cores())


def free_memory(
    facts: Path = MEMORY_FACTS, *, own: Path = OWN_GROUPS, groups: Path = CONTROL_GROUPS
) -> int | None:
    """Return the bytes of memory that are free, or half of all where only that is known.

    Args:
        facts: Where Linux tells it of the machine.
        own: Where it tells the control groups of this process.
        groups: Where it tells their limits; a process that passes one is killed, however much
            the machine has.

    Returns:
        None where nothing is known.
    """
    of_all = [_free_in_machine(facts), *_free_in_groups(own, groups)]
    return min((each for each in of_all if each is not None), default=None)


def _free_in_machine(facts: Path) -> int | None:
    try:
        lines = facts.read_text(encoding="utf-8").splitlines()
        (line,) = (line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def _free_in_groups(own: Path, groups: Path) -> Iterator[int]:
    """Give what the groups of this process, and those above them, may still take."""
    for place, is_old in _groups_of("memory", own, groups):
        with suppress(OSError, ValueError, KeyError):  # "max" is no number, and no limit
            names = ("limit_in_bytes", "usage_in_bytes") if is_old else ("max", "current")
            limit, usage = (int((place / f"memory.{each}").read_text()) for each in names)
            pairs = dict(map(str.split, (place / "memory.stat").read_text().splitlines()))
            # pages of files that can be dropped count as used
            cached = int(pairs["total_inactive_file" if is_old else "inactive_file"])
            yield max(0, limit - usage + cached)


def _groups_of(kind: str, own: Path, groups: Path) -> Iterator[tuple[Path, bool]]:
    """Give the folders that tell the limits of this process's control groups.

    Args:
        kind: ``memory`` or ``cpu``.
        own: Where Linux tells the groups of this process.
        groups: Where it tells their limits.

    Yields:
        Of each group, and of those above it, the folder, and whether it is of the first version.
    """
    for line in _read(own).splitlines():
        _, kinds, name = line.split(":", 2) if line.count(":") >= 2 else ("", "nothing", "")
        if kinds and kind not in kinds.split(","):
            continue
        root = groups / kind if kinds else groups
        # in a container the name may be the host's; then the root is the container's own
        place = root / name.lstrip("/")
        for folder in (place, *place.parents):
            yield folder, bool(kinds)
            if folder == root:
                break


PROBED = 0.1
"""Seconds of a processor that ``how_busy`` takes, many of the slices that a system deals out."""


def how_busy() -> float:
    """Return how many times as long as alone a thread takes at present, for other programs.

    It is 1 on a machine with a core to spare.
    """
    began, worked = time.monotonic(), time.thread_time()
    while time.thread_time() - worked < PROBED:
        pass
    return max(1.0, (time.monotonic() - began) / PROBED)


def keep_freed_memory() -> bool:
    """Have this process keep the memory it frees, for what it will ask for next.

    A training step on a processor takes and frees hundreds of megabytes, each in a piece that the
    C library asks the system for anew, and the system fills it with zeros, page by page. What that
    takes of a step, benchmarks/training_step.py measures.

    Returns:
        Whether it does so now: with Linux's GNU C library only.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1))
    return all(library.mallopt(name, value) for name, value in settings)


def limit_threads() -> None:
    """Have PyTorch use no more threads than there are processor cores for this process.

    Threads on the two halves of one core get in each other's way, and those beyond a container's
    share wait for each other: both make training slower. OMP_NUM_THREADS has the last word.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ and (most := count_cores()) < torch.get_num_threads():
        torch.set_num_threads(most)


def count_cores(
    facts: Path | None = None, *, own: Path = OWN_GROUPS, groups: Path = CONTROL_GROUPS
) -> int:
    """Return how many cores of the processor this process may use, two halves counted as one.

    Args:
        facts: Where Linux tells which halves make a core.
        own: Where it tells the control groups of this process.
        groups: Where it tells their limits, such as a container's share of the processor.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
    else:  # neither macOS nor Windows has it
        allowed = {*range(os.cpu_count() or 1)}
    cores = _cores_of(allowed, facts or PROCESSOR_FACTS)
    share = min(_shares_of_groups(own, groups), default=math.inf)
    return max(1, min(cores, math.ceil(share) if share < cores else cores))


def _cores_of(allowed: Collection[int], facts: Path) -> int:
    """Count the cores that processors lie on; each is one where that is not told."""
    cores: dict[int, tuple[str, ...]] = {}
    for block in _read(facts).split("\n\n"):
        fields = {
            name.strip(): value.strip()
            for name, _, value in (line.partition(":") for line in block.splitlines())
        }
        number, core = fields.get("processor", ""), fields.get("core id")
        if number.isdigit() and core is not None:
            cores[int(number)] = (fields.get("physical id", ""), core)
    return len({cores.get(number, (str(number),)) for number in allowed})


def _shares_of_groups(own: Path, groups: Path) -> Iterator[float]:
    """Give the processors that the groups of this process may use."""
    for place, is_old in _groups_of("cpu", own, groups):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if is_old else ("cpu.max",)
        quota, *rest = " ".join(_read(place / name).strip() for name in names).split() or [""]
        # -1 and "max": no limit
        if rest and quota.isdigit() and rest[0].isdigit() and int(rest[0]):
            yield int(quota) / int(rest[0])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def leave_out_compiler() -> None:
    """Have optimizers work without torch's compiler, which the first of them imports otherwise.

    That takes two seconds, and all that it is for is to be kept out of their methods. A compiler
    that is loaded, or will be, finds those of the optimizers that are made afterwards undefended;
    nothing of ours compiles an optimizer. Where torch is built otherwise, all stays as it is.
    """
    from torch.optim import Optimizer

    if "torch._dynamo" in sys.modules:
        return
    methods = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    for method in (getattr(Optimizer, name) for name in methods):
        plain = getattr(method, "__wrapped__", None)
        if plain is not None and getattr(plain, KEPT_OUT, None) is None:
            setattr(plain, KEPT_OUT, plain)


def seed_everything(seed: int, *, deterministic: bool = False) -> None:
    """Set the random states of Python, NumPy and PyTorch.

    Args:
        seed: The same seed gives the same run on the same machine.
        deterministic: Choose repeatable algorithms on a GPU too; the CPU's always are.
    """
    import torch

    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.backends.cudnn.benchmark = False
    if deterministic or torch.are_deterministic_algorithms_enabled():
        # it imports torch's compiler for itself, which takes a second or two
        torch.use_deterministic_algorithms(deterministic)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - a user's own pipeline may draw from the global state
    torch.manual_seed(seed)
