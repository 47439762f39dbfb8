"""Data workers: processes that read batches ahead; how these reach the parent, and how they end.

Nothing here waits without a bound. A worker that is killed is noticed at once by whoever waits for
its batch, and what does not fit into shared memory takes another way.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import torch
from torch import Tensor

from notan.errors import NotanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    import numpy.typing as npt
    from torch.utils.data import DataLoader

LOCKS = 8
"""More than a worker's queues, and the loader's own, take; each is a file in shared memory."""

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where Linux has it
KEPT_FREE = 2**24
"""Bytes of it that are left to others: full, it would not even hold the next worker's locks."""

REMEDY = (
    "begin without them: data.workers=0 (notan pretrain: pretrain.workers=0), or give the machine "
    "or container more memory, shared memory too (docker run --shm-size)"
)


def start_workers(loader: DataLoader[Any]) -> Iterator[Any] | NotanError:
    """Begin to read the batches of an epoch, with workers that are started if there are none.

    Raises:
        OSError: The system has no room for their locks.
    """
    # PyTorch leaves a trace behind where it finds that out half-way
    locks = [multiprocessing.Lock() for _ in range(LOCKS * (loader.num_workers + 1))]
    del locks
    with _one_opencv_thread(), WATCH.taking_over():
        batches: Iterator[Any] | NotanError = _result_of(lambda: iter(loader))
    return batches


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Keep workers that start meanwhile to one core: OpenCV would take them all in each.

    It must be set before the fork: in a worker, OpenCV waits for ever for the threads that the
    fork has left behind.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def leave_signals_to_the_parent(_: int) -> None:
    """Let a worker read on when Ctrl-C or SIGTERM goes to the whole process group.

    The parent decides when it is safe to stop; a worker that died before would be an error to it.
    Workers end when the parent says so or is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)


class Piped(NamedTuple):
    """A tensor on its way through the pipe, as an array.

    Attributes:
        array: Its values.
    """

    array: npt.NDArray[Any]


def hand_over(items: Sequence[Any], *, collate: Callable[[Sequence[Any]], Any]) -> Any:  # noqa: ANN401 - any batch
    """Put a worker's batch where the parent finds it: in shared memory while that has room.

    Docker gives 64 MB of it. What does not fit goes through the pipe, which takes longer; left to
    PyTorch, the batch would be lost, and the parent wait for it for ever.

    Args:
        items: What was read.
        collate: Makes a batch of them: a tuple, with tuples and tensors in it; or an error.
    """
    return _changed(collate(items), _share)


def _share(thing: object) -> object:
    if not isinstance(thing, Tensor):
        return thing
    if free_shared_memory() - thing.nbytes >= KEPT_FREE:
        with suppress(RuntimeError):
            return thing.share_memory_()  # type: ignore[no-untyped-call]
    return Piped(thing.numpy())


def free_shared_memory() -> float:
    """Return how many bytes are free; infinity where that cannot be told."""
    try:
        space = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):  # not Linux
        return math.inf
    return space.f_bavail * space.f_frsize


def _receive(thing: object) -> object:
    return torch.from_numpy(thing.array) if isinstance(thing, Piped) else thing


def _changed(thing: object, change: Callable[[object], object]) -> object:
    """Return what a function makes of everything in tuples that lie in each other."""
    changed = change(thing)
    if changed is not thing or not isinstance(thing, tuple):
        return changed
    parts: list[Any] = [_changed(part, change) for part in thing]
    return type(thing)(*parts) if hasattr(thing, "_fields") else tuple(parts)


def next_of(batches: Iterator[Any]) -> Any:  # noqa: ANN401 - any batch
    """Return the next batch as ``collate`` made it, or an error; None after the last."""
    return _changed(_result_of(lambda: next(batches, None)), _receive)


def _result_of(work: Callable[[], Any]) -> Any:  # noqa: ANN401 - any
    """Wait for workers; return what comes, or that one has ended.

    The error is a value, so that the caller can let the workers go before it raises it.
    """
    try:
        with WATCH.waiting():
            return work()
    except (RuntimeError, OSError, EOFError) as error:
        if str(error).startswith("Caught"):  # what a worker's own code raised, by its name
            raise
        # a worker that ends takes its pipe or its shared memory with it
        found = re.search(r"signal: ([\w ]+)", f"{error} {error.__cause__}")
        reason = found[1] if found else " ".join(str(error).split()) or type(error).__name__
        return NotanError(f"a data worker, which reads images, ended ({reason}); {REMEDY}")


class WorkerWatch:
    """Lets the end of a worker be heard by whoever waits for a batch, and by nobody else.

    PyTorch's own handler raises wherever the main thread is, in the middle of a step or of writing
    a file too. Without any, the rest of a batch from a worker that was killed would be waited for
    for ever.
    """

    def __init__(self) -> None:
        self._raise_if_ended: Callable[[int, FrameType | None], object] | None = None
        self._before: object = None
        self._is_waiting = False

    @contextmanager
    def taking_over(self) -> Iterator[None]:
        """Take the place of the handler that PyTorch sets when the first workers start."""
        number = getattr(signal, "SIGCHLD", None)
        before = signal.getsignal(number) if number else None
        yield
        handler = signal.getsignal(number) if number else None
        if number and callable(handler) and handler.__module__.startswith("torch."):
            self._raise_if_ended, self._before = handler, before
            signal.signal(number, self._hear)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Raise a RuntimeError inside as soon as a worker has ended."""
        self._is_waiting = True
        try:
            if self._raise_if_ended:
                self._raise_if_ended(signal.SIGCHLD, None)
            yield
        finally:
            self._is_waiting = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._is_waiting and self._raise_if_ended:
            self._raise_if_ended(number, frame)
        elif callable(self._before):
            self._before(number, frame)


WATCH = WorkerWatch()
"""The process's one, as its signals are."""
