"""The data doctor on files: one test for each fault planted in a clean folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from doctor_folders import SIZE, found, image_path, mask, only, pixels, write, write_clean
from notan.checking import examine


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clean(tmp_path_factory.mktemp("clean") / "data")


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "data"))


def test_a_clean_folder_has_notes_only(clean: Path) -> None:
    diagnosis = examine(clean)
    assert {finding.severity for finding in diagnosis.findings} == {"note"}
    assert diagnosis.exit_code(strict=True) == 0


def test_a_file_that_is_no_image(folder: Path) -> None:
    image_path(folder, 1).write_text("hello")
    finding = only(folder, "unreadable-image")
    assert finding.severity == "error"
    assert finding.files == (image_path(folder, 1),)
    assert finding.split == "train"
    assert "begins with b'hello'" in finding.message


def test_an_empty_file_is_an_unreadable_mask(folder: Path) -> None:
    mask(folder, 1).write_bytes(b"")
    assert "is empty (0 bytes)" in only(folder, "unreadable-mask").message


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_an_image_cut_short(folder: Path, share: float) -> None:
    whole = image_path(folder, 1).read_bytes()
    image_path(folder, 1).write_bytes(whole[: int(len(whole) * share)])
    assert "is cut short" in only(folder, "truncated-image").message


def test_a_jpeg_cut_short(folder: Path) -> None:
    jpeg = image_path(folder, 1).with_suffix(".jpg")
    with Image.open(image_path(folder, 1)) as opened:
        opened.save(jpeg)
    image_path(folder, 1).unlink()
    jpeg.write_bytes(jpeg.read_bytes()[:1500])
    assert only(folder, "truncated-image").files == (jpeg,)


def test_a_mask_cut_short(folder: Path) -> None:
    path = mask(folder, 2)
    path.write_bytes(path.read_bytes()[:-40])
    assert only(folder, "truncated-mask").severity == "error"


@pytest.mark.parametrize(("kind", "written"), [("GIF", "GIF"), ("JPEG", "JPEG"), ("BMP", "BMP")])
def test_an_image_of_another_type_than_its_name_says(folder: Path, kind: str, written: str) -> None:
    with Image.open(image_path(folder, 3)) as opened:
        copy = opened.copy()
    copy.save(image_path(folder, 3), format=written)
    finding = only(folder, "wrong-type-for-name")
    assert finding.severity == "warning"
    assert f"is a {kind} file by its content" in finding.message


def test_usual_names_of_a_format_are_no_finding(folder: Path) -> None:
    for number, suffix in enumerate([".jpg", ".JPEG", ".bmp", ".tif", ".webp", ".gif"]):
        path = image_path(folder, number)
        with Image.open(path) as opened:
            opened.save(path.with_suffix(suffix))
        path.unlink()
    assert examine(folder).exit_code(strict=True) == 0


def test_an_image_of_another_size_than_its_mask(folder: Path) -> None:
    write(image_path(folder, 4), pixels(image_path(folder, 4))[:-3])
    finding = only(folder, "size-mismatch")
    assert finding.severity == "error"
    assert finding.files == (image_path(folder, 4), mask(folder, 4))
    assert "93x120" in finding.message


def test_an_image_turned_by_its_exif_tag(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = image_path(folder, 4)
    Image.fromarray(pixels(path)).save(path, exif=exif)
    assert "--exif-orientation ignore" in only(folder, "size-mismatch").message


def test_an_image_without_mask_and_the_mask_of_a_slip_in_its_name(folder: Path) -> None:
    mask(folder, 5).rename(folder / "train" / "masks" / "drawm-0005.png")
    kinds = {finding.kind: finding for finding in examine(folder).findings}
    assert "the nearest without a partner is drawm-0005" in kinds["image-without-mask"].message
    assert kinds["mask-without-image"].severity == "error"


def test_a_mask_without_image(folder: Path) -> None:
    image_path(folder, 5).unlink()
    assert only(folder, "mask-without-image").files == (mask(folder, 5),)


@pytest.mark.parametrize("which", ["images", "masks"])
def test_two_files_of_one_stem(folder: Path, which: str) -> None:
    path = folder / "train" / which / "drawn-0006.png"
    with Image.open(path) as opened:
        opened.save(path.with_suffix(".bmp"))
    finding = found(folder, "same-stem-twice")[0]
    assert finding.severity == "error"
    assert set(finding.files) == {path, path.with_suffix(".bmp")}
    assert not found(folder, "image-without-mask")


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        ((12, 40), "tiny-image"),
        ((10, 10_001), "tiny-image"),
        ((1300, 10_001), "huge-image"),
        ((20, 300), "extreme-aspect"),
    ],
)
def test_extreme_sizes(folder: Path, size: tuple[int, int], kind: str) -> None:
    image = np.zeros((*size, 3), np.uint8)
    image[: size[0] // 2] = 200
    write(image_path(folder, 7), image)
    foreground = np.zeros(size, np.uint8)
    foreground[2:-2, 3:20] = 255
    write(mask(folder, 7), foreground)
    finding = found(folder, kind)[0]
    assert finding.severity == "warning"
    assert f"{size[0]}x{size[1]}" in finding.message


def test_a_blank_image(folder: Path) -> None:
    rng = np.random.default_rng(0)
    write(image_path(folder, 8), 90 + rng.integers(0, 2, (*SIZE, 3)))
    assert "next to one colour" in only(folder, "blank-image").message


def test_files_that_are_never_read_are_noted(folder: Path) -> None:
    (folder / "train" / "images" / "notes.txt").write_text("x")
    (folder / "train" / "masks" / "more").mkdir()
    (folder / "train" / "masks" / ".DS_Store").write_text("x")
    first, second = found(folder, "ignored-file")
    assert first.severity == "note"
    assert "notes.txt is never read" in first.message
    assert "more is never read" in second.message


def test_a_part_without_masks(folder: Path) -> None:
    shutil.rmtree(folder / "val" / "masks")
    findings = found(folder, "image-without-mask")
    assert len(findings) == 6
    assert {finding.split for finding in findings} == {"validation"}
