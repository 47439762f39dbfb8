"""Ranks: the processes that train one network together, started by torchrun.

Each takes its slice of every batch; sums over them make a step the same as in one process. torchrun
starts the processes, tells each its number and starts all of them again when one is lost; nothing
here schedules or heals. What a clock or a signal decides is decided once a step for all of them.

The sums go through PyTorch's collectives: gradients in one piece, not overlapped with the backward
pass as ``DistributedDataParallel`` has it, for a step is then one plain function, in any arithmetic
and on any device.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from notan.errors import ConfigError, LostRankError, NotanError
from notan.losses import counted_across
from notan.modelfile.safetensors import hash_weights
from notan.runtime import processes as processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from notan.modelfile.card import DataCard

    Value = TypeVar("Value")

logger = logging.getLogger("notan")

MEETING_SECONDS = 30.0
"""In which all ranks must have been started and found each other."""

PATIENCE_SECONDS = 900.0
"""For which a rank waits for another that does not answer and has not ended: one may read and
decode the images, or draw, while the others have done so."""

MESSAGES = 3
"""That are timed before a training starts, after one that is not."""

SMALL_BATCH = 16
"""Images of a rank's slice below which its batch norm takes the others' into account."""


class Meeting(NamedTuple):
    """What the ranks agree on before a step.

    Attributes:
        images: Of the whole batch.
        stop: The signal that one of them was sent; None: none.
    """

    images: int
    stop: int | None


@dataclass(eq=False)
class Ranks:
    """The processes of one training, as one of them sees them; alone, every sum is its own part.

    Attributes:
        number: This one's, from 0.
        count: How many there are.
        local: This one's number on its machine.
        locals: How many there are on it.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    locals: int = 1
    _device_group: Any = None
    _now: float | None = field(default=None, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        """Networks are copied, and the processes are who they are."""
        return self

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes, and speaks."""
        return self.number == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.count == 1

    def __str__(self) -> str:
        return "1 process" if self.is_alone else f"{self.count} processes"

    def choose_device(self, name: str) -> str:
        """Return the device of this rank: of several GPUs, each has its own."""
        gpus = torch.cuda.device_count()
        if self.is_alone or gpus == 0 or name not in ("auto", "cuda"):
            return name
        return f"cuda:{self.local % gpus}"

    def use(self, device: torch.device) -> None:
        """Open the way between devices, once it is known on which the network is."""
        if self.is_alone or device.type != "cuda":
            return
        torch.cuda.set_device(device)
        # NCCL refuses two ranks on one GPU; gloo goes by the host
        if self.locals <= torch.cuda.device_count():
            with _together(self):
                patience = timedelta(seconds=PATIENCE_SECONDS)
                self._device_group = distributed.new_group(backend="nccl", timeout=patience)

    def now(self) -> float:
        """Return the time by the first rank's ``time.monotonic()``, as of the last meeting."""
        return time.monotonic() if self._now is None else self._now

    def meet(self, images: int, stop: int | None) -> Meeting:
        """Agree on the time and on stopping; called by every rank, in the same places.

        Args:
            images: Of this rank's slice of the batch to come.
            stop: The signal that this one was sent.
        """
        if self.is_alone:
            return Meeting(images, stop)
        mine = torch.tensor([time.monotonic(), images, stop or 0], dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(self.count)]
        with _together(self):
            distributed.all_gather(found, mine)
        rows = [each.tolist() for each in found]
        self._now = rows[0][0]
        return Meeting(int(sum(row[1] for row in rows)), int(max(row[2] for row in rows)) or None)

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, without gradient; alone, the tensor itself."""
        if self.is_alone:
            return tensor
        whole = tensor.detach().clone(memory_format=torch.contiguous_format)
        with _together(self):
            distributed.all_reduce(whole, group=self._device_group)
        return whole

    def counting(self) -> AbstractContextManager[object]:
        """Return the context in which means of a loss are over the whole batch, not the slice."""
        return contextlib.nullcontext() if self.is_alone else counted_across(self.total)

    def add_up(self, tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> None:
        """Put the sum over the ranks into each tensor, all of them in one message.

        Args:
            tensors: Of one type and device.
            dtype: In which they travel; None: their own.
        """
        if self.is_alone or not tensors:
            return
        flat = torch.cat([each.reshape(-1) for each in tensors])
        summed = self.total(flat if dtype is None else flat.to(dtype)).to(flat.dtype)
        begins = 0
        for each in tensors:
            each.copy_(summed[begins : begins + each.numel()].view(each.shape))
            begins += each.numel()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over the ranks into each tensor of floating point."""
        if self.is_alone:
            return
        floats = [each for each in tensors if each.is_floating_point()]
        with torch.no_grad():
            self.add_up(floats)
            for each in floats:
                each.div_(self.count)

    def seconds_to_add_up(self, numbers: int, device: torch.device, dtype: torch.dtype) -> float:
        """Return what one message takes that carries so many numbers from every rank to all."""
        flat = torch.zeros(numbers, dtype=dtype, device=device)
        took = []
        for _ in range(1 + MESSAGES):
            began = time.perf_counter()
            float(self.total(flat)[0])  # waits for the device
            took.append(time.perf_counter() - began)
        return self.of_first(min(took[1:]))

    def gather(self, value: Value) -> list[Value]:
        """Return what each rank gives, in their order, to all of them."""
        if self.is_alone:
            return [value]
        found: list[Any] = [None] * self.count
        with _together(self):
            # by pickle, as PyTorch has it: they are one program, and hear only each other
            distributed.all_gather_object(found, value)
        return found

    def of_first(self, value: Value) -> Value:
        """Return what the first rank gives, to all of them."""
        if self.is_alone:
            return value
        found = [value]
        with _together(self):
            distributed.broadcast_object_list(found, src=0)
        return found[0]

    def first_does(self, action: Callable[[], Value]) -> Value:
        """Have the first rank do something while the others wait.

        Returns:
            What it found, to all of them; likewise what it raises, all raise.
        """
        done: Value | NotanError | None = None
        if self.is_first:
            try:
                done = action()
            except NotanError as error:
                done = error
        found = self.of_first(done)
        if isinstance(found, NotanError):
            raise found
        return cast("Value", found)

    def require_same(self, facts: Mapping[str, object]) -> None:
        """Refuse ranks that would not train the same network on the same images.

        Args:
            facts: What must be equal, by what it is called in the message.

        Raises:
            ConfigError: On every rank, where one has something else.
        """
        first, *others = self.gather(dict(facts))
        for number, found in enumerate(others, start=1):
            for name in dict.fromkeys((*first, *found)):  # of a table one may lack some
                its, of_first = found.get(name), first.get(name)
                if its != of_first:
                    raise ConfigError(
                        f"the ranks of one training must be alike: rank {number} has {name} "
                        f"{_short(its)}, and rank 0 {_short(of_first)}; start all of them with the "
                        "same command, versions and files"
                    )


def require_same_material(ranks: Ranks, data: DataCard, network: nn.Module) -> None:
    """Refuse ranks that have read other images, or begin with other weights.

    Raises:
        ConfigError: On every rank, where one has.
    """
    if ranks.is_alone:
        return
    ranks.require_same(
        {
            "training images of the fingerprint": data.training_fingerprint,
            "validation images of the fingerprint": data.validation_fingerprint,
            "images without masks of the fingerprint": data.unlabelled_fingerprint,
            "weights of the SHA-256": hash_weights(network.state_dict()),
        }
    )


ALONE = Ranks()
_present: Ranks | None = None


def restarts() -> tuple[int, int]:
    """Return how often torchrun has started all ranks anew, and how often it may."""
    told = ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS")
    done, most = (int(os.environ.get(name, "0")) for name in told)
    return done, most


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Find the other ranks, where torchrun has started some; within another call, those it found.

    Raises:
        ConfigError: They cannot be found.
    """
    global _present
    if _present is not None:
        yield _present
        return
    if processes() == 1:
        yield ALONE
        return
    ranks = _join()
    _present = ranks
    try:
        yield ranks
    finally:
        _present = None
        with contextlib.suppress(RuntimeError):  # another one may have ended by now
            distributed.destroy_process_group()


def _join() -> Ranks:
    number, count = int(os.environ["RANK"]), processes()
    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    try:
        store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=MEETING_SECONDS)))
        distributed.init_process_group(
            "gloo",
            store=PrefixStore(_agree_on_a_name(store, number, count), store),
            rank=number,
            world_size=count,
            timeout=timedelta(seconds=PATIENCE_SECONDS),
        )
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise ConfigError(
            f"rank {number} of {count} finds no other at {where} ({_short(error)}); is the address "
            "right, the port free and every rank started?"
        ) from error
    local = int(os.environ.get("LOCAL_RANK", number))
    locals_ = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    return Ranks(number, count, local, locals_)


def _agree_on_a_name(store: Store, number: int, count: int) -> str:
    """Return a name of this start that all of its ranks have, and none of an earlier start.

    torchrun keeps its store when it starts all ranks anew, with the addresses in it of those that
    are gone. Nothing here waits inside of PyTorch, where no signal would be heard.

    Raises:
        TimeoutError: Not all came in time.
    """
    ends, mine = time.monotonic() + MEETING_SECONDS, uuid.uuid4().hex
    others = range(1, count)

    def all_came() -> bool:
        for asked in [f"notan/asks/{other}" for other in others]:
            if store.check([asked]):
                store.set(f"notan/answer/{store.get(asked).decode()}", mine)
        return bool(store.check([f"notan/{mine}/{other}" for other in others]))

    def is_answered() -> bool:
        return bool(store.check([f"notan/answer/{mine}"]))

    if number > 0:
        store.set(f"notan/asks/{number}", mine)
    while not (is_answered() if number else all_came()):
        if time.monotonic() > ends:
            raise TimeoutError(f"not all {count} came within {MEETING_SECONDS:g} seconds")
        time.sleep(0.02)
    if number == 0:
        return mine
    name = str(store.get(f"notan/answer/{mine}").decode())
    store.set(f"notan/{name}/{number}", "here")
    return name


@contextlib.contextmanager
def _together(ranks: Ranks) -> Iterator[None]:
    """Say in a line that another rank has ended, or does not answer."""
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(
            f"rank {ranks.number} of {ranks.count} has lost another one ({_short(error)}); what "
            "was saved is whole: go on with --resume FOLDER, or have torchrun do so by itself with "
            "--max-restarts"
        ) from error


def _short(value: object) -> str:
    words = " ".join(str(value).split())
    return words if len(words) <= 120 else f"{words[:119]}…"
