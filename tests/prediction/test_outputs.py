"""What a prediction is written as."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from notan.errors import StorageError
from notan.prediction.formats import (
    PREDICTION,
    TRUTH,
    contact_sheet,
    mask_image,
    overlay_image,
    write_overlay_and_mask,
    write_png,
)

if TYPE_CHECKING:
    from pathlib import Path

    from notan.types import Mask, RGBImage

RANDOM = np.random.default_rng(0)


def square(top: int, bottom: int, size: int = 60) -> Mask:
    mask = np.zeros((size, size), np.bool_)
    mask[top:bottom, top:bottom] = True
    return mask


def noise(size: int = 60) -> RGBImage:
    return RANDOM.integers(0, 256, (size, size, 3), dtype=np.uint8)


def test_background_away_from_the_outline_is_left_as_it_is() -> None:
    image = noise()
    before = image.copy()
    overlay = overlay_image(image, square(20, 40))
    far = ~square(18, 42)
    np.testing.assert_array_equal(overlay[far], image[far])
    np.testing.assert_array_equal(image, before)


def test_foreground_is_tinted_and_outlined_in_the_prediction_colour() -> None:
    image = noise()
    overlay = overlay_image(image, square(20, 40))
    inside = square(22, 38)
    wanted = 0.6 * image[inside] + 0.4 * np.array(PREDICTION)
    np.testing.assert_allclose(overlay[inside], wanted, atol=1)
    for corner in ((20, 20), (20, 39), (39, 20), (39, 39), (20, 30)):
        assert tuple(overlay[corner]) == PREDICTION


def test_the_truth_is_an_outline_only() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    overlay = overlay_image(image, square(0, 0), square(20, 40))
    assert tuple(overlay[20, 30]) == TRUTH
    assert not overlay[square(23, 37)].any()


@pytest.mark.parametrize("mask", [np.zeros((9, 9), np.bool_), np.ones((9, 9), np.bool_)])
def test_an_empty_and_a_full_mask_can_be_drawn(mask: Mask) -> None:
    image = noise(9)
    overlay = overlay_image(image, mask, ~mask)
    assert overlay.shape == (9, 9, 3)
    assert overlay.dtype == np.uint8


def test_an_image_of_one_pixel_can_be_drawn(tmp_path: Path) -> None:
    write_overlay_and_mask(tmp_path, "dot", noise(1), np.ones((1, 1), np.bool_))
    assert np.asarray(Image.open(tmp_path / "masks" / "dot.png")).tolist() == [[255]]


def test_a_written_mask_reads_back_as_0_and_255_exactly(tmp_path: Path) -> None:
    mask = RANDOM.random((33, 57)) > 0.5
    write_png(tmp_path / "mask.png", mask_image(mask))
    with Image.open(tmp_path / "mask.png") as file:
        assert (file.format, file.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(file), np.where(mask, 255, 0))


def test_a_written_image_keeps_its_red_red(tmp_path: Path) -> None:
    image = noise()
    write_png(tmp_path / "image.png", image)
    with Image.open(tmp_path / "image.png") as file:
        assert file.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(file), image)


def test_mask_and_overlay_are_written_side_by_side(tmp_path: Path) -> None:
    image, mask, truth = noise(), square(10, 30), square(12, 32)
    write_overlay_and_mask(tmp_path / "out", "cat.jpg", image, mask, truth)
    files = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.png"))
    assert [path.as_posix() for path in files] == ["masks/cat.jpg.png", "overlays/cat.jpg.png"]
    with Image.open(tmp_path / "out" / "overlays" / "cat.jpg.png") as file:
        np.testing.assert_array_equal(np.asarray(file), overlay_image(image, mask, truth))


def test_a_contact_sheet_lays_images_out_in_rows_on_white() -> None:
    images = [np.full((10, 20, 3), value, np.uint8) for value in (10, 20, 30, 40, 50)]
    sheet = contact_sheet(images, columns=3, gap=4)
    assert sheet.shape == (24, 68, 3)
    for value, (top, left) in zip(
        (10, 20, 30, 40, 50), ((0, 0), (0, 24), (0, 48), (14, 0), (14, 24)), strict=True
    ):
        assert (sheet[top : top + 10, left : left + 20] == value).all()
    assert (sheet[14:, 48:] == 255).all()
    assert (sheet[10:14] == 255).all()
    assert (sheet[:, 20:24] == 255).all()


def test_a_contact_sheet_of_one_image_is_the_image() -> None:
    image = noise()
    np.testing.assert_array_equal(contact_sheet([image], columns=1), image)


def test_a_full_disk_leaves_no_half_written_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"masks/cat\.png: .*No space left"):
        write_overlay_and_mask(tmp_path, "cat", noise(), square(10, 30))
    assert [path.name for path in tmp_path.rglob("*")] == ["masks"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(StorageError, match=r"taken/masks/cat\.png: could not be written"):
        write_overlay_and_mask(tmp_path / "taken", "cat", noise(), square(10, 30))
