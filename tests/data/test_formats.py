from __future__ import annotations

import io
import os
import random
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, PngImagePlugin

from notan.data.formats import (
    MAX_PIXELS,
    decode_picture,
    read_mask,
    read_picture,
    read_size,
    read_trimap,
)
from notan.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from notan.config import Border

Array = npt.NDArray[Any]

REAL = Path(__file__).resolve().parents[2].parent / "shared/data"
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason="the shared pictures (../shared/data) are not on this machine"
)

VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
FIGURE = np.array([[True, False, False], [True, True, False]])


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def grey(path: Path, values: Any, dtype: Any = np.uint8, **options: Any) -> Path:
    return saved(path, Image.fromarray(np.asarray(values, dtype=dtype)), **options)


def indexed(path: Path, indices: Any, colours: list[int]) -> Path:
    grey_image = Image.fromarray(np.asarray(indices, dtype=np.uint8))
    image = Image.frombytes("P", grey_image.size, grey_image.tobytes())
    image.putpalette(colours)
    return saved(path, image)


def coloured(path: Path, mask: Array, colour: tuple[int, int, int]) -> Path:
    return saved(path, Image.fromarray(mask[..., None] * np.array(colour, dtype=np.uint8)))


def photo(height: int = 20, width: int = 30) -> Array:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def disc(size: int = 64) -> Array:
    rows, columns = np.mgrid[:size, :size]
    return np.asarray((rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (size / 3) ** 2)


def blurred(mask: Array) -> Array:
    large = Image.fromarray(mask).convert("L").resize((mask.shape[1] * 4, mask.shape[0] * 4))
    return np.asarray(large.resize((mask.shape[1] * 2, mask.shape[0] * 2), Image.Resampling.BOX))


def png(height: int, width: int, *, depth: int = 8, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# Pictures


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_becomes_eight_bit_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(photo())
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    path = saved(tmp_path / "picture.tif", image)
    picture = read_picture(path)
    assert picture.shape == (20, 30, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, np.asarray(image.convert("RGB")))


def test_a_picture_may_be_written_to_after_reading(tmp_path: Path) -> None:
    picture = read_picture(saved(tmp_path / "picture.png", Image.fromarray(photo())))
    picture[0, 0] = 7
    assert picture[0, 0].tolist() == [7, 7, 7]


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 128, 255])])
def test_a_palette_with_transparency_keeps_its_colours(
    tmp_path: Path, transparency: int | bytes
) -> None:
    image = Image.frombytes("P", (4, 1), bytes([0, 1, 2, 3]))
    image.putpalette([10, 20, 30, *VOC[3:]])
    path = saved(tmp_path / "picture.png", image, transparency=transparency)
    assert read_picture(path)[0].tolist() == [[10, 20, 30], [128, 0, 0], [0, 128, 0], [128, 128, 0]]


def test_transparent_pixels_keep_the_colour_beneath(tmp_path: Path) -> None:
    pixels = np.dstack([photo(), np.zeros((20, 30), dtype=np.uint8)])
    path = saved(tmp_path / "picture.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(read_picture(path), photo())


def test_a_cmyk_jpeg_is_read_in_its_true_colours(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 40)).convert("CMYK")
    picture = read_picture(saved(tmp_path / "red.jpg", red, quality=95))
    assert np.abs(picture.astype(int) - [200, 30, 40]).max() < 12


@pytest.mark.parametrize(("suffix", "kind"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2")])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, suffix: str, kind: str) -> None:
    path = grey(tmp_path / f"deep.{suffix}", [[0, 257, 32768, 65535]], np.dtype(kind))
    picture = read_picture(path)
    assert picture[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (picture == picture[..., :1]).all()


def test_thirty_two_bit_grey_is_read_as_sixteen_bit(tmp_path: Path) -> None:
    path = grey(tmp_path / "deep.tif", [[0, 65535]], np.int32)
    assert read_picture(path)[0, :, 1].tolist() == [0, 255]


@pytest.mark.parametrize("values", [[[0, 70000]], [[-1, 5]]])
def test_thirty_two_bit_grey_out_of_range_is_refused(tmp_path: Path, values: list[Any]) -> None:
    path = grey(tmp_path / "deep.tif", values, np.int32)
    with pytest.raises(DataError, match=r"deep\.tif: its grey values reach .* wanted 0\.\.65535"):
        read_picture(path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.4, 255.0], [0, 100, 255])],
)
def test_float_grey_may_be_a_fraction_or_a_byte(
    tmp_path: Path, values: list[float], expected: list[int]
) -> None:
    path = grey(tmp_path / "float.tif", [values], np.float32)
    assert read_picture(path)[0, :, 2].tolist() == expected


@pytest.mark.parametrize("wrong", [-0.5, 300.0, float("nan"), float("inf")])
def test_float_grey_out_of_range_is_refused(tmp_path: Path, wrong: float) -> None:
    path = grey(tmp_path / "float.tif", [[0.0, wrong]], np.float32)
    with pytest.raises(DataError, match=r"float\.tif: .* wanted 0\.\.1 or 0\.\.255"):
        read_picture(path)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_the_content_decides_the_format_and_not_the_name(tmp_path: Path, kind: str) -> None:
    content = io.BytesIO()
    image = Image.fromarray(photo())
    image.save(content, kind, lossless=True) if kind == "WEBP" else image.save(content, kind)
    path = tmp_path / "wrong-name.jpg"
    path.write_bytes(content.getvalue())
    expected = np.asarray(Image.open(content).convert("RGB"))
    np.testing.assert_array_equal(read_picture(path), expected)
    np.testing.assert_array_equal(decode_picture(content.getvalue(), "upload"), expected)
    assert read_size(path) == (20, 30)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "tif", "png", "webp"):
        path = tmp_path / f"frames.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert read_picture(path)[0, 0].tolist() == [255, 0, 0]
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
def test_pictures_and_masks_are_turned_upright(
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
    np.testing.assert_array_equal(read_picture(path)[..., 0] > 127, expected)
    np.testing.assert_array_equal(read_mask(path).mask, expected)
    assert read_size(path) == expected.shape


def test_the_size_is_read_without_decoding(tmp_path: Path) -> None:
    whole = png(300, 500, data=zlib.compress(b"\0" * 301 * 500))
    path = tmp_path / "cut.png"
    path.write_bytes(whole[:60])
    assert read_size(path) == (300, 500)
    with pytest.raises(DataError, match="damaged or cut short"):
        read_picture(path)


def test_a_picture_with_broken_exif_is_still_read(tmp_path: Path) -> None:
    for number, exif in enumerate((b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01")):
        path = saved(tmp_path / f"{number}.jpg", Image.new("RGB", (9, 7)), exif=exif)
        assert read_picture(path).shape == (7, 9, 3)
        assert read_size(path) == (7, 9)


def test_reading_leaves_the_warning_filters_alone(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01"
    path = saved(tmp_path / "broken-exif.jpg", Image.new("RGB", (9, 7)), exif=exif)
    before = list(warnings.filters)
    read_picture(path)
    assert list(warnings.filters) == before


def test_names_beyond_ascii_and_read_only_folders_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "濃淡 ü"
    folder.mkdir()
    path = saved(folder / "猫.png", Image.fromarray(photo()))
    folder.chmod(0o555)
    try:
        np.testing.assert_array_equal(read_picture(path), photo())
        assert read_size(path) == (20, 30)
    finally:
        folder.chmod(0o755)


def test_many_threads_may_read_at_once(tmp_path: Path) -> None:
    path = saved(tmp_path / "picture.png", Image.fromarray(photo(200, 200)))
    gate = threading.Barrier(8)

    def read(_: int) -> bool:
        gate.wait(timeout=60)
        return all(np.array_equal(read_picture(path), photo(200, 200)) for _ in range(5))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


# Files that cannot be read


READERS = (read_picture, read_size, read_mask)


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_picture_is_refused_in_one_line(tmp_path: Path, read: Any) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture\nat all")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    words = {
        "missing.png": "there is no such file; wanted a picture or mask; check the path",
        "empty.png": r"is empty \(0 bytes\); wanted a picture as PNG",
        "text.png": "begins with b'not a picture.*; wanted a picture as PNG",
        "folder.png": "is a folder; wanted one picture or mask; name a file in it",
        "script.png": "begins with .*; wanted a picture as PNG",
    }
    for name, pattern in words.items():
        with pytest.raises(DataError, match=f"{name}: {pattern}") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_file_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, _: str) -> None:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"p\.png: could not be opened \(Permission denied\)"):
        read_picture(tmp_path / "p.png")


def test_a_path_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(DataError, match="could not be opened"):
        read_picture(Path("a\0b.png"))


def encoded(kind: str) -> bytes:
    content = io.BytesIO()
    options: dict[str, Any] = {}
    image = Image.fromarray(photo(40, 50))
    if kind == "TIFF-LZW":
        options["compression"] = "tiff_lzw"
    if kind in ("PNG", "JPEG", "WEBP"):
        exif = Image.Exif()
        exif[274] = 6
        options["exif"] = exif
    image.save(content, kind.split("-")[0], **options)
    return content.getvalue()


KINDS = ["PNG", "JPEG", "GIF", "TIFF", "TIFF-LZW", "WEBP", "BMP", "PPM", "JPEG2000"]


def read_or_refuse(path: Path) -> None:
    for read in READERS:
        message = path.name
        try:
            read(path)
        except DataError as error:
            message = str(error)
        assert path.name in message
        assert "\n" not in message


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    whole = encoded(kind)
    path = tmp_path / "cut.bin"
    places = sorted({*range(24), *np.linspace(24, len(whole) - 1, 30).astype(int).tolist()})
    for place in places:
        path.write_bytes(whole[:place])
        read_or_refuse(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_flipped_bytes_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    whole = encoded(kind)
    path = tmp_path / "flipped.bin"
    chance = random.Random(3)
    for attempt in range(150):
        content = bytearray(whole)
        reach = len(whole) if attempt % 2 else min(300, len(whole))
        for _ in range(chance.choice((1, 3, 10))):
            content[chance.randrange(reach)] = chance.randrange(256)
        path.write_bytes(content)
        read_or_refuse(path)


@pytest.mark.parametrize("read", READERS)
def test_a_small_file_that_claims_a_huge_size_is_refused_undecoded(
    tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(_: object) -> None:
        pytest.fail("the pixels were decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decoded)
    path = tmp_path / "bomb.png"
    row = b"\0" * (30_000 // 8 + 1)
    path.write_bytes(png(30_000, 30_000, depth=1, data=zlib.compress(row * 30_000, 9)))
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match=r"bomb\.png: .* 30000x30000 .* 900,000,000 .* 89,478,485"):
        read(path)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_too_large_a_size_never_warns(tmp_path: Path, factor: int) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png(10_000, MAX_PIXELS // 10_000 * factor + 10, depth=1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(DataError, match="cut it into tiles or scale it down"):
            read_size(path)
    assert not caught


def test_the_largest_size_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png(5, MAX_PIXELS // 5, depth=1))
    assert read_size(path) == (5, MAX_PIXELS // 5)


def test_a_webp_that_claims_a_huge_size_is_refused(tmp_path: Path) -> None:
    frame = struct.pack("<I", 16_383 | 16_383 << 14)
    body = b"WEBPVP8L" + struct.pack("<I", 6) + b"\x2f" + frame + b"\0"
    path = tmp_path / "large.webp"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    with pytest.raises(DataError, match=r"large\.webp"):
        read_size(path)


def test_a_picture_without_pixels_is_refused() -> None:
    gif = b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0, 0, 0)
    gif += b"," + struct.pack("<HHHHB", 0, 0, 0, 0, 0) + b"\x02\x00;"
    with pytest.raises(DataError, match="upload"):
        decode_picture(gif, "upload")


# Masks that are accepted


def test_one_bit_masks_are_taken_as_they_are(tmp_path: Path) -> None:
    for suffix in ("png", "bmp", "tif", "pbm"):
        path = saved(tmp_path / f"mask.{suffix}", Image.fromarray(FIGURE))
        reading = read_mask(path)
        np.testing.assert_array_equal(reading.mask, FIGURE)
        assert reading.mask.dtype == np.bool_
        assert reading.encoding == "bool"


@pytest.mark.parametrize(
    ("ground", "figure", "dtype", "encoding"),
    [
        (0, 1, np.uint8, "0/1"),
        (0, 255, np.uint8, "0/255"),
        (0, 128, np.uint8, "0/128"),
        (0, 7, np.uint8, "0/7"),
        (0, 1, np.uint16, "0/1"),
        (0, 255, np.uint16, "0/255"),
        (0, 65535, np.uint16, "0/65535"),
        (0, 65535, np.int32, "0/65535"),
        (0, 1, np.float32, "0/1"),
        (0, 255, np.float32, "0/255"),
        (0, 0.5, np.float32, "0/0.5"),
        (0, 0, np.uint8, "empty"),
        (0, 0, np.float32, "empty"),
        (1, 1, np.uint8, "full"),
        (1, 1, np.uint16, "full"),
        (255, 255, np.uint8, "full"),
        (65535, 65535, np.uint16, "full"),
        (1, 1, np.float32, "full"),
    ],
)
def test_two_grey_values_are_read(
    tmp_path: Path, ground: float, figure: float, dtype: Any, encoding: str
) -> None:
    path = grey(tmp_path / "mask.tif", np.where(FIGURE, figure, ground), dtype)
    reading = read_mask(path)
    assert reading.encoding == encoding
    expected = {"empty": FIGURE & False, "full": FIGURE | True}.get(encoding, FIGURE)
    np.testing.assert_array_equal(reading.mask, expected)


@pytest.mark.parametrize("value", [False, True])
def test_one_bit_masks_of_one_value_are_empty_or_full(tmp_path: Path, value: bool) -> None:
    path = saved(tmp_path / "mask.png", Image.fromarray(np.full((3, 4), value)))
    assert read_mask(path).encoding == ("full" if value else "empty")


def test_a_palette_of_greys_is_read_by_its_greys(tmp_path: Path) -> None:
    path = indexed(tmp_path / "mask.png", ~FIGURE, [255, 255, 255, 0, 0, 0])
    assert read_mask(path).encoding == "0/255"
    np.testing.assert_array_equal(read_mask(path).mask, FIGURE)


@pytest.mark.parametrize("index", [1, 3])
def test_a_palette_of_colours_is_read_by_its_indices(tmp_path: Path, index: int) -> None:
    path = indexed(tmp_path / "mask.png", FIGURE * index, VOC)
    assert read_mask(path).encoding == f"palette 0/{index}"
    np.testing.assert_array_equal(read_mask(path).mask, FIGURE)


def test_a_palette_that_is_all_black_is_read_by_its_indices(tmp_path: Path) -> None:
    path = indexed(tmp_path / "mask.png", FIGURE * 1, [0] * 6)
    assert read_mask(path).encoding == "palette 0/1"
    np.testing.assert_array_equal(read_mask(path).mask, FIGURE)


def test_a_palette_may_hold_one_class_only(tmp_path: Path) -> None:
    assert read_mask(indexed(tmp_path / "a.png", FIGURE * 0, VOC)).encoding == "empty"
    assert read_mask(indexed(tmp_path / "b.png", FIGURE * 0 + 1, VOC)).encoding == "full"


def test_grey_stored_as_colour_is_read_as_grey(tmp_path: Path) -> None:
    path = coloured(tmp_path / "mask.png", FIGURE, (255, 255, 255))
    assert read_mask(path).encoding == "0/255"
    np.testing.assert_array_equal(read_mask(path).mask, FIGURE)


def test_black_and_one_colour_are_read(tmp_path: Path) -> None:
    path = coloured(tmp_path / "mask.png", FIGURE, (0, 0, 200))
    assert read_mask(path).encoding == "black/colour"
    np.testing.assert_array_equal(read_mask(path).mask, FIGURE)


@pytest.mark.parametrize("alpha", [0, 77, 255])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_constant_alpha_is_ignored(tmp_path: Path, mode: str, alpha: int) -> None:
    image = Image.fromarray(FIGURE.astype(np.uint8) * 255).convert(mode)
    image.putalpha(alpha)
    reading = read_mask(saved(tmp_path / "mask.png", image))
    assert reading.encoding == "0/255"
    np.testing.assert_array_equal(reading.mask, FIGURE)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "gif"])
def test_soft_edges_are_cut_at_half(tmp_path: Path, suffix: str) -> None:
    soft = blurred(disc())
    reading = read_mask(grey(tmp_path / f"mask.{suffix}", soft))
    assert reading.encoding == "soft edges, cut at half"
    clear = (soft < 80) | (soft > 175)
    np.testing.assert_array_equal(reading.mask[clear], (soft > 127)[clear])


def test_soft_edges_of_sixteen_bits_and_of_floats_are_cut_at_half(tmp_path: Path) -> None:
    soft = blurred(disc())
    deep = grey(tmp_path / "deep.png", soft.astype(np.uint16) * 257, np.uint16)
    fraction = grey(tmp_path / "fraction.tif", soft / np.float32(255), np.float32)
    for path in (deep, fraction):
        assert read_mask(path).encoding == "soft edges, cut at half"
        np.testing.assert_array_equal(read_mask(path).mask, soft > 127)


def test_a_jpeg_mask_is_read_through_its_noise(tmp_path: Path) -> None:
    large = np.kron(disc(), np.ones((4, 4), dtype=bool))
    for mode in ("L", "RGB"):
        image = Image.fromarray(large).convert(mode)
        reading = read_mask(saved(tmp_path / f"{mode}.jpg", image, quality=75))
        assert reading.encoding == "soft edges, cut at half"
        np.testing.assert_array_equal(reading.mask, large)


def test_an_empty_jpeg_mask_with_noise_is_empty(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 9, (64, 64))
    reading = read_mask(grey(tmp_path / "mask.jpg", noise, quality=95))
    assert not reading.mask.any()
    assert reading.encoding == "soft edges, cut at half"
    assert read_mask(grey(tmp_path / "zero.jpg", noise * 0)).encoding == "empty"


def test_colour_noise_of_a_jpeg_counts_as_grey(tmp_path: Path) -> None:
    pixels = np.repeat(np.where(disc(), 245, 5).astype(np.uint8)[..., None], 3, axis=2)
    pixels[..., 2] += 4
    reading = read_mask(saved(tmp_path / "mask.jpg", Image.fromarray(pixels), quality=95))
    np.testing.assert_array_equal(reading.mask, disc())
    with pytest.raises(DataError, match="holds colours"):
        read_mask(saved(tmp_path / "mask.png", Image.fromarray(pixels)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    mask=arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12)),
    way=st.sampled_from(["0/1", "0/255", "bool", "palette", "RGB", "0/65535", "float"]),
)
def test_any_mask_written_in_a_known_way_comes_back(tmp_path: Path, mask: Array, way: str) -> None:
    path = tmp_path / ("mask.tif" if way == "float" else "mask.png")
    if way == "palette":
        indexed(path, mask, VOC)
    elif way == "RGB":
        coloured(path, mask, (255, 255, 255))
    elif way == "bool":
        saved(path, Image.fromarray(mask))
    else:
        factor = {"0/1": 1, "0/255": 255, "0/65535": 65535, "float": 1}[way]
        dtype = {"0/65535": np.uint16, "float": np.float32}.get(way, np.uint8)
        grey(path, mask * np.asarray(factor, dtype=dtype), dtype)
    np.testing.assert_array_equal(read_mask(path).mask, mask)


# Masks that are refused


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 1, 255], "values 0, 1, 255; three values look like three classes; .* trimap"),
        ([0, 128, 255], "values 0, 128, 255; three values"),
        ([1, 2, 3], "values 1, 2, 3; three values"),
        ([1, 2], "values 1, 2; neither is 0"),
        ([128, 255], "values 128, 255; neither is 0"),
        ([7], "value 7; one value alone"),
        ([0, 1, 2, 3], "values 0, 1, 2, 3; that looks like instance labels"),
        (list(range(37)), r"values 0, 1, 2, 3, 4, 5, 6, 7, \.\.\. \(37 values\); that looks"),
        (list(range(0, 256, 5)), r"\(52 values\); that looks like instance labels"),
    ],
)
def test_ambiguous_grey_values_are_refused(tmp_path: Path, values: list[int], words: str) -> None:
    path = grey(tmp_path / "mask.png", [values])
    with pytest.raises(DataError, match=rf"mask\.png: not a mask of two classes: .* {words}"):
        read_mask(path)


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    path = grey(tmp_path / "mask.png", [[0, 1, 2, 3]])
    with pytest.raises(DataError, match=r"save it as a PNG of 0 \(ground\) and 255 \(figure\)"):
        read_mask(path)


def test_instance_labels_on_a_wide_ground_are_not_taken_for_soft_edges(tmp_path: Path) -> None:
    labels = np.zeros((100, 100), dtype=np.uint8)
    labels.ravel()[:500] = np.linspace(1, 255, 500)
    with pytest.raises(DataError, match="instance labels"):
        read_mask(grey(tmp_path / "mask.png", labels))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.0, 0.5, 1.0], "values 0, 0.5, 1; three values"),
        ([0.0, 0.3, 0.5, 0.7], "values 0, 0.3, 0.5, 0.7; that looks like"),
        ([0.5, 17.25], "values 0.5, 17.2; fractions are understood within 0..1"),
        ([0.0, float("nan")], "not all of them are numbers"),
        ([0.0, float("inf")], "not all of them are numbers"),
        ([-1.0, 0.0], "values -1, 0; a mask has no negative values"),
        ([0.7], "value 0.7; one value alone"),
    ],
)
def test_ambiguous_float_values_are_refused(
    tmp_path: Path, values: list[float], words: str
) -> None:
    path = grey(tmp_path / "mask.tif", [values], np.float32)
    with pytest.raises(DataError, match=words):
        read_mask(path)


@pytest.mark.parametrize(
    ("indices", "colours", "words"),
    [
        ([0, 1, 2], VOC, "palette indices 0, 1, 2; two classes are index 0 and one other"),
        ([1, 2], VOC, "palette indices 1, 2"),
        ([2], VOC, "palette indices 2"),
        ([0, 1], [255, 0, 0, 0, 0, 0], "index 1 in black and index 0 in #ff0000; .* disagree"),
        ([0], [255, 0, 0], "palette indices 0"),
    ],
)
def test_ambiguous_palettes_are_refused(
    tmp_path: Path, indices: list[int], colours: list[int], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read_mask(indexed(tmp_path / "mask.png", [indices], colours))


def test_several_colours_are_refused(tmp_path: Path) -> None:
    pixels = np.array([[[0, 0, 0], [255, 0, 0], [0, 255, 0]]], dtype=np.uint8)
    three = saved(tmp_path / "three.png", Image.fromarray(pixels))
    with pytest.raises(DataError, match=r"three\.png: .* colours #000000, #00ff00, #ff0000; two"):
        read_mask(three)
    two = saved(tmp_path / "two.png", Image.fromarray(pixels[:, 1:]))
    with pytest.raises(DataError, match="colours #00ff00, #ff0000; two classes are black"):
        read_mask(two)
    one = saved(tmp_path / "one.png", Image.fromarray(pixels[:, 1:2]))
    with pytest.raises(DataError, match="colour #ff0000; two classes"):
        read_mask(one)
    with pytest.raises(DataError, match=r"#.*, \.\.\. \(600 colours\)|\(600 values\)"):
        read_mask(saved(tmp_path / "photo.png", Image.fromarray(photo())))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_varying_alpha_is_refused(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (3, 2))
    image.putalpha(Image.fromarray(FIGURE.astype(np.uint8) * 200))
    with pytest.raises(DataError, match=r"a transparency that varies \(0 to 200\); either"):
        read_mask(saved(tmp_path / "mask.png", image))


@pytest.mark.parametrize("quality", [75, 90, 100])
def test_a_jpeg_that_may_be_a_ruined_mask_of_0_and_1_is_refused(
    tmp_path: Path, quality: int
) -> None:
    path = grey(tmp_path / "mask.jpg", disc(), quality=quality)
    with pytest.raises(DataError, match="either noise or a ruined mask of 0 and 1"):
        read_mask(path)


def test_a_grey_photograph_is_refused(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    for suffix in ("jpg", "png"):
        with pytest.raises(DataError, match="or a picture"):
            read_mask(grey(tmp_path / f"photo.{suffix}", ramp))


# Trimaps


TRIMAP = np.array([[1, 2, 3], [1, 1, 2]])


@pytest.mark.parametrize("stored", ["grey", "palette"])
def test_the_border_of_a_trimap_follows_its_rule(tmp_path: Path, stored: str) -> None:
    path = tmp_path / "trimap.png"
    if stored == "grey":
        grey(path, TRIMAP)
    else:
        indexed(path, TRIMAP, VOC)
    expected: dict[Border, tuple[Array, Array | None]] = {
        "figure": (TRIMAP != 2, None),
        "ground": (TRIMAP == 1, None),
        "ignore": (TRIMAP == 1, TRIMAP == 3),
    }
    for border, (figure, ignored) in expected.items():
        mask, ignore = read_trimap(path, border)
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, figure)
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
        read_trimap(grey(tmp_path / "trimap.png", [values]), "figure")


def test_one_bit_and_colour_are_no_trimaps(tmp_path: Path) -> None:
    bits = saved(tmp_path / "bits.png", Image.fromarray(FIGURE))
    with pytest.raises(DataError, match="holds values 0, 1"):
        read_trimap(bits, "figure")
    colours = saved(tmp_path / "colours.png", Image.fromarray(photo()))
    with pytest.raises(DataError, match="a RGB picture; wanted a trimap"):
        read_trimap(colours, "figure")


def test_an_unknown_border_rule_is_refused(tmp_path: Path) -> None:
    path = grey(tmp_path / "trimap.png", TRIMAP)
    with pytest.raises(ConfigError, match="border = 'figur' is no rule; did you mean 'figure'"):
        read_trimap(path, "figur")  # type: ignore[arg-type]


# Real files


@needs_real_data
def test_misnamed_pet_pictures_are_read() -> None:
    pets = REAL / "oxford-iiit-pet"
    for name in ("Abyssinian_34", "Abyssinian_5", "Abyssinian_1"):
        path = pets / "images" / f"{name}.jpg"
        mask, _ = read_trimap(pets / "annotations/trimaps" / f"{name}.png", "figure")
        assert read_picture(path).shape == (*mask.shape, 3)
        assert read_size(path) == mask.shape


@needs_real_data
def test_the_trimap_without_a_pet_is_read() -> None:
    path = REAL / "oxford-iiit-pet/annotations/trimaps/Abyssinian_34.png"
    assert not read_trimap(path, "ground")[0].any()


@needs_real_data
def test_all_real_masks_are_read_as_0_and_255() -> None:
    paths = [path for name in ("nuclei", "camvid-road") for path in REAL.glob(f"{name}/*/masks/*")]
    assert len(paths) == 222
    assert {read_mask(path).encoding for path in paths} <= {"0/255", "empty", "full"}


@needs_real_data
def test_a_real_trimap_is_refused_as_a_mask() -> None:
    path = REAL / "oxford-iiit-pet/annotations/trimaps/Abyssinian_1.png"
    with pytest.raises(DataError, match="values 1, 2, 3; three values look like three classes"):
        read_mask(path)
