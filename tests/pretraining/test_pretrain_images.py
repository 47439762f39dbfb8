"""Which images are learned from, and what is hidden of them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from notan.config import Data, Pretrain
from notan.data.folders import open_split
from notan.data.samples import without_masks
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, DataError, NotanError
from notan.modelfile.preprocess import Preprocessor
from notan.pretraining.masked_images import (
    MaskedImages,
    draw_hidden,
    find_images,
)
from notan.pretraining.pretrainer import reconstruction_loss

if TYPE_CHECKING:
    from pathlib import Path

    from notan.data.samples import FileSource


def names_of(**settings: object) -> set[str]:
    source, _ = find_images(Pretrain.model_validate(settings))
    return {name.rpartition(".")[0] for name in source.names}


def test_of_a_data_folder_the_training_split_alone_is_taken(drawn_folder: Path) -> None:
    source, words = find_images(Pretrain(path=drawn_folder))
    assert {pair.image.parent for pair in source.pairs} == {drawn_folder / "train" / "images"}
    assert len(source) == 24
    assert "validate and test are left out" in words


@pytest.mark.parametrize("settings", [{}, {"seed": 3}, {"seed": 3, "split_seed": 0}])
def test_where_training_will_set_images_aside_they_are_left_out(
    tmp_path: Path, settings: dict[str, int]
) -> None:
    write_folder(DrawnSource(20, size=(8, 8)), tmp_path)
    data = Data(path=tmp_path, split_seed=settings.get("split_seed"))
    validation = open_split(data, "val", seed=settings.get("seed", 0)).names
    training = open_split(data, "train", seed=settings.get("seed", 0)).names
    assert names_of(path=tmp_path, **settings) == set(training)
    assert not names_of(path=tmp_path, **settings) & set(validation)


def test_of_the_pets_the_official_training_images_are_taken(pets_folder: Path) -> None:
    test = set(open_split(Data(path=pets_folder), "test", seed=0).names)
    training = set(open_split(Data(path=pets_folder), "train", seed=0).names)
    assert names_of(path=pets_folder) == training
    assert not training & test


def test_the_pets_own_folder_of_images_is_refused_for_its_test_images(
    pets_folder: Path,
) -> None:
    with pytest.raises(DataError, match=r"holds the test images too; give .*oxford-iiit-pet,"):
        find_images(Pretrain(path=pets_folder / "images"))


@pytest.mark.parametrize("inside", ["", "images"])
def test_any_folder_of_images_will_do(drawn_folder: Path, tmp_path: Path, inside: str) -> None:
    shutil.copytree(drawn_folder / "test" / "images", tmp_path / "mine" / inside)
    (tmp_path / "mine" / inside / "notes.txt").write_text("no image")
    source, words = find_images(Pretrain(path=tmp_path / "mine"))
    assert (len(source), words) == (6, "every image in it")
    assert not source[0].mask.any()


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for path, words in (
        (tmp_path / "empty", "no images here; files ending in .*in the folder itself or in"),
        (tmp_path / "file", "this is a file; --data-path wants the folder of images"),
        (tmp_path / "missing", "there is no such folder; check --data-path"),
    ):
        with pytest.raises(DataError, match=words):
            find_images(Pretrain(path=path))
    with pytest.raises(ConfigError, match="no images were given; name their folder"):
        find_images(Pretrain())


@given(
    seed=st.integers(0, 99),
    height=st.integers(64, 130),
    width=st.integers(64, 130),
    patch=st.integers(3, 32),
    share=st.floats(0.05, 0.95),
)
def test_the_share_of_squares_that_was_asked_for_is_hidden(
    seed: int, height: int, width: int, patch: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    hidden = draw_hidden(rng, (height, width), patch=patch, share=share)
    assert hidden.shape == (height, width)
    corners = hidden[::patch, ::patch]
    squares = corners.repeat(patch, axis=0).repeat(patch, axis=1)[:height, :width]
    assert (squares == hidden).all()
    assert 0 < corners.sum() < corners.size
    assert abs(corners.sum() - share * corners.size) <= 1


def masked(
    source: FileSource | DrawnSource, epoch: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    preprocessor = Preprocessor(image_size=(64, 72), stride=32)
    batch = MaskedImages(source, preprocessor, Pretrain(patch=16))[(epoch, 0)]
    assert not isinstance(batch, NotanError)
    return batch.images, batch.targets, batch.valid


def test_hidden_pixels_are_the_mean_colour_and_the_others_are_the_images(
    drawn_folder: Path,
) -> None:
    source, _ = find_images(Pretrain(path=drawn_folder))
    seen, whole, hidden = masked(source, 1)
    assert seen.shape == whole.shape == (1, 3, 64, 96)
    assert (seen * hidden == 0).all()
    assert torch.equal(seen[..., :72], (whole * (1 - hidden))[..., :72])
    assert (hidden[..., 72:] == 0).all()  # padding is not asked for
    assert not torch.equal(masked(source, 2)[2], hidden)
    assert torch.equal(masked(source, 1)[2], hidden)


def test_of_a_mere_folder_what_cannot_be_read_is_left_out_and_named(
    drawn_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = (drawn_folder / "test" / "images" / "drawn-0030.png").read_bytes()
    (tmp_path / "whole.png").write_bytes(content)
    (tmp_path / "broken.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.jpg").touch()
    assert names_of(path=tmp_path) == {"whole"}
    assert "2 images cannot be read and left out:" in caplog.text
    assert "broken.png" in caplog.text
    (tmp_path / "whole.png").unlink()
    with pytest.raises(DataError, match="none of the 2 images can be read"):
        names_of(path=tmp_path)


def test_an_image_that_breaks_off_while_it_is_learned_from_is_named(
    drawn_folder: Path, tmp_path: Path
) -> None:
    content = (drawn_folder / "test" / "images" / "drawn-0030.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(content[: len(content) // 2])
    Image.new("L", (1, 1), 77).save(tmp_path / "grey.png")
    source = without_masks([tmp_path / "broken.png", tmp_path / "grey.png"])
    images = MaskedImages(source, Preprocessor(image_size=(64, 64)), Pretrain())
    error = images[(1, 0)]
    assert isinstance(error, DataError)
    assert "broken.png" in str(error)
    assert not isinstance(images[(1, 1)], NotanError)


def test_the_loss_is_the_mean_difference_of_the_hidden_pixels_alone() -> None:
    rng = np.random.default_rng(0)
    answer, whole = (rng.normal(size=(2, 3, 8, 8)).astype(np.float32) for _ in range(2))
    hidden = rng.random((2, 1, 8, 8)) < 0.4
    wanted = np.abs(answer - whole)[np.repeat(hidden, 3, axis=1)].mean()
    tensors = [torch.from_numpy(each.astype(np.float32)) for each in (answer, whole, hidden)]
    value = reconstruction_loss(*tensors)
    assert value.total.item() == pytest.approx(wanted, rel=1e-5)
