"""An encoder learns from images without masks.

The network that fills in what is hidden, and by how much it is wrong.

Which images an encoder is pretrained on, and what is hidden of each.

Everything a pretraining needs, built from its settings and checked before the first step.

An image of what the network sees, what it fills in, and what was there.

Pretrainer: runs the epochs of a pretraining and keeps the encoder that fills in best.

The two ways to start a pretraining: from nothing, and from the state of one that was stopped.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from notan.config import (
    Augment,
    Data,
    Model,
    Preprocess,
    Pretraining,
    Run,
    Train,
    changed_settings,
    load_settings,
    run_to_toml,
)
from notan.data.batches import Batch, BatchLoader, SampleDataset, find_unlabelled
from notan.data.folders import looks_like_folder, looks_like_pets, open_split
from notan.data.samples import Sample, Source, choose_validation, fingerprint, hash_ends
from notan.data.transforms import Geometry
from notan.errors import CheckpointError, ConfigError, DataError, DivergedError, NotanError
from notan.io.images import read_image, read_size
from notan.io.write import fresh_folder, write_bytes
from notan.losses import LossValue
from notan.models.build import build_encoder
from notan.models.encoder_files import read_weights, save_encoder
from notan.models.unet import EncoderUNet
from notan.prediction.formats import contact_sheet, write_png
from notan.run_folder import HISTORY, INCIDENTS, STATES, claim_folder, clear_folder, locked
from notan.runtime import (
    choose_precision,
    choose_workers,
    find_device,
    keep_freed_memory,
    seed_everything,
)
from notan.training.build import build_optimization, build_preprocessor
from notan.training.fine_tuning import EncoderStart, Freezing, start_encoder
from notan.training.log import append_line, keep_lines
from notan.training.provenance import HASHES
from notan.training.state import StateFolder, capture_learning
from notan.training.steps import ADVICE, AverageMeter, compute_loss, train_epoch
from notan.training.trainer import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from notan.config import Pretrain
    from notan.data.batches import Key
    from notan.data.transforms import Transform
    from notan.modelfile.preprocess import Preprocessor
    from notan.models.base import Encoder
    from notan.training.optim import WeightAverage
    from notan.training.steps import Optimization
    from notan.types import Images, Mask, Masks, ModelInput, Probabilities, RGBImage, Size


class Reconstructor(EncoderUNet):
    """An encoder with a light way up to colours instead of a logit.

    Source: a decoder with skips, so that every level of a convolutional encoder learns: Tian et al.
    2023, SparK, arXiv:2301.03580; here with dense convolutions, for which hidden pixels have the
    mean colour.
    """

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__(encoder, width)
        self.head = nn.Conv2d(self.head.in_channels, 3, 3, padding=1)


def reconstruction_loss(
    predicted: Images, targets: Images, hidden: Masks, soft: Probabilities | None = None
) -> LossValue:
    """Return the mean absolute difference over the hidden pixels.

    Source: Xie et al. 2022, SimMIM, arXiv:2111.09886, section 3.4.

    Args:
        predicted: (n, 3, h, w), in normalised colours.
        targets: Likewise, the whole images.
        hidden: (n, 1, h, w), 1 where a pixel was hidden and is in the image.
        soft: Nobody teaches here; not used.
    """
    del soft
    differences = (predicted.float() - targets).abs() * hidden
    mean: Tensor = differences.sum() / (3 * hidden.sum()).clamp(min=1)
    return LossValue(mean, {"reconstruction": mean})


@torch.no_grad()
def blind_loss(targets: Images, hidden: Masks) -> float:
    """Return the loss of filling everything with the mean colour."""
    return reconstruction_loss(torch.zeros_like(targets), targets, hidden).total.item()


HIDING = 1
"""Keeps the random numbers that hide patches apart from those that crop."""


class ImageFiles(Source):
    """Images without masks: every pixel counts as background."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Keep the paths, of different names; nothing is read yet."""
        self.paths = tuple(paths)

    @property
    def names(self) -> Sequence[str]:
        """The files' names, in order."""
        return [path.name for path in self.paths]

    def __getitem__(self, index: int) -> Sample:
        """Read one image.

        Raises:
            DataError: The file is missing or unreadable.
        """
        image = read_image(self.paths[index])
        return Sample(self.paths[index].name, image, np.zeros(image.shape[:2], bool))

    def sizes(self) -> list[Size]:
        """Return the (height, width) of each image, from its file's header.

        Raises:
            DataError: A file cannot be read.
        """
        return [read_size(path) for path in self.paths]

    def hashes(self) -> list[str]:
        """Return a short hash of each image's file, from its size and its two ends.

        Raises:
            DataError: A file cannot be read.
        """
        return [hash_ends(path) for path in self.paths]

    def only(self, names: frozenset[str]) -> ImageFiles:
        """Return the images of these names, in this source's order."""
        return ImageFiles([path for path in self.paths if path.name in names])


def find_images(settings: Pretrain) -> tuple[ImageFiles, str]:
    """Return the images to learn from, and which they are in words.

    Of a data folder it is the training split, the very one that ``notan train`` takes with the same
    seed: images that will choose or judge a model must not shape its encoder. Of a mere folder of
    images, every file is read once, and those that cannot be are left out with a warning.

    Raises:
        ConfigError: No folder was given.
        DataError: It is missing, holds no images, or mixes in test images.
    """
    folder = _existing(settings.path)
    if looks_like_pets(folder) or looks_like_folder(folder):
        data = Data(path=folder, split_seed=settings.split_seed)
        source = open_split(data, "train", seed=settings.seed)
        words = "its training split; the images that validate and test are left out"
        return ImageFiles([pair.image for pair in source.pairs]), words
    if folder.name == "images" and looks_like_pets(folder.absolute().parent):
        raise DataError(
            f"{folder}: holds the test images too; give {folder.parent}, whose training split "
            "alone is taken"
        )
    paths = [file.path for file in find_unlabelled(folder)]
    return ImageFiles(paths), "every image in it"


def _existing(path: Path | None) -> Path:
    if path is None:
        raise ConfigError("no images were given; name their folder with --data-path FOLDER")
    if not path.exists():
        raise DataError(f"{path}: there is no such folder; check --data-path")
    if not path.is_dir():
        raise DataError(f"{path}: this is a file; --data-path wants the folder of images")
    return path


class MaskedImages(SampleDataset):
    """Images as batches of one, of which patches are hidden.

    The batch's images are what is seen, its targets the whole image, (n, 3, h, w) likewise
    normalised, and its valid pixels those that are hidden.
    """

    def __init__(
        self,
        source: Source,
        preprocessor: Preprocessor,
        settings: Pretrain,
        *,
        transforms: Sequence[Transform[Any]] = (),
    ) -> None:
        super().__init__(source, preprocessor, transforms=transforms, seed=settings.seed)
        self.patch = settings.patch
        self.hidden_share = settings.hidden_share

    def __getitem__(self, key: Key) -> Batch | NotanError:
        """Read, crop and normalise one image, and hide patches of it."""
        batch = super().__getitem__(key)
        if isinstance(batch, NotanError):
            return batch
        rng = np.random.default_rng((self.seed, *key, HIDING))
        height, width = batch.images.shape[2:]
        hidden = draw_hidden(rng, (height, width), patch=self.patch, share=self.hidden_share)
        counted = torch.from_numpy(hidden.astype(np.float32)) * batch.valid
        seen = batch.images * (1 - torch.from_numpy(hidden.astype(np.float32)))
        return batch._replace(images=seen, targets=batch.images, valid=counted)


def draw_hidden(rng: np.random.Generator, size: Size, *, patch: int, share: float) -> Mask:
    """Draw which squares of a grid are hidden: that share of them, at least one, never all.

    What is hidden is filled with the mean colour, which is 0 after normalising.

    Source: Xie et al. 2022, SimMIM, arXiv:2111.09886, section 3.2; there a learned token stands in
        the hidden places, which a convolutional encoder has no place for.

    Args:
        rng: Where the randomness comes from.
        size: (height, width) in pixels.
        patch: Side of a square; the last row and column are cut where they do not fit.
        share: 0..1.

    Returns:
        bool, (height, width), True = hidden.
    """
    rows, columns = (-(-side // patch) for side in size)
    count = min(max(1, round(share * rows * columns)), rows * columns - 1)
    grid = np.zeros(rows * columns, bool)
    grid[rng.permutation(grid.size)[:count]] = True
    squares = grid.reshape(rows, columns).repeat(patch, axis=0).repeat(patch, axis=1)
    return squares[: size[0], : size[1]]


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


SHOWN = 6
"""Held-out images, one to a row."""


def write_reconstructions(path: Path, parts: PretrainParts) -> None:
    """Write held-out images in three columns: with gaps, with the gaps filled in, whole.

    Args:
        path: A PNG file.
        parts: The network and the images.

    Raises:
        StorageError: The file could not be written.
    """
    model, precision = parts.model.eval(), parts.optimization.precision
    cells: list[RGBImage] = []
    rows = (row for batch in parts.validation_batches for row in zip(*batch[:3], strict=True))
    for seen, whole, hidden in islice(rows, SHOWN):
        with torch.no_grad(), precision.autocast():
            answer = model(seen[None].to(precision.device))[0].float().cpu()
        filled = torch.where(hidden > 0, answer, whole)
        cells += [as_colours(each.numpy(), parts.preprocessor) for each in (seen, filled, whole)]
    write_png(path, contact_sheet(cells, columns=3))


def as_colours(image: ModelInput, preprocessor: Preprocessor) -> RGBImage:
    """Undo ``Preprocessor.normalize``; what lies beyond black and white is cut off."""
    colours = image.transpose(1, 2, 0) * np.asarray(preprocessor.std) + preprocessor.mean
    levels: RGBImage = np.rint(255 * np.clip(colours, 0, 1)).astype(np.uint8)
    return levels


SETTINGS = "pretrain.toml"
ENCODER = "encoder.safetensors"
IMAGE = "reconstructions.png"


@dataclass(frozen=True)
class Lowest:
    """The lowest held-out loss so far.

    Attributes:
        loss: Mean absolute difference of the hidden pixels, in normalised colours.
        epoch: The epoch it is from, counted from 1.
        blind: What filling everything with the mean colour would give.
    """

    loss: float
    epoch: int
    blind: float


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining left.

    Attributes:
        encoder: The file of weights, for ``train.encoder_weights``.
        name: What ``model.encoder`` calls the encoder.
        lowest: How well it fills in what is hidden of the images that were held out.
    """

    encoder: Path
    name: str
    lowest: Lowest


class Pretrainer(Loop):
    """Runs one pretraining in one folder."""

    command = "notan pretrain"

    def __init__(self, parts: PretrainParts, folder: Path) -> None:
        """Take what ``prepare`` has built and checked, and the run folder."""
        super().__init__(parts, as_run(parts.settings).train, folder)
        self.parts: PretrainParts = parts
        self.lowest: Lowest | None = None
        self.blank: DivergedError | None = None

    def capture(self) -> dict[str, Any]:
        """Return all that the rest of the pretraining depends on."""
        return {
            "settings": run_to_toml(self.parts.settings),
            "images": self.parts.fingerprints,
            "encoder_start": self.parts.start and asdict(self.parts.start),
            "lowest": self.lowest and asdict(self.lowest),
            **capture_learning(self.parts, self.progress, self.guard, self.recovery.good),
        }

    def train(self, tree: dict[str, Any] | None = None) -> PretrainResult:
        """Learn from the start, or from a state, to the end; see ``pretrain`` for errors.

        Args:
            tree: What ``capture`` returned, to go on from there.
        """
        parts = self.parts
        self.begin(tree)
        if tree:
            self.lowest = tree["lowest"] and Lowest(**tree["lowest"])
        keep_lines(self.folder / HISTORY, lambda line: line["epoch"] < self.progress.epoch)
        told = run_to_toml(Pretraining(pretrain=parts.settings))
        write_bytes(self.folder / SETTINGS, told.encode())
        try:
            with self.stop:
                lowest = self._epochs()
                self._finish(lowest)
        finally:
            parts.training_batches.close()
            parts.validation_batches.close()
        return PretrainResult(self.folder / ENCODER, parts.settings.encoder, lowest)

    def _epochs(self) -> Lowest:
        """Learn epoch after epoch; the state after the last says that the run is finished."""
        while self.progress.epoch <= self.settings.epochs:
            self._epoch()
        if self.lowest is None:
            raise self.blank or DivergedError(
                f"{self.folder}: no epoch of this run ended with a network that answers in "
                f"numbers; {ADVICE}"
            )
        self._save_state()
        if self.lowest.loss >= self.lowest.blind:
            logger.warning(
                "the lowest held-out loss, %.4f, is no better than grey in every gap (%.4f): "
                "nothing was learned; give more epochs, or another --learning-rate",
                *(self.lowest.loss, self.lowest.blind),
            )
        return self.lowest

    def _epoch(self) -> None:
        """Learn for the rest of an epoch, look at what is held out, keep the encoder if better."""
        parts, progress = self.parts, self.progress
        self.epoch_began = time.perf_counter() - progress.seconds
        parts.training_batches.set_epoch(progress.epoch, progress.batch)
        with self._show_progress() as self.bar:
            train_epoch(parts.model, self.bar, reconstruction_loss, parts.optimization, self)
        try:
            self.blank, held_out = None, self._held_out()
        except DivergedError as error:
            self.blank, held_out = error, None
        if held_out and (self.lowest is None or held_out.loss < self.lowest.loss):
            self._keep(held_out)
        seconds = time.perf_counter() - self.epoch_began
        self._write_down(held_out, seconds)
        self.recovery.after_epoch(progress, held_out.loss if held_out else None, self.blank)
        progress.seconds = seconds
        progress.next_epoch()
        self.recovery.keep()

    @torch.no_grad()
    def _held_out(self) -> Lowest:
        """Return how well the network fills in what is hidden of the held-out images.

        Raises:
            DivergedError: It answers with no number.
        """
        parts, means, blind = self.parts, AverageMeter(), 0.0
        parts.model.eval()
        bar = tqdm(self._until_stopped(), desc="held out", unit="batch", leave=False, disable=None)
        for batch in bar:
            value = compute_loss(
                parts.model, batch, reconstruction_loss, parts.optimization.precision
            )
            if not math.isfinite(value.total.item()):
                names = tuple(truth.name for truth in batch.truths)
                raise DivergedError(
                    f"the network answers {', '.join(names[:4])} with no numbers; {ADVICE}", names
                )
            means.add(value, len(batch.truths))
            blind += blind_loss(batch.targets, batch.valid) * len(batch.truths)
        return Lowest(means.result()["loss"], self.progress.epoch, blind / means.images)

    def _until_stopped(self) -> Iterator[Batch]:
        for batch in self.parts.validation_batches:
            self._stop_if_asked()
            yield batch

    def _keep(self, held_out: Lowest) -> None:
        """Save the encoder, and show what its network fills in."""
        self._save_encoder(self.parts.model.encoder, held_out)
        write_reconstructions(self.folder / IMAGE, self.parts)
        self.lowest = held_out

    def _save_encoder(self, encoder: Encoder, lowest: Lowest) -> None:
        settings = self.parts.settings
        start = self.parts.start.words if self.parts.start else "nothing"
        origin = (
            f"notan pretrain on {len(self.parts.training)} images of {settings.path}, "
            f"{lowest.epoch} of {settings.epochs} epochs, starting from {start}"
        )
        save_encoder(
            self.folder / ENCODER,
            settings.encoder,
            encoder,
            origin=origin,
            images=self.parts.known,
        )

    def _write_down(self, held_out: Lowest | None, seconds: float) -> None:
        progress, losses = self.progress, self.progress.means.result()
        values = {f"train/{name}": value for name, value in losses.items() if name == "loss"}
        if held_out:
            values |= {"held_out/loss": held_out.loss, "held_out/blind_loss": held_out.blind}
        values["learning_rate"] = self.parts.optimization.schedule.rate_after(progress.epoch - 1)
        append_line(self.folder / HISTORY, {"epoch": progress.epoch, **values, "seconds": seconds})
        start = f"epoch {progress.epoch}/{self.settings.epochs}  loss {losses.get('loss', 0):.4f}"
        if not held_out or self.lowest is None:
            logger.info("%s  the held-out images gave no numbers", start)
            return
        logger.info(
            "%s  held-out loss %.4f  lowest %.4f (epoch %d)  %.1f s",
            *(start, held_out.loss, self.lowest.loss, self.lowest.epoch, seconds),
        )

    def _finish(self, lowest: Lowest) -> None:
        """Give the best encoder the batch norm statistics of whole images.

        It has seen images with gaps only, and the images that it will be trained on have none.

        Source: Izmailov et al. 2018, arXiv:1803.05407, section 3.2, there for averaged weights.
        """
        parts = self.parts
        encoder = copy.deepcopy(parts.model.encoder)  # a state that is saved meanwhile has the last
        encoder.load_state_dict(read_weights(self.folder / ENCODER).weights)
        parts.training_batches.set_epoch(epoch=0)
        update_bn(self._whole_images(), encoder, parts.device)
        self._save_encoder(encoder, lowest)

    def _whole_images(self) -> Iterator[Images]:
        for batch in self.parts.training_batches:
            self._stop_if_asked()
            yield batch.targets


FILES = (ENCODER, IMAGE, SETTINGS, HISTORY, INCIDENTS)
HARMLESS = {
    "device",
    "path",
    "workers",
    "encoder_weights",
    "checkpoint_every_seconds",
    "checkpoint_every_steps",
    "loss_guard",
    "max_rollbacks",
}
"""Settings that may differ when a run goes on: they decide where and how long, not what."""


def pretrain(
    settings: Pretrain, *, out: Path | None = None, overwrite: bool = False
) -> PretrainResult:
    """Pretrain an encoder on images without masks, and keep the one that fills in best.

    Args:
        settings: All of them.
        out: The run folder; None takes a fresh one under ``runs/``.
        overwrite: Replace a pretraining that is already in ``out``.

    Raises:
        ConfigError: A setting does not fit, or the folder is taken.
        DataError: An image is missing or unreadable, or there are too few.
        CheckpointError: The weights to go on from cannot be read, or are another network's.
        DivergedError: The loss is no number or jumps, again and again.
        StorageError: The disk is full; what was saved before is whole.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
    """
    folder = out or fresh_folder(Path("runs") / f"pretrain-{settings.encoder}")
    claim_folder(folder, overwrite=overwrite)
    parts = prepare(settings)
    with locked(folder, FILES):
        clear_folder(folder, FILES)  # only now: a wrong setting must not cost the earlier run
        return Pretrainer(parts, folder).train()


def stored_settings(folder: Path) -> Path:
    """Return the file with a pretraining's settings.

    Raises:
        ConfigError: There is no pretraining in the folder.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise ConfigError(
            f"{folder}: there is no pretraining here to go on with ({SETTINGS} is missing)"
        )
    return path


def resume(folder: Path, *, settings: Pretrain | None = None) -> PretrainResult:
    """Go on with a pretraining that was stopped, at the very step where its last state was written.

    On a CPU, and on a GPU with ``deterministic``, the weights are bit for bit those of a run that
    was never stopped. A run that was stopped before its first state begins again.

    Args:
        folder: The run folder.
        settings: Settings to go on with; None takes the folder's own.

    Raises:
        ConfigError: There is no pretraining, or other settings make it another one.
        DataError: The images are not those of the run.
        CheckpointError: Every saved state is damaged; the folder is left as it is.
        DivergedError: The loss is no number or jumps, again and again.
        StorageError: The disk is full; what was saved before is whole.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
    """
    stored = load_settings(Pretraining, stored_settings(folder)).pretrain
    settings = settings or stored
    changed = changed_settings(stored, settings)
    other = [
        f"pretrain.{name} ({before} -> {now})"
        for name, (before, now) in changed.items()
        if name not in HARMLESS
    ]
    if other:
        raise ConfigError(f"{', '.join(other)} would make it another run; start a new one")
    with locked(folder, FILES):
        states = StateFolder(folder / STATES)
        tree = states.load()
        parts = prepare(settings, state=tree)
        if tree is None:
            _require_no_states(folder, states)
            logger.info("%s was stopped before its first state: beginning again", folder)
            clear_folder(folder, FILES)
        elif tree["images"] != parts.fingerprints:
            raise DataError(
                f"{settings.path}: these are not the images that the run learned from; give "
                "their folder with --data-path, or start a new run"
            )
        return Pretrainer(parts, folder).train(tree)


def _require_no_states(folder: Path, states: StateFolder) -> None:
    """Refuse to begin a run again whose states are all damaged: its encoder may be of worth."""
    if states.files():
        raise CheckpointError(
            f"{folder}: no saved state in {STATES}/ can be read, so the run cannot go on; what is "
            f"in {ENCODER} can still be used; begin anew with: notan pretrain --overwrite "
            f"--out {folder}"
        )
