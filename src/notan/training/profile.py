"""The profile of a training: what its steps wait for, measured before the first of them.

A step is timed on one batch that is there already, the data path by itself, and both together as
the training runs them: what the first and the last differ by is what the data cost. A trace shares
a step out among kinds of work. Everything that these steps change is put back, so that the training
goes on bit for bit as if nobody had looked.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch.profiler import record_function
from torch.utils.flop_counter import FlopCounterMode

from notan.errors import DivergedError
from notan.prediction.profile import SECONDS, Profile, Repeated, repeat
from notan.runtime import MOST_WORKERS, count_cores, describe_hardware, has_quick_bf16
from notan.training.compiling import Stepper
from notan.training.loop import steps_ahead
from notan.training.spikes import SpikeDetector
from notan.training.state import capture, restore
from notan.training.steps import AverageMeter, StepValues
from notan.training.trace import (
    LAUNCHES,
    LOSS,
    LOSS_SPAN,
    OPTIMIZER,
    WAITS,
    HostReads,
    measure_kinds,
    measure_matrix_rate,
    synchronize,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor, nn

    from notan.data.batches import Batch
    from notan.data.loading import Batches
    from notan.losses import LossValue
    from notan.training.build import TrainingSetup
    from notan.training.loop import Loop
    from notan.training.validation import Validation
    from notan.types import Images

logger = logging.getLogger("notan")

DATA = "waiting for data"
NOTABLE = {DATA: 0.05, WAITS: 0.05, LAUNCHES: 0.2, OPTIMIZER: 0.25, LOSS: 0.25}
"""Share of a step from which something is worth a remedy, where one is known; of those that are,
the largest is the bottleneck. What remains is the network's own arithmetic."""

OF_THE_LIMIT = 0.01
"""Share of a time limit that each measurement may take; there are seven."""

MOST_TRACED = 8
"""Steps; a trace of more is slow to read and says the same."""

READ_IMAGES = 8
"""Images, at most, that reading alone is measured on."""

TOGETHER, RESIDENT, ALONE = (
    "a step as in training",
    "the step alone, on a batch that is there",
    "the data path alone",
)


Score: TypeAlias = "Callable[[nn.Module, Iterable[Batch]], Validation]"
"""Scores a network on batches of validation images."""


class _StopError(Exception):
    """A signal came: the measuring ends."""


@dataclass(frozen=True)
class StepFindings:
    """What was measured of a training.

    Attributes:
        timings: Of a step, by TOGETHER, RESIDENT and ALONE.
        images: In a step, on average.
        reading: Seconds that reading one image and its mask takes, decoding included.
        shares: Of a step on a resident batch, by kind of work.
        reads: Host reads of a step, by the line that they come from.
        flops: Floating-point operations of a step.
        matrix_rate: What a product of matrices reaches here, in operations a second.
        validation: Seconds of the validation of an epoch; None: the network gave NaN.
    """

    timings: Mapping[str, Repeated]
    images: float
    reading: float
    shares: Mapping[str, float]
    reads: Mapping[str, int]
    flops: float
    matrix_rate: float
    validation: float | None

    @property
    def shares_together(self) -> dict[str, float]:
        """The shares of a step as in training: the wait for data among them."""
        resident = min(1.0, self.timings[RESIDENT].seconds / self.timings[TOGETHER].seconds)
        shares = {kind: share * resident for kind, share in self.shares.items()}
        return {**shares, DATA: 1 - resident}


def profile_training(loop: Loop, setup: TrainingSetup, score: Score) -> None:
    """Profile the steps of a training that is about to begin or to go on, and put all back.

    The page is logged, and kept in the run folder.

    Args:
        loop: Of which nothing is changed.
        setup: Its own.
        score: Scores a network on batches of validation images.

    Raises:
        NotanError: An image cannot be read.
        StorageError: The page could not be written.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state, as it was before, is saved.
    """
    epoch = loop.progress.epoch
    tree = capture(setup, loop.progress)
    tree["optimizer"] = copy.deepcopy(tree["optimizer"])  # the state's are no copies
    buffers = [(buffer, buffer.clone()) for buffer in setup.model.buffers()]  # not all are in it
    loaders = setup.training_batches.twin(), setup.validation_batches.twin()
    loaders[0].set_epoch(epoch, loop.progress.batch)
    findings = None
    logger.info("profiling the steps of this training, which it does not change")
    try:
        optimization = setup.optimization
        with contextlib.suppress(_StopError), optimization.freezing.during_steps():
            optimization.freezing.set_mode(setup.model, frozen=optimization.schedule.freezes)
            findings = _measure(loop, setup, score, *loaders)
    finally:
        for loader in loaders:
            loader.close()
        restore(setup, tree)
        for buffer, before in buffers:
            buffer.data.copy_(before)
        setup.model.zero_grad(set_to_none=True)
    loop.stop_if_asked()
    if findings:
        page = report(setup, findings)
        page.save(loop.folder)
        logger.info("%s", page.in_words())


def _measure(
    loop: Loop, setup: TrainingSetup, score: Score, loader: Batches, validation: Batches
) -> StepFindings:
    device = setup.device
    limit = loop.settings.time_limit_seconds
    seconds = min(SECONDS, OF_THE_LIMIT * limit) if limit else SECONDS
    step = _make_step(loop, setup)

    def settle() -> None:
        synchronize(device)

    coming = _endless(loader, loop.progress.epoch)
    resident = _resident(next(coming), device)
    with FlopCounterMode(display=False) as counter, HostReads(device) as reads:
        step(resident)
    before = repeat(lambda: step(resident), seconds, settle)
    traced = max(1, min(MOST_TRACED, int(seconds / before.seconds)))
    shares = measure_kinds(lambda: step(resident), traced, device)
    _drop_what_is_ready(coming, loader.workers, seconds / 2)
    alone = repeat(lambda: next(coming), seconds)
    together = repeat(lambda: step(next(coming)), seconds, settle)
    # once more: what is compared with it may not differ by what other programs did meanwhile
    after = repeat(lambda: step(resident), seconds, settle)
    return StepFindings(
        {TOGETHER: together, RESIDENT: before.beside(after), ALONE: alone},
        len(setup.training) / len(loader),
        _seconds_of_reading(setup, seconds / 2),
        shares,
        dict(reads.places.most_common()),
        float(counter.get_total_flops()),
        measure_matrix_rate(device, setup.optimization.precision.dtype, seconds / 4),
        _seconds_of_validation(setup, score, validation, seconds / 2),
    )


def _make_step(loop: Loop, setup: TrainingSetup) -> Callable[[Batch], None]:
    """Return what takes a step as the training does, but for what is written into its folder.

    It is not compiled, and goes on whatever the guard would say.
    """
    means = AverageMeter()
    ahead = steps_ahead(setup.device)
    begun = deque[StepValues]()

    def loss(*given: Images | Tensor | None) -> LossValue:
        with record_function(LOSS_SPAN):
            return setup.loss(*given)  # type: ignore[arg-type]

    take = Stepper(setup, loss, SpikeDetector(copy.deepcopy(loop.guard.judge), setup.device))

    def step(batch: Batch) -> None:
        if loop.stop.number is not None:
            raise _StopError
        begun.append(take(loop.answered(batch, loop.progress.step)).on_the_way())
        setup.optimization.schedule.apply()
        while len(begun) > ahead:
            _, _, losses = begun.popleft().read()
            means.add(losses, len(batch.names))

    return step


def _endless(loader: Batches, first: int) -> Iterator[Batch]:
    """Yield batches epoch after epoch: of a small data set one holds a batch or two."""
    yield from loader
    for epoch in itertools.count(first + 1):
        loader.set_epoch(epoch)
        yield from loader


def _resident(batch: Batch, device: torch.device) -> Batch:
    """Return a batch that lies where the network is."""
    images, targets, valid = (tensor.to(device) for tensor in batch[:3])
    moved = batch._replace(images=images, targets=targets, valid=valid)
    if (more := batch.unlabelled) is None:
        return moved
    plain, varied, inside = (tensor.to(device) for tensor in more[1:4])
    return moved._replace(unlabelled=more._replace(plain=plain, varied=varied, inside=inside))


def _drop_what_is_ready(batches: Iterator[Batch], workers: int, seconds: float) -> None:
    """Take what workers had read ahead while nobody asked for it: two batches each."""
    began = time.perf_counter()
    for _ in range(2 * workers):
        if time.perf_counter() - began > seconds:
            return
        next(batches)


def _seconds_of_reading(setup: TrainingSetup, seconds: float) -> float:
    """Return what reading one image takes in this process: decoding it and its mask."""
    source = setup.training
    few = range(0, len(source), -(-len(source) // READ_IMAGES))
    began, done = time.perf_counter(), 0
    for index in few:
        source[index]
        done += 1
        if time.perf_counter() - began > seconds:
            break
    return (time.perf_counter() - began) / done


def _seconds_of_validation(
    setup: TrainingSetup, score: Score, loader: Batches, seconds: float
) -> float | None:
    """Return what a whole validation takes, going by its first batches; None: it gave NaN."""
    seen = 0
    began = time.perf_counter()

    def few() -> Iterator[Batch]:
        nonlocal seen
        for batch in loader:
            yield batch
            seen += len(batch.names)
            if time.perf_counter() - began > seconds:
                return

    try:
        score(setup.model, few())
    except DivergedError:
        return None
    models = 2 if setup.average else 1
    return models * (time.perf_counter() - began) * len(setup.validation) / seen


def report(setup: TrainingSetup, findings: StepFindings) -> Profile:
    """Return the page of what was measured."""
    precision = setup.optimization.precision
    height, width = setup.preprocessor.image_size or (0, 0)
    size = f"{findings.images:.3g} images" + (f" of {height}x{width}" if height else "")
    took = findings.timings[RESIDENT].seconds
    rate = findings.flops / took
    share = rate / findings.matrix_rate
    epoch = len(setup.training_batches) * findings.timings[TOGETHER].seconds
    seconds = findings.validation
    checked = "which gave NaN" if seconds is None else f"{seconds:.3g} s"
    notes = [
        f"An epoch: {len(setup.training_batches)} steps in {epoch:.3g} s, and a validation of "
        f"{len(setup.validation)} images, {checked}.",
        f"Reading an image and its mask takes {1e3 * findings.reading:.3g} ms of a process.",
        f"A step is {findings.flops / 1e9:,.4g} GFLOP: {rate / 1e9:,.4g} GFLOP/s alone, "
        f"{share:.0%} of the {findings.matrix_rate / 1e9:,.4g} that a product of matrices in "
        f"{str(precision.dtype).removeprefix('torch.')} reaches here.",
        _reads_in_words(findings.reads, setup.device),
    ]
    return Profile(
        f"Profile of a training step: {type(setup.model).__name__}, {size}, "
        f"{describe_hardware(setup.device)}",
        "step",
        findings.images,
        {name: findings.timings[name] for name in (TOGETHER, RESIDENT, ALONE)},
        findings.shares_together,
        _bottleneck(setup, findings),
        notes,
        {
            "steps_in_epoch": len(setup.training_batches),
            "reading_seconds": findings.reading,
            "validation_seconds": findings.validation,
            "flops": findings.flops,
            "matrix_flops_a_second": findings.matrix_rate,
            "share_of_matrix_rate": share,
            "host_reads": findings.reads,
            "hardware": describe_hardware(setup.device),
            "precision": str(precision),
        },
    )


def _reads_in_words(reads: Mapping[str, int], device: torch.device) -> str:
    if not reads:
        return "The host reads nothing from the device during a step."
    places = ", ".join(f"{place} {count}" for place, count in reads.items())
    cost = "" if device.type != "cpu" else "; on a GPU each would wait, a processor has no queue"
    return f"Host reads in a step, {sum(reads.values())}: {places}{cost}."


def _bottleneck(setup: TrainingSetup, findings: StepFindings) -> str:
    """Name what is worth changing first, how, and what there is to gain."""
    shares = findings.shares_together
    notable = [kind for kind, least in NOTABLE.items() if shares.get(kind, 0.0) >= least]
    kind = max(notable, key=lambda each: shares[each], default=None)
    if kind is None:
        part = sum(share for name, share in shares.items() if name not in NOTABLE)
        return f"Bottleneck: the network's own arithmetic, {part:.0%} of a step; {_less(setup)}."
    larger = f"--batch-size {2 * setup.run.train.batch_size}"
    remedies = {
        DATA: _remedy_for_data(setup, findings),
        WAITS: f"the host reads from it in {', '.join(list(findings.reads)[:3])}: keep numbers on "
        "the device there, without .item(), float() and if",
        LAUNCHES: f"Python takes longer than what it asks for: more images a step, {larger}",
        OPTIMIZER: f"it takes the same for any number of images: more of them a step, {larger}",
        LOSS: "fewer terms (the settings loss.*), or fewer operations in one of your own",
    }
    images = findings.images / findings.timings[TOGETHER].seconds
    return (
        f"Bottleneck: {kind}, {shares[kind]:.0%} of a step; {remedies[kind]}. Without it "
        f"{images / max(1 - shares[kind], 0.01):,.4g} images a second, not {images:,.4g}."
    )


def _less(setup: TrainingSetup) -> str:
    """Say how a network has less to compute, or computes it quicker."""
    on_cpu = setup.device.type == "cpu"
    if setup.optimization.precision.dtype is torch.float32 and on_cpu and has_quick_bf16():
        return "train.precision=bf16 may be quicker on this processor"
    smaller = "a smaller --image-size" + ("" if setup.own_model else " or model.width")
    return f"it is quicker with {smaller}" + (", or on a GPU" if on_cpu else "")


def _remedy_for_data(setup: TrainingSetup, findings: StepFindings) -> str:
    """Say how images come sooner."""
    workers, cores = setup.training_batches.workers, count_cores()
    image = findings.timings[ALONE].seconds / findings.images * max(1, workers)
    reading = min(1.0, findings.reading / image)
    most = min(MOST_WORKERS, cores)
    what = f"{reading:.0%} of the time of an image is reading its files, the rest augmentation"
    remedies = []
    if reading >= 0.5 and setup.run.data.cache == "off":
        remedies.append("keep them decoded with data.cache")
    if workers < most:
        remedies.append(f"read them in {most} processes with data.workers={most}")
    if reading >= 0.5:
        remedies.append("store the images no larger than --image-size wants them")
    return f"{what}: {', or '.join(remedies) or 'lower augment.* or take a smaller --image-size'}"
