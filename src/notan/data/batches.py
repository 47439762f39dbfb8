"""Batches of tensors from a source, in an order and variation that the seed alone decides.

The order is a function of (seed, epoch) and the variation of (seed, epoch, index), never of a
worker's history, so that any number of workers gives the same training.
"""

from __future__ import annotations

import dataclasses
import signal
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from notan.data.padding import join_padded, largest
from notan.data.transforms import augment
from notan.data.unlabelled import Unlabelled, UnlabelledImages, UnlabelledKey, join_unlabelled
from notan.errors import NotanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from notan.data.sample import Sample, Source
    from notan.data.transforms import Transform
    from notan.preprocess import Placement, Preprocessor
    from notan.types import Images, Mask, Masks, Probabilities, Size

Key: TypeAlias = tuple[int, int]
"""(epoch, index of the sample)."""


class Target(NamedTuple):
    """A sample's mask at the image's own size, and the way there from the model's size."""

    name: str
    mask: Mask
    ignore: Mask | None
    placement: Placement

    def padded_to(self, size: Size) -> Target:
        """Return the same, of a model input of this (height, width)."""
        return self._replace(placement=dataclasses.replace(self.placement, padded=size))


class Batch(NamedTuple):
    """What one step works on.

    Attributes:
        images: float32, (n, 3, h, w), normalised.
        targets: float32, (n, 1, h, w), 1 = foreground.
        valid: float32, (n, 1, h, w), 0 = ignored or padding.
        truths: One for each image.
        soft: float32, (n, 1, h, w), 0..1: what a teacher says; None: none was asked.
        unlabelled: Images without masks that the step sees too; None: none.
    """

    images: Images
    targets: Masks
    valid: Masks
    truths: tuple[Target, ...]
    soft: Probabilities | None = None
    unlabelled: Unlabelled | None = None


class SampleDataset(Dataset["Batch | NotanError"]):
    """Samples as batches of one, varied by transforms where there are any.

    An error is handed on as a value: raised in a worker, PyTorch would bury its one line in a
    trace.
    """

    def __init__(
        self,
        source: Source,
        preprocessor: Preprocessor,
        *,
        transforms: Sequence[Transform[Any]] = (),
        seed: int = 0,
    ) -> None:
        self.source = source
        self.preprocessor = preprocessor
        self.transforms = tuple(transforms)
        self.seed = seed

    def __getitem__(self, key: Key) -> Batch | NotanError:
        """Read, vary and normalise one sample."""
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        try:
            sample = augment(self.source[index], self.transforms, rng)
            return one_batch(sample, self.preprocessor)
        except NotanError as error:
            return error


class BalancedBatchSampler(Sampler[list[Key]]):
    """Batches of nearly equal size, at most ``batch_size``, in a new order each epoch.

    A last batch of one or two images would upset batch norm; here sizes differ by one at most.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        kinds: Sequence[int] | None = None,
    ) -> None:
        """Plan the batches of every epoch.

        Args:
            count: Images.
            batch_size: At most so many in a batch.
            seed: Decides the orders.
            shuffle: Whether each epoch has one of its own.
            kinds: Of each image: those of a kind come in batches together as far as that goes.
                None: all are of one kind.
        """
        self.count = count
        self.batches = -(-count // batch_size)
        self.seed = seed
        self.shuffle = shuffle
        self.kinds = None if kinds is None else np.asarray(kinds)
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.arange(self.count)
        turns = np.arange(self.batches)
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.shuffle:
            rng.shuffle(order)
        if self.kinds is not None:
            order = order[np.argsort(self.kinds[order], kind="stable")]
            if self.shuffle:
                rng.shuffle(turns)
        parts = np.array_split(order, self.batches)
        for turn in turns[self.first :]:
            yield [(self.epoch, int(index)) for index in parts[turn]]


class TwoStreamDataset(Dataset["Batch | Unlabelled | NotanError"]):
    """Images with masks, and images without, each by the keys of its own kind."""

    def __init__(self, images: SampleDataset, unlabelled: UnlabelledImages) -> None:
        self.images = images
        self.unlabelled = unlabelled

    def __getitem__(self, key: Key | UnlabelledKey) -> Batch | Unlabelled | NotanError:
        """Read one image of either kind."""
        if isinstance(key, UnlabelledKey):
            return self.unlabelled[key]
        return self.images[key]


class TwoStreamBatchSampler(Sampler["list[Key | UnlabelledKey]"]):
    """The batches of images with masks, each with as many images without at its end."""

    def __init__(
        self, order: BalancedBatchSampler, unlabelled: UnlabelledImages, size: int
    ) -> None:
        self.order = order
        self.unlabelled = unlabelled
        self.size = size

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[Key | UnlabelledKey]]:
        first = self.order.epoch * len(self.order) + self.order.first
        for step, keys in enumerate(self.order, start=first):
            yield [*keys, *self.unlabelled.keys(step, self.size)]


def one_batch(sample: Sample, preprocessor: Preprocessor) -> Batch:
    """Turn a sample into a batch of one image."""
    image, placement = preprocessor(sample.image)
    inside = np.ones(sample.size, bool) if sample.ignore is None else ~sample.ignore
    truth = Target(sample.name, sample.mask, sample.ignore, placement)
    return Batch(
        torch.from_numpy(image)[None],
        _as_tensor(preprocessor.mask(sample.mask)),
        _as_tensor(preprocessor.mask(inside)),
        (truth,),
    )


def join(items: Sequence[Batch | Unlabelled | NotanError]) -> Batch | NotanError:
    """Put batches together into one, as large as its largest image; an error among them wins."""
    batches, unlabelled = list[Batch](), list[Unlabelled]()
    for item in items:
        if isinstance(item, NotanError):
            return item
        if isinstance(item, Batch):
            batches.append(item)
        else:
            unlabelled.append(item)
    size = largest([*(each.images for each in batches), *(each.plain for each in unlabelled)])
    return Batch(
        join_padded([batch.images for batch in batches], size, "edge"),
        join_padded([batch.targets for batch in batches], size, "zero"),
        join_padded([batch.valid for batch in batches], size, "zero"),
        tuple(truth.padded_to(size) for batch in batches for truth in batch.truths),
        unlabelled=join_unlabelled(unlabelled, size) if unlabelled else None,
    )


class BatchLoader:
    """Reads batches, ahead of time where there are workers; iterate once for each epoch."""

    def __init__(
        self,
        images: SampleDataset,
        batch_size: int,
        *,
        shuffle: bool,
        workers: int = 0,
        pin_memory: bool = False,
        unlabelled: UnlabelledImages | None = None,
        kinds: Sequence[int] | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            images: What to read.
            batch_size: At most so many images in a batch.
            shuffle: Whether each epoch has an order of its own.
            workers: Processes that read; 0 reads in this one.
            pin_memory: Whether batches go to page-locked memory, for faster copies to a GPU.
            unlabelled: Images without masks, of which each batch gets up to ``batch_size`` too.
            kinds: Of each image with a mask: a batch is of one kind as far as that goes.
        """
        self._order = BalancedBatchSampler(
            len(images.source), batch_size, seed=images.seed, shuffle=shuffle, kinds=kinds
        )
        dataset: Dataset[Any] = images
        order: Sampler[Any] = self._order
        if unlabelled is not None:
            dataset = TwoStreamDataset(images, unlabelled)
            order = TwoStreamBatchSampler(self._order, unlabelled, batch_size)
        self._open: Callable[[], DataLoader[Batch | NotanError]] = partial(
            DataLoader,
            dataset,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=join,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            # its own: the global one would depend on how often an epoch was begun
            generator=torch.Generator().manual_seed(images.seed),
            worker_init_fn=_leave_signals_to_the_parent,
        )
        self._loader = self._open()

    def __len__(self) -> int:
        return len(self._order)

    def set_epoch(self, epoch: int, batch: int = 0) -> None:
        """Choose the epoch to read next, which decides order and variation, and its first batch."""
        self._order.epoch, self._order.first = epoch, batch

    def __iter__(self) -> Iterator[Batch]:
        """Read one epoch, or the rest of it.

        Raises:
            NotanError: An image could not be read or varied.
        """
        with _one_opencv_thread() if self._loader.num_workers else nullcontext():
            batches = iter(self._loader)  # starts the workers
        for batch in batches:
            if isinstance(batch, NotanError):
                del batches  # the error's trace would keep them
                self.close()
                raise batch
            yield batch

    def close(self) -> None:
        """Let the workers go now: left to the garbage collector, each takes 5 seconds."""
        self._loader = self._open()


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Keep workers that start meanwhile to one core: OpenCV would take them all in each.

    It must be set before the fork: in a worker, OpenCV waits for ever for the threads that the
    fork has left behind.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _leave_signals_to_the_parent(_: int) -> None:
    """Let a worker read on when Ctrl-C or SIGTERM goes to the whole process group.

    The parent decides when it is safe to stop; a worker that died before would be an error to it.
    Workers end when the parent says so or is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_tensor(mask: Mask) -> Masks:
    return torch.from_numpy(mask.astype(np.float32))[None, None]
