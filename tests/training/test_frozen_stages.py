"""Frozen stages: the encoder's finest ones stay bit for bit to the end, and the rest learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from notan.errors import ConfigError
from notan.models.unet import UNet
from notan.training.trainer import Trainer
from runs import (
    differing,
    encoder_in,
    encoder_state,
    fresh_unet,
    last_state,
    tiny,
    train_own,
    two_stages,
    watched,
)

if TYPE_CHECKING:
    from pathlib import Path


def names_of_stages(model: UNet, numbers: range) -> set[str]:
    """Name what a state dict of the encoder holds of some of its stages."""
    inside = {
        tensor.data_ptr()
        for number in numbers
        for module in model.encoder.stages()[number]
        for tensor in module.state_dict().values()
    }
    state = model.encoder.state_dict()
    return {name for name, tensor in state.items() if tensor.data_ptr() in inside}


@pytest.mark.parametrize("epochs", [0, 1])
def test_the_finest_stages_stay_bit_for_bit_to_the_end_while_the_rest_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    model = fresh_unet()
    came = encoder_state(model)
    kept = names_of_stages(model, range(2))
    assert kept
    gradients: list[bool] = []

    def look(_: Trainer) -> None:
        stages = model.encoder.stages()[:2]
        weights = [each for stage in stages for module in stage for each in module.parameters()]
        gradients.extend(weight.grad is not None for weight in weights)

    monkeypatch.setattr(Trainer, "after_step", watched(look))
    run = two_stages(train__freeze_epochs=epochs, train__frozen_stages=2)
    train_own(run, tmp_path / "run", model=model)
    assert gradients
    assert not any(gradients)
    assert differing(came, encoder_in(last_state(tmp_path / "run"))) == set(came) - kept
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("stages", [5, 9])
def test_more_frozen_stages_than_can_be_are_refused(tmp_path: Path, stages: int) -> None:
    with pytest.raises(ConfigError, match=f"frozen_stages = {stages}: .* has 5 stages.* at most 4"):
        train_own(tiny(train__frozen_stages=stages), tmp_path / "run", model=UNet(width=2))


def test_stages_that_are_not_known_cannot_be_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = UNet(width=2)
    every = [module for stage in model.encoder.stages() for module in stage]
    monkeypatch.setattr(model.encoder, "stages", lambda: [every])
    with pytest.raises(ConfigError, match="frozen_stages = 1: it is not known which of the enc"):
        train_own(tiny(train__frozen_stages=1), tmp_path / "run", model=model)
