"""Parts: everything a training needs, built from a Run and checked before the first step."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from notan.data.batches import BatchLoader, SampleDataset
from notan.data.folders import find_layout, makes_validation, open_split, survey_masks
from notan.data.samples import FileSource, fingerprint, median_size
from notan.data.transforms import OwnPipeline, build_transforms
from notan.errors import ConfigError, DataError
from notan.losses import Loss
from notan.modelfile.card import Card, DataCard
from notan.modelfile.preprocess import Preprocessor
from notan.models.base import Encoder, encoder_of, stride_of
from notan.models.build import build_model
from notan.runtime import (
    Precision,
    choose_precision,
    choose_workers,
    describe_hardware,
    find_device,
    keep_freed_memory,
    seed_everything,
)
from notan.training.fine_tuning import EncoderStart, Freezing, build_freezing, start_encoder
from notan.training.optim import Schedule, WeightAverage, build_optimizer
from notan.training.semi_supervised import (
    Consistency,
    build_consistency,
    load_teacher,
    open_unlabelled,
    require_not_taught,
    with_unlabelled,
)
from notan.training.steps import Optimization
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from notan.config import Run, TrimapBorder
    from notan.data.batches import UnlabelledImages
    from notan.data.samples import Source
    from notan.training.semi_supervised import Teacher

logger = logging.getLogger("notan")


@dataclass(frozen=True)
class Parts:
    """What ``prepare`` builds.

    Attributes:
        run: The settings all of it was built from.
        model: On its device, in channels-last layout.
        own_model: Whether the model is the caller's and not one of ours.
        device: Where the model is.
        preprocessor: Saved in the card.
        training: The images trained on.
        validation: The images that choose the best checkpoint.
        data_card: What the card says of both.
        training_batches: Shuffled and varied.
        validation_batches: Neither.
        loss: What is made small.
        optimization: What it is made small with.
        average: The moving average of the weights, where one is kept.
        teacher: The model that is learned from beside the masks, where there is one.
        start: Where the encoder's weights came from, where it did not begin from scratch.
        consistency: What is learned from images without masks, where there are some.
    """

    run: Run
    model: nn.Module
    own_model: bool
    device: torch.device
    preprocessor: Preprocessor
    training: Source
    validation: Source
    data_card: DataCard
    training_batches: BatchLoader
    validation_batches: BatchLoader
    loss: Loss
    optimization: Optimization
    average: WeightAverage | None
    teacher: Teacher | None
    start: EncoderStart | None
    consistency: Consistency | None

    def card(self, epoch: int, scores: Mapping[str, float]) -> Card:
        """Return the card of a checkpoint of this training."""
        return Card(
            model=None if self.own_model else self.run.model,
            model_class=type(self.model).__name__,
            preprocess=self.preprocessor,
            trimap_border=_trimap_border(self.run, self.data_card),
            epoch=epoch,
            scores=dict(scores),
            data=self.data_card,
            run=self.run,
            versions={
                "notan": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            parameters=self.parameters,
            hardware=describe_hardware(self.device),
            precision=str(self.optimization.precision),
            pretrained=self._pretrained(),
        )

    def _pretrained(self) -> str | None:
        """Say what was learned before this training; what a teacher knew counts too."""
        if self.teacher and self.teacher.card.pretrained:
            taught = f"its teacher from {self.teacher.card.pretrained}"
            return f"{self.start.words}; {taught}" if self.start else taught
        return self.start.words if self.start else None

    @property
    def parameters(self) -> int:
        """How many numbers training changes."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def describe(self) -> str:
        """Say in a line what will be trained on what, where."""
        more = self.data_card.unlabelled_images
        return (
            f"{type(self.model).__name__}, {self.parameters:,} parameters; "
            f"{len(self.training)} images to train on, {len(self.validation)} to validate on"
            f"{f', {more} without masks' if more else ''}; "
            f"{self.device}, {self.optimization.precision}"
            f"{f'; {frozen}' if (frozen := str(self.optimization.freezing)) else ''}"
            f"{f'; taught by {self.run.train.teacher}' if self.teacher else ''}"
        )


def prepare(
    run: Run,
    *,
    training: Source | None = None,
    validation: Source | None = None,
    model: nn.Module | None = None,
    transform: Callable[..., Mapping[str, Any]] | None = None,
    state: Mapping[str, Any] | None = None,
) -> Parts:
    """Build and check everything; see ``notan.training.train`` for the arguments.

    Args:
        run: All settings.
        training: See there; likewise below.
        validation: See there.
        model: See there.
        transform: See there.
        state: What the training will go on from; its weights take the place of any that an encoder
            would begin with, so that those are not looked for again.

    Raises:
        ConfigError: A setting does not fit.
        DataError: An image or mask is missing, unreadable or ambiguous.
    """
    device = find_device(run.device)
    precision = choose_precision(run.train.precision, device)
    seed_everything(run.seed, deterministic=run.train.deterministic)
    if device.type == "cpu":
        keep_freed_memory()
    network = model or build_model(run.model)
    preprocessor = build_preprocessor(run, network)
    start = (
        start_encoder(network, run, preprocessor, own_model=model is not None)
        if state is None
        else EncoderStart.from_state(state.get("encoder_start"))
    )
    freezing = build_freezing(run, network, own_model=model is not None)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    training, validation, data_card = _open_sources(run, training, validation)
    _require_statistics(run, preprocessor, training)
    unlabelled = open_unlabelled(run, preprocessor, data_card)
    data_card = with_unlabelled(data_card, unlabelled)
    if start:
        data_card = start.seen_too(data_card, validation)
    teacher = load_teacher(
        run, preprocessor, precision, trimap_border=_trimap_border(run, data_card)
    )
    if teacher:
        require_not_taught(teacher, run.train.teacher, validation)
        data_card = teacher.seen_too(data_card)
    decay = run.train.ema_decay
    average = WeightAverage(network, decay) if decay is not None else None
    batches = _load(run, device, preprocessor, training, validation, transform, unlabelled)
    return Parts(
        run=run,
        model=network,
        own_model=model is not None,
        device=device,
        preprocessor=preprocessor,
        training=training,
        validation=validation,
        data_card=data_card,
        training_batches=batches[0],
        validation_batches=batches[1],
        loss=_build_loss(run),
        optimization=build_optimization(run, network, precision, len(batches[0]), freezing),
        average=average,
        teacher=teacher,
        start=start,
        consistency=build_consistency(run, precision, average, teacher) if unlabelled else None,
    )


def build_preprocessor(run: Run, network: nn.Module) -> Preprocessor:
    """Return what turns images into the inputs that a network, or its encoder, was made for."""
    published = encoder_of(network) or Encoder
    return Preprocessor(
        image_size=run.preprocess.image_size,
        keep_aspect_ratio=run.preprocess.keep_aspect_ratio,
        mean=run.preprocess.mean or published.mean,
        std=run.preprocess.std or published.std,
        stride=stride_of(network),
    )


def _trimap_border(run: Run, data_card: DataCard) -> TrimapBorder | None:
    """Return the rule for the trimap's border; None where the masks have none."""
    return run.data.trimap_border if data_card.layout == "pets" else None


def _open_sources(
    run: Run, training: Source | None, validation: Source | None
) -> tuple[Source, Source, DataCard]:
    if (training is None) != (validation is None):
        raise ConfigError("training and validation images of your own come together or not at all")
    layout, own_split = "own source", False
    if training is None or validation is None:
        layout, own_split = find_layout(run.data), makes_validation(run.data)
        training, validation = (_open_and_survey(run, part) for part in ("train", "validation"))
    for part, images in (("train on", training), ("validate on", validation)):
        if len(images) == 0:
            raise DataError(f"there are no images to {part}")
    card = DataCard(
        layout=layout,
        training_images=len(training),
        training_fingerprint=fingerprint(training),
        validation_images=len(validation),
        validation_fingerprint=fingerprint(validation),
        training_hashes=tuple(training.hashes()),
        validation_hashes=tuple(validation.hashes()),
        validation_names=tuple(validation.names) if own_split else None,
        median_size=median_size(training),
    )
    return training, validation, card


def _open_and_survey(run: Run, split: str) -> FileSource:
    source = open_split(run.data, split, seed=run.seed)
    found = survey_masks(source)
    readings = ", ".join(f"{encoding} ({count})" for encoding, count in found.items())
    logger.info(f"{split} masks read as: {readings}")
    return source


def _require_statistics(run: Run, preprocessor: Preprocessor, training: Source) -> None:
    """Refuse batches in which batch norm would see a single value of each channel."""
    sizes = training.sizes() if preprocessor.keep_aspect_ratio else [run.preprocess.image_size]
    padded = min((preprocessor.place(size).padded for size in sizes), key=max)
    smallest = len(training) // -(-len(training) // run.train.batch_size)
    if smallest == 1 and max(padded) <= preprocessor.stride:
        raise ConfigError(
            f"batches of one image at {padded[0]}x{padded[1]} leave batch norm one value a "
            f"channel; raise --batch-size, or --image-size above {preprocessor.stride}"
        )


def _load(
    run: Run,
    device: torch.device,
    preprocessor: Preprocessor,
    training: Source,
    validation: Source,
    transform: Callable[..., Mapping[str, Any]] | None,
    unlabelled: UnlabelledImages | None,
) -> tuple[BatchLoader, BatchLoader]:
    fit = preprocessor.fit
    transforms = (OwnPipeline(transform, fit),) if transform else build_transforms(run.augment, fit)
    varied = SampleDataset(training, preprocessor, transforms=transforms, seed=run.seed)
    workers = choose_workers(run.data.workers, device)
    pin = device.type == "cuda"
    batch_size = run.train.batch_size
    return (
        BatchLoader(
            varied,
            batch_size,
            shuffle=True,
            workers=workers,
            pin_memory=pin,
            unlabelled=unlabelled,
            # images that lie and that stand would fill each other's batches with padding
            kinds=[h > w for h, w in training.sizes()] if preprocessor.keep_aspect_ratio else None,
        ),
        BatchLoader(
            SampleDataset(validation, preprocessor), batch_size, shuffle=False, workers=workers
        ),
    )


def _build_loss(run: Run) -> Loss:
    settings = run.loss
    return Loss(
        settings.weights,
        focal_gamma=settings.focal_gamma,
        tversky_alpha=settings.tversky_alpha,
        tversky_beta=settings.tversky_beta,
        teacher=settings.teacher if run.train.teacher else 0.0,
    )


def build_optimization(
    run: Run,
    model: nn.Module,
    precision: Precision,
    steps_per_epoch: int,
    freezing: Freezing,
) -> Optimization:
    """Return what the steps of a run change a network with."""
    optimizer = build_optimizer(model, run.train)
    return Optimization(
        optimizer,
        Schedule(optimizer, run.train, steps_per_epoch),
        torch.amp.GradScaler(precision.device.type, enabled=precision.needs_scaler),
        precision,
        run.train.gradient_clip,
        freezing,
    )
