"""Batch norm over a batch of which each rank has a slice."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from notan.models.blocks import BatchNorm2d
from notan.training.ranks import SMALL_BATCH

if TYPE_CHECKING:
    from torch import Tensor

    from notan.training.ranks import Ranks

logger = logging.getLogger("notan")


class _Total(torch.autograd.Function):
    """The sum over the ranks; what each put in has the sum of the gradients of all of them."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, ranks: Ranks) -> Tensor:  # noqa: ANN401 - PyTorch's
        ctx.ranks = ranks
        return ranks.total(numbers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return ctx.ranks.total(gradients[0]), None


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Normalises by mean and variance of the whole batch, as one process would.

    Source: ``torch.nn.SyncBatchNorm``, which refuses a processor's tensors. Here one sum for each
    layer and direction carries sums, squares and counts; the squares are of distances from the
    running mean, which all ranks have, so that few digits cancel.
    """

    ranks: Ranks

    @classmethod
    def of(cls, layer: nn.BatchNorm2d, ranks: Ranks) -> SharedBatchNorm2d:
        """Return a layer with the weights and statistics of another: its own tensors."""
        shared = cls(
            layer.num_features,
            eps=layer.eps,
            momentum=layer.momentum,
            affine=layer.affine,
            track_running_stats=layer.track_running_stats,
        )
        shared.ranks = ranks
        shared._parameters, shared._buffers = layer._parameters, layer._buffers
        return shared.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """Normalise (n, channels, h, w); without statistics to learn, as every batch norm does."""
        mean, var = self.running_mean, self.running_var
        if not self.training or mean is None or var is None:
            return super().forward(input)
        channels = self.num_features
        apart = input.to(torch.promote_types(input.dtype, mean.dtype)) - mean.view(1, -1, 1, 1)
        count = apart.new_tensor([apart.numel() / channels])
        here = [apart.sum(dim=(0, 2, 3)), apart.square().sum(dim=(0, 2, 3)), count]
        totals: Tensor = _Total.apply(torch.cat(here), self.ranks)  # type: ignore[no-untyped-call]
        sums, squares, pixels = totals[:channels], totals[channels:-1], totals[-1:]
        shift = sums / pixels
        spread = (squares / pixels - shift.square()).clamp(min=0)
        self._learn(mean, var, shift.detach(), spread.detach(), pixels.detach())
        scale = (spread + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        output = (apart - shift.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)
        if self.affine:
            output = output + self.bias.view(1, -1, 1, 1)
        normalised: Tensor = output.to(input.dtype)
        return normalised

    @torch.no_grad()
    def _learn(
        self, mean: Tensor, var: Tensor, shift: Tensor, spread: Tensor, pixels: Tensor
    ) -> None:
        """Take the batch's statistics into the running ones."""
        tracked, share = self.num_batches_tracked, self.momentum or 0.0
        if tracked is not None:
            tracked.add_(1)
            if self.momentum is None:  # the mean of all batches
                share = 1.0 / tracked.item()
        mean.add_(share * shift)
        unbiased = spread * pixels / (pixels - 1).clamp(min=1)
        var.add_(share * (unbiased - var))


def share_batch_norm(network: nn.Module, ranks: Ranks, batch_size: int) -> str | None:
    """Have a network's batch norm see whole batches where the slices are small.

    Where each rank's slice is large enough for statistics of its own, it has those: no layer waits
    for the others then. The running statistics are the mean of all in either case.

    Args:
        network: Changed in place; its weights are the same tensors.
        ranks: Among which batches are divided.
        batch_size: Of the whole batch.

    Returns:
        In words, for the card; None: one process has the whole batch.
    """
    if ranks.is_alone:
        return None
    slice_ = batch_size // ranks.count
    if slice_ >= SMALL_BATCH:
        return f"{ranks}, batch norm over each one's {slice_} images"
    others = 0
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm2d) and type(layer) in (nn.BatchNorm2d, BatchNorm2d):
                setattr(parent, name, SharedBatchNorm2d.of(layer, ranks))
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
                others += 1
    if others:
        logger.warning(
            "%d batch norm layers are no plain BatchNorm2d: each rank has its own statistics there",
            others,
        )
    return f"{ranks}, batch norm over the whole batch"
