"""Test-time augmentation: every view is undone exactly, and the mean is of probabilities."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from notan.cli.main import main
from notan.data.folders import folder_source
from notan.errors import ConfigError, DivergedError
from notan.evaluation.evaluate import evaluate
from notan.modelfile.preprocess import Preprocessor
from notan.prediction.predictor import Predictor
from notan.prediction.tta import NAMES, SCALES, AugmentedBackend, View, parse_augment, views_of

if TYPE_CHECKING:
    from pathlib import Path

    from notan.prediction.backends import Array

STRIDE = 4
RANDOM = np.random.default_rng(0)
SIDES = st.integers(1, 8).map(lambda number: number * STRIDE)
ONE_SIZE = [name for name in NAMES if name != "scale"]


def noise(height: int, width: int, number: int = 2) -> Array:
    return RANDOM.normal(0, 3, (number, 3, height, width)).astype(np.float32)


def pixelwise(inputs: Array) -> Array:
    """A network that turns with its image: it looks at single pixels."""
    return inputs[:, :1] * 2 - inputs[:, 1:2]


def lopsided(inputs: Array) -> Array:
    """A network that does not: its answer grows to the right and to the bottom."""
    height, width = inputs.shape[2:]
    slope = np.linspace(0, 1, height)[:, None] + np.linspace(0, 2, width)
    return (inputs[:, :1] + slope).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(height=SIDES, width=SIDES, names=st.sets(st.sampled_from(ONE_SIZE), min_size=1))
def test_a_network_that_turns_with_its_image_gives_the_plain_answer(
    height: int, width: int, names: set[str]
) -> None:
    array = noise(height, width)
    answer = AugmentedBackend(pixelwise, sorted(names), stride=STRIDE)(array)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, pixelwise(array), rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(height=SIDES, width=SIDES, mirrored=st.booleans(), turns=st.integers(0, 3))
def test_every_turn_and_mirror_image_is_undone_to_the_last_bit(
    height: int, width: int, mirrored: bool, turns: int
) -> None:
    array = noise(height, width)[:, :1]
    view = View(mirrored, turns, 1.0)
    np.testing.assert_array_equal(view.undo(view.apply(array, STRIDE), (height, width)), array)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    scale=st.sampled_from(SCALES),
    mirrored=st.booleans(),
    turns=st.integers(0, 3),
)
def test_a_view_of_another_size_is_padded_to_the_stride_and_lies_back_where_it_was(
    height: int, width: int, scale: float, mirrored: bool, turns: int
) -> None:
    view = View(mirrored, turns, scale)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    array = np.stack([rows, columns, rows + columns])[None]
    seen = view.apply(array, STRIDE)
    if scale != 1:
        assert all(side % STRIDE == 0 for side in seen.shape[2:])
    for channel, plane in enumerate((rows, columns)):
        back = view.undo(seen[:, channel : channel + 1], (height, width))[0, 0]
        assert back.shape == (height, width)
        # a ramp comes back as it was but for half a step of the coarser raster at its ends
        np.testing.assert_allclose(back, plane, atol=1.01)
        np.testing.assert_allclose(back.mean(), plane.mean(), atol=0.15)


def test_the_views_are_all_different_and_the_image_itself_is_the_first() -> None:
    image = noise(8, 8, 1)
    counts = {
        "hflip": 2,
        "vflip": 2,
        "hflip,vflip": 4,
        "rot90": 4,
        "hflip,rot90": 8,
        "vflip,rot90": 8,
        "hflip,vflip,rot90": 8,
    }
    for text, number in counts.items():
        views = views_of(parse_augment(text))
        seen = {view.apply(image, STRIDE).tobytes() for view in views}
        assert (views[0], len(views), len(seen)) == (View(False, 0, 1.0), number, number)
    assert len(views_of(NAMES)) == 8 * len(SCALES)
    assert [view.scale for view in views_of(["scale"])] == [1.0, 0.75, 1.25]


@pytest.mark.parametrize("name", ["hflip", "vflip", "rot90"])
def test_the_answer_is_the_mean_of_the_probabilities(name: str) -> None:
    array = noise(8, 12)
    views = views_of([name])
    asked = [expit(view.undo(lopsided(view.apply(array, 1)), (8, 12))) for view in views]
    wanted = np.mean(np.asarray(asked, np.float64), axis=0)
    answer = AugmentedBackend(lopsided, [name], stride=1)(array)
    # as probabilities: a logit of 13 is one of the last that a float32 can tell from the next
    np.testing.assert_allclose(expit(answer.astype(np.float64)), wanted, atol=2e-7)
    assert not np.allclose(answer, lopsided(array), atol=0.05)


@pytest.mark.parametrize("level", [-80.0, -30.0, 0.0, 30.0, 80.0])
def test_a_sure_pixel_stays_as_sure(level: float) -> None:
    answer = AugmentedBackend(
        lambda inputs: np.full_like(inputs[:, :1], level), ["hflip", "vflip", "rot90"], stride=1
    )(noise(4, 4))
    np.testing.assert_allclose(answer, level, rtol=1e-5, atol=1e-6)


def test_an_answer_that_is_no_number_is_not_averaged_away() -> None:
    def spoilt_when_turned(inputs: Array) -> Array:
        return np.full_like(inputs[:, :1], 1 if inputs.shape[2] < inputs.shape[3] else np.nan)

    backend = AugmentedBackend(spoilt_when_turned, ["rot90"], stride=4)
    predictor = Predictor(backend, Preprocessor(image_size=None, stride=4))
    with pytest.raises(DivergedError, match="values that are no numbers"):
        predictor(np.zeros((4, 9, 3), np.uint8))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hflips", "'hflips': there is no such test-time view; did you mean 'hflip'?"),
        ("turn,rotate", "'rotate': there is no such test-time view"),
        ("", "'': there is no such test-time view; choose one of (hflip, rot90, scale, vflip)"),
        ("hflip,", "'': there is no such test-time view"),
    ],
)
def test_an_unknown_view_is_refused_with_the_nearest(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_augment(text)
    assert str(refusal.value).startswith(words)


def test_names_are_taken_once_in_one_order() -> None:
    assert parse_augment("rot90, hflip,rot90") == ("hflip", "rot90")


def test_a_score_says_what_was_asked(small_checkpoint: Path, drawn_folder: Path) -> None:
    source = folder_source(drawn_folder / "test")
    predictor = Predictor.load(small_checkpoint, augment=("hflip", "vflip", "scale"))
    score = evaluate(predictor, source, split="test")
    words = "hflip, vflip, scale (12 views of each image)"
    assert score.rules.augment == predictor.augment == words
    assert predictor.with_postprocessing(predictor.postprocessing).augment == words
    assert f"test-time augmentation: {words}" in score.summary().splitlines()
    plain = evaluate(Predictor.load(small_checkpoint), source, split="test")
    assert plain.rules.augment is None
    assert "test-time" not in plain.summary()
    assert plain.mean_dice != score.mean_dice


def test_the_commands_pass_it_on(
    small_checkpoint: Path, drawn_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(small_checkpoint), "--out", str(tmp_path / "out")]
    main(["evaluate", *model, "--data-path", str(drawn_folder), "--tta", "hflip"])
    rules = json.loads((tmp_path / "out" / "score.json").read_text())["rules"]
    assert rules["augment"] == "hflip (2 views of each image)"
    images = str(drawn_folder / "test" / "images")
    chances = []
    for tta in ([], ["--tta", "rot90"]):
        main(["predict", images, *model, *tta])
        chances.append((tmp_path / "out" / "predictions.csv").read_text())
    assert chances[0] != chances[1]
    for command in (["predict", images], ["evaluate", "--data-path", str(drawn_folder)]):
        with pytest.raises(SystemExit) as end:
            main([*command, *model, "--tta", "hfip"])
        assert end.value.code == 2
        assert "'hfip': there is no such test-time view; did you mean 'hflip'?" in (
            capsys.readouterr().err
        )
