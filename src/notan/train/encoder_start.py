"""Weights that an encoder begins with: published ones, or those of a file of the user's."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notan.checkpoint import KEY, load_checkpoint
from notan.errors import CheckpointError, ConfigError
from notan.models.base import encoder_of
from notan.models.encoder_adapters import is_foreign
from notan.models.encoder_files import WeightsFile, read_weights
from notan.models.encoder_names import fit_weights
from notan.models.encoders import ENCODERS, name_encoder
from notan.models.foreign_encoder import ForeignEncoder
from notan.models.pretrained import PUBLISHED
from notan.train.provenance import HASHES, require_unseen, seen_too

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from torch import Tensor, nn

    from notan.checkpoint import Card, DataCard
    from notan.config import Run
    from notan.data.sample import Source
    from notan.models.base import Encoder
    from notan.preprocess import Preprocessor

logger = logging.getLogger("notan")


@dataclass(frozen=True)
class EncoderStart:
    """Where an encoder's weights came from; kept in the state, as a resume needs no file again.

    Attributes:
        words: For the card: which encoder, and what its weights were learned from.
        training_hashes: Of images that they have learned with their masks.
        validation_hashes: Of images that they were chosen on.
        unlabelled_hashes: Of images that they have learned from without masks.
    """

    words: str
    training_hashes: tuple[str, ...] = ()
    validation_hashes: tuple[str, ...] = ()
    unlabelled_hashes: tuple[str, ...] = ()

    def seen_too(self, data: DataCard, validation: Source) -> DataCard:
        """Add to a training's images those that the encoder has learned with their masks.

        Raises:
            DataError: Some of them would choose the model.
        """
        who = f"the model whose encoder is begun with ({self.words})"
        require_unseen(self, validation, who=who, whose="the new model's")
        return seen_too(data, self)

    @classmethod
    def from_state(cls, fields: Mapping[str, Any] | None) -> EncoderStart | None:
        """Read what a state's JSON has kept of one."""
        if fields is None:
            return None
        words, *hashes = (fields[name] for name in cls.__dataclass_fields__)
        return cls(words, *map(tuple, hashes))


def start_encoder(
    network: nn.Module, run: Run, preprocessor: Preprocessor, *, own_model: bool
) -> EncoderStart | None:
    """Give a network's encoder the weights that a run asks for.

    Where both are asked for, ``train.encoder_weights`` takes the place of the published ones.

    Args:
        network: What ``run.model`` builds, or the user's own.
        run: ``train.pretrained`` and ``train.encoder_weights``.
        preprocessor: How images will reach the encoder.
        own_model: Whether the network is the user's own.

    Returns:
        None where the run asks for none.

    Raises:
        ConfigError: The network has no such encoder, or none with published weights.
        CheckpointError: The file is missing, damaged, no weights, or another network's.
        MissingExtraError: The package with the published weights is not installed.
        StorageError: What was fetched cannot be kept.
    """
    path = run.train.encoder_weights
    if not (run.train.pretrained or path):
        return None
    encoder = encoder_of(network)
    if own_model or encoder is None:
        raise ConfigError(
            "train.pretrained and train.encoder_weights are for the encoders of notan's models; "
            "give a module of your own its weights before it is trained"
        )
    name = name_encoder(run.model)
    if path is None:
        start = _start_published(name, encoder, run, preprocessor)
    else:
        start = _start_from_file(path, name, encoder, preprocessor)
    logger.info("the encoder begins with %s", start.words)
    return start


def _start_published(
    name: str, encoder: Encoder, run: Run, preprocessor: Preprocessor
) -> EncoderStart:
    if isinstance(encoder, ForeignEncoder):
        words = encoder.load_published()
        _require_input(encoder, run, preprocessor)
        return EncoderStart(f"{name}, {words}")
    if name not in PUBLISHED:
        known = " or ".join(sorted(PUBLISHED))
        raise ConfigError(
            f"train.pretrained: the encoder of {run.model.name} is its own, and nobody has "
            f"published weights of it; choose --encoder {known}"
        )
    if run.model.name == "resnet34_unet" and (run.model.width, run.model.residual) != STANDARD:
        raise ConfigError(
            "train.pretrained: the published weights are of a ResNet-34 of width 64 with standard "
            f"blocks, and this one has model.width={run.model.width} and "
            f"model.residual={run.model.residual}; leave both settings, or leave --pretrained"
        )
    published = PUBLISHED[name]
    file = read_weights(published.where.find())
    encoder.load_state_dict(fit_weights(file.path, file.weights, name, encoder))
    return EncoderStart(f"{name}, {published.words}")


def _require_input(encoder: ForeignEncoder, run: Run, preprocessor: Preprocessor) -> None:
    """Refuse images that weights were not made for, unless the run itself asks for them."""
    wanted = " ".join(
        f"preprocess.{each}={list(getattr(encoder, each))}".replace(", ", ",")
        for each in ("mean", "std")
        if getattr(run.preprocess, each) is None
        and getattr(encoder, each) != getattr(preprocessor, each)
    )
    if wanted:
        raise ConfigError(
            f"{encoder.called}: its weights were learned from images with another mean and "
            f"deviation than this run has; give {wanted}"
        )


STANDARD = (64, "standard")
"""Width and residual block of the ResNet-34 whose weights were published."""


def _start_from_file(
    path: Path, name: str, encoder: Encoder, preprocessor: Preprocessor
) -> EncoderStart:
    file = read_weights(path)
    if KEY in file.metadata:
        return _start_from_checkpoint(file, name, encoder, preprocessor)
    if file.encoder not in (None, name):
        raise CheckpointError(
            f"{path}: these are weights of {file.encoder}, and the encoder of this run is {name}; "
            f"{_choosing(file.encoder)}, or give other weights"
        )
    encoder.load_state_dict(fit_weights(path, file.weights, name, encoder))
    published = PUBLISHED.get(name)
    if published and file.sha256.startswith(published.where.checksum.digits):
        return EncoderStart(f"{name}, {published.words}")
    known = {how: hashes for how, hashes in file.images.items() if how in HASHES}
    return EncoderStart(f"{name}, {file.origin or 'weights'} {_named(file)}", **known)


def _start_from_checkpoint(
    file: WeightsFile, name: str, encoder: Encoder, preprocessor: Preprocessor
) -> EncoderStart:
    """Take the encoder of a model that notan has trained, and remember its images."""
    path, checkpoint = file.path, load_checkpoint(file.path)
    card = checkpoint.card
    if card.members:
        raise CheckpointError(
            f"{path}: an ensemble, which has more than one encoder; give one of its members"
        )
    theirs = name_encoder(card.model) if card.model else name
    if theirs != name:
        raise CheckpointError(
            f"{path}: the encoder of this model is {theirs}, and that of this run is {name}; "
            f"{_choosing(theirs)}, or give another model"
        )
    encoder.load_state_dict(fit_weights(path, _inner(checkpoint.weights), name, encoder))
    _warn_of_other_input(path, card, preprocessor)
    before = f", before that {card.pretrained}" if card.pretrained else ""
    return EncoderStart(
        f"{name}, trained with masks {_named(file)}{before}",
        card.data.training_hashes,
        card.data.validation_hashes,
        card.data.unlabelled_hashes,
    )


def _inner(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a network's encoder, under the encoder's own names."""
    return {
        name.removeprefix("encoder."): tensor
        for name, tensor in weights.items()
        if name.startswith("encoder.")
    }


def _warn_of_other_input(path: Path, card: Card, preprocessor: Preprocessor) -> None:
    theirs, ours = ((each.mean, each.std) for each in (card.preprocess, preprocessor))
    if theirs != ours:
        logger.warning(
            "%s: learned from images with preprocess.mean and .std = %s, and this run has %s; "
            "give it those, so that the encoder sees what it knows",
            *(path, theirs, ours),
        )


def _choosing(name: str) -> str:
    """Say what makes a run's encoder the named one."""
    known = name in ENCODERS or is_foreign(name)
    return f"choose --encoder {name}" if known else f"choose --model {name} alone"


def _named(file: WeightsFile) -> str:
    return f"({file.path.name}, SHA-256 {file.sha256[:12]})"
