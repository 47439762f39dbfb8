"""Pretraining: an encoder learns from images without masks, by filling in what is hidden."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from notan.config import Augment, Model, Preprocess, Pretraining, Run, load_settings, run_to_toml
from notan.data.batches import BatchLoader
from notan.data.samples import choose_validation, fingerprint
from notan.data.transforms import Geometry
from notan.errors import DataError, DivergedError
from notan.io.write import fresh_folder, write_bytes
from notan.losses import LossValue
from notan.models.encoder_weights import read_weights, save_encoder
from notan.models.encoders import build_encoder
from notan.models.unet import UNet
from notan.prediction.formats import contact_sheet, write_png
from notan.pretraining.masked_images import MaskedImages, find_images
from notan.run_folder import HISTORY, INCIDENTS, STATES, RunFolder, refuse_changes
from notan.runtime import choose_workers
from notan.training.build import (
    Setup,
    avoid_faults,
    begin_computing,
    build_optimization,
    build_preprocessor,
    lay_out,
)
from notan.training.fine_tuning import HASHES, Freezing, Start, start_encoder
from notan.training.log import append_line, keep_lines
from notan.training.loop import Loop
from notan.training.start import HARMLESS as HARMLESS_IN_TRAINING
from notan.training.state import Best, StateFolder, changed_contents
from notan.training.steps import ADVICE, AverageMeter, compute_loss, losses_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from notan.config import Pretrain
    from notan.data.samples import FileSource
    from notan.modelfile.preprocess import Preprocessor
    from notan.models.base import Encoder
    from notan.types import Images, Masks, ModelInput, Probabilities, RGBImage

logger = logging.getLogger("notan")

SETTINGS = "pretrain.toml"
ENCODER = "encoder.safetensors"
IMAGE = "reconstructions.png"


class Reconstructor(UNet):
    """An encoder with a light way up to colours instead of a logit.

    Source: a decoder with skips, so that every level of a convolutional encoder learns: Tian et al.
    2023, SparK, arXiv:2301.03580; here with dense convolutions, for which hidden pixels have the
    mean colour.
    """

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__(encoder, width=width)
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


@dataclass(frozen=True, kw_only=True)
class PretrainSetup(Setup):
    """What ``prepare`` builds.

    Attributes:
        settings: All of it was built from them.
        model: The encoder with a light decoder.
    """

    settings: Pretrain
    model: Reconstructor

    @cached_property
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


def prepare(settings: Pretrain, *, state: Mapping[str, Any] | None = None) -> PretrainSetup:
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
    learning = settings.train
    precision = begin_computing(settings.device, learning, seed=settings.seed)
    device = precision.device
    network = Reconstructor(build_encoder(settings.encoder), settings.width)
    training, validation = _divided(settings)
    size = Preprocess(image_size=(settings.image_size,) * 2)
    preprocessor = build_preprocessor(size, network, training.images, training)
    if state is None:
        model = Model(encoder=settings.encoder, width=settings.width)
        run = Run(preprocess=size, model=model, train=learning)
        start = start_encoder(network, run, own_model=False)
    else:
        start = Start.from_state(state["encoder_start"])
    network = network.to(device)
    avoid_faults(network, device)
    lay_out(network, precision)
    crop = Augment(
        scale_probability=0.0,
        affine_scale=0.0,
        translate=0.0,
        rotate_degrees=0.0,
        crop_area=settings.crop_area,
        crop_probability=1.0,
    )
    crops = (Geometry(crop, preprocessor.fit),)
    workers = choose_workers(settings.workers, device)
    batches = BatchLoader(
        MaskedImages(training, preprocessor, settings, transforms=crops),
        learning.batch_size,
        shuffle=True,
        pin_memory=device.type == "cuda",
        workers=workers,
    )
    held_out = MaskedImages(validation, preprocessor, settings)
    return PretrainSetup(
        settings=settings,
        model=network,
        device=device,
        preprocessor=preprocessor,
        training=training,
        validation=validation,
        contents=(training.content_hashes(), validation.content_hashes()),
        training_batches=batches,
        validation_batches=BatchLoader(
            held_out, learning.batch_size, shuffle=False, workers=workers
        ),
        optimization=build_optimization(learning, network, precision, len(batches), Freezing()),
        start=start,
    )


def _divided(settings: Pretrain) -> tuple[FileSource, FileSource]:
    """Return the images to learn from and those held out, once every file's header is read."""
    images, words = find_images(settings)
    logger.info("%s: %s", settings.path, words)
    if len(images) < 2:
        raise DataError(
            f"{settings.path}: only one image; at least two are wanted, one to learn from and "
            "one to hold out, and hundreds to be of use"
        )
    names = frozenset(images.names)
    held_out = choose_validation(
        images.names, fraction=settings.held_out_fraction, seed=settings.seed
    )
    return images.only(names - held_out), images.only(held_out)


SHOWN = 6
"""Held-out images, one to a row."""


def write_reconstructions(path: Path, setup: PretrainSetup) -> None:
    """Write held-out images in three columns: with gaps, with the gaps filled in, whole.

    Args:
        path: A PNG file.
        setup: The network and the images.

    Raises:
        StorageError: The file could not be written.
    """
    model, precision = setup.model.eval(), setup.optimization.precision
    cells: list[RGBImage] = []
    rows = (row for batch in setup.validation_batches for row in zip(*batch[:3], strict=True))
    for seen, whole, hidden in islice(rows, SHOWN):
        with torch.no_grad(), precision.autocast():
            answer = model(seen[None].to(precision.device))[0].float().cpu()
        filled = torch.where(hidden > 0, answer, whole)
        cells += [as_colours(each.numpy(), setup.preprocessor) for each in (seen, filled, whole)]
    write_png(path, contact_sheet(cells, columns=3))


def as_colours(image: ModelInput, preprocessor: Preprocessor) -> RGBImage:
    """Undo ``Preprocessor.normalize``; what lies beyond black and white is cut off."""
    colours = image.transpose(1, 2, 0) * np.asarray(preprocessor.std) + preprocessor.mean
    levels: RGBImage = np.rint(255 * np.clip(colours, 0, 1)).astype(np.uint8)
    return levels


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining left.

    Attributes:
        encoder: The file of weights, for ``train.encoder_weights``.
        name: What ``model.encoder`` calls the encoder.
        lowest: The epoch with the lowest loss on the images that were held out: the mean absolute
            difference of the hidden pixels, in normalised colours.
    """

    encoder: Path
    name: str
    lowest: Best


class Pretrainer(Loop):
    """Runs one pretraining in one folder."""

    command = "notan pretrain"

    def __init__(self, setup: PretrainSetup, folder: Path) -> None:
        """Take what ``prepare`` has built and checked, and the run folder."""
        super().__init__(setup, setup.settings.train, folder, reconstruction_loss)
        self.setup: PretrainSetup = setup

    def capture(self) -> dict[str, Any]:
        """Return all that the rest of the pretraining depends on."""
        settings = run_to_toml(self.setup.settings)
        return {**super().capture(), "settings": settings, "images": self.setup.fingerprints}

    def train(self, tree: dict[str, Any] | None = None) -> PretrainResult:
        """Learn from the start, or from a state, to the end; see ``pretrain`` for errors.

        Args:
            tree: What ``capture`` returned, to go on from there.
        """
        setup = self.setup
        self.begin(tree)
        keep_lines(self.folder / HISTORY, lambda line: line["epoch"] < self.progress.epoch)
        told = run_to_toml(Pretraining(pretrain=setup.settings))
        write_bytes(self.folder / SETTINGS, told.encode())
        try:
            with self.stop:
                while self.progress.epoch <= self.settings.epochs:
                    self.begin_epoch()
                    losses = self.train_epoch()
                    held_out = self._validate()
                    best = self.progress.best
                    if held_out and (best is None or held_out.score < best.score):
                        self._keep(held_out)
                    self._write_down(losses, held_out)
                    loss = held_out.score if held_out else None
                    self.guard.after_epoch(self.progress, loss, self.failure)
                    self.end_epoch()
                lowest = self.require_best()
                self.save_state()  # says that the run is finished
                if lowest.score >= lowest.baseline:
                    logger.warning(
                        "the lowest held-out loss, %.4f, is no better than grey in every gap "
                        "(%.4f): nothing was learned; give more epochs, or another --learning-rate",
                        *(lowest.score, lowest.baseline),
                    )
                self._update_statistics(lowest)
        finally:
            setup.training_batches.close()
            setup.validation_batches.close()
        return PretrainResult(self.folder / ENCODER, setup.settings.encoder, lowest)

    def _validate(self) -> Best | None:
        """Score the network on the held-out images; None where it answers with NaN."""
        self.failure = None
        try:
            return self._score()
        except DivergedError as error:
            self.failure = error
            return None

    @torch.no_grad()
    def _score(self) -> Best:
        """Return how well the network fills in what is hidden of the held-out images.

        Raises:
            DivergedError: It answers with NaN or infinity.
        """
        setup, means, grey = self.setup, AverageMeter(), AverageMeter()
        setup.model.eval()
        batches = self.until_stopped(setup.validation_batches)
        for batch in tqdm(batches, desc="held out", unit="batch", leave=False, disable=None):
            value = compute_loss(
                setup.model, batch, reconstruction_loss, setup.optimization.precision
            )
            losses = losses_of(value)
            if not math.isfinite(losses["loss"]):
                names = batch.names
                raise DivergedError(
                    f"the network gives NaN or infinity for {', '.join(names[:4])}; {ADVICE}", names
                )
            means.add(losses, len(batch.names))
            mean_colour = torch.zeros_like(batch.targets)
            blank = reconstruction_loss(mean_colour, batch.targets, batch.valid)
            grey.add(losses_of(blank), len(batch.names))
        return Best(means.result()["loss"], self.progress.epoch, grey.result()["loss"])

    def _keep(self, held_out: Best) -> None:
        """Save the encoder, and show what its network fills in."""
        self._save_encoder(self.setup.model.encoder, held_out)
        write_reconstructions(self.folder / IMAGE, self.setup)
        self.progress.best = held_out

    def _save_encoder(self, encoder: Encoder, lowest: Best) -> None:
        settings = self.setup.settings
        start = self.setup.start.words if self.setup.start else "nothing"
        origin = (
            f"notan pretrain on {len(self.setup.training)} images of {settings.path}, "
            f"{lowest.epoch} of {self.settings.epochs} epochs, starting from {start}"
        )
        save_encoder(
            self.folder / ENCODER,
            settings.encoder,
            encoder,
            origin=origin,
            images=self.setup.known,
        )

    def _write_down(self, losses: dict[str, float], held_out: Best | None) -> None:
        progress, seconds, lowest = self.progress, self.stop_clock(), self.progress.best
        values = {f"train/{name}": value for name, value in losses.items() if name == "loss"}
        if held_out:
            values["held_out/loss"] = held_out.score
            values["held_out/baseline_loss"] = held_out.baseline
        values["learning_rate"] = self.setup.optimization.schedule.rate_after(progress.epoch - 1)
        append_line(self.folder / HISTORY, {"epoch": progress.epoch, **values, "seconds": seconds})
        words = f"epoch {progress.epoch}/{self.settings.epochs}  loss {losses.get('loss', 0):.4f}"
        if held_out and lowest:
            words += f"  held-out loss {held_out.score:.4f}"
            words += f"  lowest {lowest.score:.4f} (epoch {lowest.epoch})  {seconds:.1f} s"
        else:
            words += "  the held-out images gave NaN"
        logger.info("%s", words)

    def _update_statistics(self, lowest: Best) -> None:
        """Give the best encoder the batch norm statistics of whole images.

        It has seen images with gaps only, and the images that it will be trained on have none.

        Source: Izmailov et al. 2018, arXiv:1803.05407, section 3.2, there for averaged weights.
        """
        setup = self.setup
        encoder = copy.deepcopy(setup.model.encoder)  # a state that is saved meanwhile has the last
        encoder.load_state_dict(read_weights(self.folder / ENCODER).weights)
        setup.training_batches.set_epoch(epoch=0)
        update_bn(self._whole_images(), encoder, setup.device)
        self._save_encoder(encoder, lowest)

    def _whole_images(self) -> Iterator[Images]:
        for batch in self.until_stopped(self.setup.training_batches):
            yield batch.targets


HARMLESS = {
    *("pretrain.device", "pretrain.path", "pretrain.workers", "pretrain.train.encoder_weights"),
    *(f"pretrain.{name}" for name in HARMLESS_IN_TRAINING if name.startswith("train.")),
}
"""Settings that may differ when a run goes on: they decide where and how long, not what."""


def run_folder(path: Path) -> RunFolder:
    """Return the folder of a pretraining."""
    return RunFolder(
        path,
        noun="pretraining",
        again="notan pretrain --overwrite --out {path}",
        settings=SETTINGS,
        result=ENCODER,
        files=(ENCODER, IMAGE, SETTINGS, HISTORY, INCIDENTS),
    )


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
        DivergedError: The loss is NaN or infinite, or jumps, again and again.
        StorageError: The disk is full; what was saved before is whole.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
    """
    folder = run_folder(out or fresh_folder(Path("runs") / f"pretrain-{settings.encoder}"))
    folder.claim(overwrite=overwrite)
    setup = prepare(settings)
    with folder.locked():
        folder.clear()  # only now: a wrong setting must not cost the earlier run
        return Pretrainer(setup, folder.path).train()


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
        DivergedError: The loss is NaN or infinite, or jumps, again and again.
        StorageError: The disk is full; what was saved before is whole.
        StoppedBySignal: Ctrl-C or SIGTERM came; the state is saved.
    """
    kept = run_folder(folder)
    stored = load_settings(Pretraining, kept.find_settings())
    settings = settings or stored.pretrain
    refuse_changes(stored, Pretraining(pretrain=settings), harmless=HARMLESS)
    with kept.locked():
        tree = StateFolder(folder / STATES).load()
        setup = prepare(settings, state=tree)
        if tree is None:
            kept.begin_again()
        elif tree["images"] != setup.fingerprints:
            raise DataError(
                f"{settings.path}: these are not the images that the run learned from; give "
                "their folder with --data-path, or start a new run"
            )
        elif changes := [*changed_contents(setup, tree, settings.path)]:
            raise DataError(f"{changes[0]}; put back what they held, or start a new run")
        return Pretrainer(setup, folder).train(tree)
