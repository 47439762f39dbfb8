"""Tiles: whatever is cut comes back whole, at its own size, without a seam."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from notan.data.synthetic import DrawnSource
from notan.errors import ConfigError
from notan.modelfile.card import read_card
from notan.modelfile.postprocess import Postprocessing
from notan.modelfile.preprocess import Preprocessor
from notan.models.unet import UNet
from notan.prediction.backends import Array, TorchBackend
from notan.prediction.large import predict_large
from notan.prediction.predictor import Predictor
from notan.prediction.tiles import MARGIN, PixelsInMemory, Tiling, make_tiling

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from notan.types import Probability, RGBImage, Size

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
OWN_SIZE = Preprocessor(image_size=None, **PLAIN)
NARROW = Tiling(always=True, input_size=(32, 32), overlap=0.5)


class RedIsForeground:
    """NumPy only, sees one pixel at a time; remembers the inputs' shapes."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, inputs: Array) -> Array:
        self.shapes.append(inputs.shape)
        return ((inputs[:, :1] - 0.5) * 20).astype(np.float32)


def noise_image(size: Size, *, seed: int = 0) -> RGBImage:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def convolutions() -> nn.Module:
    """Return a network that looks 3 pixels at stride 2, so 7 pixels far."""
    torch.manual_seed(0)
    down = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    middle = nn.Sequential(nn.Conv2d(4, 4, 5, padding=2), nn.ReLU())
    up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 1, 3, padding=1))
    return nn.Sequential(down, middle, up)


def random_unet() -> nn.Module:
    """Return a U-Net whose norms are no identities."""
    torch.manual_seed(1)
    model = UNet(width=2)
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
    return model


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 400),
    side=st.integers(1, 12),
    overlap=st.floats(0, 0.75),
    stride=st.sampled_from([1, 2, 16]),
)
def test_the_weights_of_all_tiles_add_up_to_one_at_every_pixel(
    height: int, side: int, overlap: float, stride: int
) -> None:
    tiling = Tiling(input_size=side * stride, overlap=overlap)
    preprocessor = Preprocessor(image_size=None, stride=stride)
    rows = tiling.grid((height, 5), preprocessor).rows
    total = np.zeros(height)
    for row in rows:
        assert 0 <= row.start < row.stop <= height
        assert row.stop - row.start == len(row.weights) <= side * stride
        assert row.start % stride == 0
        assert (row.weights >= 0).all()
        total[row.start : row.stop] += row.weights
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert [row.start for row in rows] == sorted({row.start for row in rows})


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 150), width=st.integers(1, 150), batch=st.integers(1, 9))
def test_any_size_comes_back_pixel_for_pixel(height: int, width: int, batch: int) -> None:
    image, backend = noise_image((height, width)), RedIsForeground()
    whole = Predictor(RedIsForeground(), OWN_SIZE)(image)
    cut = Predictor(backend, OWN_SIZE, tiling=NARROW)
    (prediction,) = cut.predict_many([image], batch_size=batch)
    assert prediction.probability.dtype == np.float32
    np.testing.assert_allclose(prediction.probability, whole.probability, atol=1e-6)
    assert max(shape[0] for shape in backend.shapes) <= batch
    assert max(max(shape[2:]) for shape in backend.shapes) <= 32


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 170), width=st.integers(1, 170), seed=st.integers(0, 9))
def test_tiles_agree_with_the_whole_image_where_the_overlap_covers_what_a_pixel_sees(
    height: int, width: int, seed: int
) -> None:
    preprocessor = OWN_SIZE.model_copy(update={"stride": 2})
    backend = TorchBackend(convolutions())
    image = noise_image((height, width), seed=seed)
    whole = Predictor(backend, preprocessor)(image)
    tiling = Tiling(always=True, input_size=64, overlap=0.5)
    assert 64 * 0.5 * MARGIN >= 7
    cut = Predictor(backend, preprocessor, tiling=tiling)(image)
    np.testing.assert_allclose(cut.probability, whole.probability, atol=1e-5)


def test_an_overlap_that_is_too_small_is_seen() -> None:
    backend = TorchBackend(convolutions())
    image = noise_image((150, 150))
    whole = Predictor(backend, OWN_SIZE)(image)
    cut = Predictor(backend, OWN_SIZE, tiling=Tiling(always=True, input_size=64, overlap=0))(image)
    assert np.abs(cut.probability - whole.probability).max() > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (700, 300), (417, 530), (512, 769)])
def test_a_u_net_gives_in_tiles_what_it_gives_whole(size: Size) -> None:
    predictor = Predictor(TorchBackend(random_unet()), OWN_SIZE)
    tiling = Tiling(always=True, input_size=512, overlap=0.75)
    assert 512 * 0.75 * MARGIN >= 94  # a pixel of a U-Net sees 94 pixels to each side
    image = noise_image(size)
    cut = Predictor(predictor.backend, OWN_SIZE, tiling=tiling)(image)
    np.testing.assert_allclose(cut.probability, predictor(image).probability, atol=1e-5)


def test_there_is_no_seam_where_neighbours_disagree() -> None:
    def brightness_of_the_tile(inputs: Array) -> Array:
        mean = inputs.mean(axis=(1, 2, 3), keepdims=True)
        return np.broadcast_to((mean - 0.5) * 8, (len(inputs), 1, *inputs.shape[2:])).copy()

    image = np.repeat(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], 3, axis=2)
    image = np.repeat(image, 64, axis=0)
    smooth = Predictor(brightness_of_the_tile, OWN_SIZE, tiling=NARROW)(image).probability
    hard = NARROW.model_copy(update={"overlap": 0})
    edged = Predictor(brightness_of_the_tile, OWN_SIZE, tiling=hard)(image).probability
    steps = [float(np.abs(np.diff(each, axis=1)).max()) for each in (smooth, edged)]
    assert steps[0] < 0.5 * steps[1]


def test_an_image_is_cut_only_where_it_is_too_large_or_the_user_asks() -> None:
    own, shrinking = OWN_SIZE, Preprocessor(image_size=(32, 32))
    assert not Tiling().cuts((2000, 2000), own)
    assert Tiling().cuts((2000, 2001), own)
    assert not Tiling().cuts((9000, 9000), shrinking)
    assert Tiling().cuts((9000, 10000), shrinking)
    assert Tiling(always=True).cuts((1, 1), shrinking)
    assert Tiling(whole_pixels=99).cuts((10, 10), shrinking)


def test_cut_and_whole_images_keep_their_order() -> None:
    sizes = [(20, 20), (70, 70), (20, 20), (20, 20), (80, 60), (1, 1)]
    images = [noise_image(size, seed=number) for number, size in enumerate(sizes)]
    tiling = NARROW.model_copy(update={"always": False, "whole_pixels": 1000})
    predictor = Predictor(RedIsForeground(), OWN_SIZE, tiling=tiling)
    predictions = list(predictor.predict_many(images, batch_size=4))
    for image, prediction in zip(images, predictions, strict=True):
        np.testing.assert_array_equal(prediction.mask, image[..., 0] > 127)


def test_a_tile_is_as_large_as_a_training_image() -> None:
    shrinking = Preprocessor(image_size=(64, 64))
    grid = Tiling().grid((1000, 2000), shrinking, (128, 256))
    assert grid.tile == (128, 256)
    assert grid.scales == (0.5, 0.25)
    assert Tiling().grid((1000, 2000), shrinking).tile == (64, 64)
    assert Tiling(scale=0.1).grid((1000, 2000), shrinking, (128, 256)).tile == (640, 640)
    assert Tiling().grid((50, 2000), shrinking, (128, 256)).tile == (50, 256)


def test_a_grid_knows_how_much_of_an_image_a_training_image_would_show() -> None:
    shrinking, own = Preprocessor(image_size=(64, 64)), Preprocessor(image_size=None)
    assert Tiling().grid((1000, 2000), shrinking, (128, 256)).part == 128 * 256 / 2e6
    assert Tiling().grid((1000, 2000), shrinking).part == 64 * 64 / 2e6
    # at a tenth of a pixel for each, a training image shows 640x640
    assert Tiling(scale=0.1).grid((1000, 2000), shrinking, (128, 256)).part == 640 * 640 / 2e6
    assert Tiling().grid((50, 2000), shrinking, (128, 256)).part == 256 / 2000
    assert Tiling().grid((100, 200), shrinking, (128, 256)).part == 1
    # a tile of 512x512 shows less than it
    assert Tiling().grid((4000, 4000), own, (2000, 1000)).part == 1 / 8
    assert Tiling().grid((4000, 4000), own).part == 512 * 512 / 16e6


@pytest.mark.parametrize("shrinks", [True, False])
def test_sizes_are_judged_in_a_mosaic_as_in_the_images_that_taught_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, shrinks: bool
) -> None:
    """A hundredth of a training image is filled or removed, and not a hundredth of the mosaic."""
    caplog.set_level("INFO")
    red = np.zeros((640, 640, 3), np.uint8)
    red[100:300, 100:300, 0] = red[400:460, 400:460, 0] = 255  # two things in one mosaic
    red[150:158, 150:158] = 0  # a hole of a 64th of a training image: it stays
    expected = red[..., 0] > 127
    red[200:203, 200:203] = 0  # and one of 1/455, which is filled
    red[20:23, 20:23, 0] = 255  # a speck that is as small
    red[300:308, 500:508, 0] = 255  # no speck
    expected[300:308, 500:508] = True
    learned = Postprocessing(
        min_component_fraction=0.01, fill_holes_fraction=0.01, keep_largest=True
    )
    preprocessor = Preprocessor(image_size=(64, 64) if shrinks else None, **PLAIN)
    tiling = Tiling(always=True, scale=1.0, input_size=(64, 64))
    predictor = Predictor(RedIsForeground(), preprocessor, postprocessing=learned, tiling=tiling)
    found = predictor(red)
    np.testing.assert_array_equal(found.mask, expected)
    assert "a training image, 0.01 of this one; other components than the largest" in caplog.text
    with predict_large(predictor, PixelsInMemory(red), tmp_path) as large:
        np.testing.assert_array_equal(np.concatenate(list(large.mask)), expected)
    # of an image that is no larger than a training image nothing changes
    small = predictor.predict_in_tiles(red[100:164, 100:164])
    assert small.postprocessing == learned


def test_a_tile_of_a_training_images_size_is_that_image() -> None:
    image = DrawnSource(1, size=(96, 128))[0].image
    shrinking = Preprocessor(image_size=(48, 32), **PLAIN)
    backend = TorchBackend(random_unet())
    whole = Predictor(backend, shrinking)(image).probability
    grid = Tiling().grid((96, 128), shrinking, (96, 128))

    def predict(images: Iterable[RGBImage]) -> Iterator[Probability]:
        predictor = Predictor(backend, shrinking.model_copy(update={"image_size": None}))
        return (each.probability for each in predictor.predict_many(images))

    (cut,) = grid.bands(predict, PixelsInMemory(image))
    np.testing.assert_array_equal(cut, whole)


def test_training_says_how_large_its_images_were(small_checkpoint: Path) -> None:
    assert read_card(small_checkpoint).data.median_size == (40, 48)


def test_the_scale_of_the_training_is_used_and_said(
    small_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = Predictor.load(small_checkpoint, tiling=Tiling(always=True))
    with caplog.at_level(logging.INFO, logger="notan"):
        prediction = predictor(noise_image((100, 100)))
    assert prediction.mask.shape == (100, 100)
    assert "100x100 pixels (height x width) in 3 x 3 overlapping tiles of 40x48" in caplog.text
    assert "at a scale of 0.8 x 0.667" in caplog.text


def test_calibration_follows_the_blending() -> None:
    postprocessing = Postprocessing(temperature=2.0, bias=-1.0)
    image = noise_image((90, 50))
    whole = Predictor(RedIsForeground(), OWN_SIZE, postprocessing=postprocessing)(image)
    cut = Predictor(RedIsForeground(), OWN_SIZE, postprocessing=postprocessing, tiling=NARROW)(
        image
    )
    np.testing.assert_allclose(
        cut.probability, whole.probability, atol=1e-4
    )  # float32 near 1 is that coarse


def test_a_scale_that_makes_one_tile_a_huge_image_is_refused() -> None:
    tiling = Tiling(scale=0.001)
    with pytest.raises(ConfigError, match=r"one tile would cover 40000x40000.*a larger --scale"):
        tiling.grid((40_000, 40_000), Preprocessor(image_size=(256, 256)))
    # where the image itself is small, such a scale does no harm
    assert tiling.grid((400, 400), Preprocessor(image_size=(256, 256))).tile == (400, 400)


@pytest.mark.parametrize(
    "wrong", [{"scale": 0}, {"scale": -1}, {"overlap": 0.9}, {"whole_pixels": 0}, {"tiles": True}]
)
def test_settings_out_of_bounds_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Tiling.model_validate(wrong)


@pytest.mark.parametrize("scale", [0.0, -1.0, 17.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused_in_words(scale: float) -> None:
    with pytest.raises(ConfigError, match=r"--scale is .*above 0 and at most 16"):
        make_tiling(always=True, scale=scale)
