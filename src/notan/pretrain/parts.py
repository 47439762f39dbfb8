"""Everything a pretraining needs, built from its settings and checked before the first step."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from notan.config import Augment, Model, Preprocess, Run, Train
from notan.data.batches import BatchLoader
from notan.data.files import fingerprint
from notan.data.splits import choose_validation
from notan.data.transforms import Geometry
from notan.errors import DataError
from notan.models.encoders import build_encoder
from notan.pretrain.images import ImageFiles, MaskedImages, find_images
from notan.pretrain.network import Reconstructor
from notan.runtime import (
    choose_precision,
    choose_workers,
    find_device,
    keep_freed_memory,
    seed_everything,
)
from notan.train.encoder_start import EncoderStart, start_encoder
from notan.train.freezing import Freezing
from notan.train.parts import build_optimization, build_preprocessor
from notan.train.provenance import HASHES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from notan.config import Pretrain
    from notan.preprocess import Preprocessor
    from notan.train.average import WeightAverage
    from notan.train.steps import Optimization

logger = logging.getLogger("notan")


@dataclass(frozen=True)
class PretrainParts:
    """What ``prepare`` builds.

    Attributes:
        settings: All of it was built from them.
        model: On its device, in channels-last layout.
        device: Where the model is.
        preprocessor: What images are normalised by.
        training: The images that are learned from.
        validation: Those that are held out.
        training_batches: Shuffled and cropped.
        validation_batches: Neither; the same patches are hidden every time.
        optimization: What the loss is made small with.
        start: Where the encoder's weights came from, where it did not begin from scratch.
        average: None: the weights themselves are kept.
    """

    settings: Pretrain
    model: Reconstructor
    device: torch.device
    preprocessor: Preprocessor
    training: ImageFiles
    validation: ImageFiles
    training_batches: BatchLoader
    validation_batches: BatchLoader
    optimization: Optimization
    start: EncoderStart | None = None
    average: WeightAverage | None = None

    @property
    def fingerprints(self) -> list[str]:
        """Which images are learned from and held out."""
        return [fingerprint(self.training), fingerprint(self.validation)]

    @cached_property
    def known(self) -> dict[str, tuple[str, ...]]:
        """Hashes of all images that the encoder will know, by what a card calls them.

        Those that are held out count: they choose the epoch.
        """
        known = {name: getattr(self.start, name, ()) for name in HASHES}
        own = (*self.training.hashes(), *self.validation.hashes())
        unlabelled = dict.fromkeys((*known["unlabelled_hashes"], *own))
        return {**known, "unlabelled_hashes": tuple(unlabelled)}

    def describe(self) -> str:
        """Say in a line what learns from what, where."""
        parameters = sum(weight.numel() for weight in self.model.encoder.parameters())
        return (
            f"{self.settings.encoder}, {parameters:,} parameters; {len(self.training)} images to "
            f"learn from, {len(self.validation)} held out; "
            f"{self.device}, {self.optimization.precision}"
        )


def prepare(settings: Pretrain, *, state: Mapping[str, Any] | None = None) -> PretrainParts:
    """Build and check everything.

    Args:
        settings: All of them.
        state: What the pretraining will go on from; its weights take the place of any that it would
            begin with, so that those are not looked for again.

    Raises:
        ConfigError: A setting does not fit.
        DataError: An image is missing or unreadable, or there are too few.
        CheckpointError: The weights to go on from cannot be read, or are another network's.
    """
    run = as_run(settings)
    device = find_device(settings.device)
    precision = choose_precision(settings.precision, device)
    seed_everything(settings.seed, deterministic=settings.deterministic)
    if device.type == "cpu":
        keep_freed_memory()
    network = Reconstructor(build_encoder(settings.encoder), settings.width)
    training, validation = _divided(settings)
    preprocessor = build_preprocessor(run, network)
    start = (
        start_encoder(network, run, preprocessor, own_model=False)
        if state is None
        else EncoderStart.from_state(state.get("encoder_start"))
    )
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    crop = Geometry(run.augment, preprocessor.fit)
    images = MaskedImages(training, preprocessor, settings, transforms=(crop,))
    workers = choose_workers(settings.workers, device)
    pin = device.type == "cuda"
    batches = BatchLoader(
        images, settings.batch_size, shuffle=True, workers=workers, pin_memory=pin
    )
    held_out = MaskedImages(validation, preprocessor, settings)
    return PretrainParts(
        settings=settings,
        model=network,
        device=device,
        preprocessor=preprocessor,
        training=training,
        validation=validation,
        training_batches=batches,
        validation_batches=BatchLoader(
            held_out, settings.batch_size, shuffle=False, workers=workers
        ),
        optimization=build_optimization(run, network, precision, len(batches), Freezing()),
        start=start,
    )


def as_run(settings: Pretrain) -> Run:
    """Say the settings in the words of a training, whose parts are used."""
    return Run(
        preprocess=Preprocess(image_size=(settings.image_size,) * 2),
        augment=Augment(
            scale_probability=0.0,
            affine_scale=0.0,
            translate=0.0,
            rotate_degrees=0.0,
            crop_area=settings.crop_area,
            crop_probability=1.0,
        ),
        model=Model(encoder=settings.encoder, width=settings.width),
        train=Train(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            schedule="cosine",
            warmup_epochs=settings.warmup_epochs,
            gradient_clip=settings.gradient_clip,
            pretrained=settings.pretrained,
            encoder_weights=settings.encoder_weights,
            loss_guard=settings.loss_guard,
            max_rollbacks=settings.max_rollbacks,
            checkpoint_every_seconds=settings.checkpoint_every_seconds,
            checkpoint_every_steps=settings.checkpoint_every_steps,
        ),
        seed=settings.seed,
    )


def _divided(settings: Pretrain) -> tuple[ImageFiles, ImageFiles]:
    """Return the images to learn from and those held out, once every file's header is read."""
    images, words = find_images(settings)
    logger.info("%s: %s", settings.path, words)
    if len(images) < 2:
        raise DataError(
            f"{settings.path}: only one image; at least two are wanted, one to learn from and "
            "one to hold out, and hundreds to be of use"
        )
    images.sizes()  # a file that is no image shall not be found after minutes
    names = frozenset(images.names)
    held_out = choose_validation(
        images.names, fraction=settings.held_out_fraction, seed=settings.seed
    )
    return images.only(names - held_out), images.only(held_out)
