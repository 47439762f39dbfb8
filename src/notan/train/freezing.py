"""Two stages of a training: the decoder learns on an encoder that stays as it came, then both do.

Source: Howard and Ruder 2018, ULMFiT, arXiv:1801.06146 (freezing first, smaller learning rates in
layers further from the answer); Kumar et al. 2022, arXiv:2202.10054 (why: the first gradients, of
a head that knows nothing, spoil features that are good already). There layers thaw one after the
other; here the encoder does so at once.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from notan.errors import ConfigError
from notan.models.base import encoder_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from notan.config import Run, Train
    from notan.models.base import Encoder

logger = logging.getLogger("notan")

FREEZING = ("freeze_epochs", "frozen_stages", "freeze_encoder_batchnorm")
"""Settings that keep what the encoder came with."""

BY_STAGE = ("frozen_stages", "layer_lr_decay")
"""Settings that need to know the encoder's stages one by one."""

SETTINGS = (*FREEZING, "encoder_lr_multiplier", "layer_lr_decay")
"""All that treat the encoder apart from the rest of the network."""


class Freezing:
    """Says what of a network's encoder learns, as a function of the epoch and nothing else.

    Attributes:
        encoder: None where nothing is ever frozen.
        epochs: So many from the start leave all of the encoder as it came, batch norm's statistics
            too.
        stages: So many of its stages, the finest first, stay so in the epochs after them as well.
        statistics: Whether batch norm's statistics stay in all of it.
        frozen: Whether this is one of the epochs that leave all of it as it came.
    """

    def __init__(
        self,
        encoder: Encoder | None = None,
        epochs: int = 0,
        *,
        stages: int = 0,
        statistics: bool = False,
    ) -> None:
        self.encoder = encoder
        self.epochs = epochs
        self.stages = stages
        self.statistics = statistics
        self.frozen = False

    @contextlib.contextmanager
    def during(self, epoch: int) -> Iterator[None]:
        """Freeze what of the encoder is to stay as it came in an epoch, and free it after it.

        Args:
            epoch: Counted from 1.

        Weights without gradients are left alone by the optimizer, weight decay included, and cost
        no time going backwards. Those that the user froze are not touched.
        """
        self.frozen = self.encoder is not None and epoch <= self.epochs
        if self.encoder is not None and epoch == self.epochs + 1 > 1:
            logger.info("epoch %d: from here on the encoder learns too", epoch)
        weights = [
            weight
            for module in self._held()
            for weight in module.parameters()
            if weight.requires_grad
        ]
        for weight in weights:
            weight.requires_grad = False
        try:
            yield
        finally:
            self.frozen = False
            for weight in weights:
                weight.requires_grad = True

    def _held(self) -> list[nn.Module]:
        """Return the modules that are to stay as they came now."""
        if self.encoder is None:
            return []
        if self.frozen:
            return [self.encoder]
        return [module for stage in self.encoder.stages()[: self.stages] for module in stage]

    def warn_of_end(self, epochs: float) -> None:
        """Say so where a training ends, after so many epochs, before the encoder has learned."""
        if self.epochs and self.epochs >= epochs:
            logger.warning(
                "train.freeze_epochs = %d of %.3g epochs: the encoder will stay as it came to the "
                "end, which suits a few dozen images; with more, freeze fewer epochs than you "
                "train",
                *(self.epochs, epochs),
            )

    def set_mode(self, model: nn.Module) -> None:
        """Put a network into training mode, but for what is frozen."""
        model.train()
        if self.encoder is None:
            return
        for module in self._held():
            module.eval()
        if self.statistics:
            for module in self.encoder.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def __str__(self) -> str:
        parts = [f"as it came for {self.epochs} epochs"] if self.epochs else []
        if self.stages:
            many = f"{self.stages} finest stages as they"
            parts += [f"its {many if self.stages > 1 else 'finest stage as it'} came"]
        parts += ["with the statistics it came with"] if self.statistics else []
        if self.encoder is None or not parts:
            return ""
        return f"encoder: {', then '.join(parts)}"


def build_freezing(run: Run, network: nn.Module, *, own_model: bool) -> Freezing:
    """Check the settings that treat the encoder apart, and say what they freeze.

    Args:
        run: All settings.
        network: Its encoder has its weights already.
        own_model: Whether it is a module of the user's, who knows what its weights are.

    Raises:
        ConfigError: The network has no encoder, or nothing beside it, or the encoder that is to
            stay as it came knows nothing, or its stages are to learn apart and are not known.
    """
    settings = run.train
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
    learned = settings.pretrained or settings.encoder_weights is not None
    if kept and not (learned or own_model):
        raise ConfigError(
            f"{', '.join(kept)}: the encoder starts from random weights, and frozen it would stay "
            "so; start it from published ones (--encoder efficientnet_lite0 --pretrained) or a "
            "file's (train.encoder_weights), or leave the setting out"
        )
    if settings.freeze_epochs and _is_all(encoder, network):
        raise ConfigError(
            f"{what}: {type(network).__name__} has no weights beside its encoder's, so nothing "
            "would learn while that is frozen; leave train.freeze_epochs out"
        )
    _require_stages(encoder, _changed(settings, BY_STAGE), settings.frozen_stages)
    freezing = Freezing(
        encoder,
        settings.freeze_epochs,
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
