"""The half of the loss guard that works on the device: says of each step whether it is a spike.

``LossJudge`` says what a spike is, keeps the account and acts. But a step's weights must
not change before it is judged, and a device that waits for the host's word computes nothing
meanwhile. So the same rule is computed here from tensors, in the host's own arithmetic, and the
host comes to the same verdict from the same numbers a step or two later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from notan.training.judge import (
    CONSISTENT_DEVIATION,
    DEVIATIONS,
    FEWEST,
    PERSISTENT,
    RECENT,
    RUNAWAY,
    SMALLEST_RISE,
    WINDOW,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from notan.training.judge import LossJudge


def exact_dtype(device: torch.device) -> torch.dtype:
    """Return the type in which the host would compute with a device's numbers, if it has that."""
    return torch.float32 if device.type == "mps" else torch.float64


class SpikeDetector:
    """Judges steps by tensors; see the module.

    Attributes:
        halted: True (a tensor) once a verdict was "go back", or the guard is off and a loss was no
            number: every step is skipped from then on, until the host has acted and calls ``load``.
    """

    def __init__(self, judge: LossJudge | None, device: torch.device) -> None:
        """Begin with what a judge remembers.

        Args:
            judge: None: only a loss that is no number is refused.
            device: Of the losses.
        """
        self._exact = exact_dtype(device)
        self._is_on = judge is not None
        nothing = torch.full((WINDOW,), torch.inf, dtype=self._exact, device=device)
        self._losses, self._first = nothing, nothing[:FEWEST].clone()  # infinity: none yet
        self._recent = torch.zeros(RECENT, dtype=torch.int64, device=device)
        self._places = torch.arange(WINDOW, device=device)
        self._judged = torch.zeros((), dtype=torch.int64, device=device)
        self._well = torch.zeros_like(self._judged)
        self.halted = torch.zeros((), dtype=torch.bool, device=device)
        self.load(judge)

    @property
    def memory(self) -> list[Tensor]:
        """All that a step changes, to be copied from and to."""
        return [self._losses, self._first, self._recent, self._judged, self._well, self.halted]

    def load(self, judge: LossJudge | None) -> None:
        """Take up what a judge remembers, and go on."""
        self.halted.fill_(value=False)
        if judge is None:
            return
        self._fill(self._losses, judge.losses)
        self._fill(self._first, judge.first)
        self._recent.zero_()
        self._recent[: len(judge.recent)] = torch.tensor([*judge.recent], dtype=torch.int64)
        self._judged.fill_(len(judge.recent))
        self._well.fill_(len(judge.losses))

    def _fill(self, ring: Tensor, values: Sequence[float]) -> None:
        ring.fill_(torch.inf)
        ring[: len(values)] = torch.tensor([*values], dtype=self._exact)

    @torch.no_grad()
    def __call__(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Judge a step before its weights change.

        Args:
            loss: Of the batch, a scalar.
            norm: Of the gradient of all weights together, before clipping.

        Returns:
            bool, a scalar: whether it must not change them.
        """
        loss = loss.to(self._exact)
        if not self._is_on:
            self.halted |= ~loss.isfinite()
            return self.halted.clone()
        bad = ~(loss.isfinite() & norm.isfinite()) | (loss > self._highest())
        judged = ~self.halted  # what was judged after a "go back" would be judged again
        well = judged & ~bad
        self._note(self._recent, self._judged, bad.to(torch.int64), judged)
        self._note(self._losses, self._well, loss, well)
        self._first.copy_(torch.where(well & self._is_next(self._first), loss, self._first))
        self._judged += judged
        self._well += well
        persistent = self._recent.sum() >= PERSISTENT
        skipped = bad | self.halted
        self.halted |= judged & bad & persistent
        return skipped

    def _note(self, ring: Tensor, count: Tensor, value: Tensor, wanted: Tensor) -> None:
        """Put a value into a ring, if it is wanted, in the place of the oldest."""
        here = self._places[: len(ring)] == count % len(ring)
        ring.copy_(torch.where(wanted & here, value, ring))

    def _is_next(self, first: Tensor) -> Tensor:
        """Say which place is the first that is empty."""
        empty = first.isinf()
        return empty & (empty.cumsum(0) == 1)

    def _runaway(self) -> Tensor:
        first = self._first
        middle = _median(first, FEWEST - first.isinf().sum())
        return RUNAWAY * torch.maximum(first[0], middle)

    def _highest(self) -> Tensor:
        """Return the loss above which a step is a spike; infinity before there is a measure."""
        runaway = self._runaway()
        count = self._well.clamp(max=WINDOW)
        middle = _median(self._losses, count)
        away = (self._losses - middle).abs()
        away = torch.where(self._losses.isinf(), torch.inf, away)
        rise = torch.maximum(
            DEVIATIONS * CONSISTENT_DEVIATION * _median(away, count), SMALLEST_RISE * middle
        )
        return torch.where(count < FEWEST, runaway, torch.minimum(middle + rise, runaway))


def _median(values: Tensor, count: Tensor) -> Tensor:
    """Return the median of so many values, behind which there is infinity; of none infinity."""
    ordered = values.sort().values
    last = (count - 1).clamp(min=0)
    pair = torch.stack([last // 2, (last + 1) // 2])
    low, high = ordered.gather(0, pair)
    return torch.where(last % 2 == 0, low, (low + high) / 2)
