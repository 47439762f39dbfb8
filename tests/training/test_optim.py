"""The optimizer: which weights learn how fast, from when on, and that a resume keeps them apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from notan.config import Train
from notan.errors import ConfigError, StoppedBySignal
from notan.training.build import prepare
from notan.training.optim import AdamW, Schedule, Throughput, build_optimizer, parameter_groups
from notan.training.own import OwnParts
from notan.training.state import restore
from notan.training.trainer import Trainer
from runs import (
    EPOCH_STEPS,
    TRAINING,
    VALIDATION,
    ask_to_stop,
    before_step,
    fresh_unet,
    last_state,
    resume_own,
    tiny,
    train_own,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_the_rate_falls_from_the_coarsest_stage_to_the_finest() -> None:
    model = fresh_unet()
    *stages, rest = parameter_groups(model, Train(encoder_lr_multiplier=0.5, layer_lr_decay=0.8))
    factors = [group["factor"] for group in stages]
    assert factors == pytest.approx([0.5 * 0.8**depth for depth in (4, 3, 2, 1, 0)])
    for group, [level] in zip(stages, model.encoder.stages(), strict=True):
        assert [*map(id, group["params"])] == [*map(id, level.parameters())]
    assert rest["factor"] == 1
    outside = [*model.decoder.parameters(), *model.head.parameters()]
    assert [*map(id, rest["params"])] == [*map(id, outside)]


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        (Train(), 1),
        (Train(freeze_encoder_batchnorm=True), 1),
        (Train(freeze_epochs=1), 2),
        (Train(freeze_fraction=0.1), 2),
        (Train(encoder_lr_multiplier=0.5), 2),
        (Train(layer_lr_decay=0.5), 5),  # at a rate of 1 the coarsest stage and the rest are one
        (Train(freeze_epochs=1, layer_lr_decay=0.5), 6),
    ],
)
def test_groups_are_as_few_as_can_be_and_keep_the_networks_own_order(
    settings: Train, groups: int
) -> None:
    model = fresh_unet()
    found = parameter_groups(model, settings)
    assert len(found) == groups
    grouped = [id(weight) for group in found for weight in group["params"]]
    assert grouped == [*map(id, model.parameters())]


def test_a_run_that_goes_on_with_other_rates_keeps_every_weights_own_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(3, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_own(tiny(train__epochs=2), tmp_path / "run", model=fresh_unet())
    changed = tiny(train__epochs=2, train__encoder_lr_multiplier=0.5, train__layer_lr_decay=0.8)
    with pytest.raises(
        ConfigError, match=r"train.encoder_lr_multiplier \(1.0 -> 0.5\), train.layer_lr_decay"
    ):
        resume_own(tmp_path / "run", run=changed, model=fresh_unet())
    parts = prepare(
        changed, training=TRAINING, validation=VALIDATION, own=OwnParts(model=fresh_unet())
    )
    tree = last_state(tmp_path / "run")
    restore(parts, tree)
    for number, weight in enumerate(parts.model.parameters()):
        moments = parts.optimization.optimizer.state[weight]
        assert torch.equal(moments["exp_avg"], tree["optimizer"]["state"][str(number)]["exp_avg"])
    rates = [group["lr"] for group in parts.optimization.optimizer.param_groups]
    shares = (*(0.5 * 0.8**depth for depth in (4, 3, 2, 1, 0)), 1)
    assert rates == pytest.approx([0.98 * 3e-3 * share for share in shares])


def rates_after(settings: Train, steps: int, *, lowered: float = 1.0) -> list[float]:
    """Return the groups' learning rates after so many steps, at two steps an epoch."""
    optimizer = build_optimizer(fresh_unet(), settings)
    schedule = Schedule(optimizer, settings, EPOCH_STEPS)
    schedule.steps, schedule.lowered = steps, lowered
    schedule.apply()
    return [group["lr"] for group in optimizer.param_groups]


def test_every_rate_follows_the_schedule_and_the_guards_lowering() -> None:
    settings = Train(learning_rate=0.1, gamma=0.5, encoder_lr_multiplier=0.2, layer_lr_decay=1.0)
    assert rates_after(settings, 0) == pytest.approx([0.02, 0.1])
    assert rates_after(settings, 2 * EPOCH_STEPS) == pytest.approx([0.005, 0.025])
    assert rates_after(settings, 0, lowered=0.25) == pytest.approx([0.005, 0.025])


def test_a_late_encoder_warms_up_when_it_starts_and_the_rest_does_not_again() -> None:
    settings = Train(schedule="cosine", epochs=20, freeze_epochs=4, warmup_epochs=2)
    for epochs, share in ((4, 0.01), (5, 0.5), (6, 1), (10, 1)):
        encoder, rest = rates_after(settings, epochs * EPOCH_STEPS)
        assert encoder == pytest.approx(share * rest)
    at_once = settings.model_copy(update={"warmup_epochs": 0.0})
    for epochs in (0, 4):
        encoder, rest = rates_after(at_once, epochs * EPOCH_STEPS)
        assert encoder == rest
    alike = Train(schedule="cosine", epochs=20, encoder_lr_multiplier=0.5, warmup_epochs=2)
    encoder, rest = rates_after(alike, 1)
    assert encoder == pytest.approx(0.5 * rest), "from the start both warm up at once"


def test_a_late_encoder_warms_up_over_a_tenth_of_a_time_limit_at_most() -> None:
    settings = Train(schedule="cosine", epochs=20, freeze_epochs=1, time_limit_seconds=60)
    optimizer = build_optimizer(fresh_unet(), settings)
    schedule = Schedule(optimizer, settings, 20)
    schedule.pace, schedule.steps = Throughput(20, 20.0, 20.0, 1.0), 22  # of 40 steps, 2 epochs
    schedule.apply()
    encoder, rest = (group["lr"] for group in optimizer.param_groups)
    assert encoder == pytest.approx(rest / 2)


@pytest.mark.parametrize("model", ["unet", "attention_unet", "resnet34_unet"])
def test_slower_encoders_need_no_weights_from_elsewhere(model: str) -> None:
    run = tiny(model__name=model, train__encoder_lr_multiplier=0.5, train__layer_lr_decay=0.5)
    parts = prepare(run, training=TRAINING, validation=VALIDATION)
    rates = [group["lr"] for group in parts.optimization.optimizer.param_groups]
    shares = (*(0.5**depth for depth in (5, 4, 3, 2, 1)), 1)
    assert rates == pytest.approx([3e-3 * share for share in shares])


def test_adamw_takes_pytorchs_steps_bit_for_bit() -> None:
    def after_steps(optimizer_class: type[torch.optim.AdamW]) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 40))
        optimizer = optimizer_class([weight], lr=0.1, weight_decay=0.2)
        for step in range(1, 6):
            weight.grad = torch.sin(weight.detach() * step)
            optimizer.step()
        return weight.detach()

    assert torch.equal(after_steps(AdamW), after_steps(torch.optim.AdamW))


def test_adamw_asks_its_closure_with_gradients() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = AdamW([weight], lr=0.1)

    def loss() -> float:
        with torch.enable_grad():
            value = (weight**2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    assert optimizer.step(loss) == 3
    assert float(weight.detach().max()) < 1
