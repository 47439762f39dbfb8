"""Training: repeatable, honest about its best, and never half done on the disk."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from notan.config import LossTerms, Train, load_run
from notan.data.folders import open_split
from notan.data.samples import Sample, Source
from notan.data.synthetic import DrawnSource
from notan.errors import ConfigError, DataError, DivergedError, ShapeError, StorageError
from notan.evaluation.evaluate import evaluate
from notan.metrics import Counts
from notan.modelfile.card import load_checkpoint, read_card
from notan.prediction.predictor import Predictor
from notan.training import train
from notan.training.optim import rate_factor
from notan.training.state import Best
from notan.training.trainer import Trainer
from notan.training.validation import Validation, steady_dice
from photographs import Kept
from runs import (
    TINY,
    TRAINING,
    VALIDATION,
    Own,
    history,
    last_state,
    names_in,
    tiny,
    train_own,
    weights,
)

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import Run
    from notan.types import Mask


def test_the_same_seed_gives_the_same_weights_bit_for_bit(
    small_run: Run, small_checkpoint: Path, tmp_path: Path
) -> None:
    torch.rand(5)
    again = train(small_run, out=tmp_path / "again")
    assert weights(again) == read_card(small_checkpoint).sha256


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    results = [train_own(tiny(seed=seed), tmp_path / str(seed)) for seed in (0, 1)]
    assert weights(results[0]) != weights(results[1])


def test_the_number_of_workers_changes_no_weight(drawn_folder: Path, tmp_path: Path) -> None:
    cv2.blur(np.zeros((2000, 2000, 3), np.uint8), (9, 9))  # has threads, which a fork loses
    results = [
        train(
            tiny(data__path=drawn_folder, data__workers=workers, train__epochs=2),
            out=tmp_path / str(workers),
        )
        for workers in (0, 2)
    ]
    assert weights(results[0]) == weights(results[1])


def test_the_kept_checkpoint_is_of_the_epoch_with_the_highest_dice(tmp_path: Path) -> None:
    result = train_own(tiny(train__epochs=6, train__learning_rate=0.05), tmp_path / "run")
    dice = [epoch["validation/dice"] for epoch in history(result)]
    assert result.dice == max(dice)
    assert result.epoch == dice.index(max(dice)) + 1
    card = read_card(result.checkpoint)
    assert (card.epoch, card.scores["dice"]) == (result.epoch, result.dice)


def counted(right: int, wrong: int, missed: int, pixels: int = 1000) -> Counts:
    return Counts(right, wrong, missed, pixels - right - wrong - missed)


def test_an_image_without_foreground_counts_by_how_much_it_was_given() -> None:
    found = [counted(100, 0, 0), counted(100, 0, 100)]
    assert steady_dice(found) is None
    assert steady_dice([counted(0, 5, 0), counted(0, 0, 0)]) is None
    # the others' mean foreground is 150 of 1000 pixels
    for false, worth in ((0, 1), (15, 150 / 165), (150, 1 / 2), (1000, 150 / 1150)):
        expected = (1 + 2 / 3 + worth) / 3
        assert steady_dice([*found, counted(0, false, 0)]) == pytest.approx(expected)
    smaller = counted(0, 150, 0, pixels=4000)  # as many pixels, of an image four times as large
    assert steady_dice([*found, smaller]) == pytest.approx((1 + 2 / 3 + 4 / 5) / 3)
    unknown = counted(0, 0, 0, pixels=0)
    assert steady_dice([*found, unknown]) == pytest.approx((1 + 2 / 3 + 1) / 3)


@pytest.mark.parametrize("average", [None, 0.5])
def test_no_epoch_is_the_best_by_luck_with_an_empty_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: float | None
) -> None:
    """Its few false pixels are missing in the second epoch alone, which is worse otherwise."""
    epochs = iter([0.3, 0.75, 0.6, 0.65])
    steady = {0.3: 0.3, 0.75: 0.55, 0.6: 0.69, 0.65: 0.68}

    def scores(trainer: Trainer) -> list[Validation]:
        del trainer
        dice = next(epochs)
        own = Validation({"loss": 0.5}, dice, steady[dice], dice, 0.1)
        worse = Validation({"loss": 0.5}, 0.99, 0.2, dice, 0.1)  # by luck the average is best
        return [own, worse] if average else [own]

    monkeypatch.setattr(Trainer, "_validations", scores)
    result = train_own(tiny(train__epochs=4, train__ema_decay=average), tmp_path / "run")
    assert result.epoch == 3
    assert read_card(result.checkpoint).epoch == 3
    assert last_state(tmp_path / "run")["progress"]["best"] == {
        "score": 0.6,
        "epoch": 3,
        "baseline": 0.1,
        "averaged": False,
        "steady_dice": 0.69,
    }


def test_what_an_earlier_version_kept_is_beaten_by_dice() -> None:
    worse = Validation({}, 0.62, 0.75, 0.5, 0.1)
    assert not worse.is_better_than(Best(0.7, 3, 0.1))
    assert worse.is_better_than(Best(0.6, 3, 0.1))
    assert worse.is_better_than(Best(0.7, 3, 0.1, steady_dice=0.74))


def test_a_training_with_empty_validation_images_says_what_it_chose_by(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    *full, other = DrawnSource(4, size=(64, 64))
    empty = Sample("empty", other.image, np.zeros_like(other.mask))
    run = tiny(train__epochs=3, train__learning_rate=0.05)
    result = train_own(run, tmp_path / "run", validation=Kept([*full, empty]))
    steady = [line["validation/steady_dice"] for line in history(result)]
    assert steady[result.epoch - 1] == max(steady)
    assert f"steady Dice {max(steady):.4f}" in caplog.text


def test_the_dice_on_the_card_is_what_evaluate_finds(
    small_run: Run, small_checkpoint: Path
) -> None:
    source = open_split(small_run.data, "val", seed=small_run.seed)
    predictor = Predictor.load(small_checkpoint)
    score = evaluate(predictor, source, split="val", batch_size=4)
    card = read_card(small_checkpoint)
    assert score.mean_dice == pytest.approx(card.scores["dice"], abs=1e-6)
    assert score.mean_iou == pytest.approx(card.scores["iou"], abs=1e-6)


def test_the_run_folder_says_all_that_was_set(small_run: Run, small_checkpoint: Path) -> None:
    folder = small_checkpoint.parent
    assert load_run(folder / "run.toml") == small_run
    validation = open_split(small_run.data, "val", seed=0).names
    assert (folder / "validation.txt").read_text().splitlines() == validation
    kept = {"best.safetensors", "history.jsonl", "last", "run.toml", "validation.txt"}
    assert names_in(folder) == kept


def test_the_history_has_a_line_for_every_epoch_with_every_term(tmp_path: Path) -> None:
    run = tiny(train__epochs=3, train__gamma=0.5, loss__bce=0.5, loss__focal=2.0)
    lines = history(train_own(run, tmp_path / "run"))
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    np.testing.assert_allclose([line["learning_rate"] for line in lines], [3e-3, 1.5e-3, 7.5e-4])
    for line in lines:
        for part in ("train", "validation"):
            bce, dice, focal = (line[f"{part}/{term}_loss"] for term in ("bce", "dice", "focal"))
            terms = 0.5 * bce + dice + 2 * focal
            assert line[f"{part}/loss"] == pytest.approx(terms, rel=1e-5)
        assert 0 <= line["validation/iou"] <= line["validation/dice"] <= 1
        assert line["seconds"] > 0


def test_patience_ends_a_training_that_gets_no_better(tmp_path: Path) -> None:
    run = tiny(train__epochs=50, train__patience=2, train__learning_rate=1e-12)
    result = train_own(run, tmp_path / "run", model=Own(scale=0.0))
    assert len(history(result)) == 3
    assert result.epoch == 1


def test_no_test_image_is_opened(drawn_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for part in ("train", "val"):
        shutil.copytree(drawn_folder / part, folder / part)
    without = train(tiny(data__path=folder), out=tmp_path / "without")
    for kind in ("images", "masks"):
        (folder / "test" / kind).mkdir(parents=True)
        (folder / "test" / kind / "x.png").write_bytes(b"garbage")
    beside_garbage = train(tiny(data__path=folder), out=tmp_path / "beside")
    beside_images = train(tiny(data__path=drawn_folder), out=tmp_path / "images")
    assert weights(without) == weights(beside_garbage) == weights(beside_images)


def test_a_split_that_we_make_is_stored_and_kept(drawn_folder: Path, tmp_path: Path) -> None:
    run = tiny(data__path=drawn_folder / "train", data__validation_fraction=0.25, seed=5)
    result = train(run, out=tmp_path / "run")
    card = read_card(result.checkpoint)
    assert card.data.validation_names is not None
    assert len(card.data.validation_names) == 6
    assert card.data.training_images == 18
    stored = (tmp_path / "run" / "validation.txt").read_text().splitlines()
    assert stored == list(card.data.validation_names)


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something is here already; choose another --out"):
        train_own(tiny(), tmp_path)
    assert names_in(tmp_path) == {"notes.txt"}


def test_overwriting_replaces_the_run_and_nothing_else(tmp_path: Path) -> None:
    first = train_own(tiny(train__epochs=3), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    again = train_own(tiny(seed=9), tmp_path, overwrite=True)
    assert again.checkpoint == first.checkpoint
    assert len(history(again)) == 1
    assert load_run(tmp_path / "run.toml").seed == 9
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_mistake_in_the_settings_does_not_cost_the_run_to_overwrite(tmp_path: Path) -> None:
    first = train_own(tiny(), tmp_path)
    with pytest.raises(DataError, match="there is no such folder"):
        train(tiny(data__path=tmp_path / "typo"), out=tmp_path, overwrite=True)
    load_checkpoint(first.checkpoint)
    assert len(history(first)) == 1


def test_a_file_cannot_be_overwritten_by_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="file: could not be written"):
        train_own(tiny(), tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_loss_that_is_no_number_stops_and_names_the_images(tmp_path: Path) -> None:
    with pytest.raises(
        DivergedError, match=r"gives NaN or infinity for drawn-000\d.*; .*--learning-rate"
    ):
        train_own(tiny(), tmp_path / "run", model=Own(scale=float("nan")))
    assert "best.safetensors" not in names_in(tmp_path / "run")


def test_a_network_of_ones_own_trains_saves_and_opens_again(tmp_path: Path) -> None:
    model = Own()
    before = model.layer.weight.detach().clone()
    result = train_own(tiny(), tmp_path / "run", model=model)
    assert not torch.equal(before, model.layer.weight)
    card = read_card(result.checkpoint)
    assert (card.model, card.model_class, card.preprocess.stride) == (None, "Own", 1)
    predictor = Predictor.load(result.checkpoint, model=Own())
    score = evaluate(predictor, VALIDATION, split="val")
    assert score.mean_dice == pytest.approx(result.dice, abs=1e-6)


def test_a_network_without_a_stride_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Own states no stride; set self\.stride"):
        train_own(tiny(), tmp_path / "run", model=Own(stride=None))
    assert not (tmp_path / "run").exists()


def test_a_network_that_returns_another_shape_is_refused(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 2, 1)
    model.stride = 1  # type: ignore[assignment]
    with pytest.raises(ShapeError, match=r"returned \(2, 2, 16, 16\) for images of"):
        train_own(tiny(), tmp_path / "run", model=model)


def test_the_card_counts_the_images(drawn_folder: Path, tmp_path: Path) -> None:
    limited = train(tiny(data__path=drawn_folder, data__limit=5), out=tmp_path / "limited")
    data = read_card(limited.checkpoint).data
    assert (data.training_images, data.validation_images) == (5, 6)
    data = read_card(train_own(tiny(), tmp_path / "own").checkpoint).data
    assert (data.layout, data.training_images, data.validation_images) == ("own source", 6, 3)


@pytest.mark.parametrize("part", ["training", "validation"])
def test_training_and_validation_images_come_together(tmp_path: Path, part: str) -> None:
    given: dict[str, Any] = {part: TRAINING}
    with pytest.raises(ConfigError, match="come together or not at all"):
        train(tiny(), out=tmp_path / "run", **given)


def test_an_augmentation_of_ones_own_is_used(tmp_path: Path) -> None:
    called = []

    def darken(*, image: Any, mask: Any) -> dict[str, Any]:
        called.append(mask.dtype)
        return {"image": image // 2, "mask": mask}

    train_own(tiny(), tmp_path / "run", transform=darken)
    assert called == [np.uint8] * 6  # training images only


def test_the_exponential_schedule_falls_by_gamma_after_each_epoch() -> None:
    settings = Train(gamma=0.5)
    factors = [rate_factor(settings, epochs) for epochs in (0, 0.99, 1, 1.5, 3)]
    assert factors == [1, 1, 0.5, 0.5, 0.125]


def test_the_cosine_schedule_rises_over_the_warm_up_and_falls_to_zero() -> None:
    settings = Train(schedule="cosine", epochs=10, warmup_epochs=2)
    factors = [rate_factor(settings, epochs) for epochs in (0, 1, 2, 6, 10, 11)]
    np.testing.assert_allclose(factors, [0.01, 0.5, 1, 0.5, 0, 0], atol=1e-12)
    settings = Train(schedule="cosine", epochs=1, warmup_epochs=5)
    assert rate_factor(settings, 0.5) == 0.5
    assert rate_factor(Train(schedule="cosine", warmup_epochs=0), 0) == 1


@pytest.mark.parametrize(
    "override", ["train.schedule=cosine", "train.precision=bf16", "train.detect_anomaly=true"]
)
def test_a_training_of_another_kind_ends_with_a_checkpoint_that_opens(
    tmp_path: Path, override: str
) -> None:
    result = train_own(load_run(flags=TINY, overrides=[override]), tmp_path / "run")
    assert Predictor.load(result.checkpoint)(VALIDATION[0].image).mask.shape == (16, 16)
    assert not torch.is_anomaly_enabled()


@pytest.mark.parametrize("name", ["bce", "dice", "focal", "tversky", "lovasz"])
def test_every_loss_trains_on_its_own(tmp_path: Path, name: str) -> None:
    terms = {
        f"loss.{other}": float(other == name)
        for other in LossTerms.model_fields
        if "_" not in other
    }
    result = train_own(load_run(flags={**TINY, **terms}), tmp_path / "run")
    assert np.isfinite(history(result)[0]["train/loss"])


@pytest.mark.parametrize("name", ["cldice", "boundary"])
def test_a_loss_of_forms_trains_beside_another_and_is_refused_alone(
    tmp_path: Path, name: str
) -> None:
    both = {f"loss.{name}": 0.5, "loss.bce": 0.0}
    result = train_own(load_run(flags={**TINY, **both}), tmp_path / "run")
    assert np.isfinite(history(result)[0][f"train/{name}_loss"])
    with pytest.raises(ConfigError, match=f"{name} alone"):
        train_own(load_run(flags={**TINY, **both, "loss.dice": 0.0}), tmp_path / "alone")
    assert not (tmp_path / "alone").exists()


def test_fp16_on_a_cpu_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not on a CPU"):
        train_own(tiny(train__precision="fp16", device="cpu"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_batch_norm_cannot_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batches of one image at 16x16.*raise --batch-size"):
        train_own(tiny(model__name="unet", train__batch_size=1), tmp_path / "run")
    larger: dict[str, object] = {"model__name": "unet", "preprocess__image_size": 32}
    train_own(tiny(train__batch_size=1, **larger), tmp_path / "run")


class Bordered(Source):
    """Images whose right half is left out of the loss."""

    def __init__(self, source: Source, *, lie: bool) -> None:
        self.source, self.lie = source, lie

    @property
    def names(self) -> list[str]:
        return list(self.source.names)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        ignore = np.zeros(sample.size, np.bool_)
        ignore[:, sample.size[1] // 2 :] = True
        mask: Mask = sample.mask ^ ignore if self.lie else sample.mask
        return Sample(sample.name, sample.image, mask, ignore)


def test_what_is_ignored_changes_neither_weights_nor_scores(tmp_path: Path) -> None:
    """The masks of the two trainings differ, but only where nobody may look."""
    results = [
        train(
            tiny(augment__enabled=False),
            out=tmp_path / str(lie),
            training=Bordered(TRAINING, lie=lie),
            validation=Bordered(VALIDATION, lie=lie),
        )
        for lie in (False, True)
    ]
    assert weights(results[0]) == weights(results[1])
    assert results[0].dice == results[1].dice


def test_events_for_tensorboard_are_written_where_they_are_wanted(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tiny(train__trackers=("tensorboard",), train__log_images=2)
    train_own(run, tmp_path / "run")
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    content = events.read_bytes()
    names = (b"validation/dice", b"train/loss", b"learning_rate", b"validation/drawn-0006")
    assert all(name in content for name in names)
    assert b"validation/drawn-0008" not in content  # two overlays were wanted
