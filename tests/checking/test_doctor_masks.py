"""The data doctor on masks: encodings, polarity, empty, full, ragged, shifted, repeated."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from doctor_folders import PARTS, SIZE, found, image_path, mask, only, pixels, write, write_clean
from notan.checking import examine
from notan.checking.masks import how_read
from notan.data.synthetic import DrawnSource, write_folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clean(tmp_path_factory.mktemp("clean") / "data")


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "data"))


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images large enough for outlines to be told from the texture around them."""
    folder = tmp_path_factory.mktemp("larger") / "data"
    write_folder(DrawnSource(16, size=(160, 160), seed=2), folder)
    return folder


def every_mask(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/masks/*.png"))


def test_the_encoding_is_noted_with_how_it_is_read(clean: Path) -> None:
    finding = found(clean, "mask-encoding")[0]
    assert finding.severity == "note"
    assert "0/255 (255 is foreground, 0 background)" in finding.message


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("0/1", "1 is foreground, 0 background"),
        ("palette 0/2", "2 is foreground, 0 background"),
        ("empty", "no foreground"),
        ("trimap, trimap_border = foreground", "1 is foreground, 2 background, 3 foreground"),
        ("trimap, trimap_border = ignore", "1 is foreground, 2 background, 3 left out"),
    ],
)
def test_every_encoding_is_explained(encoding: str, words: str) -> None:
    assert how_read(encoding) == words


def test_a_mask_of_unclear_values(folder: Path) -> None:
    write(mask(folder, 1), np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 5 * 50)
    finding = only(folder, "ambiguous-mask")
    assert finding.severity == "error"
    assert "not a mask of two classes" in finding.message


def test_masks_of_two_encodings_side_by_side(folder: Path) -> None:
    write(mask(folder, 1), pixels(mask(folder, 1)) // 255)
    finding = only(folder, "mixed-encodings")
    assert finding.severity == "warning"
    assert finding.files == (mask(folder, 1),)


def test_soft_edges_beside_hard_ones_are_one_encoding(folder: Path) -> None:
    path = mask(folder, 1)
    height, width = SIZE
    large = Image.fromarray(pixels(path)).resize((width * 4, height * 4))
    large.resize((width, height), Image.Resampling.BOX).save(path)
    assert len(np.unique(pixels(path))) > 3
    assert examine(folder).exit_code(strict=True) == 0


def test_foreground_of_two_values_is_an_error(folder: Path) -> None:
    write(mask(folder, 1), pixels(mask(folder, 1)) // 255 * 128)
    finding = only(folder, "masks-disagree")
    assert finding.severity == "error"
    assert finding.files == (mask(folder, 1),)
    assert "0/128" in finding.message


def test_a_single_inverted_mask(folder: Path) -> None:
    write(mask(folder, 10), 255 - pixels(mask(folder, 10)))
    finding = only(folder, "inverted-mask")
    assert finding.severity == "warning"
    assert finding.files == (mask(folder, 10),)


def test_an_inverted_mask_where_the_foreground_always_lies_below(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        edge = int(rng.integers(40, 60))
        foreground = np.zeros(SIZE, np.uint8)
        foreground[edge:, int(rng.integers(0, 30)) :] = 255
        for path in (image_path(tmp_path, number), mask(tmp_path, number)):
            path.parent.mkdir(parents=True, exist_ok=True)
        write(image_path(tmp_path, number), rng.integers(0, 255, (*SIZE, 3)))
        write(mask(tmp_path, number), 255 - foreground if number == 4 else foreground)
    findings = found(tmp_path, "inverted-mask")
    assert [finding.files for finding in findings] == [(mask(tmp_path, 4),)]


def test_a_folder_of_inverted_masks_is_one_finding(folder: Path) -> None:
    for path in every_mask(folder):
        write(path, 255 - pixels(path))
    findings = found(folder, "inverted-masks")
    assert len(findings) == 1
    assert "wrong way round" in findings[0].message
    assert not found(folder, "inverted-mask")


def test_an_empty_mask_is_noted(folder: Path) -> None:
    write(mask(folder, 3), np.zeros(SIZE))
    findings = found(folder, "empty-mask")
    assert mask(folder, 3) in [finding.files[0] for finding in findings]
    assert {finding.severity for finding in findings} == {"note"}


def test_a_split_of_mostly_empty_masks(folder: Path) -> None:
    for path in (folder / "val" / "masks").iterdir():
        write(path, np.zeros(SIZE))
    finding = found(folder, "mostly-empty-masks")[0]
    assert finding.severity == "warning"
    assert "6 of 6 masks" in finding.message


def test_a_full_mask(folder: Path) -> None:
    write(mask(folder, 3), np.full(SIZE, 255))
    assert only(folder, "full-mask").files == (mask(folder, 3),)


def test_a_mask_full_of_noise(folder: Path) -> None:
    foreground = pixels(mask(folder, 4))
    noise = np.random.default_rng(0).random(foreground.shape) < 0.05
    write(mask(folder, 4), np.where(noise, 255 - foreground, foreground))
    finding = only(folder, "ragged-mask")
    assert finding.severity == "warning"
    assert finding.files == (mask(folder, 4),)


def test_the_same_mask_for_two_images(folder: Path) -> None:
    shutil.copy(mask(folder, 5), mask(folder, 6))
    finding = found(folder, "repeated-mask")[0]
    assert finding.files == (mask(folder, 5), mask(folder, 6))


def test_a_shifted_mask(larger: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(larger, tmp_path / "data"))
    path = folder / "masks" / "drawn-0003.png"
    write(path, np.roll(pixels(path), (14, -16), (0, 1)))
    finding = only(folder, "shifted-mask")
    assert finding.files == (path,)
    assert "up and" in finding.message
    assert "to the right" in finding.message


def test_masks_that_are_all_shifted_by_the_same_step(larger: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(larger, tmp_path / "data"))
    for path in (folder / "masks").iterdir():
        write(path, np.roll(pixels(path), (-12, 14), (0, 1)))
    finding = found(folder, "shifted-masks")[0]
    assert "down and" in finding.message
    assert "to the left" in finding.message
    assert not found(folder, "shifted-mask")


def test_larger_drawn_masks_lie_where_they_should(larger: Path) -> None:
    assert examine(larger).exit_code(strict=True) == 0


def test_few_masks_are_not_compared_with_each_other(tmp_path: Path) -> None:
    write_folder(DrawnSource(3, size=SIZE, seed=5), tmp_path)
    path = tmp_path / "masks" / "drawn-0001.png"
    write(path, 255 - pixels(path))
    assert not found(tmp_path, "inverted-mask")
    assert sum(PARTS.values()) > 8
