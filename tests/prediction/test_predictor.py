"""The Predictor: any image in, its map and mask at its own size out, whatever the backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from torch import nn

from notan.data.synthetic import DrawnSource
from notan.errors import DivergedError, ShapeError
from notan.modelfile.card import read_card
from notan.modelfile.postprocess import Postprocessing, sigmoid
from notan.modelfile.preprocess import Preprocessor
from notan.prediction.backends import Array, TorchBackend
from notan.prediction.predictor import Prediction, Predictor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from notan.types import RGBImage, Size

RANDOM = np.random.default_rng(0)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
OWN_SIZE = Preprocessor(image_size=None, **PLAIN)


class RedIsForeground:
    """NumPy only: foreground where red is above one half; remembers the inputs' shapes."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, inputs: Array) -> Array:
        self.shapes.append(inputs.shape)
        return ((inputs[:, :1] - 0.5) * 20).astype(np.float32)


def noise_image(size: Size, *, seed: int = 0) -> RGBImage:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def constant(value: float) -> Predictor:
    return Predictor(lambda inputs: np.full_like(inputs[:, :1], value), OWN_SIZE)


@pytest.mark.parametrize("image_size", [None, (32, 32), (17, 40)])
@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90))
def test_any_size_comes_back_at_its_own_size(
    image_size: Size | None, height: int, width: int
) -> None:
    predictor = Predictor(RedIsForeground(), Preprocessor(image_size=image_size, **PLAIN))
    prediction = predictor(noise_image((height, width)))
    assert prediction.probability.shape == prediction.mask.shape == (height, width)
    assert prediction.probability.dtype == np.float32
    assert prediction.mask.dtype == np.bool_
    assert 0 <= prediction.probability.min() <= prediction.probability.max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (15, 17), (16, 16), (33, 57)])
def test_a_trained_network_takes_any_size(small_checkpoint: Path, size: Size) -> None:
    loaded = Predictor.load(small_checkpoint)
    assert loaded(noise_image(size)).mask.shape == size
    own_size = loaded.preprocessor.model_copy(update={"image_size": None})
    assert Predictor(loaded.backend, own_size)(noise_image(size)).mask.shape == size


def test_every_pixel_is_answered_where_it_lies() -> None:
    image = noise_image((37, 21))
    prediction = Predictor(RedIsForeground(), OWN_SIZE)(image)
    np.testing.assert_array_equal(prediction.mask, image[..., 0] > 127)
    np.testing.assert_allclose(
        prediction.probability, expit((image[..., 0] / 255 - 0.5) * 20), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 1.0])
def test_the_mask_is_the_probability_from_the_threshold_up(threshold: float) -> None:
    predictor = Predictor(
        RedIsForeground(), OWN_SIZE, postprocessing=Postprocessing(threshold=threshold)
    )
    prediction = predictor(noise_image((20, 20)))
    np.testing.assert_array_equal(prediction.mask, prediction.probability >= threshold)


def test_a_pixel_on_the_threshold_is_foreground() -> None:
    probability = np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(0))]], np.float32)
    np.testing.assert_array_equal(Prediction(probability, Postprocessing()).mask, [[True, False]])


def test_one_at_a_time_and_eight_at_once_agree(small_checkpoint: Path) -> None:
    predictor = Predictor.load(small_checkpoint)
    images = [sample.image for sample in DrawnSource(11, size=(40, 48))]
    single = list(predictor.predict_many(images, batch_size=1))
    several = list(predictor.predict_many(images, batch_size=8))
    assert len(single) == len(several) == 11
    for one, other in zip(single, several, strict=True):
        np.testing.assert_allclose(one.probability, other.probability, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_images_of_mixed_sizes_keep_their_order(batch_size: int) -> None:
    sizes = [(16, 16), (20, 16), (16, 20), (16, 16), (15, 13), (40, 8), (40, 9), (1, 1), (16, 16)]
    images = [noise_image(size, seed=number) for number, size in enumerate(sizes)]
    backend = RedIsForeground()
    predictions = list(Predictor(backend, OWN_SIZE).predict_many(images, batch_size=batch_size))
    assert len(predictions) == len(images)
    for image, prediction in zip(images, predictions, strict=True):
        np.testing.assert_array_equal(prediction.mask, image[..., 0] > 127)
    assert max(shape[0] for shape in backend.shapes) <= batch_size
    assert sum(shape[0] for shape in backend.shapes) == len(images)


def test_images_of_one_input_size_share_a_batch() -> None:
    backend = RedIsForeground()
    images = [noise_image((height, 16)) for height in (9, 16, 12, 17, 30)]
    list(Predictor(backend, OWN_SIZE).predict_many(images, batch_size=2))
    assert [shape[::2] for shape in backend.shapes] == [(2, 16), (1, 16), (2, 32)]


def test_images_are_read_only_when_they_are_needed() -> None:
    read = 0

    def images() -> Iterator[RGBImage]:
        nonlocal read
        for number in range(100):
            read += 1
            yield noise_image((8, 8), seed=number)

    predictions = Predictor(RedIsForeground(), OWN_SIZE).predict_many(images(), batch_size=4)
    next(predictions)
    assert read <= 5


def test_no_images_give_no_predictions() -> None:
    assert list(Predictor(RedIsForeground(), OWN_SIZE).predict_many([])) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_network_that_answers_no_numbers_is_an_error(value: float) -> None:
    with pytest.raises(DivergedError, match=r"no numbers.*use another checkpoint"):
        constant(value)(noise_image((8, 8)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("logit", "foreground"), [(1e4, True), (-1e4, False), (3e38, True)])
def test_a_very_sure_network_overflows_nothing(logit: float, foreground: bool) -> None:
    prediction = constant(logit)(noise_image((8, 8)))
    assert prediction.mask.all() == foreground
    assert prediction.mask.any() == foreground


def test_a_backend_that_returns_another_size_is_refused() -> None:
    predictor = Predictor(lambda inputs: inputs[:, :1, ::2, ::2], OWN_SIZE)
    with pytest.raises(ShapeError, match=r"shape \(8, 8\) came back from the model, \(16, 16\)"):
        predictor(noise_image((16, 16)))


@pytest.mark.parametrize("channels", [2, 3])
def test_a_module_that_returns_another_shape_is_named(channels: int) -> None:
    predictor = Predictor(TorchBackend(nn.Conv2d(3, channels, 1)), OWN_SIZE)
    with pytest.raises(ShapeError, match=rf"Conv2d returned \(1, {channels}, 16, 16\)"):
        predictor(noise_image((9, 9)))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(image: RGBImage) -> None:
    with pytest.raises(ShapeError, match=r"uint8 of shape \(height, width, 3\) is wanted"):
        next(Predictor(RedIsForeground(), OWN_SIZE).predict_many([image]))


def test_the_sigmoid_agrees_with_scipy() -> None:
    logits = np.concatenate([RANDOM.normal(0, 5, 10_000), np.linspace(-100, 100, 2001)])
    ours = sigmoid(logits.astype(np.float32))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expit(logits), rtol=1e-5, atol=1e-30)
    assert ((ours >= 0) & (ours <= 1)).all()


def test_a_network_is_left_in_the_mode_it_was_in() -> None:
    norm = nn.BatchNorm2d(1)
    model = nn.Sequential(nn.Conv2d(3, 1, 1), norm)
    predictor = Predictor(TorchBackend(model), OWN_SIZE)
    for training in (True, False):
        model.train(training)
        predictor(noise_image((8, 8)))
        assert model.training == training
    assert norm.num_batches_tracked == 0  # predicting teaches nothing


def test_a_checkpoint_opens_with_everything_it_needs(small_checkpoint: Path) -> None:
    predictor = Predictor.load(small_checkpoint)
    card = read_card(small_checkpoint)
    assert predictor.card == card
    assert predictor.preprocessor == card.preprocess
    assert predictor.postprocessing == card.postprocessing
    image = noise_image((40, 48))
    np.testing.assert_array_equal(
        predictor(image).probability, Predictor.load(small_checkpoint)(image).probability
    )
