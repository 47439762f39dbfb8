"""A loss, an optimizer, a schedule and a logger of one's own, as plain functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

import notan
from notan.config import load_run
from notan.errors import CheckpointError, ConfigError, DivergedError, StoppedBySignal
from notan.modelfile.card import read_card
from notan.report.run import facts_of, gather
from notan.training import resume
from notan.training.trainer import Trainer
from runs import (
    EPOCH_STEPS,
    Own,
    ask_to_stop,
    before_step,
    fate,
    history,
    last_state,
    lines_of,
    resume_own,
    tiny,
    train_own,
    watched,
    weights,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from notan.config import Run


def entropy(logits: Tensor, mask: Tensor, ignore: Tensor) -> Tensor:
    assert logits.shape == mask.shape == ignore.shape
    assert (logits.dtype, mask.dtype, ignore.dtype) == (torch.float32, torch.float32, torch.bool)
    losses = functional.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    return losses[~ignore].mean()


def momentum(weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": weights[:2], "lr": 0.02},
        {"params": weights[2:]},
    ]
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9)


def falling(step: int, steps: int) -> float:
    return math.pow(1 - step / steps, 0.9)


PARTS: dict[str, Any] = {"loss": entropy, "optimizer": momentum, "schedule": falling}


def plain(**flags: object) -> Run:
    return tiny(**{"train__epochs": 3, "train__learning_rate": 1e-4, **flags})


def test_all_of_them_train_and_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[list[float]] = []

    def look(trainer: Trainer) -> None:
        groups = trainer.setup.optimization.optimizer.param_groups
        rates.append([group["lr"] for group in groups])

    monkeypatch.setattr(Trainer, "after_step", watched(look))
    seen: list[Mapping[str, float]] = []
    result = train_own(plain(), tmp_path / "run", logger=seen.append, **PARTS)
    assert seen == lines_of(tmp_path / "run" / "history.jsonl")
    steps = 3 * EPOCH_STEPS
    after = [falling(min(step, steps - 1), steps) for step in range(1, steps + 1)]
    assert [first for first, _ in rates] == pytest.approx([0.02 * factor for factor in after])
    assert [second for _, second in rates] == pytest.approx([0.01 * factor for factor in after])
    for line in history(result):
        assert line["train/loss"] == line["train/own_loss"] > 0
        assert "train/bce_loss" not in line
    own = read_card(result.checkpoint).run.own
    assert (own.loss, own.optimizer, own.schedule) == ("entropy", "momentum", "falling")
    assert load_run(tmp_path / "run" / "run.toml").own == own
    facts = facts_of(gather(tmp_path / "run"))
    assert facts["Loss"] == "1 entropy, of its own"
    assert facts["Optimizer"].startswith("momentum, of its own (falling, of its own)")


def test_ones_own_cross_entropy_trains_as_notans_does(tmp_path: Path) -> None:
    run = plain(loss__dice=0)
    ours = train_own(run, tmp_path / "ours")

    def adam(weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(weights, lr=run.train.learning_rate, weight_decay=0.01)

    mine = train_own(
        plain(),
        tmp_path / "mine",
        loss=entropy,
        optimizer=adam,
        schedule=lambda step, _: 0.98 ** (step // EPOCH_STEPS),
    )
    losses = [[line["train/loss"] for line in history(result)] for result in (ours, mine)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("kind", [momentum, torch.optim.Adagrad])
def test_a_resumed_training_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[..., Any]
) -> None:
    parts = {**PARTS, "optimizer": kind}
    train_own(plain(), tmp_path / "whole", **parts)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(3, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_own(plain(), tmp_path / "run", **parts)
    for part in PARTS:
        with pytest.raises(ConfigError, match=rf"own\.{part} = .*give it in Python, {part}="):
            resume_own(tmp_path / "run", **{**parts, part: None})
    with pytest.raises(ConfigError, match=r"own.loss \(entropy -> .*\) would make it another run"):
        resume_own(tmp_path / "run", **{**parts, "loss": lambda *_: torch.zeros(())})
    with pytest.raises(ConfigError, match=r"train.epochs \(3 -> 4\) would make it another run"):
        resume_own(tmp_path / "run", run=plain(train__epochs=4), **parts)
    resume_own(tmp_path / "run", **parts)
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_a_state_of_another_optimizer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return kinds[0](weights, lr=0.01)

    kinds: list[Callable[..., torch.optim.Optimizer]] = [torch.optim.SGD]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(3, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_own(plain(), tmp_path / "run", optimizer=make)
    kinds[0] = torch.optim.Adam
    with pytest.raises(CheckpointError, match=r"of the optimizer SGD .* optimizer= made Adam"):
        resume_own(tmp_path / "run", optimizer=make)


def test_settings_of_the_optimizers_own_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.param_groups[0]["count"] = self.param_groups[0].get("count", 0) + 1
            return super().step(closure)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(3, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_own(plain(), tmp_path / "run", optimizer=Counting)
    resume_own(tmp_path / "run", optimizer=Counting)
    (group,) = last_state(tmp_path / "run")["optimizer"]["param_groups"]
    assert group["count"] == 3 * EPOCH_STEPS


def test_the_guard_goes_back_with_an_optimizer_that_has_moments_from_the_start(
    tmp_path: Path,
) -> None:
    run = plain(train__epochs=4, train__max_rollbacks=1)

    def spoilt(logits: Tensor, mask: Tensor, ignore: Tensor) -> Tensor:
        calls.extend([1] * logits.requires_grad)  # once before the training, then in each step
        return entropy(logits, mask, ignore) * (math.nan if 5 <= len(calls) < 8 else 1)

    calls: list[int] = []
    train_own(run, tmp_path / "run", loss=spoilt, optimizer=torch.optim.Adagrad)
    actions = [line["action"] for line in lines_of(tmp_path / "run" / "incidents.jsonl")]
    assert "go back" in actions
    calls.clear()
    with pytest.raises(DivergedError, match="own nan"):
        train_own(plain(train__loss_guard=False), tmp_path / "off", loss=spoilt, optimizer=momentum)


def other_weights(_: object) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "vector": ({"loss": lambda logits, *_: logits.mean(dim=(1, 2, 3))}, "of shape (2,); a scalar"),
    "number": ({"loss": lambda *_: 0.5}, "it returned a float; a scalar tensor is wanted"),
    "none": ({"loss": lambda *_: None}, "it returned a NoneType"),
    "nan": ({"loss": lambda logits, *_: logits.mean() * math.nan}, "it returned nan"),
    "detached": ({"loss": lambda logits, *_: logits.detach().abs().mean()}, "has no gradient"),
    "apart": (
        {
            "loss": lambda logits, *_: (
                torch.ones((), requires_grad=True) + 0 * logits.mean().detach()
            )
        },
        "no gradient at the logits",
    ),
    "flat": ({"loss": lambda logits, *_: (logits * 0).mean()}, "no gradient at the logits"),
    "negative": ({"loss": lambda logits, *_: logits.mean() - 9}, "takes losses from 0 on"),
    "raises": ({"loss": lambda logits: logits}, "it fails on logits, mask and ignore of (2, 1"),
    "text": ({"loss": "dice"}, "loss='dice': this cannot be called"),
    "others": ({"optimizer": other_weights}, "holds weights that are not this network's"),
    "no optimizer": ({"optimizer": lambda weights: weights}, "returned a list; a torch.optim"),
    "closure": ({"optimizer": torch.optim.LBFGS}, "step() needs no closure"),
    "bad rate": (
        {"optimizer": lambda weights: torch.optim.SGD(weights, lr=0.0)},
        "a learning rate (lr) of SGD is 0.0",
    ),
    "crash": ({"optimizer": lambda: None}, "optimizer: it fails on the weights: TypeError"),
    "class": ({"optimizer": torch.optim.SGD(Own().parameters(), lr=1)}, "cannot be called"),
    "nan rate": ({"schedule": lambda *_: math.nan}, "schedule(0, 6) returned nan"),
    "below": ({"schedule": lambda step, _: 2 - step}, "schedule(3, 6) returned -1"),
    "no number": ({"schedule": lambda *_: "fast"}, "schedule(0, 6) fails: ValueError"),
    "one argument": ({"schedule": lambda step: step}, "schedule(0, 6) fails: TypeError"),
    "late": ({"schedule": lambda step, _: [1.0, 1.0][step]}, "schedule(3, 6) fails: IndexError"),
    "logger": ({"logger": "wandb"}, "logger='wandb': this cannot be called"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_is_refused_before_anything_is_trained(tmp_path: Path, name: str) -> None:
    parts, wanted = BROKEN[name]
    with pytest.raises(ConfigError) as refused:
        train_own(plain(), tmp_path / "run", **parts)
    assert wanted in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "run.toml").exists()


def test_one_that_breaks_on_the_way_ends_the_training_in_a_line(tmp_path: Path) -> None:
    def late(step: int, _: int) -> float:
        return math.inf if step == 4 else 1.0

    with pytest.raises(ConfigError, match=r"schedule\(4, 6\) returned inf"):
        train_own(plain(), tmp_path / "rates", schedule=late)

    calls: list[int] = []

    def below(logits: Tensor, mask: Tensor, ignore: Tensor) -> Tensor:
        calls.append(1)
        return entropy(logits, mask, ignore) - (9 if len(calls) > 3 else 0)

    with pytest.raises(ConfigError, match="the guard takes losses from 0 on"):
        train_own(plain(), tmp_path / "below", loss=below)
    calls.clear()
    train_own(plain(train__loss_guard=False), tmp_path / "unguarded", loss=below)

    def stop(record: Mapping[str, float]) -> None:
        if record["epoch"] == 2:
            raise RuntimeError("pruned")

    with pytest.raises(RuntimeError, match="pruned"):
        train_own(plain(train__checkpoint_every_steps=1), tmp_path / "run", logger=stop)
    assert resume_own(tmp_path / "run", logger=print).epoch in (1, 2, 3)


def test_what_cannot_go_with_them_is_refused_or_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for flags, parts, wanted in (
        ({"train__layer_lr_decay": 0.8}, {"optimizer": momentum}, "divides the weights"),
        ({"train__encoder_lr_multiplier": 0.5}, {"optimizer": momentum}, "divides the weights"),
        ({"train__time_limit_seconds": 9}, {"schedule": falling}, "give epochs instead"),
    ):
        with pytest.raises(ConfigError, match=wanted):
            train_own(plain(**flags), tmp_path / "run", **parts)
    run_flags: dict[str, object] = {
        "loss__dice": 2,
        "train__learning_rate": 0.1,
        "train__schedule": "cosine",
    }
    run = plain(**run_flags, train__epochs=1, augment__flip_probability=0)

    def same(*, image: Any, mask: Any) -> dict[str, Any]:
        return {"image": image, "mask": mask}

    def few(weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights[:1], lr=0.1)

    train_own(run, tmp_path / "said", **{**PARTS, "optimizer": few}, transform=same)
    for words in (
        "loss.dice = 2.0: not used; the loss is your own",
        "train.learning_rate = 0.1: not used; the optimizer is your own",
        "train.schedule = cosine: not used; the schedule is your own",
        "augment.flip_probability = 0.0: not used; the transform is your own",
        "the optimizer holds 1 of the network's",
    ):
        assert words in caplog.text
    with pytest.raises(ConfigError, match=r"own\.transform = "):
        resume(tmp_path / "said", **{**PARTS, "optimizer": few})


def test_a_network_that_ends_in_a_sigmoid_is_doubted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Squashed(Own):
        def forward(self, images: Tensor) -> Tensor:
            return torch.sigmoid(super().forward(images))

    train_own(tiny(), tmp_path / "run", model=Squashed())
    assert "if a sigmoid ends it, take that out" in caplog.text


def test_they_are_given_to_notan_train(drawn_folder: Path, tmp_path: Path) -> None:
    seen: list[Mapping[str, float]] = []
    result = notan.train(
        drawn_folder,
        image_size=16,
        epochs=1,
        overrides=["model.width=2", "train.trackers=[]"],
        logger=seen.append,
        out=tmp_path / "run",
        **PARTS,
    )
    assert read_card(result.checkpoint).run.own.loss == "entropy"
    assert [line["epoch"] for line in seen] == [1]


def test_frozen_weights_of_a_network_of_ones_own_are_not_the_optimizers(tmp_path: Path) -> None:
    held: list[int] = []

    def make(weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        held.append(len(weights))
        return torch.optim.Adam(weights, lr=0.01)

    own = Own()
    own.layer.bias.requires_grad = False  # type: ignore[union-attr]
    bias = own.layer.bias.clone()  # type: ignore[union-attr]
    train_own(tiny(), tmp_path / "run", model=own, optimizer=make)
    assert held == [1]
    assert torch.equal(own.layer.bias, bias)  # type: ignore[arg-type]


def test_a_whole_run_with_its_parts_is_the_same_twice(tmp_path: Path) -> None:
    first, second = (train_own(plain(), tmp_path / name, **PARTS) for name in ("a", "b"))
    assert weights(first) == weights(second)
