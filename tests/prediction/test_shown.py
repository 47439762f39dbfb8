"""What a prediction is shown as, and whose image it holds."""

from __future__ import annotations

import gc
import io
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import notan
from image_files import photo, saved
from notan.errors import ConfigError, NotanError, ShapeError, StorageError
from notan.modelfile.preprocess import Preprocessor
from notan.prediction.predictor import Prediction, Predictor
from notan.prediction.tiles import Tiling

if TYPE_CHECKING:
    from pathlib import Path

    from notan.prediction.backends import Array


def brightness(inputs: Array) -> Array:
    """Stand in for a network: bright is foreground."""
    logits: Array = inputs.mean(axis=1, keepdims=True) * 4
    return logits


PREDICTOR = Predictor(brightness, Preprocessor(image_size=None, stride=1))


@pytest.fixture
def prediction() -> Prediction:
    found = PREDICTOR(photo(20, 30))
    assert 0.1 < found.foreground_fraction < 0.9
    return found


def test_a_cutout_is_the_image_with_the_mask_or_the_probability_as_transparency(
    prediction: Prediction,
) -> None:
    hard, soft = prediction.cutout(), prediction.cutout(alpha="probability")
    for cutout in (hard, soft):
        assert cutout.dtype == np.uint8
        np.testing.assert_array_equal(cutout[..., :3], photo(20, 30))
    np.testing.assert_array_equal(hard[..., 3] == 255, prediction.mask)
    np.testing.assert_array_equal(hard[..., 3] == 0, ~prediction.mask)
    np.testing.assert_allclose(soft[..., 3] / 255, prediction.probability, atol=0.5 / 255 + 1e-6)


def test_an_overlay_leaves_the_background_far_from_the_outline(prediction: Prediction) -> None:
    overlay = prediction.overlay()
    changed = (overlay != photo(20, 30)).any(axis=2)
    assert changed[prediction.mask].mean() > 0.9
    assert not changed[~prediction.mask].all()


@pytest.mark.parametrize("kind", ["mask", "probability", "cutout", "overlay"])
def test_it_goes_into_a_path_or_a_file_object(
    kind: Any, prediction: Prediction, tmp_path: Path
) -> None:
    wanted = {
        "mask": prediction.mask.astype(np.uint8) * 255,
        "probability": np.rint(prediction.probability.astype(np.float64) * 255).astype(np.uint8),
        "cutout": prediction.cutout(),
        "overlay": prediction.overlay(),
    }[kind]
    memory = io.BytesIO()
    prediction.to_png(memory, kind=kind)
    prediction.to_png(tmp_path / "a.png", kind=kind)
    prediction.to_png(str(tmp_path / "b.png"), kind=kind)
    with (tmp_path / "c.png").open("wb") as file:
        prediction.to_png(file, kind=kind)
    for name in "abc":
        assert (tmp_path / f"{name}.png").read_bytes() == memory.getvalue()
    np.testing.assert_array_equal(np.asarray(Image.open(memory)), wanted)


def test_what_cannot_be_shown_or_written_is_refused_in_a_line(
    prediction: Prediction, tmp_path: Path
) -> None:
    closed = io.BytesIO()
    closed.close()
    cases: list[tuple[type[NotanError], str, Any]] = [
        (ConfigError, "kind 'masks'.*did you mean 'mask'", lambda: {"kind": "masks"}),
        (ShapeError, "20x30", lambda: {"kind": "overlay", "image": photo(20, 31)}),
        (StorageError, "takes bytes", lambda: {"file": io.StringIO()}),
        (StorageError, "takes bytes", lambda: {"file": closed}),
        (StorageError, "wanted a path", lambda: {"file": 7}),
        (StorageError, "could not be written", lambda: {"file": tmp_path}),
    ]
    for error, words, given in cases:
        with pytest.raises(error, match=words) as caught:
            prediction.to_png(**{"file": tmp_path / "x.png", **given()})
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.png").exists()
    with pytest.raises(ConfigError, match=r"alpha 'soft'.*mask, probability"):
        prediction.cutout(alpha="soft")  # type: ignore[arg-type]


def test_a_prediction_holds_the_very_image_and_no_copy() -> None:
    image = photo(20, 30)
    assert PREDICTOR(image).image is image
    assert next(PREDICTOR.predict_many(iter([image]))).image is image
    tiled = Predictor(brightness, PREDICTOR.preprocessor, tiling=Tiling(always=True))
    assert tiled(image).image is image
    assert notan.predict([image], PREDICTOR)[0].image is image


def test_a_list_of_files_does_not_fill_the_memory_with_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(photo()))
    alive: list[weakref.ref[Any]] = []
    most = 0
    predict = Predictor.predict_many

    def watched(self: Predictor, images: Any, **more: Any) -> Any:
        def noted() -> Any:
            nonlocal most
            for image in images:
                alive.append(weakref.ref(image))
                gc.collect()
                most = max(most, sum(each() is not None for each in alive))
                yield image

        return predict(self, noted(), **more)

    monkeypatch.setattr(Predictor, "predict_many", watched)
    found = notan.predict([path] * 9, PREDICTOR)
    assert most <= 3
    assert notan.predict(path, PREDICTOR).image is not None
    with pytest.raises(ConfigError, match=r"does not hold its image; give it again: cutout\(image"):
        found[0].cutout()
    expected = notan.predict(path, PREDICTOR).cutout()
    np.testing.assert_array_equal(found[0].cutout(image=path), expected)
    found[0].to_png(tmp_path / "mask.png")


def test_progress_says_how_many_of_how_many() -> None:
    images = [photo(8, 9), photo(8, 9), photo(5, 5)]
    steps: list[tuple[int, int | None]] = []

    def note(done: int, total: int | None) -> None:
        steps.append((done, total))

    for number, _ in enumerate(PREDICTOR.predict_many(images, batch_size=2, progress=note), 1):
        assert len(steps) == number
    assert steps == [(1, 3), (2, 3), (3, 3)]
    steps.clear()
    list(PREDICTOR.predict_many(iter(images), progress=note))
    assert steps == [(1, None), (2, None), (3, None)]
    steps.clear()
    notan.predict((*images,), PREDICTOR, progress=note)
    notan.predict(images[0], PREDICTOR, progress=note)
    assert steps == [(1, 3), (2, 3), (3, 3), (1, 1)]


def test_what_a_progress_callback_raises_ends_the_work() -> None:
    class Enough(Exception):  # noqa: N818 - it stands for the user's own
        pass

    def stop(done: int, total: int | None) -> None:
        raise Enough(done, total)

    with pytest.raises(Enough):
        notan.predict([photo()], PREDICTOR, progress=stop)
