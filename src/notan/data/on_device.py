"""Samples that are decoded once and stay on a device, and the batches that are made of them there.

A batch is that of ``BatchLoader``: the same images in the same order, varied by the same numbers,
with pixels that are a grey level off here and there (see ``notan.data.warp``); bit for bit where
nothing varies them.
"""

from __future__ import annotations

import copy
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from notan.data.batches import WHOLE, BalancedBatchSampler, Batch, Share, UnlabelledKey
from notan.data.samples import Sample
from notan.data.survey import in_threads
from notan.data.transforms import (
    light_table,
    shrink_first,
)
from notan.data.warp import FOREGROUND, Extent, Frame, Warped, Whole, warp
from notan.errors import DataError
from notan.modelfile.preprocess import resize, resize_mask
from notan.runtime import count_cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    import numpy.typing as npt
    from torch import Tensor

    from notan.data.batches import Key, SampleDataset
    from notan.data.samples import Source
    from notan.data.transforms import Matrix
    from notan.modelfile.preprocess import Preprocessor
    from notan.types import Mask, Size

MOST_THREADS = 16
"""That decode at once, at the start."""

AHEAD = 4
"""Batches whose random numbers are drawn before they are asked for."""

MOST_PIXELS = 2**23
"""Of shrunken images that are warped at once: some 600 MB while it lasts. Those of a batch are
padded to the largest of them, and one may be as large as its file."""

UNVARIED = (1, 0, 0, 0)
"""Unit, hole, top and left of a grid without holes."""


class DeviceSamples:
    """The decoded samples of a source, all in one tensor, whatever their sizes.

    Attributes:
        names: The source's.
        sizes: (height, width) of each image, as it is kept.
        device: Where batches are made.
        pixels: uint8, (pixels of all images, channels + 1), on the device or in the host's memory;
            behind the channels lies what the mask says of the pixel.
        ignores: Whether any sample has an ignored area.
        masks: Of samples that are kept resized, by name, the same at the image's own size, uint8
            (height, width).
    """

    def __init__(
        self,
        source: Source,
        sizes: Sequence[Size],
        preprocessor: Preprocessor,
        device: torch.device,
        *,
        resized: bool,
        resident: bool = True,
    ) -> None:
        """Decode all samples, several at once.

        Args:
            source: Of at least one sample.
            sizes: Those that it says its images have.
            preprocessor: Says what an image is.
            device: Where batches are made.
            resized: Whether to keep images as they enter the network, because nothing varies them;
                else as they are.
            resident: Whether the pixels stay on the device; else in the host's memory, page-locked
                for a GPU, and those of a batch are copied when it is made.

        Raises:
            DataError: A file is missing, unreadable or ambiguous.
            ShapeError: An image has not as many channels as the preprocessor wants.
        """
        self.names = tuple(source.names)
        self.device = device
        self.masks: dict[str, Tensor] = {}
        self._source = source
        self._preprocessor = preprocessor
        self._resized = resized
        self._resident = resident
        self._found = sizes
        self.sizes = [preprocessor.fit(size) if resized else size for size in sizes]
        *self._places, total = accumulate((h * w for h, w in self.sizes), initial=0)
        self.pixels = self._empty(total, preprocessor.channels + 1)
        numbers, threads = range(len(self.names)), min(MOST_THREADS, count_cores())
        self.ignores = any(in_threads(self._put, numbers, "decoding images", threads=threads))

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(
            shape,
            dtype=torch.uint8,
            device=self.device if self._resident else "cpu",
            pin_memory=not self._resident and self.device.type == "cuda",
        )

    def _put(self, index: int) -> bool:
        """Decode a sample into its place; return whether it has an ignored area."""
        sample = self._source[index]
        self._preprocessor.require(sample.image)
        (height, width), (was_height, was_width) = sample.size, self._found[index]
        if sample.size != self._found[index]:
            raise DataError(
                f"{sample.name}: the image is {height}x{width} (height x width), and was "
                f"{was_height}x{was_width} a moment ago; leave the files alone while a training "
                "reads them, and start it again"
            )
        if self._resized:
            codes = codes_of(sample.mask, sample.ignore)
            self.masks[sample.name] = self._empty(height, width).copy_(torch.from_numpy(codes))
            sample = _resize(sample, self._preprocessor)
        rows = np.concatenate(
            [sample.image, codes_of(sample.mask, sample.ignore)[..., None]], axis=2
        )
        first = self._places[index]
        place = self.pixels[first : first + rows.shape[0] * rows.shape[1]]
        place.copy_(torch.from_numpy(rows).flatten(0, 1))
        return sample.ignore is not None

    def places_of(self, indices: Sequence[int]) -> list[int]:
        """Return where the samples' first pixels lie in what ``pixels_of`` returns."""
        if self._resident:
            return [self._places[index] for index in indices]
        counts = (self.sizes[index][0] * self.sizes[index][1] for index in indices)
        return [*accumulate(counts, initial=0)][:-1]

    def pixels_of(self, indices: Sequence[int]) -> Tensor:
        """Return pixels, on the device, that those of these samples are among."""
        if self._resident:
            return self.pixels
        counts = [self.sizes[index][0] * self.sizes[index][1] for index in indices]
        some = torch.empty(
            (sum(counts), self.pixels.shape[1]), dtype=torch.uint8, device=self.device
        )
        parts = zip(indices, self.places_of(indices), counts, strict=True)
        for index, place, count in parts:
            first = self._places[index]
            some[place : place + count].copy_(self.pixels[first : first + count], non_blocking=True)
        return some


def codes_of(mask: Mask, ignore: Mask | None) -> npt.NDArray[np.uint8]:
    """Put what a mask says into one byte a pixel, uint8 (height, width); see ``FOREGROUND``."""
    codes = mask * np.uint8(FOREGROUND)
    return codes if ignore is None else codes ^ ignore


def _resize(sample: Sample, preprocessor: Preprocessor) -> Sample:
    """Resize a sample as ``one_batch`` does."""
    size = preprocessor.fit(sample.size)
    ignore = None if sample.ignore is None else ~resize_mask(~sample.ignore, size)
    return Sample(sample.name, resize(sample.image, size), resize_mask(sample.mask, size), ignore)


class _Variation(NamedTuple):
    """What was drawn for a sample.

    Attributes:
        matrix: As ``Geometry`` draws it.
        light: As ``BrightnessContrast`` does.
        holes: As ``GridDropout`` does.
    """

    matrix: Matrix
    light: tuple[float, float]
    holes: tuple[int, int, int, int]


class _Plan(NamedTuple):
    """All that the host has to say about a batch before the device makes it; see ``warp``.

    Attributes:
        indices: Of the samples.
        whole: int64, (numbers of a ``Whole``, n).
        matrices: See there; likewise below.
        tables: See there.
        parts: What to warp at once: how many images, and their extent.
    """

    indices: list[int]
    whole: Tensor
    matrices: Tensor
    tables: Tensor
    parts: list[tuple[int, Extent]]


class DeviceBatchLoader:
    """Makes batches on a device; iterate once for each epoch, like a ``BatchLoader``.

    Attributes:
        samples: What the batches are made of.
    """

    def __init__(
        self,
        images: SampleDataset,
        samples: DeviceSamples,
        batch_size: int,
        *,
        shuffle: bool,
        share: Share = WHOLE,
    ) -> None:
        """Prepare to make batches.

        Args:
            images: How samples are varied and normalised; none that ``hindrance`` names.
            samples: Those of its source, kept resized where no transform varies them.
            batch_size: At most so many images in a batch.
            shuffle: Whether each epoch has an order of its own.
            share: What of the batches is made here.
        """
        self.samples = samples
        self._images = images
        self._order = BalancedBatchSampler(
            len(samples.names), batch_size, seed=images.seed, shuffle=shuffle, share=share
        )
        output = images.preprocessor.fit(samples.sizes[0])
        self._frame = Frame(output, images.preprocessor.place(output).padded, samples.ignores)
        scale, shift = images.preprocessor.scale_and_shift()
        self._scale = torch.from_numpy(scale).to(samples.device)
        self._shift = torch.from_numpy(shift).to(samples.device)
        self._drawing: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._order)

    @property
    def workers(self) -> int:
        """Processes that read ahead: none, as nothing is read."""
        return 0

    def twin(self) -> DeviceBatchLoader:
        """Return what makes the same batches; however far it is read, this stays where it is."""
        twin = copy.copy(self)
        twin._order, twin._drawing = copy.copy(self._order), None
        return twin

    def set_epoch(self, epoch: int, batch: int = 0) -> None:
        """Choose the epoch to make next, which decides order and variation, and its first batch."""
        self._order.epoch, self._order.first = epoch, batch

    def __iter__(self) -> Iterator[Batch]:
        """Make one epoch, or the rest of it; random numbers are drawn ahead, in a thread."""
        self._drawing = drawing = self._drawing or ThreadPoolExecutor(1)
        plans: deque[Future[_Plan]] = deque()
        for keys in self._order:
            plain = [key for key in keys if not isinstance(key, UnlabelledKey)]
            plans.append(drawing.submit(self._plan, plain))
            if len(plans) > AHEAD:
                yield self._make(plans.popleft().result())
        while plans:
            yield self._make(plans.popleft().result())

    def close(self) -> None:
        """Let the thread go that draws ahead."""
        if self._drawing:
            self._drawing.shutdown(cancel_futures=True)
        self._drawing = None

    def _plan(self, keys: Sequence[Key]) -> _Plan:
        """Draw what varies the samples of a batch, and put it into tables."""
        indices = [index for _, index in keys]
        sizes = [self.samples.sizes[index] for index in indices]
        drawn = [self._draw(key, size) for key, size in zip(keys, sizes, strict=True)]
        smalls, matrices = zip(
            *(shrink_first(each.matrix, size) for each, size in zip(drawn, sizes, strict=True)),
            strict=True,
        )
        whole = [
            (place, *size, *small, *each.holes)
            for place, size, small, each in zip(
                self.samples.places_of(indices), sizes, smalls, drawn, strict=True
            )
        ]
        back = np.linalg.inv(np.stack(matrices))[:, :2].astype(np.float32)
        tables = np.stack([light_table(*each.light) for each in drawn])
        return _Plan(
            indices,
            self._locked(np.array(whole, np.int64).T.copy()),
            self._locked(back),
            self._locked(tables),
            list(_parts(list(zip(sizes, smalls, strict=True)))),
        )

    def _draw(self, key: Key, size: Size) -> _Variation:
        """Draw as ``augment`` does."""
        output = self._frame.output
        if not self._images.transforms:
            return _Variation(np.eye(3), (1.0, 0.0), UNVARIED)
        geometry, light, holes = self._images.transforms
        rng = np.random.default_rng((self._images.seed, *key))
        matrix = geometry.draw(rng, size)
        return _Variation(
            matrix, light.draw(rng, output) or (1.0, 0.0), holes.draw(rng, output) or UNVARIED
        )

    def _locked(self, table: npt.NDArray[np.generic]) -> Tensor:
        """Return a table in memory from which it is copied without waiting."""
        tensor = torch.from_numpy(table)
        return tensor.pin_memory() if self.samples.device.type == "cuda" else tensor

    @torch.no_grad()
    def _make(self, plan: _Plan) -> Batch:
        """Make a batch, without waiting for the device."""
        device = self.samples.device
        tables = (plan.whole, plan.matrices, plan.tables)
        whole, matrices, light = (table.to(device, non_blocking=True) for table in tables)
        pixels = self.samples.pixels_of(plan.indices)
        parts, first = list[Warped](), 0
        for count, extent in plan.parts:
            some = slice(first, first + count)
            parts.append(
                warp(
                    *(pixels, Whole(*whole[:, some]), matrices[some], light[some]),
                    *(self._frame, extent),
                )
            )
            first += count
        levels, targets, valid = (torch.cat(each) for each in zip(*parts, strict=True))
        images = levels * self._scale + self._shift
        names = tuple(self.samples.names[index] for index in plan.indices)
        return Batch(images.permute(0, 3, 1, 2), targets, valid, names)


def _parts(shrinking: Sequence[tuple[Size, Size]]) -> Iterator[tuple[int, Extent]]:
    """Divide images into as many as may be warped at once, at least one."""
    first = height = width = 0
    for place, (_, small) in enumerate(shrinking):
        height, width = max(height, small[0]), max(width, small[1])
        if place > first and (place + 1 - first) * height * width > MOST_PIXELS:
            yield place - first, Extent.of(shrinking[first:place])
            first, (height, width) = place, small
    yield len(shrinking) - first, Extent.of(shrinking[first:])
