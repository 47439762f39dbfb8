"""Shows that code for a GPU never reads back what it computes there, on a machine without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

META = torch.device("meta")
"""Tensors without values: whatever asks for one raises."""

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.is_nonzero, aten.nonzero, aten.masked_select, aten.equal}


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what a GPU would have to be waited for; a context manager."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        name = func.overloadpacket
        if name in READS:
            raise AssertionError(f"{name} waits for the device")
        if name is aten._to_copy and kwargs.get("device", args[0].device) != args[0].device:
            raise AssertionError("a copy to another device")
        if name is aten.copy_ and args[0].device != args[1].device:
            raise AssertionError("a copy from another device")
        return func(*args, **kwargs)


def refused(work: Callable[[], object]) -> bool:
    """Say whether work waits for the device."""
    try:
        with NoWaiting():
            work()
    except AssertionError:
        return True
    return False
