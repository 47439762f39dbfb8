"""HEIC, as phones save photos: read where pillow-heif is installed, else named with the remedy."""

from __future__ import annotations

import random
import struct
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from doctor_folders import write
from image_files import photo
from needs import needs
from notan.checking.examine import examine
from notan.cli.main import main
from notan.errors import DataError, UnsupportedError
from notan.io.headers import read_contents, read_format, read_size
from notan.io.images import ImageReading, read_image
from notan.io.masks import read_mask

if TYPE_CHECKING:
    from pathlib import Path

HEIF = needs("pillow_heif")
AS_STORED = ImageReading(upright=False)
BRANDS = [(b"heic", b"mif1heic"), (b"heix", b""), (b"hevc", b""), (b"mif1", b"mif1heic")]


def header_of(major: bytes, compatible: bytes) -> bytes:
    size = 16 + len(compatible)
    return struct.pack(">I", size) + b"ftyp" + major + bytes(4) + compatible + bytes(300)


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


@pytest.mark.usefixtures("without_heif")
@pytest.mark.parametrize(("major", "compatible"), BRANDS)
@pytest.mark.parametrize("read", [read_image, read_mask, read_size])
def test_without_pillow_heif_it_is_named_with_the_remedy(
    tmp_path: Path, read: Any, major: bytes, compatible: bytes
) -> None:
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(header_of(major, compatible))
    with pytest.raises(UnsupportedError) as refusal:
        read(path)
    said = str(refusal.value)
    assert "IMG_0001.HEIC: is HEIC or HEIF" in said
    assert "pip install 'notan[heic]'" in said
    assert "\n" not in said


@pytest.mark.usefixtures("without_heif")
def test_without_pillow_heif_the_commands_name_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    for inside in ("images", "masks"):
        (folder / inside).mkdir(parents=True)
    for number in range(4):
        write(folder / "images" / f"p{number}.png", photo(20, 24))
        write(folder / "masks" / f"p{number}.png", np.uint8(255) * (photo(20, 24)[..., 0] > 99))
    (folder / "images" / "p3.png").unlink()
    (folder / "images" / "p3.heic").write_bytes(header_of(b"heic", b""))
    (finding,) = (each for each in examine(folder).findings if each.kind == "unsupported-image")
    assert "notan[heic]" in finding.message
    for words in (
        ("train", "--data-path", folder, "--out", tmp_path / "run"),
        ("predict", folder / "images", "--out", tmp_path / "out"),
    ):
        with pytest.raises(SystemExit):
            main([str(word) for word in words])
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "notan[heic]" in line]
        assert "p3.heic: is HEIC" in line


@pytest.mark.usefixtures("without_heif")
def test_avif_is_read_whatever_its_main_brand(tmp_path: Path) -> None:
    path = tmp_path / "photo.avif"
    Image.fromarray(photo(20, 24)).save(path, quality=95)
    assert read_format(path) == "AVIF"
    content = path.read_bytes()
    assert content[8:12] == b"avif"
    path.write_bytes(content[:8] + b"mif1" + content[12:])
    assert read_image(path).shape == (20, 24, 3)


def save_heic(path: Path, image: Image.Image, **options: Any) -> Path:
    import pillow_heif

    pillow_heif.from_pillow(image).save(path, **options)
    return path


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


def smooth(height: int = 48, width: int = 64) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    levels = np.stack([4 * rows, 3 * columns, 2 * (rows + columns)], axis=2)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


@HEIF
def test_a_photo_of_a_phone_is_read(tmp_path: Path) -> None:
    path = save_heic(tmp_path / "IMG_0001.jpg", smooth(), quality=95)
    assert read_format(path) == "HEIF"
    assert read_size(path) == (48, 64)
    difference = np.abs(read_image(path).astype(int) - np.asarray(smooth()).astype(int))
    assert difference.mean() < 3


@HEIF
@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_turned_once(tmp_path: Path, orientation: int) -> None:
    """A JPEG of the same pixels and orientation, which we turn, looks the same."""
    image = smooth()
    path = save_heic(tmp_path / "turned.heic", image, quality=95, exif=exif_of(orientation))
    image.save(tmp_path / "turned.jpg", quality=98, exif=exif_of(orientation))
    expected = read_image(tmp_path / "turned.jpg")
    assert read_size(path) == expected.shape[:2]
    difference = np.abs(read_image(path).astype(int) - expected.astype(int))
    assert difference.mean() < 4


@HEIF
def test_what_was_turned_cannot_be_read_as_it_was_stored(tmp_path: Path) -> None:
    path = save_heic(tmp_path / "turned.heic", smooth(), exif=exif_of(6))
    with pytest.raises(UnsupportedError, match="turned upright by its decoder"):
        read_image(path, AS_STORED)
    for read in (read_size, read_contents):
        with pytest.raises(UnsupportedError, match="turned upright by its decoder"):
            read(path, upright=False)
    straight = save_heic(tmp_path / "straight.heic", smooth())
    assert read_image(straight, AS_STORED).shape == (48, 64, 3)


@HEIF
def test_transparency_and_further_images_are_said(tmp_path: Path) -> None:
    import pillow_heif

    several = pillow_heif.from_pillow(smooth())
    several.add_from_pillow(smooth(20, 30).convert("RGBA"))
    several.save(tmp_path / "several.heic", primary_index=0)
    contents = read_contents(tmp_path / "several.heic")
    assert (contents.pages, contents.size) == (1, (48, 64))
    assert "several images; the main one is read" in contents.choices
    clear = save_heic(tmp_path / "clear.heic", smooth().convert("RGBA"))
    assert "transparency, which is dropped" in read_contents(clear).choices
    assert read_image(clear).shape == (48, 64, 3)


@HEIF
def test_the_main_image_is_read_wherever_it_stands(tmp_path: Path) -> None:
    import pillow_heif

    several = pillow_heif.from_pillow(smooth(20, 30))
    several.add_from_pillow(smooth())
    several.save(tmp_path / "second.heic", primary_index=1)
    assert read_image(tmp_path / "second.heic").shape == (48, 64, 3)


@HEIF
def test_damaged_ones_end_in_a_line(tmp_path: Path) -> None:
    whole = save_heic(tmp_path / "whole.heic", smooth()).read_bytes()
    chance = random.Random(5)
    path = tmp_path / "damaged.heic"
    read = 0
    for number in range(40):
        noisy = bytearray(whole)
        for _ in range(4):
            noisy[chance.randrange(12, len(whole))] ^= 1 << chance.randrange(8)
        end = chance.randrange(20, len(whole)) if number % 2 else None
        path.write_bytes(bytes(noisy[:end]))
        try:
            read += read_image(path).shape == (48, 64, 3)
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
    assert read < 40
    for broken in (header_of(b"heic", b""), whole[:40]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"damaged\.heic: is (damaged|cut short)"):
            read_image(path)


@HEIF
def test_a_folder_of_them_is_checked_trained_on_and_predicted(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for inside in ("images", "masks"):
        (folder / inside).mkdir(parents=True)
    for number in range(5):
        save_heic(folder / "images" / f"p{number}.heic", smooth(30 + number, 40))
        columns = np.mgrid[: 30 + number, :40][1]
        write(folder / "masks" / f"p{number}.png", np.uint8(255) * (columns > 20 + number))
    assert examine(folder).exit_code() == 0
    words = ("--epochs", 1, "--image-size", 16, "--batch-size", 4, "model.width=2")
    main(["train", "--data-path", *map(str, (folder, "--out", tmp_path / "run", *words))])
    out = tmp_path / "out"
    model = ("--model", tmp_path / "run" / "best.safetensors", "--out", out)
    main(["predict", *map(str, (folder / "images", *model))])
    assert len(list((out / "masks").iterdir())) == 5
