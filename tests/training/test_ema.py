"""Weight averaging: the published formula, kept where it is better, resumed exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from notan.errors import StoppedBySignal
from notan.modelfile.card import load_checkpoint
from notan.models.base import SegmentationModel
from notan.training.optim import average_weights
from notan.training.trainer import Trainer
from runs import (
    ask_to_stop,
    before_step,
    fate,
    history,
    last_state,
    resume_own,
    tiny,
    train_own,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Weights = npt.NDArray[np.float64]


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))


def arrays(model: nn.Module) -> dict[str, Weights]:
    return {name: value.double().numpy().copy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_follows_the_formula_with_its_warm_up(decay: float) -> None:
    """Of the first steps it keeps a growing share only: 1/11, 2/12 ... up to the decay."""
    model = small_network()
    average = average_weights(model, decay)
    expected = arrays(model)
    for step in range(1, 60):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
            model(torch.randn(2, 3, 4, 4))  # moves batch norm's statistics
        average.update_parameters(model)
        kept = min(decay, step / (step + 10))
        for name, value in arrays(model).items():
            whole = name.endswith("num_batches_tracked")
            expected[name] = value if whole else kept * expected[name] + (1 - kept) * value
    assert average.n_averaged == 60  # counted from 1
    for name, value in arrays(average.module).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_average_is_neither_trained_nor_in_training_mode() -> None:
    model = small_network()
    average = average_weights(model, 0.9)
    assert model.training
    assert not average.module.training
    assert not any(weight.requires_grad for weight in average.module.parameters())


def test_the_average_changes_nothing_in_the_training_itself(tmp_path: Path) -> None:
    train_own(tiny(train__epochs=3, train__ema_decay=0.9), tmp_path / "with")
    train_own(tiny(train__epochs=3), tmp_path / "without")
    ends = [fate(tmp_path / which) for which in ("with", "without")]
    for part in ("/state/model/", "/state/optimizer/"):
        models = [{key: end[key] for key in end if key.startswith(part)} for end in ends]
        assert models[0] == models[1]
        assert models[0]


@pytest.mark.parametrize("better", ["average", "model"])
def test_whichever_scores_better_is_the_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: str
) -> None:
    """The one that is worse is made so: its weights are turned to zero before it is scored."""
    validations = Trainer._validations

    def biased(trainer: Trainer) -> object:
        average = trainer.setup.average
        assert average
        worse = trainer.setup.model if better == "average" else average.module
        kept = {name: value.clone() for name, value in worse.state_dict().items()}
        with torch.no_grad():
            for weight in worse.parameters():
                weight.zero_()
            list(worse.parameters())[-1].fill_(-9.0)  # the head's bias: all is background
        found = list(validations(trainer))
        worse.load_state_dict(kept)
        return found

    monkeypatch.setattr(Trainer, "_validations", biased)
    # two epochs are too few to find foreground from a first guess that all is background
    monkeypatch.setattr(SegmentationModel, "expect", lambda *_: None)
    run = tiny(train__epochs=2, train__ema_decay=0.5, train__learning_rate=0.05)
    result = train_own(run, tmp_path / "run")
    state = last_state(tmp_path / "run")
    assert result.dice > 0
    assert state["progress"]["best"]["averaged"] == (better == "average")
    best = history(result)[result.epoch - 1]
    name = "validation/ema_dice" if better == "average" else "validation/dice"
    assert result.dice == best[name]
    if result.epoch == 2:  # else the weights have moved on
        before = "module." if better == "average" else ""  # as AveragedModel names them
        kept = state["average" if before else "model"]
        saved = load_checkpoint(result.checkpoint).weights
        assert all(torch.equal(value, kept[before + key]) for key, value in saved.items())


def test_without_a_decay_there_is_no_average(tmp_path: Path) -> None:
    result = train_own(tiny(), tmp_path / "run")
    assert last_state(tmp_path / "run")["average"] is None
    assert "validation/ema_dice" not in history(result)[0]


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_the_average_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    run = tiny(train__epochs=3, train__ema_decay=0.9)
    train_own(run, tmp_path / "whole")
    monkeypatch.setattr(Trainer, "after_step", before_step(step, ask_to_stop))
    with pytest.raises(StoppedBySignal):
        train_own(run, tmp_path / "run")
    monkeypatch.undo()
    resume_own(tmp_path / "run")
    assert last_state(tmp_path / "run")["average"]["n_averaged"] == 7  # counted from 1
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")
