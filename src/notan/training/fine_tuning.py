"""Fine-tuning: encoders that begin with learned weights, and what of them stays frozen.

Source: Howard and Ruder 2018, ULMFiT, arXiv:1801.06146 (freezing first, smaller learning rates in
layers further from the answer); Kumar et al. 2022, arXiv:2202.10054 (why: the first gradients, of
a head that knows nothing, spoil features that are good already). There layers thaw one after the
other; here the encoder does so at once.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from notan.errors import CheckpointError, ConfigError, DataError
from notan.modelfile.card import KEY, load_checkpoint
from notan.modelfile.preprocess import RGB_CHANNELS
from notan.models.base import Encoder, encoder_of
from notan.models.build import name_encoder
from notan.models.encoder_weights import (
    PUBLISHED,
    WeightsFile,
    fit_weights,
    load_published,
    read_weights,
)
from notan.models.encoders import ENCODERS
from notan.models.timm_encoder import is_timm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from torch import Tensor, nn

    from notan.config import Preprocess, Run, Train
    from notan.data.samples import Source
    from notan.modelfile.card import Card, Checkpoint

logger = logging.getLogger("notan")

HASHES = ("training_hashes", "validation_hashes", "unlabelled_hashes")
"""How a card names what it knows of images by their content: seen with masks, chosen on, seen
without masks."""


@dataclass(frozen=True)
class Start:
    """Where weights came from; kept in the state, as a resume needs no file again.

    Attributes:
        words: For the card: which encoder or network, and what its weights were learned from.
        training_hashes: Of images that they have learned with their masks.
        validation_hashes: Of images that they were chosen on.
        unlabelled_hashes: Of images that they have learned from without masks.
    """

    words: str
    training_hashes: tuple[str, ...] = ()
    validation_hashes: tuple[str, ...] = ()
    unlabelled_hashes: tuple[str, ...] = ()

    @classmethod
    def from_state(cls, fields: Mapping[str, Any] | None) -> Start | None:
        """Read what a state's JSON has kept of one."""
        if fields is None:
            return None
        words, *hashes = (fields[name] for name in cls.__dataclass_fields__)
        return cls(words, *map(tuple, hashes))


def require_unseen(
    trained_hashes: Iterable[str], validation: Source, *, who: str, whose: str
) -> None:
    """Refuse to choose a model on images that it knows through another.

    Args:
        trained_hashes: Of the images that the other was trained on.
        validation: What the model will be chosen on.
        who: The other, as the message begins.
        whose: What the Dice would flatter.

    Raises:
        DataError: The other was trained on some of them.
    """
    trained = set(trained_hashes)
    hashes = validation.hashes() if trained else ()
    known = [name for name, each in zip(validation.names, hashes, strict=False) if each in trained]
    if known:
        raise DataError(
            f"{who} was trained on {len(known)} of this run's {len(validation)} "
            f"validation images ({', '.join(known[:3])}{', ...' if len(known) > 3 else ''}), so "
            f"{whose} Dice on them would flatter it; train both with one data.split_seed"
        )


def start_encoder(network: nn.Module, run: Run, *, own_model: bool) -> Start | None:
    """Give a network's encoder the weights that a run asks for.

    Where both are asked for, ``train.encoder_weights`` takes the place of the published ones.

    Args:
        network: What ``run.model`` builds, or the user's own.
        run: ``train.pretrained`` and ``train.encoder_weights``; how images will be normalised.
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
        start = _start_published(name, encoder, run)
    else:
        start = _start_from_file(path, name, encoder, run.preprocess)
    logger.info("the encoder begins with %s", start.words)
    return start


def _start_published(name: str, encoder: Encoder, run: Run) -> Start:
    if not (is_timm(name) or name in PUBLISHED):
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
    return Start(f"{name}, {load_published(name, encoder)}")


STANDARD = (64, "standard")
"""Width and residual block of the ResNet-34 whose weights were published."""


def _start_from_file(path: Path, name: str, encoder: Encoder, settings: Preprocess) -> Start:
    file = read_weights(path)
    if KEY in file.metadata:
        return _start_from_checkpoint(file, name, encoder, settings)
    if file.encoder not in (None, name):
        raise CheckpointError(
            f"{path}: these are weights of {file.encoder}, and the encoder of this run is {name}; "
            f"{_choosing(file.encoder)}, or give other weights"
        )
    encoder.load_state_dict(fit_weights(path, file.weights, name, encoder))
    published = PUBLISHED.get(name)
    if published and f"sha256:{file.sha256}".startswith(published.where.known_hash):
        return Start(f"{name}, {published.words}")
    known = {how: hashes for how, hashes in file.images.items() if how in HASHES}
    return Start(f"{name}, {file.origin or 'weights'} {_named(file)}", **known)


def start_network(network: nn.Module, run: Run, *, own_model: bool) -> Start | None:
    """Give a network the weights that a run asks for: all of them, or its encoder's.

    Args:
        network: What ``run.model`` builds, or the user's own.
        run: ``train.weights``, or what ``start_encoder`` needs.
        own_model: Whether the network is the user's own.

    Returns:
        None where the run asks for none.

    Raises:
        CheckpointError: The file is missing, damaged, no checkpoint, or another network's.
        ConfigError: As of ``start_encoder``, and MissingExtraError and StorageError.
    """
    path = run.train.weights
    if path is None:
        return start_encoder(network, run, own_model=own_model)
    checkpoint = _load_single(path)
    card = checkpoint.card
    if card.model is not None and not own_model:
        ours, theirs = run.model.model_dump(), card.model.model_dump()
        other = [f"model.{name}={value}" for name, value in theirs.items() if value != ours[name]]
        if other:
            raise CheckpointError(
                f"{path}: the network of this model is another one than this run's; to go on from "
                f"it, give {' '.join(other)}"
            )
    try:
        network.load_state_dict(dict(checkpoint.weights))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: these are weights of another network ({card.model_class}, "
            f"{card.preprocess.channels} channels): {' '.join(str(error).split())[:200]}"
        ) from error
    _warn_of_other_input(path, card, encoder_of(network) or Encoder, run.preprocess)
    start = _start_of(card, f"{card.model_class}, all of it", f"({path.name}, {card.sha256[:12]})")
    logger.info("the network begins with %s", start.words)
    return start


def _load_single(path: Path) -> Checkpoint:
    """Read a checkpoint of one network."""
    checkpoint = load_checkpoint(path)
    if checkpoint.card.members:
        raise CheckpointError(
            f"{path}: an ensemble, which has more than one network; give one of its members"
        )
    return checkpoint


def _start_of(card: Card, what: str, named: str) -> Start:
    """Say what of a model that notan has trained is begun with, and remember its images."""
    before = f", before that {card.pretrained}" if card.pretrained else ""
    return Start(
        f"{what}, trained with masks {named}{before}",
        card.data.training_hashes,
        card.data.validation_hashes,
        card.data.unlabelled_hashes,
    )


def _start_from_checkpoint(
    file: WeightsFile, name: str, encoder: Encoder, settings: Preprocess
) -> Start:
    """Take the encoder of a model that notan has trained."""
    path, checkpoint = file.path, _load_single(file.path)
    card = checkpoint.card
    theirs = name_encoder(card.model) if card.model else name
    if theirs != name:
        raise CheckpointError(
            f"{path}: the encoder of this model is {theirs}, and that of this run is {name}; "
            f"{_choosing(theirs)}, or give another model"
        )
    encoder.load_state_dict(fit_weights(path, _inner(checkpoint.weights), name, encoder))
    _warn_of_other_input(path, card, encoder, settings)
    return _start_of(card, name, _named(file))


def _inner(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a network's encoder, under the encoder's own names."""
    return {
        name.removeprefix("encoder."): tensor
        for name, tensor in weights.items()
        if name.startswith("encoder.")
    }


def _warn_of_other_input(
    path: Path, card: Card, encoder: Encoder | type[Encoder], settings: Preprocess
) -> None:
    theirs = (card.preprocess.mean, card.preprocess.std)
    # other channels than colours are normalised by what is measured of each data set
    usual = (encoder.mean, encoder.std) if card.preprocess.channels == RGB_CHANNELS else theirs
    ours = (settings.mean or usual[0], settings.std or usual[1])
    if theirs != ours:
        logger.warning(
            "%s: learned from images with preprocess.mean and .std = %s, and this run has %s; "
            "give it those, so that the encoder sees what it knows",
            *(path, theirs, ours),
        )


def _choosing(name: str) -> str:
    """Say what makes a run's encoder the named one."""
    known = name in ENCODERS or is_timm(name)
    return f"choose --encoder {name}" if known else f"choose --model {name} alone"


def _named(file: WeightsFile) -> str:
    return f"({file.path.name}, SHA-256 {file.sha256[:12]})"


FREEZING = ("freeze_epochs", "freeze_fraction", "frozen_stages", "freeze_encoder_batchnorm")
"""Settings that keep what the encoder came with."""

BY_STAGE = ("frozen_stages", "layer_lr_decay")
"""Settings that need to know the encoder's stages one by one."""

SETTINGS = (*FREEZING, "encoder_lr_multiplier", "layer_lr_decay")
"""All that treat the encoder apart from the rest of the network."""


@dataclass
class Freezing:
    """Keeps what of a network's encoder does not learn as it came; the schedule says until when.

    Attributes:
        encoder: None where nothing is ever frozen.
        epochs: So many from the start leave all of the encoder as it came, batch norm's statistics
            too.
        fraction: Likewise, the share of the training that does.
        stages: So many of its stages, the finest first, stay so after that as well.
        statistics: Whether batch norm's statistics stay in all of it.
        frozen: Whether the steps of now leave all of it as it came; None: there are none now.
    """

    encoder: Encoder | None = None
    epochs: int = 0
    fraction: float = field(default=0.0, kw_only=True)
    stages: int = field(default=0, kw_only=True)
    statistics: bool = field(default=False, kw_only=True)
    frozen: bool | None = field(default=None, init=False)
    _held: list[nn.Parameter] = field(default_factory=list, init=False)

    @contextlib.contextmanager
    def during_steps(self) -> Iterator[None]:
        """Free at the end what ``set_mode`` has frozen."""
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        for weight in self._held:
            weight.requires_grad = True
        self._held, self.frozen = [], None

    def warn_of_end(self, epochs: float) -> None:
        """Say so where a training ends, after so many epochs, before the encoder has learned."""
        if self.epochs and self.epochs >= epochs:
            logger.warning(
                "train.freeze_epochs = %d of %.3g epochs: the encoder will stay as it came to the "
                "end, which suits a few dozen images; with more, freeze fewer epochs than you "
                "train",
                *(self.epochs, epochs),
            )

    def set_mode(self, model: nn.Module, *, frozen: bool) -> None:
        """Put a network into training mode for the steps to come, but for what is frozen.

        Weights without gradients are left alone by the optimizer, weight decay included, and cost
        no time going backwards. Those that the user froze are not touched.

        Args:
            model: The network; left alone where the step before was of the same kind.
            frozen: Whether all of the encoder stays as it came.
        """
        if frozen == self.frozen:
            return
        self._release()
        self.frozen = frozen
        model.train()
        if self.encoder is None:
            return
        fine = (module for stage in self.encoder.stages()[: self.stages] for module in stage)
        for module in [self.encoder] if frozen else fine:
            module.eval()
            self._held += [weight for weight in module.parameters() if weight.requires_grad]
        for weight in self._held:
            weight.requires_grad = False
        if self.statistics:
            for module in self.encoder.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def __str__(self) -> str:
        long = [f"{self.epochs} epochs"] if self.epochs else []
        long += [f"{self.fraction:.3g} of the training"] if self.fraction else []
        parts = [f"as it came for {' and '.join(long)}"] if long else []
        if self.stages:
            many = f"{self.stages} finest stages as they"
            parts += [f"its {many if self.stages > 1 else 'finest stage as it'} came"]
        parts += ["with the statistics it came with"] if self.statistics else []
        if self.encoder is None or not parts:
            return ""
        return f"encoder: {', then '.join(parts)}"


def build_freezing(settings: Train, network: nn.Module, *, own_model: bool) -> Freezing:
    """Check the settings that treat the encoder apart, and say what they freeze.

    Args:
        settings: How long and how fast to train.
        network: Its encoder has its weights already.
        own_model: Whether it is a module of the user's, who knows what its weights are.

    Raises:
        ConfigError: The network has no encoder, or nothing beside it, or the encoder that is to
            stay as it came knows nothing, or its stages are to learn apart and are not known.
    """
    changed = _changed(settings, SETTINGS)
    if not changed:
        return Freezing()
    encoder, what = encoder_of(network), ", ".join(changed)
    if encoder is None:
        raise ConfigError(
            f"{what}: {type(network).__name__} has no encoder to treat apart; set self.encoder to "
            "a notan.models.base.Encoder, or leave the setting out"
        )
    kept = _changed(settings, FREEZING)
    learned = settings.pretrained or settings.encoder_weights or settings.weights
    if kept and not (learned or own_model):
        raise ConfigError(
            f"{', '.join(kept)}: the encoder starts from random weights, and frozen it would stay "
            "so; start from published ones (--encoder efficientnet_lite0 --pretrained), a file's "
            "(train.encoder_weights) or a model's (--weights), or leave the setting out"
        )
    if (settings.freeze_epochs or settings.freeze_fraction) and _is_all(encoder, network):
        raise ConfigError(
            f"{what}: {type(network).__name__} has no weights beside its encoder's, so nothing "
            "would learn while that is frozen; leave the setting out"
        )
    _require_stages(encoder, _changed(settings, BY_STAGE), settings.frozen_stages)
    freezing = Freezing(
        encoder,
        settings.freeze_epochs,
        fraction=settings.freeze_fraction,
        stages=settings.frozen_stages,
        statistics=settings.freeze_encoder_batchnorm,
    )
    freezing.warn_of_end(settings.epochs)
    return freezing


def _require_stages(encoder: Encoder, asked: list[str], frozen: int) -> None:
    """Refuse settings that go by the encoder's stages where those are unknown, or too few."""
    stages = len(encoder.strides)
    if asked and len(encoder.stages()) < stages:
        raise ConfigError(
            f"{', '.join(asked)}: it is not known which of the encoder's weights make which of its "
            "feature maps; leave the setting out, train.encoder_lr_multiplier slows all of the "
            "encoder down"
        )
    if frozen >= stages:
        raise ConfigError(
            f"train.frozen_stages = {frozen}: this encoder has {stages} stages, of which one at "
            f"least must learn; give at most {stages - 1}, or keep all of it as it came by "
            "train.freeze_epochs"
        )


def _changed(settings: Train, names: tuple[str, ...]) -> list[str]:
    """Say which of some settings are not at their defaults."""
    fields = type(settings).model_fields
    return [
        f"train.{name} = {value}"
        for name in names
        if (value := getattr(settings, name)) != fields[name].default
    ]


def _is_all(encoder: Encoder, network: nn.Module) -> bool:
    inside = {id(weight) for weight in encoder.parameters()}
    return all(id(weight) in inside for weight in network.parameters() if weight.requires_grad)
