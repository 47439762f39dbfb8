"""Images of half the size at first: what becomes of a batch, for how long, and after a stop."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import torch

from notan.cli.main import main
from notan.config import Pretraining, load_run, load_settings
from notan.data.batches import Batch, Unlabelled, half_of
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError
from notan.training import train
from notan.training.trainer import Trainer
from runs import Crash, before_step, crash, fate, resume_own, tiny, train_own

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import Run
    from notan.types import Size

WHOLE, HALF = (3, 3, 16, 16), (3, 3, 8, 8)
STEPS = 8


def halved(**flags: object) -> Run:
    """Settings of eight steps, the first three of them at half the size."""
    settings: dict[str, object] = {"train__epochs": 4, "train__half_size_fraction": 0.3}
    return tiny(**{**settings, **flags})


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the images of each step."""
    seen: list[tuple[int, ...]] = []
    answered = Trainer.answered

    def looking(trainer: Trainer, batch: Batch, step: int) -> Batch:
        batch = answered(trainer, batch, step)
        seen.append(tuple(batch.images.shape))
        for other in (batch.targets, batch.valid, batch.soft):
            assert other is None or other.shape[-2:] == batch.images.shape[-2:]
        return batch

    monkeypatch.setattr(Trainer, "answered", looking)
    return seen


def test_a_pixel_is_the_mean_and_the_mask_is_what_most_pixels_say() -> None:
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    targets = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1.0]])
    valid = torch.ones(4, 4)
    valid[3, 3] = 0
    batch = Batch(images, targets[None, None], valid[None, None], ("a",)).halved(1)
    assert batch.images[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert batch.targets[0, 0].tolist() == [[1, 0], [1, 1]]
    assert batch.valid[0, 0].tolist() == [[1, 1], [1, 0]]


def test_images_without_masks_are_halved_too() -> None:
    images, inside = torch.rand(2, 3, 8, 8), torch.ones(2, 1, 8, 8)
    inside[:, :, :, 5:] = 0
    more = Unlabelled(("b", "c"), images, images + 1, inside)
    batch = Batch(images, inside, inside, ("a", "b"), unlabelled=more).halved(2)
    assert batch.unlabelled
    assert torch.equal(batch.unlabelled.plain, batch.images)
    assert torch.allclose(batch.unlabelled.varied, batch.images + 1)
    assert batch.unlabelled.inside[0, 0, 0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("size", "stride", "half"),
    [((128, 128), 16, (64, 64)), ((32, 96), 32, (32, 64)), ((480, 352), 32, (256, 192))],
)
def test_half_a_size_is_one_that_the_network_takes(size: Size, stride: int, half: Size) -> None:
    assert half_of(size, stride) == half


def test_the_first_share_of_the_steps_sees_half_the_size(
    tmp_path: Path, sizes: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "notan")
    train_own(halved(), tmp_path / "run")
    assert sizes == [HALF] * 3 + [WHOLE] * 5
    assert caplog.text.count("images of half the size for 0.3 of the training") == 1
    assert caplog.text.count("epoch 2: from here on images have their whole size") == 1


def test_without_the_setting_none_is_halved(
    tmp_path: Path, sizes: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "notan")
    train_own(halved(train__half_size_fraction=0.0), tmp_path / "run")
    assert sizes == [WHOLE] * STEPS
    assert "size" not in caplog.text.replace("batch-size", "")


def test_a_teacher_and_the_average_answer_what_is_seen(
    tmp_path: Path, sizes: list[tuple[int, ...]]
) -> None:
    teacher = train_own(tiny(), tmp_path / "teacher").checkpoint
    write_folder(DrawnSource(4, size=(16, 16), first=20), tmp_path / "more")
    sizes.clear()
    taught = {"train__teacher": teacher, "train__unlabelled": tmp_path / "more" / "images"}
    train_own(halved(**taught), tmp_path / "run")
    assert sizes == [HALF] * 3 + [WHOLE] * 5


@pytest.mark.parametrize("stop_at", [2, 3, 4, 5])
def test_a_run_killed_beside_the_change_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    run = halved(train__checkpoint_every_steps=1, train__ema_decay=0.9)
    train_own(run, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "after_step", before_step(stop_at, crash))
        with pytest.raises(Crash):
            train_own(run, tmp_path / "killed")
    resume_own(tmp_path / "killed")
    assert fate(tmp_path / "killed") == fate(tmp_path / "whole")


@pytest.mark.parametrize("fraction", [1, -0.1, "half"])
def test_what_is_no_share_is_refused(
    fraction: object, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["train", "--data-path", str(tmp_path), f"train.half_size_fraction={fraction}"]
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert "train.half_size_fraction" in capsys.readouterr().err


def test_images_that_cannot_be_halved_are_refused(tmp_path: Path) -> None:
    run = halved(model__name="unet", preprocess__image_size=16)
    with pytest.raises(ConfigError, match=r"16x16 cannot be halved.*multiples of 16"):
        train_own(run, tmp_path / "run")


def test_one_small_image_among_larger_ones_is_no_reason(
    tmp_path: Path, sizes: list[tuple[int, ...]]
) -> None:
    for number, side in enumerate((32, 32, 16, 32)):
        write_folder(DrawnSource(1, size=(side, side), first=number), tmp_path / "data")
    run = halved(
        data__path=tmp_path / "data",
        data__validation_fraction=0.25,
        preprocess__image_size=32,
        preprocess__keep_aspect_ratio=True,
        model__name="unet",
    )
    train(run, out=tmp_path / "run")
    assert sizes[0][-2:] == (16, 16)
    assert sizes[-1][-2:] == (32, 32)


def test_a_pretraining_refuses_it() -> None:
    with pytest.raises(ConfigError, match="half_size_fraction has no meaning for a pretraining"):
        load_settings(Pretraining, flags={"pretrain.train.half_size_fraction": 0.5})


def test_a_recipe_can_say_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[train]\nhalf_size_fraction = 0.25\n")
    assert load_run(recipe).train.half_size_fraction == 0.25
