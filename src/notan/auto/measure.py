"""How long a training step takes here and now: a few are taken, of networks that rules ask for.

They are a training's own steps, on noise: the machine's arithmetic, its threads and whatever else
keeps it busy are in what is measured.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import torch

from notan.auto.choose import USUAL_SIDE
from notan.data.batches import Batch
from notan.losses import Loss
from notan.modelfile.preprocess import RGB_CHANNELS
from notan.models.build import build_model
from notan.training.build import build_optimization
from notan.training.compiling import wait_for
from notan.training.computing import (
    avoid_faults,
    begin_computing,
    confirm_precision,
    flushing_denormals,
    lay_out,
)
from notan.training.fine_tuning import Freezing
from notan.training.state import random_states, restore_random_states
from notan.training.steps import train_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from notan.config import Run
    from notan.runtime import Precision

IMAGES_ON_CPU, IMAGES_ON_GPU = 2, 8
"""In a step: a GPU takes as long for one as for a few."""

TURNS = 2
"""Steps that are timed, after others that are not; the quicker one counts."""

MOST_SECONDS, MOST_SHARE = 3.0, 0.02
"""That measuring takes, in all and of a time limit; a network that is asked for after that gets a
single step."""


class Trial(NamedTuple):
    """A network whose steps were timed.

    Attributes:
        name: As ``model.name``.
        encoder: As ``model.encoder``.
        width: As ``model.width``.
    """

    name: str
    encoder: str | None
    width: int

    def __str__(self) -> str:
        on = f" on {self.encoder}" if self.encoder else ""
        return f"{self.name}{on} of width {self.width}"


class StepTimer:
    """Says how long training steps of a network take; each network is tried once."""

    def __init__(self, run: Run) -> None:
        """Prepare to compute as the training of some settings would.

        Args:
            run: What was asked for: device, arithmetic, time limit, and what of the network the
                rules leave as it is.

        Raises:
            ConfigError: There is no such device, or it lacks the arithmetic.
        """
        limit = run.train.time_limit_seconds
        self._run = run
        self._most = MOST_SECONDS if limit is None else min(MOST_SECONDS, MOST_SHARE * limit)
        self._spent = 0.0
        self._found: dict[Trial, tuple[float, Precision]] = {}
        randoms = random_states()
        self._precision = begin_computing(run.device, run.train, seed=run.seed)
        restore_random_states(randoms)

    def __call__(self, name: str, encoder: str | None, width: int) -> float:
        """Return the seconds of a training step for each image of 256x256.

        Args:
            name: As ``model.name``.
            encoder: As ``model.encoder``.
            width: As ``model.width``.

        Raises:
            ConfigError: There is no such network.
            MissingExtraError: The package that brings its encoder is not installed.
        """
        trial = Trial(name, encoder, width)
        if trial not in self._found:
            randoms = random_states()
            self._found[trial] = self._try(trial)
            restore_random_states(randoms)
        return self._found[trial][0]

    def _try(self, trial: Trial) -> tuple[float, Precision]:
        """Return the seconds of a network's steps, and the arithmetic that they were taken in.

        Where a single step on one image takes a processor longer than there is left to measure, it
        counts, though the first of a kind takes longer than others. On a GPU it tells nothing.
        """
        began = time.perf_counter()
        step, precision, images = self._prepare(trial)

        def timed(images: int) -> float:
            moment = time.perf_counter()
            step(images)
            return time.perf_counter() - moment

        def left() -> float:
            return self._most - self._spent - (time.perf_counter() - began)

        found = timed(1)
        if precision.device.type == "cuda":
            found = min(timed(images) for _ in range(1 + TURNS)) / images
        elif left() > found:
            images = max(1, min(images, int(left() / (TURNS * found))))
            found = timed(images) / images
            if left() > images * found:
                found = min(found, timed(images) / images)
        self._spent += time.perf_counter() - began
        return found, precision

    def _prepare(self, trial: Trial) -> tuple[Callable[[int], None], Precision, int]:
        """Return what takes a step on so many images, its arithmetic, and how many are usual."""
        run, precision = self._run, self._precision
        device, channels = precision.device, run.data.channels or RGB_CHANNELS
        network = build_model(run.model.model_copy(update=trial._asdict()), channels)
        network.to(device)
        avoid_faults(network, device)
        if run.train.precision == "auto" and device.type == "cpu":
            shape = (IMAGES_ON_CPU, channels, USUAL_SIDE, USUAL_SIDE)
            limit = run.train.time_limit_seconds
            precision = confirm_precision(precision, network, shape, None, limit)
        lay_out(network, precision)
        # what is trained and how fast changes nothing in how long it takes
        optimization = build_optimization(type(run.train)(), network, precision, 1, Freezing())
        loss = Loss({"bce": 1.0, "dice": 1.0})
        usual = IMAGES_ON_CPU if device.type == "cpu" else IMAGES_ON_GPU
        noise = torch.rand(usual, channels, USUAL_SIDE, USUAL_SIDE)
        masks = (noise[:, :1] > 0.5).float()

        def step(images: int) -> None:
            some, wanted = noise[:images], masks[:images]
            batch = Batch(some, wanted, torch.ones_like(wanted), names=())
            with flushing_denormals():
                train_step(network.train(), batch, loss, optimization).read()
            wait_for(device)

        return step, precision, usual

    def in_words(self) -> str:
        """Say what was measured, in a line."""
        each = (
            f"{1000 * seconds:.3g} ms with {trial} in {str(precision.dtype).removeprefix('torch.')}"
            for trial, (seconds, precision) in self._found.items()
        )
        return f"a step takes, for each image of {USUAL_SIDE}x{USUAL_SIDE}, {', '.join(each)}"
