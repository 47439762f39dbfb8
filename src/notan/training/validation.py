"""One pass over the validation images, whose scores choose the best epoch.

On a processor it takes the Predictor's own path. On a GPU nothing leaves the device before the pass
is over: masks stay there, and pixels are counted there. What is published of a model is scored by
``notan.evaluation``, on the Predictor's path, wherever it was trained.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from notan.data.loading import MEMORY_SHARE, free_on, serves
from notan.data.on_device import DeviceBatchLoader, codes_of
from notan.data.warp import BACKGROUND, FOREGROUND, share
from notan.errors import DivergedError
from notan.metrics import Counts
from notan.modelfile.postprocess import sigmoid
from notan.training.ranks import ALONE
from notan.training.steps import ADVICE, AverageMeter, losses_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor, nn

    from notan.data.batches import Batch, Target
    from notan.data.loading import Batches
    from notan.modelfile.preprocess import Preprocessor
    from notan.prediction.backends import Array, Backend
    from notan.training.ranks import Ranks
    from notan.training.state import Best
    from notan.training.steps import Criterion
    from notan.types import Size

THRESHOLD = 0.5
"""Probability from which a pixel is foreground while training; its end chooses a better one."""


@dataclass(frozen=True)
class Validation:
    """Scores of a pass over the validation images, each a mean over images.

    Attributes:
        losses: By name, at the model's size.
        dice: At the images' own size.
        steady_dice: Likewise; see ``steady_dice``; None where every image has foreground.
        iou: Likewise.
        all_foreground_dice: What calling every pixel foreground would score.
    """

    losses: dict[str, float]
    dice: float
    steady_dice: float | None
    iou: float
    all_foreground_dice: float

    @property
    def compared(self) -> float:
        """What the better epoch has more of."""
        return self.dice if self.steady_dice is None else self.steady_dice

    def is_better_than(self, best: Best) -> bool:
        """Compare like with like: what an earlier version kept knows its Dice alone."""
        if best.steady_dice is None:
            return self.dice > best.score
        return self.compared > best.steady_dice


class Scored(NamedTuple):
    """What came of a batch.

    Attributes:
        losses: By name, at the model's size; none where the network gave no numbers.
        counts: Of each image.
        all_foreground: What they would be if every pixel were called foreground.
        ill: The images for which the network gave NaN or infinity.
    """

    losses: dict[str, float]
    counts: list[Counts]
    all_foreground: list[Counts]
    ill: tuple[str, ...] = ()


def validate(
    backend: Backend, batches: Iterable[Batch], loss: Criterion, ranks: Ranks = ALONE
) -> Validation:
    """Score every validation image at its own size, by the Predictor's own path.

    Args:
        backend: The network in evaluation mode.
        batches: Images without augmentation; of several ranks, each one's share.
        loss: Computed at the model's size.
        ranks: Among which the images are divided; each batch is scored as one process would, and
            so the result is the same, to the last bit, for any number of them.

    Raises:
        DivergedError: The network's output has NaN or infinity.
    """
    done = list[Scored]()
    for batch in _with_bar(batches, ranks):
        logits = backend(batch.images.numpy())
        if not np.isfinite(logits).all():
            done.append(Scored({}, [], [], batch.names))
            if ranks.is_alone:
                break
            continue  # the others go on meeting this one before every batch
        value = loss(torch.from_numpy(logits), batch.targets, batch.valid, None)
        counts = list(_counts(sigmoid(logits[:, 0]), batch.truths))
        all_foreground = list(_counts(np.ones_like(logits[:, 0]), batch.truths))
        done.append(Scored(losses_of(value), counts, all_foreground))
    return _in_all(done, ranks)


def _in_all(done: list[Scored], ranks: Ranks) -> Validation:
    """Return the means over the batches of all ranks, which took them in turns.

    Raises:
        DivergedError: The network gave NaN or infinity for an image.
    """
    of_ranks = ranks.gather(done)
    scored = [each for turn in zip_longest(*of_ranks) for each in turn if each is not None]
    if ill := [name for each in scored for name in each.ill]:
        raise _diverged(ill)
    means = AverageMeter()
    for each in scored:
        means.add(each.losses, len(each.counts))
    counts = [count for each in scored for count in each.counts]
    all_foreground = [count for each in scored for count in each.all_foreground]
    return Validation(
        means.result(),
        dice=fmean(count.dice for count in counts),
        steady_dice=steady_dice(counts),
        iou=fmean(count.iou for count in counts),
        all_foreground_dice=fmean(count.dice for count in all_foreground),
    )


def steady_dice(counts: Sequence[Counts]) -> float | None:
    """Return the mean Dice of images, to which luck with those without foreground adds little.

    Such an image has a Dice of 1 or of 0, and one pixel decides. Among eight images that weighs
    more than half of the training does, and an epoch that is chosen by it is not the best of any
    other images. It counts a / (a + its false foreground) here, of which a is the mean foreground
    of the others: a tenth of that in specks costs a tenth, and no more.

    Returns:
        None where there is nothing to add or nothing to measure it by: all images have foreground,
        or none.
    """
    shares = [count.foreground / count.pixels for count in counts if count.foreground]
    if len(shares) in {0, len(counts)}:
        return None
    usual = fmean(shares)
    return fmean(
        count.dice
        if count.foreground
        else usual / (usual + count.false_positive / max(1, count.pixels))
        for count in counts
    )


def _with_bar(batches: Iterable[Batch], ranks: Ranks) -> Iterable[Batch]:
    disable = None if ranks.is_first else True
    return tqdm(batches, desc="validating", unit="batch", leave=False, disable=disable)


def _diverged(names: Sequence[str]) -> DivergedError:
    return DivergedError(
        f"the network gives NaN or infinity for {', '.join(names[:4])}; {ADVICE}", tuple(names)
    )


def _counts(probabilities: Array, truths: Iterable[Target]) -> Iterator[Counts]:
    """Count each image's pixels at its own size."""
    for probability, truth in zip(probabilities, truths, strict=True):
        prediction = truth.placement.restore(probability) >= THRESHOLD
        yield Counts.of(prediction, truth.mask, truth.ignore)


class _Truth(NamedTuple):
    """What an image is scored by.

    Attributes:
        codes: uint8, (height, width), on the device; see ``FOREGROUND``.
        resized: (height, width) of the image within the network's input.
    """

    codes: Tensor
    resized: Size


@dataclass
class _Pass:
    """What a pass has computed so far, on the device."""

    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    terms: tuple[str, ...] = ()
    finite: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)

    def result(self) -> list[Scored]:
        """Read all of it at once, which is what waits for the device; return it by batches."""
        if not self.names:
            return []
        images, batches = len(self.names), len(self.sizes)
        parts = (*self.finite, *self.losses, *self.counts)
        numbers = np.array(torch.cat([part.double() for part in parts]).tolist())
        finite, losses, counted = np.split(numbers, [images, images + batches * len(self.terms)])
        rows = iter(
            zip(self.names, finite, counted.astype(int).reshape(images, -1).tolist(), strict=True)
        )
        done = []
        for size, values in zip(self.sizes, losses.reshape(batches, -1).tolist(), strict=True):
            counts, all_foreground, ill = list[Counts](), list[Counts](), list[str]()
            for name, is_finite, (both, predicted, actual, pixels) in islice(rows, size):
                wrong, missed = predicted - both, actual - both
                counts.append(Counts(both, wrong, missed, pixels - both - wrong - missed))
                all_foreground.append(Counts(actual, pixels - actual, 0, 0))
                ill += [] if is_finite else [name]
            of_terms = dict(zip(self.terms, values, strict=True))
            done.append(Scored(of_terms, counts, all_foreground, tuple(ill)))
        return done


class DeviceScoring:
    """Scores validation images on a device, and keeps their masks there from pass to pass.

    The network computes in float32, as the Predictor does, and each map is brought back to its
    image's size by the rule of ``Placement.restore``. The numbers are those of ``validate`` but for
    pixels within a millionth of the threshold.
    """

    def __init__(
        self,
        device: torch.device,
        preprocessor: Preprocessor,
        *,
        masks: dict[str, Tensor] | None = None,
        room: int = 0,
    ) -> None:
        """Prepare to score.

        Args:
            device: Where the network is.
            preprocessor: The training's.
            masks: By the images' names, what batches without truths are scored by.
            room: Bytes that masks of other batches may take, those that come first; of the others
                each is copied for each pass.
        """
        self._device = device
        self._preprocessor = preprocessor
        self._masks = dict(masks or {})
        self._room = room

    def __call__(
        self, model: nn.Module, batches: Iterable[Batch], loss: Criterion, ranks: Ranks = ALONE
    ) -> Validation:
        """Score every validation image at its own size.

        Args:
            model: On the device; in its own mode again afterwards.
            batches: Images without augmentation; of several ranks, each one's share.
            loss: Computed at the model's size.
            ranks: Among which the images are divided.

        Raises:
            DivergedError: The network's output has NaN or infinity; it names the images.
        """
        done = _Pass()
        with _evaluating(model):
            for batch in _with_bar(batches, ranks):
                self._score(model, batch, loss, done)
        return _in_all(done.result(), ranks)

    @torch.inference_mode()
    def _score(self, model: nn.Module, batch: Batch, loss: Criterion, done: _Pass) -> None:
        device = self._device
        images = batch.images.to(device, non_blocking=True)
        logits = model(images).float()
        targets = batch.targets.to(device, non_blocking=True)
        value = loss(logits, targets, batch.valid.to(device, non_blocking=True), None)
        done.names.extend(batch.names)
        done.sizes.append(len(batch.names))
        done.terms = ("loss", *value.terms)
        done.finite.append(logits.isfinite().flatten(1).all(dim=1))
        done.losses.append(torch.stack([value.total, *value.terms.values()]))
        maps = zip(logits[:, 0].sigmoid(), self._truths_of(batch), strict=True)
        done.counts.extend(_count(probability, truth) for probability, truth in maps)

    def _truths_of(self, batch: Batch) -> Iterator[_Truth]:
        """Return what the images of a batch are scored by, on the device."""
        for truth in batch.truths:
            codes = self._masks.get(truth.name)
            if codes is None:
                codes = torch.from_numpy(codes_of(truth.mask, truth.ignore)).to(self._device)
                if codes.numel() <= self._room:
                    self._room -= codes.numel()
                    self._masks[truth.name] = codes
            yield _Truth(codes, truth.placement.resized)
        for name in batch.names if not batch.truths else ():
            codes = self._masks[name].to(self._device, non_blocking=True)
            yield _Truth(codes, self._preprocessor.fit((codes.shape[0], codes.shape[1])))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _count(probability: Tensor, truth: _Truth) -> Tensor:
    """Count an image's pixels: predicted rightly, predicted, foreground, and all."""
    height, width = truth.resized
    size = truth.codes.shape[0], truth.codes.shape[1]
    actual = truth.codes == FOREGROUND
    counted = actual | (truth.codes == BACKGROUND)
    predicted = (restore(probability[:height, :width], size) >= THRESHOLD) & counted
    parts = (predicted & actual, predicted, actual, counted)
    return torch.stack([part.sum() for part in parts])


def restore(probability: Tensor, size: Size) -> Tensor:
    """Resize a map to a (height, width) as ``notan.modelfile.preprocess.resize`` does.

    Args:
        probability: float32, (height, width), without padding.
        size: The image's own.
    """
    for axis in (0, 1):
        before, after = probability.shape[axis], size[axis]
        if after < before:
            old = torch.arange(before, device=probability.device)
            new = torch.arange(after, device=probability.device)[:, None]
            # in float64, which no GPU rounds to fewer codes in a matrix product
            shares = share(old, new, before, after).double()
            exact = probability.double()
            probability = (shares @ exact if axis == 0 else exact @ shares.T).float()
    # across first, as OpenCV does
    for axis in (1, 0):
        before, after = probability.shape[axis], size[axis]
        if after > before:
            # places in halves of a new pixel, in whole numbers
            place = (2 * torch.arange(after, device=probability.device) + 1) * before - after
            low, far = place // (2 * after), (place % (2 * after)).float() / (2 * after)
            first = probability.index_select(axis, low.clamp(min=0))
            second = probability.index_select(axis, (low + 1).clamp(max=before - 1))
            far = far if axis == 1 else far[:, None]
            probability = first * (1 - far) + second * far
    return probability


def open_scoring(
    device: torch.device, batches: Batches, preprocessor: Preprocessor
) -> DeviceScoring | None:
    """Return what scores validation images on a device; None: they are scored by ``validate``."""
    if not serves(device):
        return None
    if isinstance(batches, DeviceBatchLoader):
        return DeviceScoring(device, preprocessor, masks=batches.samples.masks)
    return DeviceScoring(device, preprocessor, room=int(MEMORY_SHARE * free_on(device)))
