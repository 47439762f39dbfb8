"""Batches: samples and images without masks, varied, normalised, and padded to one size.

Every random number depends on the seed, the epoch and the image alone, so that neither the number
of workers nor a resume changes a batch.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler

from notan.data.folders import loose_images
from notan.data.samples import hash_ends, short_hash, without_masks
from notan.data.store import keep_decoded
from notan.data.survey import in_threads
from notan.data.transforms import augment
from notan.data.workers import (
    hand_over,
    leave_signals_to_the_parent,
    next_of,
    start_workers,
)
from notan.errors import DataError, NotanError
from notan.io.digest import sha256
from notan.io.images import PLAIN, read_image

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from notan.config import Cache
    from notan.data.samples import ImageReading, Sample, Source
    from notan.data.transforms import Transform
    from notan.modelfile.preprocess import Placement, Preprocessor
    from notan.types import Images, Mask, Masks, Probabilities, Size

logger = logging.getLogger("notan")

SALT = 0x0ABE1
"""Keeps the random numbers of images without masks apart from those of images with masks."""

Item = TypeVar("Item")

Key: TypeAlias = tuple[int, int]
"""(epoch, index of the sample)."""


class UnlabelledKey(NamedTuple):
    """Which image without a mask, and how often all of them were seen before."""

    turn: int
    number: int


@dataclass(frozen=True)
class Share:
    """Which part of the batches a process makes, where several train together.

    Attributes:
        number: The process, from 0.
        count: How many there are.
        slices: Whether each makes a slice of every batch; else every so many-th batch, whole.
    """

    number: int = 0
    count: int = 1
    slices: bool = True

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the slice of a batch; slices differ by one item at most."""
        if not self.slices:
            return items
        first, last = (len(items) * n // self.count for n in (self.number, self.number + 1))
        return items[first:last]

    def places(self, first: int, batches: int) -> range:
        """Return the batches of an epoch of which something is made, from one on."""
        return range(first, batches) if self.slices else range(self.number, batches, self.count)


WHOLE = Share()


@dataclass(frozen=True)
class UnlabelledFile:
    """An image without a mask.

    Attributes:
        path: The file.
        file_hash: As ``FileSource.hashes`` makes it.
        image_hash: As ``Source.hashes`` makes it of images that are in no file.
    """

    path: Path
    file_hash: str
    image_hash: str

    def is_among(self, hashes: Collection[str]) -> bool:
        """Say whether it is one of the images that have these hashes."""
        return self.file_hash in hashes or self.image_hash in hashes


class Unlabelled(NamedTuple):
    """The images without masks of one step, each in two views of the same geometry.

    Attributes:
        names: Their files' names.
        plain: float32, (n, channels, h, w), normalised: the weakly augmented view, whose
            prediction by the EMA of the weights is the pseudo-label.
        varied: Likewise, the strongly augmented view, which has to be predicted alike.
        inside: float32, (n, 1, h, w), 0 = padding.
        answers: float32, (n, 1, h, w), 0..1: the pseudo-labels; None: not predicted yet.
        weight: Weight of the agreement with them in the loss of the step.
    """

    names: tuple[str, ...]
    plain: Images
    varied: Images
    inside: Masks
    answers: Probabilities | None = None
    weight: float | Tensor = 0.0


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
        images: float32, (n, channels, h, w), normalised.
        targets: float32, (n, 1, h, w), 1 = foreground.
        valid: float32, (n, 1, h, w), 0 = ignored or padding.
        names: The images', one for each.
        truths: The masks at the images' own sizes, one for each image; none where the samples are
            kept on a device, which has them already.
        soft: float32, (n, 1, h, w), 0..1: a teacher's probabilities; None: there is no teacher.
        unlabelled: Images without masks that the step sees too; None: none.
    """

    images: Images
    targets: Masks
    valid: Masks
    names: tuple[str, ...]
    truths: tuple[Target, ...] = ()
    soft: Probabilities | None = None
    unlabelled: Unlabelled | None = None

    def halved(self, stride: int) -> Batch:
        """Return the batch as it is read, without answers, at half its size.

        A pixel is the mean of those that it stands for; it is foreground where most of them are,
        and valid where all of them are.

        Args:
            stride: Of the network; height and width become multiples of it.
        """
        height, width = self.images.shape[-2:]
        shrink = partial(functional.interpolate, size=half_of((height, width), stride), mode="area")
        unlabelled = self.unlabelled and self.unlabelled._replace(
            plain=shrink(self.unlabelled.plain),
            varied=shrink(self.unlabelled.varied),
            inside=(shrink(self.unlabelled.inside) > ALL).float(),
        )
        return self._replace(
            images=shrink(self.images),
            targets=(shrink(self.targets) >= MOST).float(),
            valid=(shrink(self.valid) > ALL).float(),
            unlabelled=unlabelled,
        )


ALL, MOST = 0.999, 0.5
"""Shares of the pixels that one of half the size stands for."""


def half_of(size: Size, stride: int) -> Size:
    """Return the multiples of a stride that are nearest to half of a size, and not 0."""
    height, width = (max(1, round(side / 2 / stride)) * stride for side in size)
    return height, width


def find_unlabelled(folder: Path, reading: ImageReading = PLAIN) -> list[UnlabelledFile]:
    """Read every image of a folder once, in the order of their names.

    A file that cannot be read is left out, with a warning: in a folder of thousands there often is
    one, and here no mask is lost with it.

    Args:
        folder: Of images, whatever else lies there, or with a folder ``images`` of them.
        reading: How those with masks are read.

    Raises:
        DataError: There is no such folder, it holds no images, or none of them can be read.
    """
    if folder.is_file():
        raise DataError(f"{folder}: this is a file; --unlabelled wants a folder of images")
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; check --unlabelled")
    paths = loose_images(folder)
    results = in_threads(partial(_read, reading=reading), paths, "reading images without masks")
    files = [each for each in results if isinstance(each, UnlabelledFile)]
    faults = [each for each in results if isinstance(each, DataError)]
    if not files:
        raise DataError(f"{folder}: none of the {len(paths)} images can be read; {faults[0]}")
    if faults:
        what = "image" if len(faults) == 1 else "images"
        logger.warning("%d %s cannot be read and left out: %s", len(faults), what, faults[0])
    return files


def _read(path: Path, *, reading: ImageReading) -> UnlabelledFile | DataError:
    try:
        image = read_image(path, reading)
        return UnlabelledFile(path, hash_ends(path), short_hash(image.tobytes()))
    except DataError as error:
        return error


def fingerprint_unlabelled(files: Sequence[UnlabelledFile]) -> str:
    """Return a short SHA-256 of the images in their order, wherever they lie."""
    return sha256("\n".join(file.file_hash for file in files))[:16]


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


def one_batch(sample: Sample, preprocessor: Preprocessor) -> Batch:
    """Turn a sample into a batch of one image."""
    image, placement = preprocessor(sample.image)
    inside = np.ones(sample.size, bool) if sample.ignore is None else ~sample.ignore
    truth = Target(sample.name, sample.mask, sample.ignore, placement)
    return Batch(
        torch.from_numpy(image)[None],
        _as_tensor(preprocessor.mask(sample.mask)),
        _as_tensor(preprocessor.mask(inside)),
        (sample.name,),
        (truth,),
    )


class UnlabelledImages(Dataset["Unlabelled | DataError"]):
    """Images without masks as sets of one, in two views; an error is handed on as a value."""

    def __init__(
        self,
        files: Sequence[UnlabelledFile],
        preprocessor: Preprocessor,
        *,
        geometry: Transform[Any],
        light: Sequence[Transform[Any]],
        seed: int,
        cache: Cache = "off",
        workers: int = 0,
    ) -> None:
        """Prepare to read.

        Args:
            files: At least one.
            preprocessor: The training's.
            geometry: Drawn once for both views, so that they show the same place.
            light: Strong augmentation of the second view, which leaves the geometry alone.
            seed: Decides all of it, with the turn and the number.
            cache: Where they stay once decoded, as ``data.cache`` says.
            workers: Data workers that will read them.
        """
        self.files = tuple(files)
        images = without_masks([file.path for file in files], preprocessor.reading)
        (self.images,) = keep_decoded([images], cache, workers=workers)
        self.preprocessor = preprocessor
        self.geometry = geometry
        self.light = tuple(light)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: UnlabelledKey) -> Unlabelled | DataError:
        """Read one image and make its two views."""
        rng = np.random.default_rng((self.seed, SALT, *key))
        try:
            plain = augment(self.images[key.number], (self.geometry,), rng)
        except DataError as error:
            return error
        varied = augment(plain, self.light, rng)
        return Unlabelled(
            (self.files[key.number].path.name,),
            torch.from_numpy(self.preprocessor(plain.image)[0])[None],
            torch.from_numpy(self.preprocessor(varied.image)[0])[None],
            _as_tensor(self.preprocessor.mask(np.ones(plain.size, bool))),
        )

    def keys(self, step: int, size: int) -> list[UnlabelledKey]:
        """Return which images a step sees: all in a new order, then all again in another.

        Args:
            step: Batches since the start of the run.
            size: Images in each.
        """
        count = len(self.files)
        size = min(size, count)
        places = range(step * size, (step + 1) * size)
        return [
            UnlabelledKey(place // count, _order(self.seed, place // count, count)[place % count])
            for place in places
        ]


@lru_cache(maxsize=4)
def _order(seed: int, turn: int, count: int) -> tuple[int, ...]:
    order = np.random.default_rng((seed, SALT, turn)).permutation(count)
    return tuple(int(index) for index in order)


class BalancedBatchSampler(Sampler["list[Key | UnlabelledKey]"]):
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
        unlabelled: UnlabelledImages | None = None,
        share: Share = WHOLE,
    ) -> None:
        """Plan the batches of every epoch.

        Args:
            count: Images.
            batch_size: At most so many in a batch.
            seed: Decides the orders.
            shuffle: Whether each epoch has one of its own.
            kinds: Of each image: those of a kind come in batches together as far as that goes.
                None: all are of one kind.
            unlabelled: Images without masks, up to ``batch_size`` of them behind each batch.
            share: What of the batches is made here.
        """
        self.count = count
        self.share = share
        self.batches = -(-count // batch_size)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.unlabelled = unlabelled
        self.kinds = None if kinds is None else np.asarray(kinds)
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        return self.batches if self.share.slices else -(-self.batches // self.share.count)

    def __iter__(self) -> Iterator[list[Key | UnlabelledKey]]:
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
        for place in self.share.places(self.first, self.batches):
            keys = [(self.epoch, int(index)) for index in parts[turns[place]]]
            step = self.epoch * self.batches + place
            more = self.unlabelled.keys(step, self.batch_size) if self.unlabelled else []
            yield [*self.share.of(keys), *self.share.of(more)]


class _BothKinds(Dataset["Batch | Unlabelled | NotanError"]):
    """Images with masks, and images without, each by the keys of its own kind."""

    def __init__(self, images: SampleDataset, unlabelled: UnlabelledImages) -> None:
        self.images = images
        self.unlabelled = unlabelled

    def __getitem__(self, key: Key | UnlabelledKey) -> Batch | Unlabelled | NotanError:
        return self.unlabelled[key] if isinstance(key, UnlabelledKey) else self.images[key]


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
        share: Share = WHOLE,
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
            share: What of the batches is made here.
        """
        self._order = BalancedBatchSampler(
            len(images.source),
            batch_size,
            seed=images.seed,
            shuffle=shuffle,
            kinds=kinds,
            unlabelled=unlabelled,
            share=share,
        )
        self._open: Callable[..., DataLoader[Any]] = partial(
            DataLoader,
            images if unlabelled is None else _BothKinds(images, unlabelled),
            batch_sampler=self._order,
            num_workers=workers,
            collate_fn=partial(hand_over, collate=collate) if workers else collate,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            # its own: the global one would depend on how often an epoch was begun
            generator=torch.Generator().manual_seed(images.seed),
            worker_init_fn=leave_signals_to_the_parent,
        )
        self._loader = self._open()

    def __len__(self) -> int:
        return len(self._order)

    @property
    def workers(self) -> int:
        """Processes that read ahead; 0: it reads when it is asked."""
        return self._loader.num_workers

    def set_epoch(self, epoch: int, batch: int = 0) -> None:
        """Choose the epoch to read next, which decides order and variation, and its first batch."""
        self._order.epoch, self._order.first = epoch, batch

    def __iter__(self) -> Iterator[Batch]:
        """Read one epoch, or the rest of it.

        Raises:
            NotanError: An image could not be read or varied, or a worker ended.
        """
        if not self._loader.num_workers:
            yield from map(_raised, self._loader)
            return
        batches = self._start()
        if isinstance(batches, NotanError):
            self.close()
            raise batches
        while (batch := next_of(batches)) is not None:
            if isinstance(batch, NotanError):
                del batches  # the error's trace would keep them
                self.close()
                raise batch
            yield batch

    def _start(self) -> Iterator[Any] | NotanError:
        """Start the workers, or go on without where the system has no room for them."""
        try:
            return start_workers(self._loader)
        except OSError as error:
            logger.warning("data workers cannot be started (%s): images are read without", error)
        self._open = partial(
            self._open, num_workers=0, persistent_workers=False, collate_fn=collate
        )
        self.close()
        return iter(self._loader)

    def twin(self) -> BatchLoader:
        """Return a loader of the same batches with workers of its own, to look at what comes.

        However far that is read, this one stays where it is.
        """
        twin = copy.copy(self)
        twin._order = copy.copy(self._order)
        generator = torch.Generator().manual_seed(self._order.seed)
        twin._open = partial(self._open, batch_sampler=twin._order, generator=generator)
        twin._loader = twin._open()
        return twin

    def close(self) -> None:
        """Let the workers go now: left to the garbage collector, each takes 5 seconds."""
        self._loader = self._open()


def _raised(batch: Batch | NotanError) -> Batch:
    if isinstance(batch, NotanError):
        raise batch
    return batch


def collate(items: Sequence[Batch | Unlabelled | NotanError]) -> Batch | NotanError:
    """Put batches together into one, as large as its largest image; an error among them wins."""
    for item in items:
        if isinstance(item, NotanError):
            return item
    batches = [item for item in items if isinstance(item, Batch)]
    unlabelled = [item for item in items if isinstance(item, Unlabelled)]
    inputs = [*(each.images for each in batches), *(each.plain for each in unlabelled)]
    heights, widths = zip(*(tensor.shape[-2:] for tensor in inputs), strict=True)
    size = max(heights), max(widths)

    def padded(tensors: Iterable[Tensor], mode: Literal["replicate", "constant"]) -> Tensor:
        return torch.cat([_pad(tensor, size, mode) for tensor in tensors])

    return Batch(
        padded((each.images for each in batches), "replicate"),
        padded((each.targets for each in batches), "constant"),
        padded((each.valid for each in batches), "constant"),
        tuple(name for batch in batches for name in batch.names),
        tuple(truth.padded_to(size) for batch in batches for truth in batch.truths),
        unlabelled=None
        if not unlabelled
        else Unlabelled(
            tuple(name for each in unlabelled for name in each.names),
            padded((each.plain for each in unlabelled), "replicate"),
            padded((each.varied for each in unlabelled), "replicate"),
            padded((each.inside for each in unlabelled), "constant"),
        ),
    )


def _pad(tensor: Tensor, size: Size, mode: Literal["replicate", "constant"]) -> Tensor:
    """Pad (n, c, h, w) below and to the right, with the last row and column or with zeros."""
    height, width = tensor.shape[-2:]
    if (height, width) == size:
        return tensor
    return functional.pad(tensor, (0, size[1] - width, 0, size[0] - height), mode=mode)


def _as_tensor(mask: Mask) -> Masks:
    return torch.from_numpy(mask.astype(np.float32))[None, None]
