"""On a GPU: every network trains, resumes, rolls back, predicts and exports as on the CPU.

Run by ``pytest -m gpu``; any other run hides the GPUs, so that all other tests compute on the CPU
whatever machine they are on (``conftest.py``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from allergic import Allergic, Whitening
from notan.errors import NotanError
from notan.exporting import export
from notan.prediction.backends import TorchBackend
from notan.prediction.flow import Flow, Job
from notan.prediction.predictor import Prediction, Predictor
from notan.training.build import prepare
from notan.training.compiling import GraphStepper, Stepper, tensors_of, with_tensors
from notan.training.judge import LossJudge
from notan.training.spikes import SpikeDetector
from runs import (
    TRAINING,
    VALIDATION,
    Crash,
    history,
    lines_of,
    resume_own,
    tiny,
    train_own,
    weights,
)

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import Run
    from notan.data.batches import Batch

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device (pytest -m gpu)"),
]
NETWORKS: dict[str, dict[str, object]] = {
    "unet": {"model__name": "unet"},
    "attention_unet": {"model__name": "attention_unet"},
    "resnet34_unet": {"model__name": "resnet34_unet"},
    "unet-resnet34": {"model__encoder": "resnet34"},
    "unet-lite0": {"model__encoder": "efficientnet_lite0"},
}
EPOCHS, LAST_IMAGE = 4, 14
"""The crash comes in the third of four epochs of six images."""


class Steady:
    """An augmentation that changes nothing, and ends the training at one image."""

    def __init__(self, last: int | None = None) -> None:
        self.last, self.images = last, 0

    def __call__(self, *, image: Any, mask: Any) -> dict[str, Any]:
        self.images += 1
        if self.images == self.last:
            raise Crash
        return {"image": image, "mask": mask}


def on_the_gpu(**flags: object) -> Run:
    settings: dict[str, object] = {
        "device": DEVICE,
        "preprocess__image_size": 32,
        "data__workers": 0,
        "train__epochs": EPOCHS,
        "train__checkpoint_every_steps": 1,
        "train__ema_decay": 0.8,
    }
    return tiny(**{**settings, **flags})


def stopped_and_resumed(run: Run, folder: Path) -> Any:
    with pytest.raises((Crash, NotanError)):
        train_own(run, folder, transform=Steady(LAST_IMAGE))
    return resume_own(folder, transform=Steady())


@pytest.mark.parametrize("network", NETWORKS)
def test_with_deterministic_arithmetic_a_resumed_training_is_bit_equal(
    network: str, tmp_path: Path
) -> None:
    run = on_the_gpu(train__deterministic=True, **NETWORKS[network])
    whole = train_own(run, tmp_path / "whole", transform=Steady())
    assert weights(stopped_and_resumed(run, tmp_path / "part")) == weights(whole)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_without_it_a_resumed_training_is_equal_to_rounding(precision: str, tmp_path: Path) -> None:
    run = on_the_gpu(train__precision=precision)
    whole = train_own(run, tmp_path / "whole", transform=Steady())
    resumed = stopped_and_resumed(run, tmp_path / "part")
    for one, other in zip(history(whole), history(resumed), strict=True):
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=0.05)


@pytest.mark.parametrize("network", NETWORKS)
def test_masks_are_those_of_the_cpu_and_of_the_export(network: str, tmp_path: Path) -> None:
    result = train_own(on_the_gpu(**NETWORKS[network]), tmp_path / "run")
    onnx = export(result.checkpoint, tmp_path / "model.onnx")[0]
    image = TRAINING[0].image
    here = Predictor.load(result.checkpoint, device=DEVICE, precision="fp32")(image).probability
    for other in (Predictor.load(result.checkpoint), Predictor.load(onnx)):
        np.testing.assert_allclose(here, other(image).probability, atol=0.02)


def test_a_loss_of_nan_is_skipped_and_the_training_goes_back(tmp_path: Path) -> None:
    run = on_the_gpu(train__epochs=8, preprocess__image_size=16)
    whitening = Whitening(*range(7, 13))  # six bad batches one after the other
    result = train_own(run, tmp_path / "run", model=Allergic(), transform=whitening)
    actions = [line["action"] for line in lines_of(tmp_path / "run" / "incidents.jsonl")]
    assert "go back" in actions
    assert all(math.isfinite(line["validation/loss"]) for line in history(result))


def steps_on_the_gpu(**flags: object) -> tuple[Stepper, Batch]:
    """Steps of a training, and a batch that is there already."""
    setup = prepare(on_the_gpu(**flags), training=TRAINING, validation=VALIDATION)
    setup.training_batches.set_epoch(1)
    batch = next(iter(setup.training_batches))
    resident = with_tensors(batch, [tensor.to(DEVICE) for tensor in tensors_of(batch)])
    return Stepper(setup, setup.loss, SpikeDetector(LossJudge(5), setup.device)), resident


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
def test_fifty_steps_wait_for_nothing(network: str, *, captured: bool) -> None:
    plain, batch = steps_on_the_gpu(**NETWORKS[network])
    take = GraphStepper(plain) if captured else plain
    take(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = [take(batch).on_the_way() for _ in range(50)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(each.read()[0] for each in values)


@pytest.mark.parametrize("network", NETWORKS)
def test_captured_steps_are_the_steps(network: str) -> None:
    losses = []
    for captured in (True, False):
        plain, batch = steps_on_the_gpu(train__deterministic=True, **NETWORKS[network])
        take = GraphStepper(plain) if captured else plain
        losses.append([take(batch).read()[2]["loss"] for _ in range(20)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("how", ["default", "tuned"])
def test_a_compiled_and_captured_training_learns_and_resumes(how: str, tmp_path: Path) -> None:
    run = on_the_gpu(train__compile=how, model__name="resnet34_unet")
    whole = train_own(run, tmp_path / "whole", transform=Steady())
    plain = train_own(on_the_gpu(train__compile="off", model__name="resnet34_unet"), tmp_path / "p")
    resumed = stopped_and_resumed(run, tmp_path / "part")
    for one, *others in zip(history(whole), history(plain), history(resumed), strict=True):
        for other in others:
            assert other["train/loss"] == pytest.approx(one["train/loss"], rel=0.05)


def test_files_are_predicted_in_bf16_one_batch_ahead_and_fp32_gives_the_cpu_s_masks(
    tmp_path: Path,
) -> None:
    result = train_own(on_the_gpu(), tmp_path / "run")
    images = [sample.image for sample in TRAINING]
    here = Predictor.load(result.checkpoint, device=DEVICE)
    assert (here.precision, here.choose_batch_size()) == ("bf16", 32)
    exact = Predictor.load(result.checkpoint, device=DEVICE, precision="fp32")
    there = Predictor.load(result.checkpoint)
    for predictor, tolerance in ((here, 0.05), (exact, 0.005)):
        flow: Flow[int, Any] = Flow(predictor, batch_size=4)
        found = flow.run(
            range(len(images)),
            lambda number: Job(lambda: images[number], lambda _, made: made),
        )
        for number, prediction in found:
            assert isinstance(prediction, Prediction)
            np.testing.assert_allclose(
                prediction.probability, there(images[number]).probability, atol=tolerance
            )
        assert flow.timing.network_alone > 0


def test_a_compiled_network_answers_as_it_does_uncompiled(tmp_path: Path) -> None:
    result = train_own(on_the_gpu(), tmp_path / "run")
    backend = Predictor.load(result.checkpoint, device=DEVICE, precision="fp32").backend
    assert isinstance(backend, TorchBackend)
    inputs = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(backend.compiled()(inputs), backend(inputs), atol=0.02)
