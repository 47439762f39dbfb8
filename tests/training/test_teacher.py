"""A student learns from a teacher's probabilities beside the true masks."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.special import expit

from notan.checking.label_errors import plan_search
from notan.cli.main import main
from notan.config import Model
from notan.data.synthetic import DrawnSource
from notan.errors import CheckpointError, ConfigError, DataError, StoppedBySignal
from notan.evaluation.evaluate import evaluate
from notan.losses import Loss, bce
from notan.modelfile.card import Checkpoint, load_checkpoint, read_card, save_checkpoint
from notan.modelfile.postprocess import Postprocessing
from notan.models.base import SegmentationModel
from notan.models.build import build_model
from notan.prediction.predictor import Predictor
from notan.report.run import facts_of, gather
from notan.training.build import TrainingSetup, prepare
from notan.training.trainer import Trainer
from runs import (
    TRAINING,
    VALIDATION,
    Own,
    ask_to_stop,
    before_step,
    fate,
    history,
    resume_own,
    tiny,
    train_own,
)

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import Run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of another network than the students'; not to be changed."""
    run = tiny(model__name="attention_unet", model__width=4, train__epochs=4, seed=9)
    with mock.patch.object(SegmentationModel, "expect"):  # else it says the same of all pixels
        return train_own(run, tmp_path_factory.mktemp("teacher") / "run").checkpoint


def taught(teacher: Path, **flags: object) -> Run:
    return tiny(train__teacher=teacher, **flags)


def parts_of(run: Run) -> TrainingSetup:
    return prepare(run, training=TRAINING, validation=VALIDATION)


def altered(checkpoint: Path, path: Path, **fields: Any) -> Path:
    """Copy a checkpoint with some fields of its card changed."""
    whole = load_checkpoint(checkpoint)
    save_checkpoint(path, Checkpoint(whole.card.model_copy(update=fields), whole.weights))
    return path


def test_the_teacher_answers_the_varied_images_that_the_student_sees(
    teacher: Path, tmp_path: Path
) -> None:
    calibrated = Postprocessing(temperature=2.0, bias=-0.5)
    teacher = altered(teacher, tmp_path / "calibrated.safetensors", postprocessing=calibrated)
    parts = parts_of(taught(teacher))
    assert parts.teacher
    known = Predictor.load(teacher)
    parts.training_batches.set_epoch(1)
    plain = list(parts.training_batches)
    for batch in plain:
        marked = parts.teacher.mark(batch)
        assert batch.soft is None
        assert marked.soft is not None
        assert torch.equal(marked.images, batch.images)
        wanted = expit(known.backend(batch.images.numpy()) / 2 - 0.5)
        np.testing.assert_allclose(marked.soft.numpy(), wanted, atol=1e-6)


def test_its_term_is_the_cross_entropy_against_its_probabilities() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 4, 4, requires_grad=True)
    masks, soft = (torch.rand(2, 1, 4, 4) > 0.5).float(), torch.rand(2, 1, 4, 4)
    valid = torch.ones(2, 1, 4, 4)
    valid[:, :, 0] = 0
    value = Loss({"bce": 1.0}, teacher=3.0)(logits, masks, valid, soft)
    p, q, inside = (x.detach().double().numpy() for x in (logits.sigmoid(), soft, valid))
    cross_entropy = -(q * np.log(p) + (1 - q) * np.log(1 - p)) * inside
    assert value.terms["teacher"].item() == pytest.approx(
        cross_entropy.sum() / inside.sum(), rel=1e-5
    )
    alone = bce(logits, masks, valid).item()
    assert value.total.item() == pytest.approx(alone + 3 * value.terms["teacher"].item(), rel=1e-5)
    assert "teacher" not in Loss({"bce": 1.0}, teacher=3.0)(logits, masks, valid).terms
    assert "teacher" not in Loss({"bce": 1.0})(logits, masks, valid, soft).terms
    with pytest.raises(ConfigError, match="teacher is -1"):
        Loss({"bce": 1.0}, teacher=-1)


def test_a_student_comes_nearer_to_its_teacher(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SegmentationModel, "expect", lambda *_: None)  # as the teacher began
    known = Predictor.load(teacher)
    images = [sample.image for sample in DrawnSource(6, size=(16, 16), first=50)]
    settings = {"train__epochs": 12, "train__learning_rate": 0.01, "loss__dice": 0.0}
    distance = {}
    for name, run in (
        ("taught", taught(teacher, loss__bce=0.01, **settings)),
        ("alone", tiny(loss__bce=0.01, **settings)),
    ):
        student = Predictor.load(train_own(run, tmp_path / name).checkpoint)
        raw = student.with_postprocessing(
            known.postprocessing.model_copy(update={"temperature": 1, "bias": 0})
        )
        distance[name] = np.mean(
            [np.abs(raw(each).probability - known(each).probability).mean() for each in images]
        )
    assert distance["taught"] < distance["alone"] - 0.01


def test_the_history_and_the_report_show_the_term(teacher: Path, tmp_path: Path) -> None:
    result = train_own(taught(teacher, loss__teacher=0.5), tmp_path / "run")
    assert "train/teacher_loss" in history(result)[0]
    assert "validation/teacher_loss" not in history(result)[0]
    assert "train/teacher_loss" not in history(train_own(tiny(), tmp_path / "alone"))[0]
    facts = facts_of(gather(tmp_path / "run"))
    assert facts["Loss"] == f"1 bce + 1 dice + 0.5 teacher ({teacher})"


def test_what_the_teacher_has_learned_counts_as_seen(teacher: Path, tmp_path: Path) -> None:
    others = DrawnSource(6, size=(16, 16), first=70)
    run = taught(teacher)
    student = train_own(run, tmp_path / "run", training=others).checkpoint
    own, theirs = set(others.hashes()), set(read_card(teacher).data.training_hashes)
    assert set(read_card(student).data.training_hashes) == own | theirs
    with pytest.raises(DataError, match="trained on 6 of these 6 images"):
        evaluate(Predictor.load(student), TRAINING, split="test")


def test_validation_images_that_the_teacher_has_learned_are_refused(
    teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"trained on 6 of this run's 6 validation images \("):
        train_own(taught(teacher), tmp_path / "run", validation=TRAINING)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_taught_run_goes_on_exactly(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    run = taught(teacher, train__epochs=2)
    train_own(run, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(step, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_own(run, tmp_path / "run")
    moved = tmp_path / "moved.safetensors"
    shutil.copy(teacher, moved)
    resume_own(tmp_path / "run", run=taught(moved, train__epochs=2))
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_another_teacher_is_refused_when_the_run_goes_on(teacher: Path, tmp_path: Path) -> None:
    train_own(taught(teacher), tmp_path / "run")
    card = read_card(teacher)
    calibrated = {"postprocessing": card.postprocessing.model_copy(update={"temperature": 3.0})}
    other = altered(teacher, tmp_path / "other.safetensors", **calibrated)
    for run in (taught(other), tiny()):
        with pytest.raises(ConfigError, match="not the teacher that the run began with"):
            resume_own(tmp_path / "run", run=run)
    resume_own(tmp_path / "run", run=taught(other), allow_changes=True)
    train_own(tiny(), tmp_path / "alone")
    with pytest.raises(ConfigError, match="not the teacher that the run began with"):
        resume_own(tmp_path / "alone", run=taught(teacher))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"preprocess__image_size": 32}, r"preprocess.image_size = \(16, 16\), this run has"),
        ({"preprocess__std": (1.0, 1.0, 1.0)}, "trained with preprocess.std = "),
        ({"loss__teacher": 0.0}, "a teacher whose loss.teacher is 0 teaches nothing"),
    ],
)
def test_a_teacher_that_cannot_teach_this_run_is_refused(
    teacher: Path, tmp_path: Path, flags: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train_own(taught(teacher, **flags), tmp_path / "run")
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_a_teacher_of_another_rule_or_stride_is_refused(teacher: Path, tmp_path: Path) -> None:
    ruled = altered(teacher, tmp_path / "ruled.safetensors", trimap_border="background")
    with pytest.raises(
        ConfigError, match="trimap_border = background, this run has trimap_border = none"
    ):
        train_own(taught(ruled), tmp_path / "run")
    coarse = train_own(tiny(model__name="resnet34_unet"), tmp_path / "coarse").checkpoint
    with pytest.raises(ConfigError, match="multiples of 64, and the student's are 16x16"):
        train_own(taught(coarse), tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"white": 4095}, "data.white = 4095, this run has 65535"),
        ({"ranges": ((0.0, 9.0),) * 3, "floats": True}, r"preprocess.ranges = \(\(0.0, 9.0\)"),
        (
            {"channels": 4, "mean": (0.5,) * 4, "std": (0.5,) * 4},
            "data.channels = 4, this run has 3",
        ),
    ],
)
def test_a_teacher_that_reads_images_otherwise_is_refused(
    teacher: Path, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    whole = load_checkpoint(teacher)
    if "channels" in changed:
        network = build_model(Model(name="attention_unet", width=4), 4)
        whole = Checkpoint(whole.card, network.state_dict())
    card = whole.card.model_copy(
        update={"preprocess": whole.card.preprocess.model_copy(update=changed)}
    )
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, Checkpoint(card, whole.weights))
    with pytest.raises(ConfigError, match=f"{words}.*choose another teacher"):
        train_own(taught(other), tmp_path / "run")


def test_a_teacher_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no model")
    torch.save({"w": torch.ones(2)}, tmp_path / "pickle.pth")
    own = train_own(tiny(), tmp_path / "own", model=Own()).checkpoint
    for path, words in (
        (tmp_path / "nowhere.safetensors", "there is no such model file"),
        (tmp_path / "text.safetensors", "not a safetensors file, or a damaged one"),
        (tmp_path / "pickle.pth", "this is a PyTorch pickle"),
        (own, "the teacher is of Own, a class of your own"),
    ):
        with pytest.raises(CheckpointError, match=words):
            train_own(taught(path), tmp_path / "run")


@pytest.mark.usefixtures("without_reports")
def test_an_ensemble_can_teach(drawn_folder: Path, small_run: Run, tmp_path: Path) -> None:
    from notan.comparison import make_ensemble
    from notan.training import train

    runs = [small_run.model_copy(update={"seed": seed}) for seed in (0, 1)]
    models = [train(run, out=tmp_path / str(run.seed)).checkpoint for run in runs]
    whole = make_ensemble(models, tmp_path / "e.safetensors").path
    words = ["train", "--data-path", str(drawn_folder), "--out", str(tmp_path / "student")]
    quick = ["--image-size", "32", "--epochs", "1", "model.width=2", "train.trackers=[]"]
    main([*words, *quick, "--device", "cpu", "--teacher", str(whole)])
    card = read_card(tmp_path / "student" / "best.safetensors")
    assert card.run.train.teacher == whole
    assert plan_search(tmp_path / "student" / "best.safetensors").run.train.teacher is None


def test_the_teacher_is_left_as_it_was(teacher: Path) -> None:
    parts = parts_of(taught(teacher))
    assert parts.teacher
    before = {name: value.clone() for name, value in parts.teacher.model.state_dict().items()}
    parts.training_batches.set_epoch(1)
    parts.teacher.mark(next(iter(parts.training_batches)))
    assert not parts.teacher.model.training
    for name, value in parts.teacher.model.state_dict().items():
        assert torch.equal(value, before[name])
