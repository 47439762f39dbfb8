"""Batches through a network that may compute beside the processor, on a GPU.

There the next batch is begun before the answer to the one before it is read, so that the GPU never
waits for the host to look at an answer or to make the next batch ready.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import (
    TYPE_CHECKING,
    Generic,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

import numpy as np

from notan.errors import OutOfMemoryError, explaining_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from notan.types import ModelInput

logger = logging.getLogger("notan")

K = TypeVar("K")

Array: TypeAlias = "npt.NDArray[np.float32]"

ON_GPU = 32
"""Images of a chosen batch on a GPU; fewer where its memory does not hold them."""

COMPILING_PAYS_SECONDS = 240.0
"""Compiling takes a GPU about a minute and saves a quarter of the network's time or so: only a job
whose network has longer than this still to go is quicker for it, however many files it has."""

WARM_BATCHES = 3
"""The first batch takes longer than all others: libraries choose their code in it."""


class Backend(Protocol):
    """A network on some runtime."""

    def __call__(self, inputs: Array) -> Array:
        """Map float32 (n, channels, h, w) to logits, float32 (n, 1, h, w).

        Raises:
            ShapeError: The network returned another shape.
        """


class Answered(NamedTuple):
    """What a network said of a batch.

    Attributes:
        logits: float32, (n, 1, h, w).
        seconds: That it computed.
    """

    logits: Array
    seconds: float


@runtime_checkable
class Overlapping(Protocol):
    """A backend that can be begun now and be asked for its answer later."""

    @property
    def overlaps(self) -> bool:
        """Whether it computes beside the processor, which is free meanwhile."""

    def begin(self, inputs: Sequence[ModelInput]) -> Callable[[], Answered]:
        """Take a batch of float32 (channels, h, w); what is returned waits for the answer.

        Raises:
            OutOfMemoryError: The batch is too large for the memory.
            ShapeError: The network returned another shape, here or when it is waited for.
        """

    def compiled(self) -> Backend:
        """Return the same network compiled, which is made when it is first used."""


def computes_beside(backend: Backend) -> bool:
    """Say whether a network leaves the processor free, as one on a GPU does."""
    return isinstance(backend, Overlapping) and backend.overlaps


def begin(backend: Backend, inputs: Sequence[ModelInput]) -> Callable[[], Answered]:
    """Give a network a batch; of one that computes on the processor, the answer is there already.

    Raises:
        OutOfMemoryError: The batch is too large for the memory.
        ShapeError: The network returned another shape.
    """
    with explaining_memory():
        if isinstance(backend, Overlapping):
            return backend.begin(inputs)
        began = time.perf_counter()
        logits = backend(np.stack(inputs))
        answered = Answered(logits, time.perf_counter() - began)
        return lambda: answered


class Batches(Generic[K]):
    """Gives batches to a network one after the other, and their answers back in that order.

    Attributes:
        size: Images of a batch at most; it falls where the memory does not hold them.
        images: How many were answered.
        seconds: That the network computed for them, waits left out.
    """

    def __init__(self, backend: Backend, size: int) -> None:
        self.size = size
        self.images, self.seconds = 0, 0.0
        self._backend = backend
        self._behind = 1 if computes_beside(backend) else 0
        self._running: deque[tuple[list[K], Callable[[], Answered]]] = deque()
        self._batches, self._late_seconds, self._late_images = 0, 0.0, 0
        self._is_halved = self._is_settled = False

    def put(self, batch: Sequence[tuple[K, ModelInput]]) -> Iterator[tuple[K, Array]]:
        """Begin a batch of inputs of one size.

        Yields:
            What was answered meanwhile: each key with its logits, (h, w).

        Raises:
            OutOfMemoryError: Not even one image has room.
            ShapeError: The network returned another shape.
        """
        while batch:  # the size may fall on the way
            part, batch = batch[: self.size], batch[self.size :]
            yield from self._put(part)

    def _put(self, batch: Sequence[tuple[K, ModelInput]]) -> Iterator[tuple[K, Array]]:
        keys = [key for key, _ in batch]
        try:
            answer = begin(self._backend, [inputs for _, inputs in batch])
        except OutOfMemoryError:
            if len(batch) == 1:
                raise
            yield from self.rest()  # what is in flight takes memory too
            self._halve(len(batch))
            yield from self.put(batch)
            return
        self._running.append((keys, answer))
        while len(self._running) > self._behind:
            yield from self._read()

    def _halve(self, failed: int) -> None:
        if not self._is_halved:
            logger.warning("memory does not hold a batch of %d: smaller ones are taken", failed)
        self._is_halved = True
        self.size = max(1, failed // 2)

    def rest(self) -> Iterator[tuple[K, Array]]:
        """Wait for all batches that were begun, and yield what they answer."""
        while self._running:
            yield from self._read()

    def _read(self) -> Iterator[tuple[K, Array]]:
        keys, answer = self._running.popleft()
        answered = answer()
        self._batches += 1
        self.images += len(keys)
        self.seconds += answered.seconds
        if self._batches > WARM_BATCHES:
            self._late_seconds += answered.seconds
            self._late_images += len(keys)
        yield from zip(keys, answered.logits[:, 0], strict=True)

    def compile_if_it_pays(self, remaining: int | None) -> None:
        """Compile the network where that shortens what is left; asked once it is warm.

        Args:
            remaining: Images that are still to come; None: not known.
        """
        backend = self._backend
        if (
            self._is_settled
            or not remaining
            or self._batches <= WARM_BATCHES
            or not isinstance(backend, Overlapping)
            or not backend.overlaps
        ):
            return
        self._is_settled = True
        seconds = remaining * self._late_seconds / self._late_images
        if seconds > COMPILING_PAYS_SECONDS:
            logger.info("the network has about %.0f s to go: compiled for them", seconds)
            self._backend = backend.compiled()
