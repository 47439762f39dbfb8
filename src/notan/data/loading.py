"""Which loader makes the batches of a training, and where its decoded images lie."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from notan.data.batches import WHOLE, BatchLoader, SampleDataset, Share
from notan.data.on_device import DeviceBatchLoader, DeviceSamples
from notan.data.transforms import (
    BrightnessContrast,
    Geometry,
    GridDropout,
    OwnPipeline,
    build_transforms,
)
from notan.runtime import free_memory
from notan.types import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from notan.config import Run
    from notan.data.batches import UnlabelledImages
    from notan.data.samples import Source
    from notan.modelfile.preprocess import Preprocessor

logger = logging.getLogger("notan")

Batches: TypeAlias = BatchLoader | DeviceBatchLoader

DEVICES = ("cuda",)
"""Kinds of devices that are worth it: a processor has no copying to save."""

MEMORY_SHARE = 0.25
"""Of the free memory that decoded samples may take: a training needs the rest, and page-locked
memory PyTorch rounds up to a power of two."""


def load_batches(
    run: Run,
    device: torch.device,
    preprocessor: Preprocessor,
    training: Source,
    validation: Source,
    *,
    workers: int,
    transform: Callable[..., Mapping[str, Any]] | None = None,
    unlabelled: UnlabelledImages | None = None,
    decode_once: bool = True,
    share: Share = WHOLE,
) -> tuple[Batches, Batches]:
    """Return what makes the batches of a training, shuffled and varied, and of its validation.

    Args:
        run: Size of a batch, augmentation and seed.
        device: That of the training.
        preprocessor: How images become inputs.
        training: The images to train on.
        validation: Those to validate on.
        workers: Processes that read what is not kept on the device.
        transform: The user's own augmentation, in place of the settings'; None: theirs.
        unlabelled: Images without masks that the training's batches have too; None: none.
        decode_once: Whether decoded images may be kept on the device.
        share: What of the training's batches is made here; of the validation's each process
            makes every so many-th, which leaves each as it is.

    Raises:
        NotanError: An image could not be read.
    """
    fit = preprocessor.fit
    transforms = (OwnPipeline(transform, fit),) if transform else build_transforms(run.augment, fit)
    varied = SampleDataset(training, preprocessor, transforms=transforms, seed=run.seed)
    plain = SampleDataset(validation, preprocessor)
    batch_size = run.train.batch_size
    kept = partial(open_on_device, batch_size=batch_size, device=device, decode_once=decode_once)
    whole = replace(share, slices=False)
    return (
        kept(varied, shuffle=True, what="training", unlabelled=unlabelled, share=share)
        or BatchLoader(
            varied,
            batch_size,
            shuffle=True,
            workers=workers,
            pin_memory=device.type == "cuda",
            unlabelled=unlabelled,
            # images that lie and that stand would fill each other's batches with padding
            kinds=[h > w for h, w in training.sizes()] if preprocessor.keep_aspect_ratio else None,
            share=share,
        ),
        kept(plain, shuffle=False, what="validation", share=whole)
        or BatchLoader(plain, batch_size, shuffle=False, workers=workers, share=whole),
    )


def serves(device: torch.device) -> bool:
    """Say whether batches are made, and validation is scored, on a device of this kind."""
    return device.type in DEVICES


def hindrance(images: SampleDataset, unlabelled: UnlabelledImages | None) -> str | None:
    """Say why batches of these images cannot be made on a device; None: they can."""
    preprocessor, kinds = images.preprocessor, [type(each) for each in images.transforms]
    if unlabelled is not None:
        return "images without masks are read with them"
    if preprocessor.image_size is None or preprocessor.keep_aspect_ratio:
        return "not all are resized to one size"
    if kinds and kinds != [Geometry, BrightnessContrast, GridDropout]:
        return "they are varied by a transform of your own"
    return None


def open_on_device(
    images: SampleDataset,
    batch_size: int,
    device: torch.device,
    *,
    shuffle: bool,
    what: str,
    unlabelled: UnlabelledImages | None = None,
    decode_once: bool = True,
    share: Share = WHOLE,
) -> DeviceBatchLoader | None:
    """Decode images once to make their batches on a device, where that fits; say in a line where.

    Args:
        images: What to read, and how to vary it.
        batch_size: At most so many images in a batch.
        device: That of the training.
        shuffle: Whether each epoch has an order of its own.
        what: Names the images in that line.
        unlabelled: Images without masks that batches have too; None: there are none.
        decode_once: Whether decoded images may be kept at all.
        share: What of the batches is made here.

    Returns:
        None where the batches are made by the processor.

    Raises:
        NotanError: An image could not be read.
    """
    if not (decode_once and serves(device)):
        return None
    why, resident, resized = hindrance(images, unlabelled), True, not images.transforms
    source, preprocessor, sizes = images.source, images.preprocessor, list[Size]()
    if why is None:
        sizes = source.sizes()
        size = bytes_of(sizes, preprocessor, resized=resized)
        resident = size <= MEMORY_SHARE * free_on(device)
        if not resident and size > MEMORY_SHARE * (free_memory() or 0):
            why = f"decoded, they would take {_in_words(size)}, and neither memory has room"
    if why is not None:
        logger.info("%s images: their batches are made by the processor: %s", what, why)
        return None
    samples = DeviceSamples(source, sizes, preprocessor, device, resized=resized, resident=resident)
    where = "GPU memory" if resident else "page-locked memory, copied for each batch"
    logger.info(
        "%s images: %s decoded once, %s in %s",
        *(what, f"{len(samples.names):,}", _in_words(size), where),
    )
    return DeviceBatchLoader(images, samples, batch_size, shuffle=shuffle, share=share)


def bytes_of(sizes: Sequence[Size], preprocessor: Preprocessor, *, resized: bool) -> int:
    """Return how many bytes decoded samples of these sizes take; see ``DeviceSamples``."""
    kept = [preprocessor.fit(size) for size in sizes] if resized else sizes
    masks = sum(h * w for h, w in sizes) if resized else 0
    return masks + sum(h * w for h, w in kept) * (preprocessor.channels + 1)


def free_on(device: torch.device) -> int:
    """Return the bytes of a device's memory that are free, 0 where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory() or 0


def _in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
