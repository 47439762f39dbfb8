"""A network learns from images without masks what its own average says of them."""

from __future__ import annotations

import json
import logging
import math
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from notan.checking.label_errors import plan_search
from notan.cli.main import main
from notan.config import load_run
from notan.data.batches import Unlabelled
from notan.data.folders import folder_source
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, DataError, StoppedBySignal
from notan.evaluation.evaluate import SPOILT, evaluate
from notan.losses import Loss, LossValue
from notan.modelfile.card import load_checkpoint, read_card
from notan.prediction.predictor import Predictor
from notan.report.run import facts_of, gather
from notan.training import train
from notan.training.build import TrainingSetup, prepare
from notan.training.judge import LossJudge
from notan.training.semi_supervised import add_agreement
from notan.training.steps import compute_loss, losses_of
from notan.training.trainer import Trainer
from runs import (
    TRAINING,
    VALIDATION,
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

    from notan.config import Run
    from notan.data.batches import Batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images without masks; not to be changed."""
    where = tmp_path_factory.mktemp("unlabelled")
    write_folder(DrawnSource(5, size=(16, 16), first=50), where)
    return where / "images"


def beside(folder: Path, **flags: object) -> Run:
    return tiny(train__unlabelled=folder, **flags)


def parts_of(run: Run) -> TrainingSetup:
    return prepare(run, training=TRAINING, validation=VALIDATION)


def first_batch(parts: TrainingSetup, *, step: int = 0) -> Batch:
    assert parts.consistency
    parts.training_batches.set_epoch(1)
    return parts.consistency.mark(next(iter(parts.training_batches)), step)


def test_an_average_is_kept_where_images_without_masks_are_named(folder: Path) -> None:
    assert tiny().train.ema_decay is None
    assert beside(folder).train.ema_decay == 0.99
    assert beside(folder, train__ema_decay=0.9).train.ema_decay == 0.9
    assert load_run(overrides=["train.unlabelled=none"]).train.ema_decay is None


def test_nobody_to_answer_is_refused(folder: Path) -> None:
    run = beside(folder)
    bare = run.model_copy(update={"train": run.train.model_copy(update={"ema_decay": None})})
    with pytest.raises(ConfigError, match=r"ema_decay = none: it is the average .* give 0\.99"):
        parts_of(bare)


def test_the_average_answers_the_plain_views(folder: Path) -> None:
    parts = parts_of(beside(folder))
    assert parts.average
    assert parts.consistency
    for weight in parts.average.module.parameters():
        weight.add_(0.01)  # another network than the one that is trained
    before = {name: value.clone() for name, value in parts.average.module.state_dict().items()}
    plain = first_batch(parts).unlabelled
    assert plain
    assert plain.answers is not None
    wanted = torch.sigmoid(parts.average.module(plain.plain))
    answers = parts.consistency.answer(plain.plain)
    torch.testing.assert_close(answers, wanted)
    assert not answers.requires_grad
    assert not parts.average.module.training
    for name, value in parts.average.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_teacher_answers_in_its_place(folder: Path, tmp_path: Path) -> None:
    teacher = train_own(tiny(seed=9, model__width=4), tmp_path / "teacher").checkpoint
    parts = parts_of(beside(folder, train__teacher=teacher))
    assert parts.teacher
    assert parts.consistency
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(parts.consistency.answer(images), parts.teacher.answer(images))
    result = train_own(beside(folder, train__teacher=teacher), tmp_path / "run")
    assert {"train/teacher_loss", "train/consistency_loss"} <= set(history(result)[0])


def test_the_weight_rises_to_its_own_over_the_first_steps(folder: Path) -> None:
    run = beside(folder, loss__consistency=2.0, train__consistency_steps=10)
    consistency = parts_of(run).consistency
    assert consistency
    weights = [consistency.weight_at(step) for step in range(20)]
    assert weights[0] == pytest.approx(2 * math.exp(-5))
    assert weights == sorted(weights)
    assert weights[10:] == [2.0] * 10
    assert weights[9] < 2.0
    sudden = parts_of(beside(folder, train__consistency_steps=0)).consistency
    assert sudden
    assert sudden.weight_at(0) == 1.0
    for step in (0, 3):
        batch = first_batch(parts_of(run), step=step)
        assert batch.unlabelled
        assert batch.unlabelled.weight == weights[step]


def test_the_term_is_the_cross_entropy_against_the_answers() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    answers, inside = torch.rand(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    inside[..., 6:] = 0
    seen = Unlabelled(("a", "b"), logits, logits, inside, answers=answers, weight=0.5)
    value = add_agreement(LossValue(torch.tensor(3.0), {"bce": torch.tensor(3.0)}), logits, seen)
    p, q = logits.detach().double().sigmoid().numpy(), answers.double().numpy()
    wanted = -(q * np.log(p) + (1 - q) * np.log(1 - p))[..., :6].mean()
    assert list(value.terms) == ["bce", "consistency"]
    assert value.terms["consistency"].item() == pytest.approx(wanted, rel=1e-5)
    assert value.total.item() == pytest.approx(3 + 0.5 * wanted, rel=1e-5)
    value.total.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.equal(logits.grad != 0, inside == 1)
    unanswered = add_agreement(value, logits, seen._replace(answers=None))
    assert unanswered is value


def test_images_with_masks_cost_what_they_would_alone(folder: Path) -> None:
    parts = parts_of(beside(folder))
    batch = first_batch(parts)
    parts.model.eval()  # batch norm would see the others
    loss, precision = Loss({"bce": 1.0, "dice": 1.0}), parts.optimization.precision
    both = compute_loss(parts.model, batch, loss, precision)
    alone = compute_loss(parts.model, batch._replace(unlabelled=None), loss, precision)
    for name, term in alone.terms.items():
        torch.testing.assert_close(both.terms[name], term)
    assert batch.unlabelled
    weighed = batch.unlabelled.weight * both.terms["consistency"]
    torch.testing.assert_close(both.total, alone.total + weighed)


def test_a_network_comes_nearer_to_what_was_answered(folder: Path) -> None:
    parts = parts_of(beside(folder, train__consistency_steps=0))
    batch = first_batch(parts)
    assert batch.unlabelled
    sure = (batch.unlabelled.varied[:, :1] > 0).float()  # an answer that a network can learn
    batch = batch._replace(unlabelled=batch.unlabelled._replace(answers=sure))
    costs = []
    parts.model.train()
    optimizer = torch.optim.Adam(parts.model.parameters(), lr=0.01)
    for _ in range(20):
        value = compute_loss(parts.model, batch, parts.loss, parts.optimization.precision)
        costs.append(value.terms["consistency"].item())
        optimizer.zero_grad()
        value.terms["consistency"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert costs[-1] < 0.8 * costs[0]


def test_the_history_the_report_and_the_card_tell_of_it(folder: Path, tmp_path: Path) -> None:
    result = train_own(beside(folder, loss__consistency=0.5), tmp_path / "run")
    (epoch,) = history(result)
    assert "train/consistency_loss" in epoch
    assert "validation/consistency_loss" not in epoch
    facts = facts_of(gather(tmp_path / "run"))
    assert facts["Loss"] == f"1 bce + 1 dice + 0.5 consistency ({folder})"
    assert facts["Split"] == "6 to train on, 3 to validate on, 5 without masks"
    data = read_card(result.checkpoint).data
    assert data.unlabelled_images == len(data.unlabelled_hashes) == 5
    assert data.unlabelled_fingerprint
    assert "5 without masks" in parts_of(beside(folder)).describe()
    alone = train_own(tiny(), tmp_path / "alone")
    assert "train/consistency_loss" not in history(alone)[0]
    assert read_card(alone.checkpoint).data.unlabelled_images == 0
    assert "without masks" not in parts_of(tiny()).describe()


def mixture(drawn_folder: Path, where: Path, *parts: str) -> Path:
    """Copy images of some parts of a data folder, under other names."""
    where.mkdir()
    for part in parts:
        for path in (drawn_folder / part / "images").iterdir():
            shutil.copy(path, where / f"{part}-{path.name}")
    return where


def test_images_that_the_model_is_judged_by_are_left_out(
    folder: Path, drawn_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = mixture(drawn_folder, tmp_path / "more", "train", "val", "test")
    for path in folder.iterdir():
        shutil.copy(path, where)
    with caplog.at_level(logging.INFO):
        parts = prepare(beside(where, data__path=drawn_folder))
    assert parts.data_card.unlabelled_images == 5 + 24
    assert "left out copies of 6 test and 6 validation images" in caplog.text
    names = {name for batch in parts.training_batches for name in batch.unlabelled.names}  # type: ignore[union-attr]
    assert names
    assert not any(name.startswith(("val-", "test-")) for name in names)


def test_of_the_whole_pets_folder_what_has_a_part_of_its_own_is_left_out(
    pets_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        parts = prepare(beside(pets_folder, data__path=pets_folder, data__limit=30))
    assert "copies of 149 test and 30 validation images" in caplog.text
    assert parts.data_card.unlabelled_images == 270 + 2  # two stand in the folder and in no list


def test_a_folder_of_such_images_alone_is_refused(drawn_folder: Path, tmp_path: Path) -> None:
    where = mixture(drawn_folder, tmp_path / "more", "val", "test")
    words = "all 12 images are copies of 6 test and 6 validation images; give some others"
    with pytest.raises(DataError, match=words):
        prepare(beside(where, data__path=drawn_folder))


def test_images_in_memory_are_found_among_files_too(tmp_path: Path) -> None:
    write_folder(DrawnSource(12, size=(16, 16)), tmp_path)
    assert parts_of(beside(tmp_path / "images")).data_card.unlabelled_images == 6 + 3


def test_a_score_on_them_says_that_they_were_seen_and_is_not_refused(
    folder: Path, tmp_path: Path
) -> None:
    predictor = Predictor.load(train_own(beside(folder), tmp_path / "run").checkpoint)
    score = evaluate(predictor, folder_source(folder.parent), split="test")
    seen = score.rules.seen
    assert seen == (
        "perhaps flattering: the model has learned from 5 of 5 of these images, without their masks"
    )
    assert not seen.startswith(SPOILT)
    others = evaluate(predictor, DrawnSource(2, size=(16, 16), first=90), split="test")
    assert others.rules.seen == "the model has seen none of these images"


@pytest.mark.parametrize("step", range(1, 6))
def test_a_run_with_images_without_masks_goes_on_exactly(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    run = beside(folder, train__epochs=3, train__batch_size=3, train__ema_decay=0.5)
    train_own(run, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(step, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_own(run, tmp_path / "run")
    shutil.copytree(folder, tmp_path / "moved")
    moved = run.model_copy(
        update={"train": run.train.model_copy(update={"unlabelled": tmp_path / "moved"})}
    )
    resume_own(tmp_path / "run", run=moved)
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")
    assert last_state(tmp_path / "run")["progress"]["step"] == 6


def test_other_images_without_masks_are_refused_when_the_run_goes_on(
    folder: Path, tmp_path: Path
) -> None:
    train_own(beside(folder), tmp_path / "run")
    shutil.copytree(folder, tmp_path / "fewer")
    next((tmp_path / "fewer").iterdir()).unlink()
    words = "not the images without masks that the run began with; give their folder with --unl"
    for run in (beside(tmp_path / "fewer"), tiny(train__ema_decay=0.99)):
        with pytest.raises(DataError, match=words):
            resume_own(tmp_path / "run", run=run)
    resume_own(tmp_path / "run", run=beside(tmp_path / "fewer"), allow_changes=True)
    slower = beside(tmp_path / "fewer", train__consistency_steps=7)
    with pytest.raises(ConfigError, match=r"consistency_steps \(100 -> 7\) would make it another"):
        resume_own(tmp_path / "run", run=slower)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"loss__consistency": 0.0}, "images without masks teach nothing where loss.consistency"),
        ({"train__unlabelled": "nowhere"}, "nowhere: there is no such folder; check --unlabelled"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, flags: dict[str, object], words: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=words):
        train_own(tiny(**{"train__unlabelled": folder, **flags}), tmp_path / "run")
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_the_guard_names_images_without_masks_too(folder: Path, tmp_path: Path) -> None:
    run = beside(folder, train__loss_guard=True)
    broken = parts_of(run)
    for weight in broken.model.parameters():
        weight.data.fill_(math.nan)
    (tmp_path / "run").mkdir()
    batch = first_batch(broken)
    trainer = Trainer(broken, tmp_path / "run")
    value = compute_loss(broken.model, batch, broken.loss, broken.optimization.precision)
    trainer.guard.after_step(trainer.progress, batch, losses_of(value), 1.0, taken=False)
    (line,) = (tmp_path / "run" / "incidents.jsonl").read_text().splitlines()
    assert batch.unlabelled
    wanted = [*batch.names, *batch.unlabelled.names]
    assert json.loads(line)["images"] == wanted


def test_the_guard_judges_an_epoch_by_the_masks_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[float | None] = []

    def judge_epoch(_: LossJudge, training: float | None, validation: float | None) -> None:
        del validation
        judged.append(training)

    monkeypatch.setattr(LossJudge, "judge_epoch", judge_epoch)
    run = beside(folder, loss__bce=2.0, loss__consistency=50.0, train__consistency_steps=0)
    (both,) = history(train_own(run, tmp_path / "both"))
    assert judged.pop() == pytest.approx(2 * both["train/bce_loss"] + both["train/dice_loss"])
    (alone,) = history(train_own(tiny(), tmp_path / "alone"))
    assert judged.pop() == alone["train/loss"]


def test_an_ensemble_and_a_student_remember_what_was_seen(
    folder: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    from notan.comparison import make_ensemble

    settings: dict[str, object] = {"data__path": drawn_folder, "model__width": 2}
    one = train(beside(folder, **settings), out=tmp_path / "one").checkpoint
    two = train(tiny(**settings, seed=1), out=tmp_path / "two").checkpoint
    seen = read_card(one).data.unlabelled_hashes
    whole = make_ensemble([one, two], tmp_path / "e.safetensors").path
    assert set(read_card(whole).data.unlabelled_hashes) == set(seen)
    student = train(tiny(**settings, train__teacher=one), out=tmp_path / "student").checkpoint
    assert read_card(student).data.unlabelled_hashes == seen


@pytest.mark.usefixtures("without_reports")
def test_the_command_takes_a_folder(folder: Path, drawn_folder: Path, tmp_path: Path) -> None:
    words = ["train", "--data-path", str(drawn_folder), "--out", str(tmp_path / "run")]
    quick = ["--image-size", "16", "--epochs", "1", "model.width=2", "train.trackers=[]"]
    main([*words, *quick, "--device", "cpu", "--unlabelled", str(folder)])
    best = tmp_path / "run" / "best.safetensors"
    card = load_checkpoint(best).card
    assert card.run.train.unlabelled == folder
    assert card.data.unlabelled_images == 5
    assert plan_search(best).run.train.unlabelled is None
