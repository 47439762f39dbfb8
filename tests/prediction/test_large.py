"""Huge images: band by band the very same as in one piece, and nothing half written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from notan.errors import ConfigError, DataError
from notan.modelfile.postprocess import Postprocessing
from notan.modelfile.preprocess import Preprocessor
from notan.prediction import streaming as bands
from notan.prediction.components import postprocess_bands
from notan.prediction.predictor import Predictor
from notan.prediction.streaming import BandFile, even_bands, predict_large
from notan.prediction.tiles import PixelsInMemory, Tiling

if TYPE_CHECKING:
    from pathlib import Path

    from notan.prediction.backends import Array
    from notan.types import Mask, RGBImage, Size

OWN_SIZE = Preprocessor(image_size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
TIDYING: list[dict[str, Any]] = [
    {},
    {"min_component_fraction": 0.004},
    {"fill_holes_fraction": 0.004},
    {"min_component_fraction": 0.003, "fill_holes_fraction": 0.01},
    {"keep_largest": True},
    {"keep_largest": True, "fill_holes_fraction": 0.01},
    {"keep_largest": True, "min_component_fraction": 0.9},
]


def red_is_foreground(inputs: Array) -> Array:
    return ((inputs[:, :1] - 0.5) * 8).astype(np.float32)


def blobs(size: Size, seed: int, blur: float) -> RGBImage:
    """Return red and black blobs, with holes and specks."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), blur)
    red = np.clip(128 + 100 * noise / (noise.std() + 1e-9), 0, 255).astype(np.uint8)
    return np.stack([red] * 3, axis=2)


def tidied(postprocessing: Postprocessing, mask: Mask, rows: int) -> Mask:
    parts = [mask[top : top + rows] for top in range(0, len(mask), rows)]
    return np.concatenate(list(postprocess_bands(postprocessing, mask.size, parts, list)))


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    seed=st.integers(0, 999),
    rows=st.sampled_from([2, 4, 6, 16]),
    blur=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    tidying=st.sampled_from(TIDYING),
)
def test_tidying_by_bands_is_tidying_the_whole(
    height: int, width: int, seed: int, rows: int, blur: float, tidying: dict[str, Any]
) -> None:
    mask = blobs((height, width), seed, blur)[..., 0] > 128
    postprocessing = Postprocessing(**tidying)
    np.testing.assert_array_equal(
        tidied(postprocessing, mask, rows), postprocessing.postprocess(mask)
    )


@pytest.mark.parametrize("rows", [2, 4, 8])
def test_a_spiral_over_many_bands_is_one_component(rows: int) -> None:
    mask = np.zeros((33, 33), np.bool_)
    for ring in range(0, 16, 2):
        mask[ring, ring : 33 - ring] = mask[ring : 33 - ring, 32 - ring] = True
        mask[32 - ring, ring : 33 - ring] = mask[ring + 2 : 33 - ring, ring] = True
        mask[ring + 2, ring : ring + 2] = True
    mask[16, 16] = False
    postprocessing = Postprocessing(keep_largest=True, fill_holes_fraction=0.01)
    np.testing.assert_array_equal(
        tidied(postprocessing, mask, rows), postprocessing.postprocess(mask)
    )
    assert ndimage.label(mask, np.ones((3, 3)))[1] == 1


@settings(max_examples=30, deadline=None)
@given(heights=st.lists(st.integers(1, 700), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_bands_are_even_whatever_the_parts(heights: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, 9, (height, 3)) for height in heights]
    even = list(even_bands(parts))
    np.testing.assert_array_equal(np.concatenate(even), np.concatenate(parts))
    assert {len(band) for band in even[:-1]} <= {bands.ROWS}
    assert 0 < len(even[-1]) <= bands.ROWS


@pytest.mark.parametrize("dtype", [np.bool_, np.float32, np.uint16])
def test_a_band_file_gives_back_what_was_put_in_as_often_as_asked(
    tmp_path: Path, dtype: Any
) -> None:
    parts = [np.random.default_rng(0).random((rows, 37)) * 9 > 4 for rows in (5, 5, 2)]
    with BandFile(tmp_path, 37, dtype) as file:
        for part in parts:
            file.add(part.astype(dtype))
        for _ in range(2):
            for part, back in zip(parts, file, strict=True):
                assert back.dtype == dtype
                np.testing.assert_array_equal(back, part.astype(dtype))
    assert not list(tmp_path.iterdir())


def test_a_band_file_is_read_by_several_in_turns(tmp_path: Path) -> None:
    with BandFile(tmp_path, 3, np.uint16) as file:
        for number in range(4):
            file.add(np.full((2, 3), number))
        for one, other in zip(file, file, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("cut", ["threshold", "dice"])
@pytest.mark.parametrize("tidying", TIDYING)
def test_a_streamed_image_is_decided_as_one_in_memory(
    tmp_path: Path, cut: Any, tidying: dict[str, Any]
) -> None:
    image = blobs((600, 333), 3, 3.0)
    postprocessing = Postprocessing(
        temperature=1.5, bias=0.3, threshold=0.37, threshold_rule=cut, review_below=0.9, **tidying
    )
    tiling = Tiling(always=True, input_size=128)
    predictor = Predictor(red_is_foreground, OWN_SIZE, postprocessing=postprocessing, tiling=tiling)
    whole = predictor(image)
    names = ("mask", "probability", "probability16", "probability-float")
    outputs = {name: tmp_path / name / "a.tif" for name in names}
    found = predict_large(predictor, PixelsInMemory(image), outputs, batch_size=3)
    written = {name: tifffile.imread(path) for name, path in outputs.items()}
    np.testing.assert_array_equal(written["mask"], whole.mask * np.uint8(255))
    np.testing.assert_array_equal(written["probability-float"], whole.probability)
    for name, most in (("probability16", 65535), ("probability", 255)):
        grey = np.rint(whole.probability.astype(np.float64) * most)
        np.testing.assert_array_equal(written[name], grey)
    assert found.size == (600, 333)
    assert found.foreground_fraction == pytest.approx(whole.mask.mean(), abs=1e-12)
    assert found.expected_dice == pytest.approx(whole.expected_dice, abs=1e-9)
    assert found.needs_review == whole.needs_review
    only = tmp_path / "only.tif"
    predict_large(predictor, PixelsInMemory(image), {"mask": only})
    np.testing.assert_array_equal(tifffile.imread(only), written["mask"])


def test_other_formats_are_refused(tmp_path: Path) -> None:
    predictor = Predictor(red_is_foreground, OWN_SIZE)
    image = PixelsInMemory(blobs((9, 9), 0, 1))
    with pytest.raises(ConfigError, match=r"overlay was asked for; .*only mask, probability"):
        predict_large(predictor, image, {"overlay": tmp_path / "a.tif"})
    with pytest.raises(ConfigError, match="nothing was asked for"):
        predict_large(predictor, image, {})


def test_an_image_that_breaks_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    class Broken(PixelsInMemory):
        def read(self, top: int, left: int, height: int, width: int) -> RGBImage:
            if top > 300:
                raise DataError("a.tif: is damaged")
            return super().read(top, left, height, width)

    predictor = Predictor(red_is_foreground, OWN_SIZE, tiling=Tiling(input_size=64))
    for names in (["mask"], ["mask", "probability"]):
        with pytest.raises(DataError, match="is damaged"):
            predict_large(
                predictor,
                Broken(blobs((900, 90), 0, 1)),
                {name: tmp_path / f"{name}.tif" for name in names},
            )
        assert not list(tmp_path.iterdir())
