from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from image_files import (
    FOREGROUND,
    VOC,
    Array,
    grey,
    indexed,
    photo,
    saved,
)
from notan.errors import ConfigError, DataError
from notan.io.headers import read_size
from notan.io.images import read_image
from notan.io.masks import read_mask, read_trimap

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import TrimapBorder


# Trimaps


TRIMAP = np.array([[1, 2, 3], [1, 1, 2]])


@pytest.mark.parametrize("stored", ["grey", "palette"])
def test_the_border_of_a_trimap_follows_its_rule(tmp_path: Path, stored: str) -> None:
    path = tmp_path / "trimap.png"
    if stored == "grey":
        grey(path, TRIMAP)
    else:
        indexed(path, TRIMAP, VOC)
    expected: dict[TrimapBorder, tuple[Array, Array | None]] = {
        "foreground": (TRIMAP != 2, None),
        "background": (TRIMAP == 1, None),
        "ignore": (TRIMAP == 1, TRIMAP == 3),
    }
    for trimap_border, (foreground, ignored) in expected.items():
        mask, ignore = read_trimap(path, trimap_border)
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, foreground)
        np.testing.assert_array_equal(ignore, ignored)


def test_a_trimap_may_lack_a_class(tmp_path: Path) -> None:
    mask, ignore = read_trimap(grey(tmp_path / "trimap.png", [[2, 2]]), "ignore")
    assert not mask.any()
    assert ignore is not None
    assert not ignore.any()


@pytest.mark.parametrize("values", [[0, 255], [0, 1, 2, 3], [1, 2, 3, 4]])
def test_other_values_are_no_trimap(tmp_path: Path, values: list[int]) -> None:
    listed = ", ".join(map(str, values))
    with pytest.raises(DataError, match=rf"trimap\.png: holds values {listed}; a trimap holds 1"):
        read_trimap(grey(tmp_path / "trimap.png", [values]), "foreground")


def test_one_bit_and_colour_are_no_trimaps(tmp_path: Path) -> None:
    bits = saved(tmp_path / "bits.png", Image.fromarray(FOREGROUND))
    with pytest.raises(DataError, match="holds values 0, 1"):
        read_trimap(bits, "foreground")
    colours = saved(tmp_path / "colours.png", Image.fromarray(photo()))
    with pytest.raises(DataError, match="several channels; wanted a trimap"):
        read_trimap(colours, "foreground")


def test_an_unknown_border_rule_is_refused(tmp_path: Path) -> None:
    path = grey(tmp_path / "trimap.png", TRIMAP)
    with pytest.raises(
        ConfigError, match="trimap_border = 'foregrund' is no rule; did you mean 'foreground'"
    ):
        read_trimap(path, "foregrund")  # type: ignore[arg-type]


# Real files


def test_misnamed_pet_images_are_read(pets_folder: Path) -> None:
    for name in ("Abyssinian_34", "Abyssinian_5", "Abyssinian_1"):
        path = pets_folder / "images" / f"{name}.jpg"
        mask, _ = read_trimap(pets_folder / "annotations/trimaps" / f"{name}.png", "foreground")
        assert read_image(path).shape == (*mask.shape, 3)
        assert read_size(path) == mask.shape


def test_the_trimap_without_a_pet_is_read(pets_folder: Path) -> None:
    path = pets_folder / "annotations/trimaps/Abyssinian_34.png"
    assert not read_trimap(path, "background")[0].any()


def test_all_real_masks_are_read_as_0_and_255(nuclei_folder: Path, road_folder: Path) -> None:
    paths = [p for folder in (nuclei_folder, road_folder) for p in folder.glob("*/masks/*")]
    assert len(paths) == 222
    assert {read_mask(path).encoding for path in paths} <= {"0/255", "empty", "full"}


def test_a_real_trimap_is_refused_as_a_mask(pets_folder: Path) -> None:
    path = pets_folder / "annotations/trimaps/Abyssinian_1.png"
    with pytest.raises(DataError, match="values 1, 2, 3; three values look like three classes"):
        read_mask(path)
