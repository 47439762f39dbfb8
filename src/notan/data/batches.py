"""Images of several sizes in one batch, each padded to the largest height and width."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from notan.data.folders import loose_images
from notan.data.samples import Sample, hash_file, short_hash
from notan.data.transforms import augment
from notan.errors import DataError, NotanError
from notan.io.images import read_image

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from notan.data.samples import Source
    from notan.data.transforms import Transform
    from notan.modelfile.preprocess import Placement, Preprocessor
    from notan.types import Images, Mask, Masks, Probabilities, Size


def largest(tensors: Iterable[Tensor]) -> Size:
    """Return the largest height and the largest width of tensors (n, c, h, w)."""
    heights, widths = zip(*(tensor.shape[-2:] for tensor in tensors), strict=True)
    return max(heights), max(widths)


def join_padded(tensors: Sequence[Tensor], size: Size, mode: Literal["edge", "zero"]) -> Tensor:
    """Put tensors (n, c, h, w) together, each padded below and to the right.

    Args:
        tensors: Alike but for their heights and widths.
        size: (height, width), at least every tensor's.
        mode: Repeat the last row and column, as ``Preprocessor`` pads images, or add zeros.
    """
    return torch.cat([_pad(tensor, size, mode) for tensor in tensors])


def _pad(tensor: Tensor, size: Size, mode: Literal["edge", "zero"]) -> Tensor:
    height, width = tensor.shape[-2:]
    if (height, width) == size:
        return tensor
    how = "replicate" if mode == "edge" else "constant"
    return functional.pad(tensor, (0, size[1] - width, 0, size[0] - height), mode=how)


logger = logging.getLogger("notan")

THREADS = 4
SALT = 0x0ABE1
"""Keeps the random numbers of images without masks apart from those of images with masks."""


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


class UnlabelledKey(NamedTuple):
    """Which image without a mask, and how often all of them were seen before."""

    turn: int
    number: int


class Unlabelled(NamedTuple):
    """The images without masks of one step, each in two views of the same geometry.

    Attributes:
        names: Their files' names.
        plain: float32, (n, 3, h, w), normalised: what is answered.
        varied: Likewise, in another light and with parts gone: what has to come to that answer.
        inside: float32, (n, 1, h, w), 0 = padding.
        answers: float32, (n, 1, h, w), 0..1: what the plain views were answered with; None: they
            were not yet.
        weight: Of the agreement with them in the loss of the step.
    """

    names: tuple[str, ...]
    plain: Images
    varied: Images
    inside: Masks
    answers: Probabilities | None = None
    weight: float = 0.0


def find_unlabelled(folder: Path) -> list[UnlabelledFile]:
    """Read every image of a folder once, in the order of their names.

    A file that cannot be read is left out, with a warning: in a folder of thousands there often is
    one, and here no mask is lost with it.

    Args:
        folder: Of images, whatever else lies there, or with a folder ``images`` of them.

    Raises:
        DataError: There is no such folder, it holds no images, or none of them can be read.
    """
    paths = _listed(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        work = pool.map(_read, paths)
        name = "looking over images without masks"
        results = list(tqdm(work, total=len(paths), desc=name, leave=False, delay=1, disable=None))
    files = [each for each in results if isinstance(each, UnlabelledFile)]
    faults = [each for each in results if isinstance(each, DataError)]
    if not files:
        raise DataError(f"{folder}: none of the {len(paths)} images can be read; {faults[0]}")
    if faults:
        what = "image" if len(faults) == 1 else "images"
        logger.warning("%d %s cannot be read and left out: %s", len(faults), what, faults[0])
    return files


def _listed(folder: Path) -> list[Path]:
    if folder.is_file():
        raise DataError(f"{folder}: this is a file; --unlabelled wants a folder of images")
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; check --unlabelled")
    return loose_images(folder)


def _read(path: Path) -> UnlabelledFile | DataError:
    try:
        image = read_image(path)
        return UnlabelledFile(path, hash_file(path), short_hash(image.tobytes()))
    except DataError as error:
        return error


def fingerprint_unlabelled(files: Sequence[UnlabelledFile]) -> str:
    """Return a short SHA-256 of the images in their order, wherever they lie."""
    told = "\n".join(file.file_hash for file in files)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


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
    ) -> None:
        """Prepare to read.

        Args:
            files: At least one.
            preprocessor: The training's.
            geometry: Drawn once for both views, so that one's answer fits the other.
            light: What the varied view goes through beyond that.
            seed: Decides all of it, with the turn and the number.
        """
        self.files = tuple(files)
        self.preprocessor = preprocessor
        self.geometry = geometry
        self.light = tuple(light)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: UnlabelledKey) -> Unlabelled | DataError:
        """Read one image and make its two views."""
        path = self.files[key.number].path
        rng = np.random.default_rng((self.seed, SALT, *key))
        try:
            image = read_image(path)
        except DataError as error:
            return error
        nothing = np.zeros(image.shape[:2], bool)
        plain = augment(Sample(path.name, image, nothing), (self.geometry,), rng)
        varied = augment(plain, self.light, rng)
        inside = self.preprocessor.mask(np.ones(plain.size, bool)).astype(np.float32)
        return Unlabelled(
            (path.name,),
            torch.from_numpy(self.preprocessor(plain.image)[0])[None],
            torch.from_numpy(self.preprocessor(varied.image)[0])[None],
            torch.from_numpy(inside)[None, None],
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


def join_unlabelled(items: Sequence[Unlabelled], size: Size) -> Unlabelled:
    """Put the images of a step together, padded to a (height, width)."""
    return Unlabelled(
        tuple(name for item in items for name in item.names),
        join_padded([item.plain for item in items], size, "edge"),
        join_padded([item.varied for item in items], size, "edge"),
        join_padded([item.inside for item in items], size, "zero"),
    )


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
