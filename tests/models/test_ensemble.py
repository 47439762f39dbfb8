"""An ensemble answers with the weighted mean of its members' calibrated probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from torch import nn

from notan.config import Model
from notan.errors import ConfigError
from notan.models.build import build_model
from notan.models.ensemble import Ensemble
from runs import Own


class Constant(nn.Module):
    """Answers every pixel with one logit."""

    def __init__(self, level: float, stride: int = 1) -> None:
        super().__init__()
        self.level, self.stride = level, stride

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full_like(images[:, :1], self.level)


def joined(*levels: float, weights: tuple[float, ...] = ()) -> Ensemble:
    number = len(levels)
    return Ensemble(
        [Constant(level) for level in levels],
        weights or (1.0,) * number,
        temperatures=(1.0,) * number,
        biases=(0.0,) * number,
    )


IMAGES = torch.zeros(2, 3, 4, 4)


def test_the_answer_is_the_weighted_mean_of_calibrated_probabilities() -> None:
    torch.manual_seed(0)
    members = [Own(), Own(), Own()]
    ensemble = Ensemble(
        members, (1.0, 2.0, 5.0), temperatures=(1.0, 0.5, 3.0), biases=(0.0, -1.0, 0.5)
    ).eval()
    images = torch.randn(2, 3, 5, 7)
    with torch.inference_mode():
        answers = [member(images).double().numpy() for member in members]
        found = ensemble(images).numpy()
    chances = [
        expit(answers[0]),
        expit(answers[1] / 0.5 - 1),
        expit(answers[2] / 3 + 0.5),
    ]
    mean = (chances[0] + 2 * chances[1] + 5 * chances[2]) / 8
    np.testing.assert_allclose(found, logit(mean), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [-90.0, -30.0, 0.0, 30.0, 90.0])
def test_sure_members_stay_sure(level: float) -> None:
    answer = joined(level, level, level, weights=(0.2, 0.3, 0.5))(IMAGES)
    assert torch.allclose(answer, torch.full((), level), rtol=1e-5, atol=1e-5)


def test_members_that_contradict_each_other_leave_a_doubt() -> None:
    assert joined(200.0, -200.0)(IMAGES).abs().max() < 1e-4
    sure = joined(200.0, -200.0, weights=(0.75, 0.25))(IMAGES)
    assert torch.sigmoid(sure[0, 0, 0, 0]).item() == pytest.approx(0.75, abs=1e-5)


def test_a_member_that_answers_with_no_number_is_not_averaged_away() -> None:
    assert not torch.isfinite(joined(1.0, float("nan"))(IMAGES)).any()


def test_the_stride_suits_every_member() -> None:
    members = [Constant(0, stride=4), Constant(0, stride=6)]
    ensemble = Ensemble(members, (1.0, 1.0), temperatures=(1.0, 1.0), biases=(0.0, 0.0))
    assert ensemble.stride == 12
    with pytest.raises(ConfigError, match="Own states no stride"):
        Ensemble([Own(stride=None)], (1.0,), temperatures=(1.0,), biases=(0.0,))


def test_it_can_be_traced_for_an_export() -> None:
    torch.manual_seed(0)
    members = [build_model(Model(name=name, width=2)) for name in ("unet", "attention_unet")]
    ensemble = Ensemble(members, (1.0, 3.0), temperatures=(1.0, 2.0), biases=(0.0, 1.0)).eval()
    images = torch.randn(2, 3, 32, 48)
    with torch.inference_mode():
        traced = torch.export.export(ensemble, (images,)).module()
        assert torch.allclose(traced(images), ensemble(images), atol=1e-5)
