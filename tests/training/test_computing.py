"""How a training computes on a processor: the arithmetic is measured once and kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from notan.config import Model
from notan.errors import StoppedBySignal
from notan.modelfile.card import read_card
from notan.models.build import build_model
from notan.models.unet import UNet
from notan.runtime import Precision
from notan.training import computing
from notan.training.build import prepare
from notan.training.computing import lay_out, measure_gain
from notan.training.trainer import Trainer
from runs import (
    TRAINING,
    VALIDATION,
    ask_to_stop,
    before_step,
    last_state,
    resume_own,
    tiny,
    train_own,
)

if TYPE_CHECKING:
    from pathlib import Path

LIKELY, UNLIKELY = 1.1, 1.0


@pytest.fixture
def gains(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What measurements will find on a processor that says it computes in bf16."""
    gains: list[float] = []
    monkeypatch.setattr(computing, "has_quick_bf16", lambda: True)
    monkeypatch.setattr(computing, "measure_gain", lambda *_: gains.pop(0))
    return gains


def arithmetic(**flags: Any) -> tuple[torch.dtype, str]:
    setup = prepare(tiny(**flags), training=TRAINING, validation=VALIDATION)
    precision = setup.optimization.precision
    return precision.dtype, precision.why


def test_bf16_is_taken_where_it_is_measured_to_be_worth_it(gains: list[float]) -> None:
    gains += [LIKELY, UNLIKELY]
    assert arithmetic() == (torch.bfloat16, "measured 1.1 times as fast as float32")
    assert arithmetic() == (torch.float32, "bfloat16 measured 1.0 times as fast as float32")


@pytest.mark.usefixtures("gains")  # that are none: to measure would fail
@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_is_not_measured(asked: str) -> None:
    assert arithmetic(train__precision=asked)[1] == "as asked for"


@pytest.mark.parametrize(
    ("limit", "most"),
    [(None, computing.MOST_SECONDS), (60.0, 0.6), (3600.0, computing.MOST_SECONDS)],
)
def test_measuring_takes_a_hundredth_of_a_time_limit(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, most: float
) -> None:
    given: list[float] = []

    def measure(*words: Any) -> float:
        given.append(words[-1])
        return LIKELY

    monkeypatch.setattr(computing, "has_quick_bf16", lambda: True)
    monkeypatch.setattr(computing, "measure_gain", measure)
    arithmetic(train__time_limit_seconds=limit)
    assert given == [pytest.approx(most)]


def test_a_processor_without_bf16_is_not_asked(
    gains: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(computing, "has_quick_bf16", lambda: False)
    assert arithmetic() == (torch.float32, "the safe choice on cpu")
    assert gains == []


@pytest.mark.parametrize(("first", "then"), [(LIKELY, UNLIKELY), (UNLIKELY, LIKELY)])
def test_a_run_that_goes_on_computes_as_it_began(
    tmp_path: Path,
    gains: list[float],
    monkeypatch: pytest.MonkeyPatch,
    first: float,
    then: float,
) -> None:
    gains += [first, then]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(2, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_own(tiny(train__epochs=3), tmp_path / "run")
    kept = last_state(tmp_path / "run")["precision"]
    resume_own(tmp_path / "run")
    assert gains == [then]
    assert last_state(tmp_path / "run")["precision"] == kept
    card = read_card(tmp_path / "run" / "best.safetensors")
    assert card.precision == f"{kept['dtype']} ({kept['why']})"


def test_a_state_of_before_computes_in_fp32_as_it_did(gains: list[float]) -> None:
    setup = prepare(tiny(), training=TRAINING, validation=VALIDATION, state={})
    assert setup.optimization.precision.dtype is torch.float32
    assert gains == []


def test_a_measurement_leaves_network_and_random_numbers_as_they_were() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(UNet(width=2), nn.Dropout(0.5)).eval()
    before = {name: each.clone() for name, each in network.state_dict().items()}
    drawn = torch.get_rng_state()
    assert measure_gain(network, (2, 3, 32, 32)) > 0
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not network.training
    assert all(weight.grad is None for weight in network.parameters())
    for name, each in network.state_dict().items():
        assert torch.equal(each, before[name])


@pytest.mark.parametrize("images", [1, 2, 8])
def test_a_measurement_gives_batch_norm_as_many_values_as_the_training(images: int) -> None:
    side = 16 if images > 1 else 32  # at 16x16 the network's coarsest layer sees a single pixel
    assert measure_gain(UNet(width=2), (images, 3, side, side)) > 0


def test_small_numbers_are_nothing_while_a_network_is_trained_and_numbers_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def smallest() -> float:
        return float(torch.tensor([1e-30]) * torch.tensor([1e-10]))

    seen: list[float] = []
    note = before_step(2, lambda _: seen.append(smallest()))
    monkeypatch.setattr(Trainer, "after_step", note)
    train_own(tiny(), tmp_path / "run")
    assert seen == [0.0]
    assert smallest() > 0


@pytest.mark.parametrize(
    ("settings", "dtype", "last"),
    [
        (Model(width=16), torch.float32, True),
        (Model(width=32), torch.float32, False),
        (Model(width=32), torch.bfloat16, True),
        (Model(encoder="resnet34", width=8), torch.float32, False),
        (Model(encoder="efficientnet_lite0", width=8), torch.float32, True),
    ],
)
def test_wide_dense_networks_lie_as_planes_on_a_processor_and_all_others_channels_last(
    settings: Model, dtype: torch.dtype, *, last: bool
) -> None:
    network = build_model(settings)
    lay_out(network, Precision(torch.device("cpu"), dtype, ""))
    weights = [each.weight for each in network.modules() if isinstance(each, nn.Conv2d)]
    told = [weight for weight in weights if weight.shape[1] > 1 and weight.shape[2] > 1]
    assert told
    layout = torch.channels_last if last else torch.contiguous_format
    assert all(weight.is_contiguous(memory_format=layout) for weight in told)


def test_what_is_no_network_of_convolutions_stays_as_it_is() -> None:
    network = nn.Linear(3, 1)
    before = network.weight.detach().clone()
    lay_out(network, Precision(torch.device("cpu"), torch.float32, ""))
    assert torch.equal(network.weight, before)
    assert network.weight.is_contiguous()


@pytest.mark.parametrize("last", [True, False])
def test_the_weights_alone_decide_how_a_batch_is_computed(*, last: bool) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    layer = nn.Conv2d(3, 8, 3).to(memory_format=layout)  # type: ignore[call-overload]
    assert layer(torch.rand(2, 3, 9, 9)).is_contiguous(memory_format=layout)
