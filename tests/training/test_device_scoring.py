"""Validation on a device: today's scores, without waiting for it before the pass is over."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from notan.data import loading, on_device
from notan.data.batches import BatchLoader, SampleDataset
from notan.data.on_device import DeviceBatchLoader, DeviceSamples
from notan.errors import DivergedError, StoppedBySignal
from notan.losses import Loss
from notan.modelfile.preprocess import Preprocessor, resize
from notan.prediction.backends import TorchBackend
from notan.training import resume, train, validation
from notan.training.trainer import Trainer
from notan.training.validation import DeviceScoring, open_scoring, restore, validate
from photographs import SIZES, Kept, photographs
from runs import ask_to_stop, before_step, fate, history, tiny
from waits import META, NoWaiting

if TYPE_CHECKING:
    from pathlib import Path

    from notan.data.samples import Source
    from notan.training.validation import Validation
    from notan.types import Size

CPU = torch.device("cpu")
LOSS = Loss({"bce": 1.0, "dice": 0.5})
FIXED = Preprocessor(image_size=(50, 48), stride=16)
sides = st.integers(1, 90)


@settings(max_examples=150, deadline=None)
@given(before=st.tuples(sides, sides), after=st.tuples(sides, sides), seed=st.integers(0, 99))
def test_maps_are_brought_back_as_opencv_does(before: Size, after: Size, seed: int) -> None:
    probability = np.random.default_rng(seed).random(before, dtype=np.float32)
    found = restore(torch.from_numpy(probability), after).numpy()
    assert found.dtype == np.float32
    # some of OpenCV's ways round the places between pixels to float32
    np.testing.assert_allclose(found, resize(probability, after), atol=2e-5)


@pytest.mark.parametrize("size", [(375, 500), (200, 600), (100, 90), (256, 256), (700, 33)])
def test_maps_of_usual_sizes_are_equal_to_a_millionth(size: Size) -> None:
    probability = np.random.default_rng(0).random((256, 256), dtype=np.float32)
    found = restore(torch.from_numpy(probability), size).numpy()
    np.testing.assert_allclose(found, resize(probability, size), atol=1e-6)
    ones = np.ones((256, 256), np.float32)
    np.testing.assert_array_equal(restore(torch.from_numpy(ones), size).numpy() >= 0.5, True)


class Blurring(nn.Module):
    """A network with something to say everywhere, and batch norm."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 5, padding=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 1, 3, padding=1),
        )
        self.bias = bias

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = 5 * self.layers(images) + self.bias
        return answer


def read(source: Source, preprocessor: Preprocessor = FIXED) -> BatchLoader:
    return BatchLoader(SampleDataset(source, preprocessor), 4, shuffle=False)


def held(source: Source, device: torch.device = CPU, **more: Any) -> DeviceBatchLoader:
    images = SampleDataset(source, FIXED)
    samples = DeviceSamples(source, source.sizes(), FIXED, device, resized=True, **more)
    return DeviceBatchLoader(images, samples, 4, shuffle=False)


def today(source: Source, preprocessor: Preprocessor = FIXED, model: Any = None) -> Validation:
    return validate(TorchBackend(model or Blurring()), read(source, preprocessor), LOSS)


def on_a_device(
    batches: BatchLoader | DeviceBatchLoader,
    preprocessor: Preprocessor = FIXED,
    model: nn.Module | None = None,
) -> Validation:
    masks = batches.samples.masks if isinstance(batches, DeviceBatchLoader) else None
    scoring = DeviceScoring(CPU, preprocessor, masks=masks)
    return scoring(model or Blurring(), batches, LOSS)


def assert_alike(one: Validation, other: Validation) -> None:
    assert one.losses == pytest.approx(other.losses, abs=1e-6)
    assert one.dice == pytest.approx(other.dice, abs=1e-5)
    assert one.iou == pytest.approx(other.iou, abs=1e-5)
    assert one.all_foreground_dice == pytest.approx(other.all_foreground_dice, abs=1e-12)


def with_empty_masks(source: Kept) -> Kept:
    """The third sample has no foreground, the fourth is ignored as a whole."""
    samples = list(source.samples)
    samples[2] = dataclasses.replace(samples[2], mask=np.zeros(samples[2].size, bool))
    samples[3] = dataclasses.replace(samples[3], ignore=np.ones(samples[3].size, bool))
    return Kept(samples)


@pytest.mark.parametrize("ignores", [True, False])
@pytest.mark.parametrize("bias", [0.0, -40.0, 40.0])
def test_every_image_scores_as_today(ignores: bool, bias: float) -> None:
    model = Blurring(bias)
    for sample in with_empty_masks(photographs(ignores=ignores)):
        alone = Kept([sample])
        wanted = today(alone, model=model)
        assert_alike(on_a_device(held(alone), model=model), wanted)
        assert_alike(on_a_device(read(alone), model=model), wanted)


@pytest.mark.parametrize(
    "update",
    [{}, {"image_size": None}, {"keep_aspect_ratio": True}],
    ids=["fixed", "own", "aspect"],
)
def test_means_over_batches_are_todays(update: dict[str, Any]) -> None:
    preprocessor, source = FIXED.model_copy(update=update), photographs()
    wanted = today(source, preprocessor)
    assert_alike(on_a_device(read(source, preprocessor), preprocessor), wanted)
    if not update:
        assert_alike(on_a_device(held(source)), wanted)
        assert_alike(on_a_device(held(source, resident=False)), wanted)
    assert 0.1 < wanted.dice < 0.9


def test_the_network_goes_on_in_the_mode_that_it_was_in() -> None:
    source = photographs(SIZES[:2])
    for training in (True, False):
        model = Blurring().train(training)
        before = [buffer.clone() for buffer in model.buffers()]
        on_a_device(held(source), model=model)
        assert model.training is training
        assert all(map(torch.equal, model.buffers(), before))


class Ill(Blurring):
    """Answers images whose first pixel is darkest with NaN."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        dark = images[:, :1, :1, :1] < -2.1
        return super().forward(images).masked_fill(dark, float("nan"))


def test_images_that_are_answered_with_nan_are_named() -> None:
    samples = photographs().samples
    for number, sample in enumerate(samples):
        sample.image[:] = 0 if number in (1, 6) else np.maximum(sample.image, 9)
    with pytest.raises(
        DivergedError, match="NaN or infinity for photograph-1, photograph-6;"
    ) as ill:
        on_a_device(held(Kept(samples)), model=Ill())
    assert ill.value.images == ("photograph-1", "photograph-6")


def test_nothing_is_read_before_the_pass_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Any] = []
    source = photographs(SIZES[:5])
    monkeypatch.setattr(validation._Pass, "result", lambda done: ended.append(done))
    monkeypatch.setattr(validation, "_in_all", lambda *_: None)
    with NoWaiting():
        on_a_device(held(source))
    # where nothing has a value, nothing can be read
    for batches in (held(source, META), read(source)):
        masks = batches.samples.masks if isinstance(batches, DeviceBatchLoader) else None
        DeviceScoring(META, FIXED, masks=masks)(Blurring().to(META), batches, LOSS)
    assert [len(each.counts) for each in ended] == [5, 5, 5]
    assert ended[1].counts[0].device == META


@pytest.mark.parametrize(("room", "copies"), [(0, 18), (61 * 83 + 120 * 45, 16), (10**9, 9)])
def test_masks_stay_on_the_device_as_far_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch, room: int, copies: int
) -> None:
    copied: list[int] = []
    original = on_device.codes_of

    def counting(*arrays: Any) -> Any:
        copied.append(1)
        return original(*arrays)

    monkeypatch.setattr(validation, "codes_of", counting)
    scoring, source = DeviceScoring(CPU, FIXED, room=room), photographs()
    first, second = (scoring(Blurring(), read(source), LOSS) for _ in range(2))
    assert first == second
    assert len(copied) == copies


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a processor stand for a GPU."""
    monkeypatch.setattr(loading, "DEVICES", ("cuda", "cpu"))


def test_a_processor_scores_as_before() -> None:
    assert open_scoring(CPU, read(photographs()), FIXED) is None


@pytest.mark.usefixtures("here")
def test_where_images_do_not_stay_their_masks_may() -> None:
    source = photographs()
    scoring = open_scoring(CPU, read(source), FIXED)
    assert scoring is not None
    assert_alike(scoring(Blurring(), read(source), LOSS), today(source))


IMAGES = photographs([(20, 24), (31, 17), (16, 40), (25, 25), (9, 30), (40, 40)])
CHECKS = photographs([(20, 24), (31, 17), (16, 40)], seed=1)
VARIED: dict[str, object] = {
    "train__epochs": 3,
    "train__ema_decay": 0.8,
    "preprocess__image_size": 32,
}


def test_a_training_on_a_device_is_that_of_the_workers_to_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    parts: dict[str, Any] = {"training": IMAGES, "validation": CHECKS}
    workers = train(tiny(**VARIED), out=tmp_path / "workers", **parts)
    assert "decoded once" not in caplog.text
    monkeypatch.setattr(loading, "DEVICES", ("cuda", "cpu"))
    device = train(tiny(**VARIED), out=tmp_path / "device", **parts)
    assert "training images: 6 decoded once" in caplog.text
    assert "validation images: 3 decoded once" in caplog.text
    for one, other in zip(history(device), history(workers), strict=True):
        names = {name for name in one if name != "seconds"}
        assert {name: one[name] for name in names} == pytest.approx(
            {name: other[name] for name in names}, abs=2e-3
        )


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("step", [1, 4])
def test_a_training_on_a_device_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    parts: dict[str, Any] = {"training": IMAGES, "validation": CHECKS}
    train(tiny(**VARIED), out=tmp_path / "whole", **parts)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(step, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train(tiny(**VARIED), out=tmp_path / "run", **parts)
    resume(tmp_path / "run", **parts)
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")
