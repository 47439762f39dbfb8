from __future__ import annotations

import io
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from image_files import (
    VOC,
    Array,
    grey,
    photo,
    png,
    saved,
)
from notan.errors import DataError
from notan.io.headers import read_size
from notan.io.images import decode_image, read_image
from notan.io.masks import read_mask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# Images


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_becomes_eight_bit_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(photo())
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    path = saved(tmp_path / "image.tif", image)
    read = read_image(path)
    assert read.shape == (20, 30, 3)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, np.asarray(image.convert("RGB")))


def test_an_image_may_be_written_to_after_reading(tmp_path: Path) -> None:
    image = read_image(saved(tmp_path / "image.png", Image.fromarray(photo())))
    image[0, 0] = 7
    assert image[0, 0].tolist() == [7, 7, 7]


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 128, 255])])
def test_a_palette_with_transparency_keeps_its_colours(
    tmp_path: Path, transparency: int | bytes
) -> None:
    image = Image.frombytes("P", (4, 1), bytes([0, 1, 2, 3]))
    image.putpalette([10, 20, 30, *VOC[3:]])
    path = saved(tmp_path / "image.png", image, transparency=transparency)
    assert read_image(path)[0].tolist() == [[10, 20, 30], [128, 0, 0], [0, 128, 0], [128, 128, 0]]


def test_transparent_pixels_keep_the_colour_beneath(tmp_path: Path) -> None:
    pixels = np.dstack([photo(), np.zeros((20, 30), dtype=np.uint8)])
    path = saved(tmp_path / "image.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(read_image(path), photo())


def test_a_cmyk_jpeg_is_read_in_its_true_colours(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 40)).convert("CMYK")
    image = read_image(saved(tmp_path / "red.jpg", red, quality=95))
    assert np.abs(image.astype(int) - [200, 30, 40]).max() < 12


@pytest.mark.parametrize(("suffix", "kind"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2")])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, suffix: str, kind: str) -> None:
    path = grey(tmp_path / f"deep.{suffix}", [[0, 257, 32768, 65535]], np.dtype(kind))
    image = read_image(path)
    assert image[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (image == image[..., :1]).all()


def test_thirty_two_bit_grey_is_read_as_sixteen_bit(tmp_path: Path) -> None:
    path = grey(tmp_path / "deep.tif", [[0, 65535]], np.int32)
    assert read_image(path)[0, :, 1].tolist() == [0, 255]


@pytest.mark.parametrize("values", [[[0, 70000]], [[-1, 5]]])
def test_thirty_two_bit_grey_out_of_range_is_refused(tmp_path: Path, values: list[Any]) -> None:
    path = grey(tmp_path / "deep.tif", values, np.int32)
    with pytest.raises(DataError, match=r"deep\.tif: its grey values reach .* wanted 0\.\.65535"):
        read_image(path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.4, 255.0], [0, 100, 255])],
)
def test_float_grey_may_be_a_fraction_or_a_byte(
    tmp_path: Path, values: list[float], expected: list[int]
) -> None:
    path = grey(tmp_path / "float.tif", [values], np.float32)
    assert read_image(path)[0, :, 2].tolist() == expected


@pytest.mark.parametrize("wrong", [-0.5, 300.0, float("nan"), float("inf")])
def test_float_grey_out_of_range_is_refused(tmp_path: Path, wrong: float) -> None:
    path = grey(tmp_path / "float.tif", [[0.0, wrong]], np.float32)
    with pytest.raises(DataError, match=r"float\.tif: .* wanted 0\.\.1 or 0\.\.255"):
        read_image(path)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_the_content_decides_the_format_and_not_the_name(tmp_path: Path, kind: str) -> None:
    content = io.BytesIO()
    image = Image.fromarray(photo())
    image.save(content, kind, lossless=True) if kind == "WEBP" else image.save(content, kind)
    path = tmp_path / "wrong-name.jpg"
    path.write_bytes(content.getvalue())
    expected = np.asarray(Image.open(content).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(decode_image(content.getvalue(), "upload"), expected)
    assert read_size(path) == (20, 30)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "tif", "png", "webp"):
        path = tmp_path / f"frames.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert read_image(path)[0, 0].tolist() == [255, 0, 0]
        assert read_size(path) == (3, 4)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("jpg", {}),
        ("png", {}),
        ("webp", {"lossless": True}),
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_and_masks_are_turned_upright(
    tmp_path: Path, suffix: str, options: dict[str, Any], orientation: int
) -> None:
    stored = np.zeros((16, 48), dtype=np.uint8)
    stored[:8, :16] = 255
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"turned.{suffix}"
    grey(path, stored, exif=exif, **options)
    turns: dict[int, Callable[[Array], Array]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 3),
        7: lambda a: np.rot90(a, 2).T,
        8: np.rot90,
    }
    expected = turns[orientation](stored) > 127
    np.testing.assert_array_equal(read_image(path)[..., 0] > 127, expected)
    np.testing.assert_array_equal(read_mask(path).mask, expected)
    assert read_size(path) == expected.shape


def test_the_size_is_read_without_decoding(tmp_path: Path) -> None:
    whole = png(300, 500, data=zlib.compress(b"\0" * 301 * 500))
    path = tmp_path / "cut.png"
    path.write_bytes(whole[:60])
    assert read_size(path) == (300, 500)
    with pytest.raises(DataError, match="is cut short"):
        read_image(path)


def test_an_image_with_broken_exif_is_still_read(tmp_path: Path) -> None:
    for number, exif in enumerate((b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01")):
        path = saved(tmp_path / f"{number}.jpg", Image.new("RGB", (9, 7)), exif=exif)
        assert read_image(path).shape == (7, 9, 3)
        assert read_size(path) == (7, 9)


def test_reading_leaves_the_warning_filters_alone(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01"
    path = saved(tmp_path / "broken-exif.jpg", Image.new("RGB", (9, 7)), exif=exif)
    before = list(warnings.filters)
    read_image(path)
    assert list(warnings.filters) == before


def test_names_beyond_ascii_and_read_only_folders_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "濃淡 ü"
    folder.mkdir()
    path = saved(folder / "猫.png", Image.fromarray(photo()))
    folder.chmod(0o555)
    try:
        np.testing.assert_array_equal(read_image(path), photo())
        assert read_size(path) == (20, 30)
    finally:
        folder.chmod(0o755)


def test_many_threads_may_read_at_once(tmp_path: Path) -> None:
    path = saved(tmp_path / "image.png", Image.fromarray(photo(200, 200)))
    gate = threading.Barrier(8)

    def read(_: int) -> bool:
        gate.wait(timeout=60)
        return all(np.array_equal(read_image(path), photo(200, 200)) for _ in range(5))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
