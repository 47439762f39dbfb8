"""How a step is run on its device: as it is written, compiled, or replayed as one CUDA graph.

Whatever is tried before a training starts to learn is tried as after a verdict to go back: the
device skips every step, so that warming up, compiling, capturing and timing leave weights, moments,
statistics, average and random numbers as they were, and what fails has cost nothing.

Sources of the traps, each named where it lies: PyTorch's notes on CUDA graphs, and
https://docs.nvidia.com/dl-cuda-graph (quick checklist).
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from notan.errors import ConfigError
from notan.io.download import cache_folder
from notan.training.state import random_states, restore_random_states
from notan.training.steps import train_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from notan.data.batches import Batch
    from notan.training.build import Setup
    from notan.training.spikes import SpikeDetector
    from notan.training.steps import Criterion, StepValues

logger = logging.getLogger("notan")

How = Literal["off", "default", "tuned"]
"""What ``train.compile`` comes to."""

BACKEND = "inductor"
OPTIONS: dict[How, dict[str, Any]] = {
    "default": {},
    # without the search over convolutions, which took most of max-autotune's minutes
    "tuned": {"coordinate_descent_tuning": True, "max_autotune_pointwise": True},
}
CACHE_SETTING = "TORCHINDUCTOR_CACHE_DIR"

COMPILING_SECONDS = 60.0
"""What compiling takes, for two batch sizes and both directions: a guess on the safe side."""

GAIN = 0.25
"""Share of a step's time that compiling saves on a GPU at least, by what others measured."""

REFUSED = "steps cannot be captured as CUDA graphs (%s): going on without"

WARM_UP, TIMED = 3, 5
"""Steps before a capture, and of a timing; they change nothing."""


class Stepper:
    """Takes steps as they are written, through a compiled network where there is one.

    Attributes:
        how: How the network was compiled.
        network: The compiled one; None: the model as it is.
    """

    def __init__(self, setup: Setup, loss: Criterion, spikes: SpikeDetector) -> None:
        self.setup = setup
        self.loss = loss
        self.spikes = spikes
        self.how: How = "off"
        self.network: Callable[[Tensor], Tensor] | None = None
        self._tried: set[object] = set()

    def __call__(self, batch: Batch) -> StepValues:
        """Have the device take a step on a batch, and bring the average of the weights up to it."""
        setup = self.setup
        if self.network is not None and (shape := self.shape_of(batch)) not in self._tried:
            self._tried.add(shape)
            self._try(batch)
        values = train_step(
            setup.model,
            batch,
            self.loss,
            setup.optimization,
            self.spikes,
            network=self.network,
            ranks=setup.ranks,
        )
        if setup.average:
            setup.average.update_parameters(setup.model, values.taken)
        return values

    def shape_of(self, batch: Batch) -> object:
        """Return what a program or a capture holds for: shapes, and what of the network learns."""
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors_of(batch))
        learns = tuple(weight.requires_grad for weight in self.setup.model.parameters())
        return shapes, learns

    @contextlib.contextmanager
    def trying(self) -> Iterator[None]:
        """Let steps be taken that change nothing."""
        optimization = self.setup.optimization
        randoms, scaler = random_states(), optimization.scaler.state_dict()
        memory = [part.clone() for part in self.spikes.memory]
        self.spikes.halted.fill_(value=True)
        try:
            yield
        finally:
            for part, before in zip(self.spikes.memory, memory, strict=True):
                part.copy_(before)
            optimization.optimizer.zero_grad(set_to_none=True)
            optimization.scaler.load_state_dict(scaler)
            restore_random_states(randoms)

    def compile(self, how: How) -> None:
        """Take all further steps through a compiled network, unless that turns out to fail."""
        # the temporary folder, its default, is lost with the next start and shared with others
        os.environ.setdefault(CACHE_SETTING, str(cache_folder() / "compiled"))
        # one program for each batch size: with sizes left open, Inductor gives up its layouts
        # (torch/_inductor/graph.py, decide_layout_opt)
        self.network = torch.compile(
            self.setup.model, backend=BACKEND, dynamic=False, **_options(how)
        )
        self.how = how

    def _try(self, batch: Batch) -> None:
        """Compile for a batch's shape, or go on without where that fails."""
        began = time.monotonic()
        try:
            with self.trying():
                self(batch).read()
        except Exception as error:  # noqa: BLE001 - whatever a compiler raises
            self.network, self.how = None, "off"
            logger.warning(
                "the network cannot be compiled (%s): going on without; train.compile=off says so "
                "from the start",
                _in_a_line(error),
            )
            return
        seconds = time.monotonic() - began
        logger.info("compiled for batches of %d in %.0f s", len(batch.images), seconds)


def seconds_a_step(step: Callable[[Batch], object], batch: Batch, device: torch.device) -> float:
    """Return what a step on a batch takes."""
    for _ in range(WARM_UP):
        step(batch)
    wait_for(device)
    began = time.perf_counter()
    for _ in range(TIMED):
        step(batch)
    wait_for(device)
    return (time.perf_counter() - began) / TIMED


def _options(how: How) -> dict[str, Any]:
    options = OPTIONS[how]
    return {"options": options} if options and BACKEND == "inductor" else {}


def _in_a_line(error: Exception) -> str:
    """Return what an error says first; PyTorch's go on for pages."""
    words = " ".join(str(error).partition("\n\n")[0].split())
    return f"{type(error).__name__}: {words[:300]}"


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def make_stepper(
    plain: Stepper,
    batch: Batch,
    *,
    wanted: Literal["auto", "off", "default", "tuned"],
    known: How | None,
    steps_left: Callable[[float], float],
    one_size: bool,
    captures: bool,
) -> Stepper | GraphStepper:
    """Choose how the steps of a training are run, and prepare it.

    Args:
        plain: Steps as they are written.
        batch: One that steps can be tried on; with all that a step needs.
        wanted: ``train.compile``.
        known: What was chosen before the training was stopped: it goes on in the same arithmetic.
        steps_left: From the seconds of a step to how many steps there will be.
        one_size: Whether all inputs are of one height and width.
        captures: Whether whole steps may be captured on a GPU.

    Raises:
        ConfigError: ``tuned`` is wanted where there is no GPU to tune for.
    """
    device = plain.setup.device
    if wanted == "tuned" and device.type != "cuda":
        raise ConfigError(
            f"train.compile=tuned tunes programs for a GPU, and this training is on {device.type}; "
            "give default, or leave it out"
        )
    if wanted == "off" or (wanted == "auto" and device.type != "cuda"):
        return plain
    if not one_size:
        if wanted != "auto":
            logger.warning("inputs of many sizes: each would be compiled anew, so none is")
        return plain
    how = wanted if wanted != "auto" else known or _worth_compiling(plain, batch, steps_left)
    if how != "off":
        plain.compile(how)
    return captured(plain, batch) if device.type == "cuda" and captures else plain


def _worth_compiling(
    plain: Stepper, batch: Batch, steps_left: Callable[[float], float]
) -> Literal["off", "default"]:
    with plain.trying():
        seconds = seconds_a_step(plain, batch, plain.setup.device)
    left = steps_left(seconds) * seconds
    is_worth_it = left * GAIN > COMPILING_SECONDS
    logger.info(
        "%.1f minutes of steps at %.0f ms: %s",
        *(left / 60, 1000 * seconds),
        "compiled first, which takes about one (train.compile=off: never)"
        if is_worth_it
        else "too few to compile for (train.compile=default: always)",
    )
    return "default" if is_worth_it else "off"


def captured(plain: Stepper, batch: Batch) -> Stepper | GraphStepper:
    """Return steps that are replayed as graphs, if those work and are quicker than the others."""
    graphs = GraphStepper(plain)
    try:
        with plain.trying():
            as_it_is = seconds_a_step(plain, batch, plain.setup.device)
            graphs.prepare(batch)
            replayed = seconds_a_step(graphs, batch, plain.setup.device)
    except Exception as error:  # noqa: BLE001 - whatever CUDA raises
        logger.warning(REFUSED, _in_a_line(error))
        return plain
    logger.info("a step takes %.1f ms, as a CUDA graph %.1f ms", 1000 * as_it_is, 1000 * replayed)
    return graphs if replayed < as_it_is else plain


@dataclass(frozen=True)
class Graph:
    """A captured step.

    Attributes:
        replay: Runs it again, on what is in its inputs then.
        inputs: Tensors of a batch, in the order of ``tensors_of``.
        values: Where it leaves what it computed.
    """

    replay: Callable[[], None]
    inputs: list[Tensor]
    values: StepValues


class GraphStepper:
    """Takes each step as one replay of a CUDA graph, captured once for each shape of batch.

    All that a step reads and writes stays in its place: weights, moments and averages are changed
    in place everywhere (``begin_anew``, ``restore_weights``), the learning rate becomes a tensor,
    and a batch is copied into the graph's own inputs.
    """

    def __init__(self, plain: Stepper) -> None:
        self.plain = plain
        self.setup = plain.setup
        self._graphs: dict[object, Graph] = {}
        self._refused: set[object] = set()
        self._pool: Any = None

    @property
    def how(self) -> How:
        """How the network was compiled."""
        return self.plain.how

    def __call__(self, batch: Batch) -> StepValues:
        """Have the device take a step on a batch; a shape that is new is captured first."""
        key = self.plain.shape_of(batch)
        if key not in self._graphs and key not in self._refused:
            try:
                with self.plain.trying():
                    self.prepare(batch)
            except Exception as error:  # noqa: BLE001 - whatever CUDA raises
                self._refused.add(key)
                logger.warning(REFUSED, _in_a_line(error))
        if key in self._refused:
            return self.plain(batch)
        graph = self._graphs[key]
        for place, tensor in zip(graph.inputs, tensors_of(batch), strict=True):
            place.copy_(tensor, non_blocking=True)
        graph.replay()
        values = graph.values
        # the next replay writes there again
        return type(values)(values.names, values.numbers.clone())

    def prepare(self, batch: Batch) -> None:
        """Capture a step on batches of a shape, while trying."""
        device, optimizer = self.setup.device, self.setup.optimization.optimizer
        for group in optimizer.param_groups:
            group["capturable"] = True
            if not isinstance(group["lr"], torch.Tensor):
                # a number would be the same in every replay
                group["lr"] = torch.tensor(group["lr"], device=device)
        inputs = [
            tensor.to(device, copy=True, memory_format=torch.preserve_format)
            for tensor in tensors_of(batch)
        ]
        resident = with_tensors(batch, inputs)
        replay, values = self.record(lambda: self.plain(resident))
        self._graphs[self.plain.shape_of(batch)] = Graph(replay, inputs, values)

    def record(self, step: Callable[[], StepValues]) -> tuple[Callable[[], None], StepValues]:
        """Run a step a few times, then capture it.

        Returns:
            What replays it, and where it leaves its values.
        """
        # on a stream of its own: cuDNN and cuBLAS make what they need there, not in the capture
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(side)
        self.setup.optimization.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        # threads that pin batches allocate meanwhile: only what this one does is of the capture
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            values = step()
        self._pool = self._pool or graph.pool()
        return graph.replay, values


def tensors_of(batch: Batch) -> list[Tensor]:
    """Return what of a batch a step reads."""
    parts: list[Any] = [batch.images, batch.targets, batch.valid, batch.soft]
    if more := batch.unlabelled:
        parts += [more.varied, more.inside, more.answers, torch.as_tensor(more.weight)]
    return [part for part in parts if part is not None]


def with_tensors(batch: Batch, tensors: list[Tensor]) -> Batch:
    """Return a batch with other tensors in the places of ``tensors_of``."""
    remaining = iter(tensors)

    def following(part: object) -> Any:  # noqa: ANN401 - a tensor, or None where there was none
        return None if part is None else next(remaining)

    parts = [following(part) for part in (batch.images, batch.targets, batch.valid, batch.soft)]
    more = batch.unlabelled
    if more is not None:
        varied, inside, answers = (following(p) for p in (more.varied, more.inside, more.answers))
        more = more._replace(
            varied=varied, inside=inside, answers=answers, weight=following(more.weight)
        )
    return batch._replace(
        images=parts[0], targets=parts[1], valid=parts[2], soft=parts[3], unlabelled=more
    )
