"""What is seen of a folder, against images whose numbers are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from notan.auto import look
from notan.auto.look import take_fingerprint
from notan.config import Data
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pathlib import Path


def write_pair(folder: Path, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    for part, pixels in (("images", image), ("masks", mask.astype(np.uint8) * 255)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / part / f"{name}.png")


def scattered(count: int, folder: Path, *, row: int | None = None) -> None:
    """Grey images with one square each, anywhere, or all in one row."""
    rng = np.random.default_rng(0)
    for index in range(count):
        image = np.repeat(rng.integers(90, 110, (40, 60, 1)), 3, axis=2)
        mask = np.zeros((40, 60), bool)
        top = int(rng.integers(0, 30)) if row is None else row
        left = int(rng.integers(0, 50))
        mask[top : top + 10, left : left + 10] = True
        write_pair(folder, f"p{index:03}", image, mask)


def test_numbers_of_drawn_images(drawn_folder: Path) -> None:
    seen = take_fingerprint(Data(path=drawn_folder), seed=0)
    assert (seen.training, seen.validation, seen.opened) == (24, 6, 24)
    assert not seen.makes_validation
    assert seen.size == seen.usual_size == seen.largest == (40, 48)
    masks = [sample.mask for sample in DrawnSource(24, size=(40, 48), seed=1)]
    coverages = [mask.mean() for mask in masks if mask.any()]
    assert seen.coverage == pytest.approx(np.median(coverages))
    assert seen.empty == 1 - len(coverages) / 24
    assert not seen.grey
    assert "24 training and 6 validation images, 40x48" in seen.in_words()


def test_the_test_images_are_not_opened(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write_folder(DrawnSource(3, size=(16, 16)), tmp_path / part)
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_text("no image")
    assert take_fingerprint(Data(path=tmp_path), seed=0).training == 3


def test_of_many_images_a_spread_selection_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "MOST_IMAGES", 4)
    write_folder(DrawnSource(13, size=(16, 16)), tmp_path)
    seen = take_fingerprint(Data(path=tmp_path), seed=0)
    assert (seen.training + seen.validation, seen.opened) == (13, 4)


@pytest.mark.parametrize(("time_limit", "opened"), [(1.0, 3), (15.0, 5), (3600.0, 7)])
def test_in_a_short_time_fewer_images_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time_limit: float, opened: int
) -> None:
    monkeypatch.setattr(look, "FEWEST_LOOKED_AT", 3)
    monkeypatch.setattr(look, "MOST_IMAGES", 7)
    write_folder(DrawnSource(13, size=(16, 16)), tmp_path)
    seen = take_fingerprint(Data(path=tmp_path), seed=0, time_limit=time_limit)
    assert seen.opened == opened


def test_sizes_that_differ(tmp_path: Path) -> None:
    for index, side in enumerate((10, 20, 20, 20, 80)):
        pixels = np.zeros((side, 2 * side, 3))
        write_pair(tmp_path / "train", f"p{index}", pixels, pixels[..., 0] == 0)
    write_folder(DrawnSource(1, size=(16, 16)), tmp_path / "val")
    seen = take_fingerprint(Data(path=tmp_path), seed=0)
    assert (seen.size, seen.usual_size, seen.largest) == ((20, 40), (20, 40), (80, 160))


def test_grey_images_are_told_from_coloured_ones(tmp_path: Path) -> None:
    scattered(6, tmp_path)
    assert take_fingerprint(Data(path=tmp_path), seed=0).grey
    image = np.zeros((40, 60, 3))
    image[..., 0] = 200
    write_pair(tmp_path, "red", image, image[..., 0] > 300)
    assert not take_fingerprint(Data(path=tmp_path, validation_fraction=0.01), seed=0).grey


@pytest.mark.parametrize(("row", "upright"), [(None, False), (25, True)])
def test_a_top_is_seen_where_foregrounds_lie_low(
    tmp_path: Path, row: int | None, upright: bool
) -> None:
    scattered(60, tmp_path, row=row)
    assert take_fingerprint(Data(path=tmp_path), seed=0).upright is upright


def test_light_from_above_makes_a_top(tmp_path: Path) -> None:
    scattered(60, tmp_path)
    for path in (tmp_path / "images").iterdir():
        pixels = np.array(Image.open(path))
        pixels[:20] += 40
        Image.fromarray(pixels).save(path)
    assert take_fingerprint(Data(path=tmp_path), seed=0).upright


def test_few_images_are_taken_to_have_a_top(tmp_path: Path) -> None:
    scattered(12, tmp_path)
    assert take_fingerprint(Data(path=tmp_path), seed=0).upright


def test_empty_masks_count_and_have_no_width(tmp_path: Path) -> None:
    for index in range(4):
        mask = np.zeros((12, 12), bool)
        mask[2:8, 2:8] = index == 0
        write_pair(tmp_path / "train", f"p{index}", np.zeros((12, 12, 3)), mask)
    write_folder(DrawnSource(1, size=(16, 16)), tmp_path / "val")
    seen = take_fingerprint(Data(path=tmp_path), seed=0)
    assert (seen.empty, seen.full, seen.coverage) == (0.75, 0, 0.25)
    assert seen.width is not None


def test_images_of_one_pixel_are_images(tmp_path: Path) -> None:
    for index in range(3):
        write_pair(tmp_path, f"p{index}", np.zeros((1, 1, 3)), np.ones((1, 1), bool))
    seen = take_fingerprint(Data(path=tmp_path), seed=0)
    assert (seen.size, seen.full) == ((1, 1), 1)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    write_folder(DrawnSource(6, size=(16, 16)), tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.write_text("no image")
    with pytest.raises(DataError, match=r"drawn-000\d.png"):
        take_fingerprint(Data(path=tmp_path), seed=0)


def test_without_a_folder_the_flag_is_named() -> None:
    with pytest.raises(ConfigError, match="--data-path FOLDER"):
        take_fingerprint(Data(), seed=0)


def test_the_three_real_folders_are_seen_as_they_are(
    pets_folder: Path, nuclei_folder: Path, road_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "MOST_IMAGES", 40)
    seen = {
        folder: take_fingerprint(Data(path=folder), seed=0)
        for folder in (pets_folder, nuclei_folder, road_folder)
    }
    assert [seen[folder].upright for folder in (nuclei_folder, road_folder)] == [False, True]
    assert not any(look.grey for look in seen.values())
    thin = seen[nuclei_folder].thin
    assert thin is not None
    assert 6 < thin < 25
    assert seen[road_folder].size == (360, 480)
    assert "128 px or more wide" in seen[road_folder].in_words()
