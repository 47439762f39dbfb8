"""TrainingSetup: everything a training needs, built from a Run and checked before the start."""

from __future__ import annotations

import copy
import logging
import platform
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from notan.config import run_to_toml, settings_by_name
from notan.data.batches import Share, fingerprint_unlabelled, half_of
from notan.data.folders import makes_validation
from notan.data.loading import load_batches
from notan.data.opening import OWN, foreground_fraction, measure_statistics, open_sources
from notan.data.samples import fingerprint, median_size
from notan.errors import ConfigError
from notan.losses import Loss
from notan.modelfile.card import PATHS, Card, DataCard
from notan.modelfile.preprocess import RGB_CHANNELS, Preprocessor
from notan.models.base import Encoder, SegmentationModel, encoder_of, stride_of
from notan.models.own import require_contract, trial_sizes
from notan.runtime import Precision, choose_workers, describe_hardware
from notan.training.batch_norm import share_batch_norm
from notan.training.computing import avoid_faults as avoid_faults
from notan.training.computing import begin_computing as begin_computing
from notan.training.computing import confirm_precision, precision_of_state
from notan.training.computing import lay_out as lay_out
from notan.training.fine_tuning import FREEZING as FREEZING
from notan.training.fine_tuning import (
    HASHES,
    Start,
    build_freezing,
    require_unseen,
    start_network,
)
from notan.training.optim import Schedule, average_weights, build_optimizer
from notan.training.own import (
    Objective,
    OwnParts,
    build_network,
    build_own_optimizer,
    checked_factor,
    try_loss,
)
from notan.training.ranks import ALONE, require_same_material
from notan.training.semi_supervised import (
    Consistency,
    build_consistency,
    load_teacher,
    open_unlabelled,
)
from notan.training.steps import Optimization
from notan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from notan.config import Data, Preprocess, Run, Train, TrimapBorder
    from notan.data.batches import UnlabelledImages
    from notan.data.loading import Batches
    from notan.data.samples import ImageReading, Source
    from notan.training.fine_tuning import Freezing
    from notan.training.optim import WeightAverage
    from notan.training.ranks import Ranks
    from notan.training.semi_supervised import Teacher
    from notan.training.trackers import Tracker

logger = logging.getLogger("notan")

PLACES = {"data.path", "data.workers", *(f"train.{name}" for name in PATHS)}
"""Settings in which the ranks of a training may differ: each machine has its own folders, and what
lies in them is compared."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every training changes, and what with.

    Attributes:
        model: On its device, in channels-last layout.
        device: Where the model is.
        preprocessor: How images become inputs.
        training: The images trained on.
        validation: The images that choose the best epoch.
        contents: A hash of each image with its mask, of both, as training began.
        training_batches: Shuffled and varied.
        validation_batches: Neither.
        optimization: What the loss is made small with.
        average: The EMA of the weights, where one is kept.
        start: Where the encoder's weights came from, where it did not begin from scratch.
        ranks: The processes that train together.
    """

    model: nn.Module
    device: torch.device
    preprocessor: Preprocessor
    training: Source
    validation: Source
    contents: tuple[Sequence[str], Sequence[str]]
    training_batches: Batches
    validation_batches: Batches
    optimization: Optimization
    average: WeightAverage | None = None
    start: Start | None = None
    ranks: Ranks = ALONE

    def describe(self) -> str:
        """Say in a line what will be trained on what, where."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TrainingSetup(Setup):
    """What ``prepare`` builds.

    Attributes:
        run: The settings all of it was built from.
        own_model: Whether the model is the caller's and not one of ours.
        data_card: What the card says of the images.
        loss: What is made small.
        teacher: The model that is learned from beside the masks, where there is one.
        consistency: What is learned from images without masks, where there are some.
        tracker: The user's, which is told of each epoch.
        shared: How batch norm sees the batches that several ranks divide, in words.
    """

    run: Run
    own_model: bool
    data_card: DataCard
    loss: Loss | Objective
    teacher: Teacher | None
    consistency: Consistency | None
    tracker: Tracker | None = None
    shared: str | None = None

    def card(self, epoch: int, scores: Mapping[str, float]) -> Card:
        """Return the card of a checkpoint of this training."""
        return Card(
            model=None if self.own_model else self.run.model,
            model_class=type(self.model).__name__,
            preprocess=self.preprocessor,
            trimap_border=_trimap_border(self.run.data, self.data_card.layout),
            epoch=epoch,
            scores=dict(scores),
            data=self.data_card,
            run=self.run,
            versions=_versions(),
            parameters=self.parameters,
            hardware="; ".join(filter(None, (describe_hardware(self.device), self.shared))),
            precision=str(self.optimization.precision),
            pretrained=self._pretrained(),
        )

    def identity(self) -> dict[str, Any]:
        """Return what a state says of the run, so that a resume can tell whether it is the same."""
        card = self.data_card
        return {
            "run": run_to_toml(self.run),
            "precision": precision_of_state(self.optimization.precision),
            "images": [card.training_fingerprint, card.validation_fingerprint],
            "teacher": self.teacher and self.teacher.identity,
            "unlabelled": card.unlabelled_fingerprint,
        }

    def _pretrained(self) -> str | None:
        """Say what was learned before this training; what a teacher knew counts too."""
        words = [self.start.words] if self.start else []
        if self.teacher and self.teacher.card.pretrained:
            words.append(f"its teacher from {self.teacher.card.pretrained}")
        return "; ".join(words) or None

    @property
    def parameters(self) -> int:
        """How many numbers training changes."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def describe(self) -> str:
        """Say in a line what will be trained on what, where."""
        more, halved = self.data_card.unlabelled_images, self.run.train.half_size_fraction
        return (
            f"{type(self.model).__name__}, {self.parameters:,} parameters; "
            f"{len(self.training)} images to train on, {len(self.validation)} to validate on"
            f"{f', {more} without masks' if more else ''}; "
            f"{self.device}, {self.optimization.precision}"
            f"{f'; {self.shared}' if self.shared else ''}"
            f"{f'; images of half the size for {halved:g} of the training' if halved else ''}"
            f"{f'; {frozen}' if (frozen := str(self.optimization.freezing)) else ''}"
            f"{f'; taught by {self.run.train.teacher}' if self.teacher else ''}"
        )


def prepare(
    run: Run,
    *,
    training: Source | None = None,
    validation: Source | None = None,
    own: OwnParts | None = None,
    state: Mapping[str, Any] | None = None,
    validation_names: frozenset[str] | None = None,
    ranks: Ranks = ALONE,
) -> TrainingSetup:
    """Build and check everything; see ``notan.training.train`` for the arguments.

    Args:
        run: All settings.
        training: See there; likewise below.
        validation: See there.
        own: The parts that are the user's own.
        state: What the training will go on from; its weights take the place of any that an encoder
            would begin with, so that those are not looked for again.
        validation_names: What was set aside when the training began; None: it begins now.
        ranks: The processes that train together; all of them prepare.

    Raises:
        ConfigError: A setting does not fit.
        DataError: An image or mask is missing, unreadable or ambiguous.
    """
    precision = _begin_together(run, ranks)
    device = precision.device
    own = own or OwnParts()
    own_model = own.model is not None
    workers = choose_workers(run.data.workers, device)
    channels = run.data.channels or RGB_CHANNELS
    # what is wrong with the settings is said before the images are read
    network, freezing = _build_network(run, own, channels)
    training, validation, layout, reading = open_sources(
        run.data, run.seed, training, validation, validation_names, workers
    )
    if reading.channels != channels and not own_model:
        network, freezing = _build_network(run, own, reading.channels)
    preprocessor = build_preprocessor(run.preprocess, network, reading, training)
    start = _start_of(network, run, state, own_model=own_model)
    if isinstance(network, SegmentationModel) and run.train.weights is None and not own_model:
        network.expect(foreground_fraction(training))
    network = network.to(device)
    avoid_faults(network, device)
    _require_statistics(run, preprocessor, training, ranks)
    if run.train.precision == "auto" and device.type == "cpu":
        images, limit = min(run.train.batch_size, len(training)), run.train.time_limit_seconds
        shape = (images, preprocessor.channels, *trial_sizes(preprocessor)[0])
        precision = ranks.of_first(confirm_precision(precision, network, shape, state, limit))
    shared = share_batch_norm(network, ranks, run.train.batch_size)
    lay_out(network, precision)
    unlabelled = open_unlabelled(
        run, preprocessor, validation, own_source=layout == OWN, workers=workers
    )
    teacher = _teacher(run, preprocessor, precision, layout)
    _require_unseen(run, start, teacher, validation)
    known = [start, teacher.card.data if teacher else None]
    data_card = _data_card(run.data, layout, training, validation, unlabelled, known)
    decay = run.train.ema_decay
    average = average_weights(network, decay) if decay is not None else None
    batches = load_batches(
        *(run, device, preprocessor, training, validation),
        workers=workers,
        transform=own.transform,
        unlabelled=unlabelled,
        decode_once=run.data.cache != "off",
        share=Share(ranks.number, ranks.count),
    )
    require_same_material(ranks, data_card, network)
    loss = _build_loss(run, own, taught=teacher is not None)
    _try_own(own, network, loss, preprocessor)
    return TrainingSetup(
        run=run,
        model=network,
        own_model=own_model,
        device=device,
        preprocessor=preprocessor,
        training=training,
        validation=validation,
        data_card=data_card,
        contents=(training.content_hashes(), validation.content_hashes()),
        training_batches=batches[0],
        validation_batches=batches[1],
        loss=loss,
        tracker=own.tracker,
        optimization=build_optimization(
            run.train, network, precision, len(batches[0]), freezing, own
        ),
        ranks=ranks,
        shared=shared,
        average=average,
        teacher=teacher,
        start=start,
        consistency=_consistency(run, precision, teacher, average) if unlabelled else None,
    )


def _begin_together(run: Run, ranks: Ranks) -> Precision:
    """Return the device and arithmetic of this rank, once all have the same settings."""
    ranks.require_same(_versions())
    settings = settings_by_name(run)
    ranks.require_same({name: settings[name] for name in settings.keys() - PLACES})
    precision = begin_computing(ranks.choose_device(run.device), run.train, seed=run.seed)
    ranks.use(precision.device)
    return precision


def _teacher(
    run: Run, preprocessor: Preprocessor, precision: Precision, layout: str
) -> Teacher | None:
    return load_teacher(
        run.train.teacher,
        preprocessor,
        precision,
        trimap_border=_trimap_border(run.data, layout),
        weight=run.loss.teacher,
    )


def _versions() -> dict[str, str]:
    return {
        "notan": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _start_of(
    network: nn.Module, run: Run, state: Mapping[str, Any] | None, *, own_model: bool
) -> Start | None:
    """Give a network what it begins with, or say what it began with, where that is in a state."""
    if state is None:
        return start_network(network, run, own_model=own_model)
    return Start.from_state(state.get("encoder_start"))


def _consistency(
    run: Run, precision: Precision, teacher: Teacher | None, average: WeightAverage | None
) -> Consistency:
    """Return what is learned from images without masks."""
    return build_consistency(
        precision,
        teacher.answer if teacher else None,
        average,
        weight=run.loss.consistency,
        ramp_steps=run.train.consistency_steps,
    )


def _require_unseen(
    run: Run, start: Start | None, teacher: Teacher | None, validation: Source
) -> None:
    """Refuse validation images that another model has brought the knowledge of."""
    if start:
        who = f"the model that is begun with ({start.words})"
        require_unseen(start.training_hashes, validation, who=who, whose="the new model's")
    if teacher:
        who = f"{run.train.teacher}: the teacher"
        taught = teacher.card.data.training_hashes
        require_unseen(taught, validation, who=who, whose="the student's")


def _build_network(run: Run, own: OwnParts, channels: int) -> tuple[nn.Module, Freezing]:
    """Return a network for images of so many channels, and what of it is frozen when."""
    network = build_network(run.model, own, channels)
    return network, build_freezing(run.train, network, own_model=own.model is not None)


def build_preprocessor(
    settings: Preprocess, network: nn.Module, reading: ImageReading, training: Source
) -> Preprocessor:
    """Return what turns images into the inputs that a network, or its encoder, was made for.

    Args:
        settings: Size and normalising.
        network: What the inputs are for.
        reading: How image files are read.
        training: Tells the statistics of channels that are no colours, for which nobody has
            published any.

    Raises:
        ConfigError: There are not as many means as channels.
        DataError: An image cannot be read.
    """
    published = encoder_of(network) or Encoder
    mean, std = settings.mean, settings.std
    if reading.channels == RGB_CHANNELS:
        mean, std = mean or published.mean, std or published.std
    elif mean is None or std is None:
        measured = measure_statistics(training)
        mean, std = mean or measured[0], std or measured[1]
        logger.info("training images have mean %s and standard deviation %s (0..1)", *measured)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != reading.channels:
            raise ConfigError(
                f"preprocess.{name} has {len(values)} values, and the images {reading.channels} "
                "channels; give one for each, or leave it out"
            )
    return Preprocessor(
        image_size=settings.image_size,
        keep_aspect_ratio=settings.keep_aspect_ratio,
        mean=mean,
        std=std,
        stride=stride_of(network),
        white=reading.white,
        channels=reading.channels,
        ranges=reading.ranges,
        floats=reading.floats,
    )


def _trimap_border(data: Data, layout: str) -> TrimapBorder | None:
    """Return the rule for the trimap's border; None where the masks have none."""
    return data.trimap_border if layout == "pets" else None


def _data_card(
    data: Data,
    layout: str,
    training: Source,
    validation: Source,
    unlabelled: UnlabelledImages | None,
    known: Sequence[Start | DataCard | None],
) -> DataCard:
    """Say which images the model will know, those included that it knows through other models."""
    files = unlabelled.files if unlabelled else ()
    own = (training.hashes(), validation.hashes(), [file.file_hash for file in files])
    hashes = dict(zip(HASHES, own, strict=True))
    for other in filter(None, known):
        for name in HASHES:
            hashes[name] = list(dict.fromkeys((*hashes[name], *getattr(other, name))))
    own_split = layout != OWN and makes_validation(data)
    return DataCard(
        layout=layout,
        training_images=len(training),
        training_fingerprint=fingerprint(training),
        validation_images=len(validation),
        validation_fingerprint=fingerprint(validation),
        training_hashes=tuple(hashes["training_hashes"]),
        validation_hashes=tuple(hashes["validation_hashes"]),
        validation_names=tuple(validation.names) if own_split else None,
        unlabelled_images=len(files),
        unlabelled_fingerprint=fingerprint_unlabelled(files) if unlabelled else None,
        unlabelled_hashes=tuple(hashes["unlabelled_hashes"]),
        median_size=median_size(training),
    )


def _require_statistics(
    run: Run, preprocessor: Preprocessor, training: Source, ranks: Ranks
) -> None:
    """Refuse batches that leave a rank without an image, or batch norm with a single value."""
    sizes = training.sizes() if preprocessor.keep_aspect_ratio else [run.preprocess.image_size]
    inputs = [preprocessor.place(size).padded for size in sizes]
    padded = min(inputs, key=max)
    if run.train.half_size_fraction:
        largest, padded = max(inputs, key=max), half_of(padded, preprocessor.stride)
        if half_of(largest, preprocessor.stride) == largest:
            raise ConfigError(
                f"train.half_size_fraction: images of {largest[0]}x{largest[1]} cannot be halved, "
                f"as the network takes multiples of {preprocessor.stride}; raise --image-size, or "
                "leave it out"
            )
    smallest = len(training) // -(-len(training) // run.train.batch_size)
    if smallest < ranks.count:
        raise ConfigError(
            f"{ranks} would divide batches of {smallest} among them; start fewer, or raise "
            "--batch-size"
        )
    if smallest == 1 and max(padded) <= preprocessor.stride:
        raise ConfigError(
            f"batches of one image at {padded[0]}x{padded[1]} leave batch norm one value a "
            f"channel; raise --batch-size, or --image-size above {preprocessor.stride}"
        )


def _build_loss(run: Run, own: OwnParts, *, taught: bool) -> Loss | Objective:
    settings = run.loss
    if own.loss is not None:
        teacher = settings.teacher if taught else 0.0
        return Objective(own.loss, teacher=teacher, guarded=run.train.loss_guard)
    return Loss(
        settings.weights,
        focal_gamma=settings.focal_gamma,
        tversky_alpha=settings.tversky_alpha,
        tversky_beta=settings.tversky_beta,
        cldice_iterations=settings.cldice_iterations,
        teacher=settings.teacher if taught else 0.0,
    )


def _try_own(
    own: OwnParts, network: nn.Module, loss: Loss | Objective, preprocessor: Preprocessor
) -> None:
    """Try the user's network and loss on a batch of noise of the size that they will see."""
    size, *others = trial_sizes(preprocessor)
    if own.model is not None:
        channels = preprocessor.channels
        if doubt := require_contract(network, size, training=True, channels=channels):
            logger.warning("%s", doubt)
        for other in others:
            require_contract(network, other, training=False, channels=channels)
    if isinstance(loss, Objective):
        try_loss(loss, size, next(network.parameters()).device)


def build_optimization(
    settings: Train,
    model: nn.Module,
    precision: Precision,
    steps_per_epoch: int,
    freezing: Freezing,
    own: OwnParts | None = None,
) -> Optimization:
    """Return what the steps of a training change a network with.

    Raises:
        ConfigError: An optimizer or a schedule of the user's own does not work.
    """
    own = own or OwnParts()
    peak = schedule = None
    if own.optimizer is None:
        optimizer = build_optimizer(model, settings)
    else:
        optimizer = build_own_optimizer(own.optimizer, model)
        peak = float(optimizer.param_groups[0]["lr"])
    if own.schedule is not None:
        schedule = partial(checked_factor, own.schedule)
        steps = settings.epochs * steps_per_epoch
        for step in {0, steps // 2, steps - 1}:
            schedule(step, steps)
    return Optimization(
        optimizer,
        Schedule(optimizer, settings, steps_per_epoch, peak=peak, own=schedule),
        torch.amp.GradScaler(precision.device.type, enabled=precision.needs_scaler),
        precision,
        settings.gradient_clip,
        freezing,
        own=own.optimizer is not None,
        blank=copy.deepcopy(optimizer.state_dict()["state"]),
        gradients_as=torch.bfloat16 if settings.compress_gradients else None,
    )
