"""Losses of a two-class segmenter, and the weighted sum of named losses that a run trains on.

Every loss takes the same three tensors of shape (n, 1, h, w) and returns a scalar of at least 0:

- logits: any float type; computed in float32, or in float64 when that is what came in.
- targets: 0 = background, 1 = foreground.
- valid: 1 (or True) where a pixel counts, 0 (or False) where it is ignored. What logits and
  targets hold at an ignored pixel changes nothing, and its gradient is exactly zero.

Means over images run over the images that have a valid pixel; with none at all a loss is 0.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from notan.errors import ConfigError, ShapeError, nearest

if TYPE_CHECKING:
    from notan.types import Logits, Masks, Probabilities

LossTerm: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits, targets, valid) -> scalar loss."""


def _all_here(count: Tensor) -> Tensor:
    return count


_whole: ContextVar[Callable[[Tensor], Tensor]] = ContextVar("_whole", default=_all_here)
"""From a count of pixels or images here to that of the whole batch."""


@contextlib.contextmanager
def counted_across(total: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let means be over a batch of which only a slice is here: the slices' losses add up to it.

    Args:
        total: From a count in this slice, a scalar, to that in all slices.
    """
    token = _whole.set(total)
    try:
        yield
    finally:
        _whole.reset(token)


def share_of_whole(images: int, like: Tensor) -> Tensor | float:
    """Return the share of the batch's images that are here, a scalar like another tensor."""
    if _whole.get() is _all_here:
        return 1.0
    here = torch.tensor(float(images), dtype=like.dtype, device=like.device)
    return here / _whole.get()(here)


def bce(logits: Logits, targets: Masks, valid: Masks) -> Tensor:
    """Return the binary cross entropy, averaged over the valid pixels of the batch.

    Args:
        logits: (n, 1, h, w), any range.
        targets: (n, 1, h, w), 0 or 1, or a teacher's probabilities between them.
        valid: (n, 1, h, w), 0 or 1, or bool.

    Returns:
        A scalar in 0..inf.

    Raises:
        ShapeError: The three tensors are not all of one shape (n, 1, h, w).

    Source:
        Ronneberger, Fischer and Brox 2015, arXiv 1505.04597. There: a softmax over two channels
        and a weight for each pixel; here: a sigmoid over one channel, every valid pixel alike.
    """
    pixels = _pixels(logits, targets, valid)
    losses = functional.binary_cross_entropy_with_logits(
        pixels.logits, pixels.targets, reduction="none"
    )
    return _mean_over_pixels(losses, pixels.valid)


def dice(logits: Logits, targets: Masks, valid: Masks, *, smooth: float = 1.0) -> Tensor:
    """Return the soft Dice loss of each image, averaged over the images.

    Args:
        logits: (n, 1, h, w), any range.
        targets: (n, 1, h, w), 0 or 1.
        valid: (n, 1, h, w), 0 or 1, or bool.
        smooth: Pixels added to both parts of the ratio, above 0; it gives an empty image a
            loss of ``false_alarm / (false_alarm + smooth)`` and so a gradient.

    Returns:
        A scalar in 0..1.

    Raises:
        ShapeError: The three tensors are not all of one shape (n, 1, h, w).

    Source:
        Milletari, Navab and Ahmadi 2016, arXiv 1606.04797. Here the denominator holds plain sums
        instead of sums of squares, and ``smooth`` is added. As there, and unlike much code, the
        ratio is taken per image and not over the batch: a small foreground weighs as much as a
        large one, and an empty image still pushes down its own false alarms.
    """
    # Tversky with both weights at one half is Dice with every part of the ratio halved
    return tversky(logits, targets, valid, alpha=0.5, beta=0.5, smooth=smooth / 2)


def focal(
    logits: Logits,
    targets: Masks,
    valid: Masks,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
) -> Tensor:
    """Return the focal loss, averaged over the valid pixels: cross entropy, easy pixels faded.

    Args:
        logits: (n, 1, h, w), any range.
        targets: (n, 1, h, w), 0 or 1; in-between values have no meaning here.
        valid: (n, 1, h, w), 0 or 1, or bool.
        gamma: How strongly easy pixels fade, at least 0; 0 gives plain cross entropy.
        alpha: Weight of the foreground's pixels in 0..1, the background's being ``1 - alpha``; None
            gives both the weight 1.

    Returns:
        A scalar in 0..inf.

    Raises:
        ShapeError: The three tensors are not all of one shape (n, 1, h, w).

    Source:
        Lin, Goyal, Girshick, He and Dollar 2017, arXiv 1708.02002. There the sum is divided by
        the number of matched boxes; here by the number of valid pixels.
    """
    pixels = _pixels(logits, targets, valid)
    margin = (2 * pixels.targets - 1) * pixels.logits
    # (1 - p) ** gamma as an exponential: the power's own gradient is infinite or NaN at 0
    fade = torch.exp(gamma * functional.logsigmoid(-margin))
    losses = -fade * functional.logsigmoid(margin)
    if alpha is not None:
        losses = losses * (alpha * pixels.targets + (1 - alpha) * (1 - pixels.targets))
    return _mean_over_pixels(losses, pixels.valid)


def tversky(
    logits: Logits,
    targets: Masks,
    valid: Masks,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
) -> Tensor:
    """Return the soft Tversky loss of each image, averaged over the images.

    Args:
        logits: (n, 1, h, w), any range.
        targets: (n, 1, h, w), 0 or 1.
        valid: (n, 1, h, w), 0 or 1, or bool.
        alpha: Weight of the false positives, at least 0.
        beta: Weight of the false negatives, at least 0; above ``alpha`` it favours recall.
        smooth: Pixels added to both parts of the ratio, above 0.

    Returns:
        A scalar in 0..1.

    Raises:
        ShapeError: The three tensors are not all of one shape (n, 1, h, w).

    Source:
        Salehi, Erdogmus and Gholipour 2017, arXiv 1706.05721. Here ``smooth`` is added, and the
        ratio is taken per image. It is written as (weighted errors) / (whole): one minus a
        ratio near one would lose its digits in float32 and could fall below zero.
    """
    pixels = _pixels(logits, targets, valid)
    foreground = torch.sigmoid(pixels.logits)
    background = torch.sigmoid(-pixels.logits)
    true_positive = (pixels.valid * pixels.targets * foreground).sum(dim=1)
    false_positive = (pixels.valid * (1 - pixels.targets) * foreground).sum(dim=1)
    false_negative = (pixels.valid * pixels.targets * background).sum(dim=1)
    errors = alpha * false_positive + beta * false_negative
    return _mean_over_images(errors / (true_positive + errors + smooth), pixels.valid)


def lovasz(logits: Logits, targets: Masks, valid: Masks) -> Tensor:
    """Return the binary Lovasz hinge of each image, averaged over the images.

    It is a convex stand-in for 1 - IoU that works on logits, not on probabilities: a pixel stops
    costing once its logit is beyond 1 on the right side.

    Args:
        logits: (n, 1, h, w), any range.
        targets: (n, 1, h, w), 0 or 1; in-between values have no meaning here.
        valid: (n, 1, h, w), 0 or 1, or bool.

    Returns:
        A scalar in 0..inf. An image without foreground costs its single worst false alarm.

    Raises:
        ShapeError: The three tensors are not all of one shape (n, 1, h, w).

    Source:
        Berman, Rannen Triki and Blaschko 2018, arXiv 1705.08790. Their code takes differences of
        neighbouring Jaccard values; here the same steps come from counts in closed form, which
        keeps their digits on large images, and the batch is sorted at once.
    """
    pixels = _pixels(logits, targets, valid)
    errors = 1 - (2 * pixels.targets - 1) * pixels.logits
    weights = _jaccard_steps(errors.detach(), pixels.targets, pixels.valid)
    return _mean_over_images((functional.relu(errors) * weights).sum(dim=1), pixels.valid)


def cldice(
    logits: Logits, targets: Masks, valid: Masks, *, iterations: int = 3, smooth: float = 1.0
) -> Tensor:
    """Return the soft clDice loss of each image, averaged over the images: for thin structures.

    It asks how much of the predicted skeleton lies in the truth and how much of the true skeleton
    in the prediction, so that a gap in a line costs as much as the line is long, however thin. It
    knows nothing of areas: an image that is foreground all over has no skeleton and costs nothing.
    So it stands beside another loss, as its authors have it, and never alone.

    Args:
        logits: (n, 1, h, w), any range.
        targets: (n, 1, h, w), 0 or 1; in-between values have no meaning here.
        valid: (n, 1, h, w), 0 or 1, or bool; what is ignored is as if outside of the image.
        iterations: Erosions, at least 1. They find the skeleton of what is up to
            ``2 * iterations + 2`` pixels wide; what is wider has none. Each costs six poolings of
            the batch, three of them without a gradient.
        smooth: Pixels added to both parts of both ratios, above 0.

    Returns:
        A scalar in 0..1.

    Raises:
        ShapeError: The three tensors are not all of one shape (n, 1, h, w).

    Source:
        Shit, Paetzold et al. 2021, arXiv 2003.07311, equations 1 and 2 and algorithm 1; the pools
        are those of their code (github.com/jocpae/clDice, cldice_loss/pytorch), and so are 3
        iterations and a ``smooth`` of 1. There the sums run over the batch; here over each image.
        Their code erodes each step twice over; here one erosion serves its step and the next.
    """
    pixels = _pixels(logits, targets, valid)
    ignored = _side_by_side(valid == 0)
    foreground = torch.sigmoid(pixels.logits) * pixels.valid
    found, true = (
        _soft_skeleton(_side_by_side(plane.view_as(logits)), ignored, iterations)
        .transpose(0, 1)
        .flatten(1)
        for plane in (foreground, pixels.targets)
    )
    precision = ((found * pixels.targets).sum(dim=1) + smooth) / (found.sum(dim=1) + smooth)
    sensitivity = ((true * foreground).sum(dim=1) + smooth) / (true.sum(dim=1) + smooth)
    # A skeleton's pixel may be 1 + rounding; a loss is at least 0
    losses = functional.relu(1 - 2 * precision * sensitivity / (precision + sensitivity))
    return _mean_over_images(losses, pixels.valid)


def boundary(logits: Logits, targets: Masks, valid: Masks) -> Tensor:
    """Return the boundary loss, averaged over the valid pixels: errors by how far off they are.

    Each pixel's error in probability counts as often as it is pixels away from the true boundary.
    An image without foreground, or without background, has no boundary and costs nothing: it
    stands beside another loss, as its authors have it, and never alone.

    Args:
        logits: (n, 1, h, w), any range.
        targets: (n, 1, h, w), 0 or 1; in-between values have no meaning here.
        valid: (n, 1, h, w), 0 or 1, or bool; an ignored pixel is on no side of the boundary.

    Returns:
        A scalar in 0..inf, in pixels: far larger than other losses at first. The authors begin
        with a weight of 0.01.

    Raises:
        ShapeError: The three tensors are not all of one shape (n, 1, h, w).

    Source:
        Kervadec et al. 2019, arXiv 1812.07032, equation 5, with the distances of their code
        (github.com/LIVIAETS/boundary-loss, utils.py): the foreground's pixels at the boundary are
        at 0. They leave out the truth's own part of the integral, which is constant; it is in
        here, so that a perfect prediction costs 0 and not less. Their weight grows with the
        epochs; here it stays.
    """
    pixels = _pixels(logits, targets, valid)
    weights = _distances(targets, valid, pixels.logits.dtype).flatten(1)
    # The probability of the wrong side, which near 0 keeps its digits
    errors = torch.sigmoid((1 - 2 * pixels.targets) * pixels.logits)
    return _mean_over_pixels(errors * weights, pixels.valid)


LOSSES: Mapping[str, LossTerm] = MappingProxyType(
    {
        "bce": bce,
        "dice": dice,
        "focal": focal,
        "tversky": tversky,
        "lovasz": lovasz,
        "cldice": cldice,
        "boundary": boundary,
    }
)
"""Every loss by the name that recipes use."""

BESIDE_OTHERS = ("cldice", "boundary")
"""Losses that are 0 for some predictions that are wrong all over, and so never stand alone."""


class LossValue(NamedTuple):
    """What a Loss says about one batch.

    Attributes:
        total: Scalar, the weighted sum of the terms; the tensor to call ``backward`` on.
        terms: Each term before its weight, by name, in the order of the weights.
    """

    total: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """A weighted sum of named losses.

    Attributes:
        weights: Name of a loss in LOSSES -> its weight, at least 0; a loss of weight 0 is not
            computed.
        focal_gamma: ``gamma`` of the focal loss, at least 0.
        tversky_alpha: Weight of false positives in the Tversky loss, at least 0.
        tversky_beta: Weight of false negatives in the Tversky loss, at least 0.
        cldice_iterations: ``iterations`` of the clDice loss, at least 1.
        teacher: Weight of the cross entropy against a teacher's probabilities, at least 0.

    Raises:
        ConfigError: A name is unknown, a number is negative or not finite, or no weight of a loss
            that can stand alone is above 0.
    """

    weights: Mapping[str, float]
    focal_gamma: float = 2.0
    tversky_alpha: float = 0.3
    tversky_beta: float = 0.7
    cldice_iterations: int = 3
    teacher: float = 0.0

    def __post_init__(self) -> None:
        # A copy: the caller's mapping may change after it was checked
        object.__setattr__(self, "weights", dict(self.weights))
        for name, weight in self.weights.items():
            if name not in LOSSES:
                raise ConfigError(f"there is no loss '{name}'{nearest(name, LOSSES)}")
            _require_at_least_zero(f"the weight of loss '{name}'", weight)
        if not any(weight > 0 for weight in self.weights.values()):
            raise ConfigError(
                f"no loss has a weight above 0 (found {self.weights}); "
                "give at least one, for example bce = 1.0"
            )
        if not any(self.weights[name] > 0 for name in self.weights.keys() - {*BESIDE_OTHERS}):
            names = " and ".join(name for name in BESIDE_OTHERS if self.weights.get(name, 0) > 0)
            raise ConfigError(
                f"{names} alone would find wrong predictions perfect: it says nothing of an image "
                "without a skeleton or a boundary; give another loss a weight too, for example "
                "dice = 1.0"
            )
        for setting in ("focal_gamma", "tversky_alpha", "tversky_beta", "teacher"):
            _require_at_least_zero(setting, getattr(self, setting))
        if self.cldice_iterations < 1:
            raise ConfigError(
                f"cldice_iterations is {self.cldice_iterations}; give 1 or more: half of the "
                "pixels that the widest structure is wide"
            )

    def __call__(
        self, logits: Logits, targets: Masks, valid: Masks, soft: Probabilities | None = None
    ) -> LossValue:
        """Compute the terms and their weighted sum.

        Args:
            logits: (n, 1, h, w), any range.
            targets: (n, 1, h, w), 0 or 1.
            valid: (n, 1, h, w), 0 or 1, or bool.
            soft: (n, 1, h, w), 0..1, what a teacher says; None: it is not asked.

        Returns:
            The weighted sum, and each term before its weight.

        Raises:
            ShapeError: The three tensors are not all of one shape (n, 1, h, w).
        """
        terms = {name: term(logits, targets, valid) for name, term in self._terms().items()}
        weighted = [self.weights[name] * term for name, term in terms.items()]
        if soft is not None and self.teacher > 0:
            terms["teacher"] = bce(logits, soft, valid)
            weighted.append(self.teacher * terms["teacher"])
        return LossValue(torch.stack(weighted).sum(), terms)

    def _terms(self) -> dict[str, LossTerm]:
        """Return the losses of positive weight, with their settings filled in."""
        tuned: dict[str, LossTerm] = {
            "focal": partial(focal, gamma=self.focal_gamma),
            "tversky": partial(tversky, alpha=self.tversky_alpha, beta=self.tversky_beta),
            "cldice": partial(cldice, iterations=self.cldice_iterations),
        }
        return {
            name: tuned.get(name, LOSSES[name])
            for name, weight in self.weights.items()
            if weight > 0
        }


class _Pixels(NamedTuple):
    """A batch ready to be compared: each (n, h * w), float32 or float64."""

    logits: Tensor
    targets: Tensor
    valid: Tensor


def _pixels(logits: Tensor, targets: Tensor, valid: Tensor) -> _Pixels:
    """Check the shapes, cast, and blank the ignored pixels before any arithmetic sees them."""
    _check_shapes(logits, targets, valid)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    # A product with zero would let a NaN or a 255 through from the ignored area
    ignored = valid == 0
    return _Pixels(
        logits.to(dtype).masked_fill(ignored, 0).flatten(1),
        targets.to(dtype).masked_fill(ignored, 0).flatten(1),
        (~ignored).to(dtype).flatten(1),
    )


def _check_shapes(logits: Tensor, targets: Tensor, valid: Tensor) -> None:
    """Raise ShapeError unless all three are (n, 1, h, w): broadcasting would hide the mistake."""
    if logits.ndim != 4 or logits.shape[1] != 1:
        raise ShapeError(f"the logits have shape {tuple(logits.shape)}; a loss takes (n, 1, h, w)")
    for name, tensor in (("targets", targets), ("valid mask", valid)):
        if tensor.shape != logits.shape:
            raise ShapeError(
                f"the logits have shape {tuple(logits.shape)} and the {name} "
                f"{tuple(tensor.shape)}; a loss takes all of one shape (n, 1, h, w)"
            )


def _mean_over_pixels(losses: Tensor, valid: Tensor) -> Tensor:
    """Average (n, pixels) over the valid pixels; 0 when there is none."""
    return (losses * valid).sum() / _whole.get()(valid.sum()).clamp(min=1)


def _mean_over_images(losses: Tensor, valid: Tensor) -> Tensor:
    """Average (n,) over the images with a valid pixel; 0 when there is none."""
    seen = valid.any(dim=1)
    return losses.masked_fill(~seen, 0).sum() / _whole.get()(seen.sum()).clamp(min=1)


def _jaccard_steps(errors: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Return what each pixel adds to the Jaccard loss when pixels go wrong in order of error.

    With the k worst pixels wrong, the intersection is the foreground still right and the union is
    the foreground and the background already wrong. One more foreground pixel takes 1 from the
    intersection (a step of 1 / union); one more background pixel adds 1 to the union (a step of
    intersection / union - intersection / (union + 1)).

    Args:
        errors: (n, pixels), without gradient.
        targets: (n, pixels), 0 or 1; 0 where not valid.
        valid: (n, pixels), 0 or 1.

    Returns:
        (n, pixels), at least 0, in the order of the input; 0 where not valid.
    """
    # Ignored pixels go last, where they change no count of a valid one
    order = errors.masked_fill(valid == 0, -math.inf).argsort(dim=1, descending=True, stable=True)
    # Whole numbers: exact, and the same on every run (a float cumsum on CUDA is not)
    foreground = targets.gather(1, order).long()
    total = foreground.sum(dim=1, keepdim=True)
    intersection = (total - foreground.cumsum(dim=1)).to(errors.dtype)
    union = (total + (1 - foreground).cumsum(dim=1)).to(errors.dtype)
    # The first false alarm of an image without foreground takes the Jaccard loss from 0 to 1
    first_alarm = (union == 1).to(errors.dtype)
    background_steps = intersection / union / (union - 1).clamp(min=1) + first_alarm
    steps = torch.where(foreground == 1, 1 / union, background_steps)
    return torch.zeros_like(errors).scatter(1, order, steps) * valid


def _side_by_side(planes: Tensor) -> Tensor:
    """Return (n, 1, h, w) as (1, n, h, w), channels last: a CPU pools twice as fast so."""
    return planes.transpose(0, 1).contiguous(memory_format=torch.channels_last)


def _soft_skeleton(foreground: Tensor, ignored: Tensor, iterations: int) -> Tensor:
    """Return what openings take away at each erosion: the middle lines of what is bright.

    Args:
        foreground: (1, n, h, w), 0..1.
        ignored: (1, n, h, w), bool; neither erodes nor grows, like what is outside of the image.
        iterations: Erosions, at least 1.
    """
    skeleton = torch.zeros_like(foreground)
    for _ in range(iterations + 1):
        eroded = _erode(foreground, ignored)
        grown = functional.max_pool2d(eroded.masked_fill(ignored, 0), 3, stride=1, padding=1)
        lost = functional.relu(foreground - grown).masked_fill(ignored, 0)
        skeleton = skeleton + functional.relu(lost - skeleton * lost)
        foreground = eroded
    return skeleton


def _erode(foreground: Tensor, ignored: Tensor) -> Tensor:
    """Return the least of each pixel and its four neighbours."""
    inverse = -foreground.masked_fill(ignored, 1)
    upright = functional.max_pool2d(inverse, (3, 1), stride=1, padding=(1, 0))
    level = functional.max_pool2d(inverse, (1, 3), stride=1, padding=(0, 1))
    return -torch.maximum(upright, level)


def _distances(targets: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how many pixels away each pixel is from the boundary, at least 0.

    In the background it is the distance to the nearest foreground; in the foreground that to the
    nearest background, less 1. Where an image has but one of them it is 0.

    Args:
        targets: (n, 1, h, w), 0 or 1.
        valid: (n, 1, h, w), 0 or 1, or bool.
        dtype: What to answer in.
    """
    seen = valid != 0
    inside, outside = (targets == 1) & seen, (targets == 0) & seen
    squared = _squared_distances if targets.device.type == "cpu" else squared_distances_on_device
    to_background, to_foreground = (squared(side).to(dtype).sqrt() for side in (outside, inside))
    away = torch.where(inside, to_background - 1, to_foreground)
    both = inside.any(dim=(2, 3), keepdim=True) & outside.any(dim=(2, 3), keepdim=True)
    return away.masked_fill(~both, 0)


def _squared_distances(places: Tensor) -> Tensor:
    """Return the squared distance of each pixel to the nearest place; large where there is none.

    Args:
        places: (n, 1, h, w), bool, on the CPU.

    Returns:
        (n, 1, h, w), float32; whole numbers, exact up to 2^24.
    """
    planes = (~places[:, 0]).numpy().astype(np.uint8)
    distances = [cv2.distanceTransform(p, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for p in planes]
    return torch.from_numpy(np.stack(distances)).square().round().unsqueeze(1)


def squared_distances_on_device(places: Tensor) -> Tensor:
    """Return the same as the CPU does, by what a GPU can do without asking the host.

    First along the columns, then over the rows: every column may hold the nearest place. That is
    two small kernels for each column, which a replayed step launches at once; on a CPU it takes
    thirty times as long as OpenCV.

    Source:
        Saito and Toriwaki 1994, doi:10.1016/0031-3203(94)90133-3.
    """
    height, width = places.shape[2:]
    far = float((height + width) ** 2)
    rows = torch.arange(height, device=places.device).view(-1, 1)
    last = torch.where(places, rows, -far).cummax(dim=2).values
    following = torch.where(places, -rows, -far).flip(2).cummax(dim=2).values.flip(2)
    along = torch.minimum(rows - last, -following - rows).clamp(max=far).square()
    nearest = along.clone()
    for step in range(1, width):
        nearest[..., step:] = torch.minimum(nearest[..., step:], along[..., :-step] + step**2)
        nearest[..., :-step] = torch.minimum(nearest[..., :-step], along[..., step:] + step**2)
    return nearest


def _require_at_least_zero(name: str, value: float) -> None:
    """Raise ConfigError for a number that is negative, infinite or not a number."""
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name} is {value}; it must be a finite number of at least 0")
