"""Images that keep their proportions, lying and standing: from training to the mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from notan.config import load_run
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError
from notan.modelfile.card import read_card
from notan.prediction.predictor import Predictor
from notan.prediction.tiles import Tiling
from notan.training.build import prepare
from notan.training.trainer import Trainer
from runs import TINY, Crash, before_step, crash, fate, resume_own, tiny, train_own

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.config import Run
    from notan.data.batches import Batch
    from notan.data.samples import Sample
    from notan.types import Size


class Mixed(DrawnSource):
    """Drawn images of which every other stands."""

    def __getitem__(self, index: int) -> Sample:
        size = (48, 30) if index % 2 else (20, 40)
        return DrawnSource(len(self), size=size, first=self._indices[0])[index]


MIXED, KEPT_BACK = Mixed(8), Mixed(3, first=8)


def kept(**flags: object) -> Run:
    settings = {
        "preprocess__image_size": 32,
        "preprocess__keep_aspect_ratio": True,
        "train__epochs": 2,
    }
    return tiny(model__name="unet", **{**settings, **flags})


def shapes(batches: Sequence[Batch]) -> list[tuple[int, ...]]:
    return sorted(tuple(batch.images.shape) for batch in batches)


def test_a_batch_holds_lying_or_standing_images_and_no_more_padding_than_they_need() -> None:
    parts = prepare(kept(train__batch_size=4), training=MIXED, validation=KEPT_BACK)
    # 20x40 shrinks to 16x32, 48x30 to 32x20
    assert shapes(list(parts.training_batches)) == [(4, 3, 16, 32), (4, 3, 32, 32)]
    assert shapes(list(parts.validation_batches)) == [(3, 3, 32, 32)]
    assert parts.preprocessor.place((10, 12)).resized == (10, 12)


def test_a_model_remembers_it_and_predicts_at_every_size(tmp_path: Path) -> None:
    path = train_own(kept(), tmp_path / "run", training=MIXED, validation=KEPT_BACK).checkpoint
    assert read_card(path).preprocess.keep_aspect_ratio
    predictor = Predictor.load(path)
    for size in ((1, 1), (20, 40), (300, 7)):
        image = DrawnSource(1, size=(300, 300))[0].image[: size[0], : size[1]]
        assert predictor(image).mask.shape == size


def test_validation_scores_what_the_predictor_predicts(tmp_path: Path) -> None:
    result = train_own(kept(), tmp_path / "run", training=MIXED, validation=KEPT_BACK)
    predictor = Predictor.load(result.checkpoint, threshold=0.5)
    found = [predictor(sample.image).mask for sample in KEPT_BACK]
    dice = [
        2 * (mask & sample.mask).sum() / (mask.sum() + sample.mask.sum())
        for mask, sample in zip(found, KEPT_BACK, strict=True)
    ]
    # not to the last digit: the batch's padding is seen by the pixels beside it
    assert sum(dice) / len(dice) == pytest.approx(_dice_at_half(result.checkpoint), abs=0.05)


def _dice_at_half(path: Path) -> float:
    return read_card(path).scores["dice"]


def test_a_resumed_training_has_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {"training": MIXED, "validation": KEPT_BACK}
    run = kept(train__checkpoint_every_steps=1)
    train_own(run, tmp_path / "whole", **sources)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "after_step", before_step(3, crash))
        with pytest.raises(Crash):
            train_own(run, tmp_path / "run", **sources)
    resume_own(tmp_path / "run", **sources)
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_images_without_masks_may_be_of_other_proportions(tmp_path: Path) -> None:
    for part, size in (("lying", (16, 40)), ("standing", (44, 18))):
        write_folder(DrawnSource(2, size=size, first=20), tmp_path / part)
    more = tmp_path / "more"
    more.mkdir()
    for part in ("lying", "standing"):
        for path in (tmp_path / part / "images").iterdir():
            path.rename(more / f"{part}-{path.name}")
    run = kept(train__unlabelled=more)
    result = train_own(run, tmp_path / "run", training=MIXED, validation=KEPT_BACK)
    assert read_card(result.checkpoint).data.unlabelled_images == 4


@pytest.mark.parametrize(("trained", "scale"), [((64, 100), 0.32), ((20, 30), 1.0)])
def test_tiles_are_shrunk_as_the_middle_image_of_the_training_was(
    trained: Size, scale: float
) -> None:
    preprocessor = prepare(kept(), training=MIXED, validation=KEPT_BACK).preprocessor
    grid = Tiling(always=True).grid((500, 700), preprocessor, trained)
    assert grid.scales == pytest.approx((scale, scale), rel=0.03)  # whole pixels


def test_the_largest_batch_of_one_small_image_is_refused_for_its_statistics() -> None:
    run = kept(train__batch_size=1, preprocess__image_size=64)
    small = DrawnSource(4, size=(12, 14))
    with pytest.raises(ConfigError, match="batches of one image at 16x16 leave batch norm one"):
        prepare(run, training=small, validation=KEPT_BACK)


def test_a_module_of_ones_own_gets_batches_of_several_sizes(tmp_path: Path) -> None:
    seen = set[tuple[int, ...]]()

    class Watching(nn.Module):
        stride = 8

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 1, 3, padding=1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.add(tuple(images.shape[-2:]))
            logits: torch.Tensor = self.layer(images)
            return logits

    sources = {"training": MIXED, "validation": KEPT_BACK}
    train_own(kept(train__batch_size=4), tmp_path / "run", model=Watching(), **sources)
    assert {(16, 32), (32, 24)} <= seen


@pytest.mark.parametrize("word", ["perhaps", "2", "none"])
def test_what_is_neither_yes_nor_no_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"preprocess\.keep_aspect_ratio.*valid boolean"):
        load_run(flags=TINY, overrides=[f"preprocess.keep_aspect_ratio={word}"])
