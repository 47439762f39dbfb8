"""Pretrainer: runs the epochs of a pretraining and keeps the encoder that fills in best."""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from notan.config import Pretraining, run_to_toml
from notan.errors import DivergedError
from notan.files import write_bytes
from notan.models.encoder_files import read_weights, save_encoder
from notan.pretrain.network import blind_loss, reconstruction_loss
from notan.pretrain.parts import as_run
from notan.pretrain.show import write_reconstructions
from notan.train.log import HISTORY, append_line, keep_lines
from notan.train.loop import Loop
from notan.train.progress import capture_learning
from notan.train.steps import ADVICE, AverageMeter, compute_loss, train_epoch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from notan.data.batches import Batch
    from notan.models.base import Encoder
    from notan.pretrain.parts import PretrainParts
    from notan.types import Images

logger = logging.getLogger("notan")

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
