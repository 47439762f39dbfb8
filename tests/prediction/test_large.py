"""Huge images: band by band the very same as in one piece, and nothing half written."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from notan.errors import DataError
from notan.modelfile.postprocess import Postprocessing
from notan.modelfile.preprocess import Preprocessor
from notan.prediction.formats import Writers
from notan.prediction.large import ROWS, BandFile, postprocess_bands, predict_large
from notan.prediction.predictor import Predictor
from notan.prediction.tiles import PixelsInMemory, Tiling

if TYPE_CHECKING:
    from notan.prediction.backends import Array
    from notan.types import Mask, RGBImage, Size

OWN_SIZE = Preprocessor(image_size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
RULES: list[dict[str, Any]] = [
    {},
    {"min_component_fraction": 0.004},
    {"fill_holes_fraction": 0.004},
    {"min_component_fraction": 0.003, "fill_holes_fraction": 0.01},
    {"keep_largest": True},
    {"keep_largest": True, "fill_holes_fraction": 0.01},
    {"keep_largest": True, "min_component_fraction": 0.9},
    {"min_foreground_fraction": 0.5},
    {"min_component_fraction": 0.01, "min_foreground_fraction": 0.4},
]


def red_is_foreground(inputs: Array) -> Array:
    return ((inputs[:, :1] - 0.5) * 8).astype(np.float32)


def blobs(size: Size, seed: int, blur: float) -> RGBImage:
    """Return red and black blobs, with holes and specks."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), blur)
    red = np.clip(128 + 100 * noise / (noise.std() + 1e-9), 0, 255).astype(np.uint8)
    return np.stack([red] * 3, axis=2)


def by_bands(postprocessing: Postprocessing, mask: Mask, rows: int) -> Mask:
    parts = [mask[top : top + rows] for top in range(0, len(mask), rows)]
    return np.concatenate(list(postprocess_bands(postprocessing, mask.size, parts, list)))


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    seed=st.integers(0, 999),
    rows=st.sampled_from([2, 4, 6, 16]),
    blur=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    rules=st.sampled_from(RULES),
)
def test_postprocessing_by_bands_is_postprocessing_the_whole(
    height: int, width: int, seed: int, rows: int, blur: float, rules: dict[str, Any]
) -> None:
    mask = blobs((height, width), seed, blur)[..., 0] > 128
    postprocessing = Postprocessing(**rules)
    np.testing.assert_array_equal(
        by_bands(postprocessing, mask, rows), postprocessing.postprocess(mask)
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
        by_bands(postprocessing, mask, rows), postprocessing.postprocess(mask)
    )
    assert ndimage.label(mask, np.ones((3, 3)))[1] == 1


@settings(max_examples=30, deadline=None)
@given(
    heights=st.lists(st.integers(1, 700), min_size=1, max_size=5),
    dtype=st.sampled_from([np.bool_, np.float32, np.uint16]),
)
def test_a_band_file_gives_even_bands_whatever_was_put_in(heights: list[int], dtype: Any) -> None:
    rng = np.random.default_rng(sum(heights))
    parts = [(rng.random((height, 13)) * 9 > 4).astype(dtype) for height in heights]
    with tempfile.TemporaryDirectory() as folder, BandFile(Path(folder), 13, dtype) as file:
        file.extend(parts)
        for one, other in zip(file, file, strict=True):  # read by two in turns
            np.testing.assert_array_equal(one, other)
        even = list(file)
        assert not list(Path(folder).iterdir())
    assert even[0].dtype == dtype
    np.testing.assert_array_equal(np.concatenate(even), np.concatenate(parts))
    assert {len(band) for band in even[:-1]} <= {ROWS}
    assert 0 < len(even[-1]) <= ROWS


@pytest.mark.parametrize("threshold_rule", ["threshold", "dice"])
@pytest.mark.parametrize("rules", RULES)
def test_a_streamed_image_is_decided_as_one_in_memory(
    tmp_path: Path, threshold_rule: Any, rules: dict[str, Any]
) -> None:
    image = blobs((600, 333), 3, 3.0)
    postprocessing = Postprocessing(
        temperature=1.5,
        bias=0.3,
        threshold=0.37,
        threshold_rule=threshold_rule,
        review_below=0.9,
        **rules,
    )
    tiling = Tiling(always=True, input_size=128)
    predictor = Predictor(red_is_foreground, OWN_SIZE, postprocessing=postprocessing, tiling=tiling)
    whole = predictor(image)
    names = ("mask", "probability", "probability16", "probability-float")
    writers = Writers(names, tmp_path)
    with predict_large(
        predictor, PixelsInMemory(image), tmp_path, with_probability=True, batch_size=3
    ) as found:
        writers.add_large("a", found)
    assert writers.has("a", is_large=True)
    folders = {"mask": "masks"}
    written = {
        name: tifffile.imread(tmp_path / folders.get(name, name) / "a.tif") for name in names
    }
    np.testing.assert_array_equal(written["mask"], whole.mask * np.uint8(255))
    np.testing.assert_array_equal(written["probability-float"], whole.probability)
    for name, most in (("probability16", 65535), ("probability", 255)):
        grey = np.rint(whole.probability.astype(np.float64) * most)
        np.testing.assert_array_equal(written[name], grey)
    assert found.size == whole.size == (600, 333)
    assert found.foreground_fraction == pytest.approx(whole.foreground_fraction, abs=1e-12)
    assert found.expected_dice == pytest.approx(whole.expected_dice, abs=1e-9)
    assert found.needs_review == whole.needs_review
    with predict_large(predictor, PixelsInMemory(image), tmp_path) as found:
        assert found.probability is None
        np.testing.assert_array_equal(np.concatenate(list(found.mask)), whole.mask)


def test_an_image_that_breaks_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    class Broken(PixelsInMemory):
        def read(self, top: int, left: int, height: int, width: int) -> RGBImage:
            if top > 300:
                raise DataError("a.tif: is damaged")
            return super().read(top, left, height, width)

    predictor = Predictor(red_is_foreground, OWN_SIZE, tiling=Tiling(input_size=64))
    broken = Broken(blobs((900, 90), 0, 1))
    for with_probability in (False, True):
        with (
            pytest.raises(DataError, match="is damaged"),
            predict_large(predictor, broken, tmp_path, with_probability=with_probability),
        ):
            pytest.fail("a damaged image was predicted")
        assert not list(tmp_path.iterdir())
