"""Outlines that go to QuPath and come back, and those that it draws itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pycocotools import mask as coco

from annotation_files import write_image, write_json
from notan.config import Data, Masks
from notan.data.folders import open_split
from notan.errors import DataError
from notan.prediction.formats.shapes import encode_geojson

if TYPE_CHECKING:
    from pathlib import Path

    from notan.types import Mask

# pycocotools' own arrays have not followed NumPy 2 yet
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (40, 50)

MASKS: dict[str, Mask] = {
    "nothing": np.zeros(SIZE, np.bool_),
    "everything": np.ones(SIZE, np.bool_),
    "noise": np.random.default_rng(3).random(SIZE) < 0.5,
    "islands in lakes": np.indices(SIZE).max(axis=0) % 4 < 2,
    "the border": np.pad(np.zeros((38, 48), np.bool_), 1, constant_values=True),
    "corners that meet": np.indices(SIZE).sum(axis=0) % 2 == 0,
}


def read(folder: Path, foreground: str | None = None) -> Mask:
    masks = Masks(foreground=(foreground,) if foreground else ())
    return open_split(Data(path=folder, masks=masks), "all", seed=0)[0].mask


@pytest.mark.parametrize("name", [name for name in MASKS if name != "nothing"])
def test_a_mask_goes_out_and_comes_back_without_a_pixel_different(
    tmp_path: Path, name: str
) -> None:
    write_image(tmp_path / "a.png", SIZE)
    (tmp_path / "a.geojson").write_bytes(encode_geojson(MASKS[name]))
    np.testing.assert_array_equal(read(tmp_path), MASKS[name])


def test_an_image_without_foreground_is_known_to_be_empty(tmp_path: Path) -> None:
    for name, mask in (("a", MASKS["nothing"]), ("b", MASKS["noise"])):
        write_image(tmp_path / f"{name}.png", SIZE)
        (tmp_path / f"{name}.geojson").write_bytes(encode_geojson(mask))
    samples = open_split(Data(path=tmp_path), "all", seed=0)
    assert [samples[place].mask.any() for place in range(2)] == [False, True]


def annotation(*rings: Any, kind: str = "Polygon", **more: Any) -> dict[str, Any]:
    """Return what QuPath 0.5 writes of an annotation, here with a class."""
    known = {"objectType": "annotation", "classification": {"name": "cell", "color": [1, 2, 3]}}
    geometry = {"type": kind, "coordinates": list(rings)}
    return {
        "type": "Feature",
        "id": "2dfb9d6e-7f3f-4b5c-9c3e-5b8a0f9e9a11",
        "geometry": geometry,
        "properties": known | more,
    }


def drawn(folder: Path, *features: dict[str, Any], foreground: str | None = None) -> Mask:
    write_image(folder / "a.png", SIZE)
    write_json(folder / "a.geojson", {"type": "FeatureCollection", "features": list(features)})
    return read(folder, foreground)


def filled(ring: list[list[float]]) -> Mask:
    """Fill an outline by pycocotools alone."""
    runs = coco.frPyObjects([[number for point in ring for number in point]], *SIZE)
    found: Mask = coco.decode(runs)[..., 0] > 0
    return found


SQUARE = [[5.0, 5.0], [35.0, 5.0], [35.0, 35.0], [5.0, 35.0], [5.0, 5.0]]
LAKE = [[10.0, 10.0], [10.0, 20.0], [20.0, 20.0], [20.0, 10.0], [10.0, 10.0]]
BOW_TIE = [[2.0, 2.0], [40.0, 30.0], [40.0, 2.0], [2.0, 30.0], [2.0, 2.0]]
BEYOND = [[-4.5, 30.2], [60.0, 30.2], [60.0, 44.0], [-4.5, 44.0], [-4.5, 30.2]]


@pytest.mark.parametrize("ring", [SQUARE, BOW_TIE, BEYOND], ids=["square", "crossing", "beyond"])
def test_an_outline_is_filled_as_pycocotools_fills_it(
    tmp_path: Path, ring: list[list[float]]
) -> None:
    found = drawn(tmp_path, annotation(ring))
    assert found.any()
    np.testing.assert_array_equal(found, filled(ring))


def test_a_hole_is_of_its_own_polygon_and_another_may_lie_in_it(tmp_path: Path) -> None:
    whole = annotation([SQUARE, LAKE], [BOW_TIE], kind="MultiPolygon")
    wanted = filled(SQUARE) & ~filled(LAKE) | filled(BOW_TIE)
    np.testing.assert_array_equal(drawn(tmp_path, whole), wanted)


def test_objects_inside_of_objects_count_each_by_its_class(tmp_path: Path) -> None:
    inner = annotation(LAKE, classification={"names": ["nucleus", "dark"]})
    outer = annotation(SQUARE, childObjects=[inner, annotation(BEYOND)])
    found = drawn(tmp_path, outer, foreground="cell")
    np.testing.assert_array_equal(found, filled(SQUARE) | filled(BEYOND))
    nuclei = drawn(tmp_path, outer, foreground="nucleus: dark")
    np.testing.assert_array_equal(nuclei, filled(LAKE))


def test_a_child_that_is_none_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.geojson"):
        drawn(tmp_path, annotation(SQUARE, childObjects=["a child"]))
