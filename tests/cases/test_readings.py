"""Files that can be read in several ways: what is ambiguous in a mask is refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from image_files import VOC, photo, saved
from needs import case
from notan.config import Masks
from notan.errors import DataError, UnsupportedError
from notan.io.headers import MAX_PIXELS, read_contents, read_size
from notan.io.images import ImageReading, read_held, read_image
from notan.io.masks import read_mask, read_trimap
from notan.io.tiff import TiffPages

if TYPE_CHECKING:
    from pathlib import Path

    from image_files import Array


def square(size: int = 24) -> Array:
    """Draw a mask with a square off its middle, a quarter of the pixels."""
    mask = np.zeros((size, size + 8), np.bool_)
    mask[2 : size // 2, 3 : size // 2 + 2] = True
    return mask


# WhiteIsZero


def test_masks_that_tifffile_wrote_from_bools_are_read_as_stored() -> None:
    for path in sorted((case("02-bool-tiff") / "masks").iterdir()):
        reading = read_mask(path)
        assert 0.07 <= reading.mask.mean() <= 0.25
        np.testing.assert_array_equal(reading.mask, tifffile.imread(path))
        assert reading.encoding == "bool, WhiteIsZero as stored"


@pytest.mark.parametrize(
    ("dtype", "full"), [(np.bool_, 1), (np.uint8, 255), (np.uint8, 1), (np.uint16, 65535)]
)
def test_white_is_zero_of_any_depth_counts_as_tifffile_stored_it(
    tmp_path: Path, dtype: Any, full: int
) -> None:
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, (square() * full).astype(dtype), photometric="miniswhite")
    np.testing.assert_array_equal(read_mask(path).mask, square())


def test_white_is_zero_in_a_fax_compression_counts_as_it_is_shown(tmp_path: Path) -> None:
    path = saved(tmp_path / "mask.tif", Image.fromarray(square()), compression="group4")
    np.testing.assert_array_equal(read_mask(path).mask, square())


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16])
def test_white_is_zero_of_an_unknown_writer_is_refused_until_the_owner_says(
    tmp_path: Path, dtype: Any
) -> None:
    path = tmp_path / "mask.tif"
    full = {np.bool_: 1, np.uint8: 255, np.uint16: 65535}[dtype]
    values = (square() * full).astype(dtype)
    tifffile.imwrite(path, values, photometric="miniswhite", software="somebody's")
    with pytest.raises(DataError, match=r"WhiteIsZero.*data\.masks\.white_is_zero=stored"):
        read_mask(path)
    stored = read_mask(path, Masks(white_is_zero="stored")).mask
    shown = read_mask(path, Masks(white_is_zero="shown")).mask
    np.testing.assert_array_equal(stored, square())
    np.testing.assert_array_equal(shown, ~square())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_of_an_image_is_shown_as_it_says(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "image.tif"
    full = np.iinfo(dtype).max
    values = np.array([[0, full // 3, full]], dtype)
    tifffile.imwrite(path, values, photometric="miniswhite")
    assert read_image(path)[0, :, 0].tolist() == [255, 170, 0]
    assert read_contents(path).choices == ("WhiteIsZero: shown as it says, 0 in white",)


# Channels and pages


def test_one_hot_masks_are_refused_with_the_flag_that_answers() -> None:
    for path in sorted((case("04-onehot-masks/a") / "masks").iterdir()):
        with pytest.raises(DataError, match=r"2 channels.*--mask-channel 0 to --mask-channel 1"):
            read_mask(path)
        background, foreground = np.moveaxis(tifffile.imread(path), -1, 0) > 0
        np.testing.assert_array_equal(read_mask(path, Masks(channel=0)).mask, background)
        np.testing.assert_array_equal(read_mask(path, Masks(channel=1)).mask, foreground)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_masks_of_several_channels_are_refused_however_they_are_stored(
    tmp_path: Path, planar: str, channels: int, dtype: Any
) -> None:
    stacked = np.stack([~square(), *[square()] * (channels - 1)], axis=-1).astype(dtype)
    path = tmp_path / "mask.tif"
    values = stacked if planar == "contig" else np.moveaxis(stacked, -1, 0)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig=planar)
    with pytest.raises(DataError, match=rf"{channels} channels.*--mask-channel {channels - 1}"):
        read_mask(path)
    np.testing.assert_array_equal(read_mask(path, Masks(channel=channels - 1)).mask, square())
    with pytest.raises(DataError, match=f"--mask-channel {channels} is none"):
        read_mask(path, Masks(channel=channels))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.bool_])
def test_a_mask_in_a_stack_is_refused_with_the_flag_that_answers(
    tmp_path: Path, dtype: Any
) -> None:
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, np.stack([~square(), square()]).astype(dtype), photometric="minisblack")
    with pytest.raises(DataError, match=r"2 pages or frames.*--mask-channel 1"):
        read_mask(path)
    with pytest.raises(DataError, match="2 pages or frames"):
        read_trimap(path, "ignore")
    np.testing.assert_array_equal(read_mask(path, Masks(channel=1)).mask, square())
    with pytest.raises(DataError, match="--mask-channel 2 is none"):
        read_mask(path, Masks(channel=2))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_an_animation_is_no_mask(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(mask.astype(np.uint8) * 255) for mask in (~square(), square())]
    path = tmp_path / f"mask.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    with pytest.raises(DataError, match="2 pages or frames"):
        read_mask(path)
    np.testing.assert_array_equal(read_mask(path, Masks(channel=1)).mask, square())


def test_an_image_in_a_stack_says_that_the_first_page_is_read(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, np.stack([photo(), photo()]), photometric="rgb")
    contents = read_contents(path)
    assert (contents.pages, contents.choices) == (
        2,
        ("several pages or frames; the first is read",),
    )


def test_a_channel_beside_the_colours_is_refused_in_a_mask_and_told_of_an_image(
    tmp_path: Path,
) -> None:
    path = tmp_path / "five.tif"
    pixels = np.dstack([photo(), photo()[..., :1]])
    tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(read_image(path), photo())
    assert read_contents(path).choices == ("channels beyond the colours, which are dropped",)
    with pytest.raises(DataError, match=r"colours and a further channel.*--mask-channel 0"):
        read_mask(path)


def test_slides_are_one_image() -> None:
    path = case("09-aperio-svs/slide.svs")
    with path.open("rb") as file:
        assert TiffPages(file, "slide").numbers == [0]
    assert read_size(path) == (384, 512)
    assert read_contents(path).pages == 1


def test_a_pyramid_without_marks_is_one_image_and_a_stack_is_not(tmp_path: Path) -> None:
    def pages(*sizes: tuple[int, int]) -> int:
        path = tmp_path / "pages.tif"
        with tifffile.TiffWriter(path) as writer:
            for size in sizes:
                writer.write(np.zeros(size, np.uint8), photometric="minisblack", metadata=None)
        return read_contents(path).pages

    assert pages((37, 64), (19, 32), (9, 16)) == 1
    assert pages((37, 64), (37, 64), (37, 64)) == 3
    assert pages((37, 64), (30, 40)) == 2
    assert pages((64, 64), (32, 32), (32, 32)) == 3


# Transparency and void


def test_a_background_that_is_transparent_too_is_no_question(tmp_path: Path) -> None:
    image = Image.fromarray(square().astype(np.uint8), "P")
    image.putpalette(VOC)
    path = saved(tmp_path / "mask.png", image, transparency=0)
    np.testing.assert_array_equal(read_mask(path).mask, square())


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparency_that_says_otherwise_is_refused(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(square().astype(np.uint8) * (1 if mode == "P" else 255), "L")
    image = image.convert(mode) if mode == "RGB" else image
    if mode == "P":
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette(VOC)
    key: Any = {"P": 1, "L": 255, "RGB": (255, 255, 255)}[mode]
    path = saved(tmp_path / "mask.png", image, transparency=key)
    with pytest.raises(DataError, match=r"a transparency that varies.*--mask-channel"):
        read_mask(path)
    assert "transparency, which is dropped" in read_contents(path).choices


def test_the_transparency_of_a_cut_out_can_be_the_mask(tmp_path: Path) -> None:
    alpha = np.where(square(20)[:, :30], 255, 0).astype(np.uint8)
    pixels = np.dstack([photo(20, 28), alpha[:, :28]])
    path = saved(tmp_path / "cutout.png", Image.fromarray(pixels))
    with pytest.raises(DataError, match=r"transparency.*--mask-channel 3"):
        read_mask(path)
    np.testing.assert_array_equal(read_mask(path, Masks(channel=3)).mask, alpha[:, :28] > 0)


def test_void_beside_two_classes_is_refused_until_it_is_ignored(tmp_path: Path) -> None:
    values = square().astype(np.uint8)
    values[-3:] = 255
    path = saved(tmp_path / "mask.png", Image.fromarray(values))
    with pytest.raises(DataError, match=r"values 0, 1, 255.*--foreground 1.*--ignore"):
        read_mask(path)
    reading = read_mask(path, Masks(ignore=(255,)))
    np.testing.assert_array_equal(reading.mask, square())
    np.testing.assert_array_equal(reading.ignore, values == 255)


def test_foreground_is_chosen_by_value_index_or_colour(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2, 3]], np.uint8)
    grey = saved(tmp_path / "grey.png", Image.fromarray(labels))
    index = Image.frombytes("P", (4, 1), labels.tobytes())
    index.putpalette(VOC)
    palette = saved(tmp_path / "palette.png", index)
    colour = saved(tmp_path / "colour.png", index.convert("RGB"))
    rule = Masks.model_validate({"foreground": "1,3", "ignore": "2"})
    for path in (grey, palette):
        reading = read_mask(path, rule)
        assert reading.mask.tolist() == [[False, True, False, True]]
        assert reading.ignore is not None
        assert reading.ignore.tolist() == [[False, False, True, False]]
        assert reading.encoding == "foreground 1, 3"
    for path in (palette, colour):
        reading = read_mask(path, Masks(foreground=("#800000",)))
        assert reading.mask.tolist() == [[False, True, False, False]]
    with pytest.raises(DataError, match=r"[123] is no colour.*--foreground '#804080'"):
        read_mask(colour, rule)


# Kinds that Pillow does not know


@pytest.mark.parametrize("name", ["mask_float16", "mask_float64", "mask_int64"])
def test_masks_of_rare_numbers_are_read(name: str) -> None:
    path = case(f"07-unsupported-tiff-types/{name}.tif")
    np.testing.assert_array_equal(read_mask(path).mask, tifffile.imread(path) > 0)


def test_float_colours_are_read() -> None:
    path = case("07-unsupported-tiff-types/rgb_float32.tif")
    expected = np.round(tifffile.imread(path) * 255)
    np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("name", ["five_channels_u8", "four_channels_u16", "two_channels_u16"])
def test_channels_that_are_no_colours_are_unsupported_and_not_damaged(name: str) -> None:
    path = case(f"07-unsupported-tiff-types/{name}.tif")
    with pytest.raises(
        UnsupportedError, match="channels that are not said to be colours"
    ) as caught:
        read_image(path)
    assert "damaged" not in str(caught.value)
    assert read_size(path) == (48, 48)


@pytest.mark.parametrize("dtype", [np.int8, np.uint32, np.int64, np.float16, np.float64])
def test_grey_of_every_type_of_number_is_read(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "grey.tif"
    tifffile.imwrite(path, np.array([[0, 1, 1, 0]], dtype))
    assert read_mask(path).mask.tolist() == [[False, True, True, False]]
    tifffile.imwrite(path, np.array([[0, 1]], dtype) * np.dtype(dtype).type(1))
    assert read_image(path).shape == (1, 2, 3)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float64])
def test_negative_numbers_are_refused_and_never_wrapped(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "grey.tif"
    tifffile.imwrite(path, np.array([[0, -1]], dtype))
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match="-1"):
            read(path)


def test_a_rare_tiff_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, np.ones((64, 64), np.int64), rowsperstrip=8)
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=r"mask\.tif"):
            read_mask(path)


def test_a_rare_tiff_that_claims_a_huge_size_is_refused_undecoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, np.zeros((1, 8), np.int64))
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages.first.tags["ImageWidth"].valueoffset
    content[place : place + 2] = struct.pack("<H", 60_000)
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages.first.tags["ImageLength"].valueoffset
    content[place : place + 2] = struct.pack("<H", 60_000)
    path.write_bytes(content)
    for read in (read_image, read_mask, read_size):
        with pytest.raises(DataError, match=rf"bomb\.tif: .*{MAX_PIXELS:,}"):
            read(path)


# Bits in use


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize(("suffix", "colours"), [("png", 1), ("png", 3), ("tif", 1), ("tif", 3)])
def test_fewer_bits_than_sixteen_keep_their_levels(
    tmp_path: Path, bits: int, suffix: str, colours: int
) -> None:
    white = 2**bits - 1
    ramp = np.linspace(0, white, 256).round().astype(np.uint16)[np.newaxis]
    values = ramp if colours == 1 else np.stack([ramp, ramp[:, ::-1], ramp], axis=2)
    path = tmp_path / f"deep.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, values)
    else:
        cv2.imwrite(str(path), values if colours == 1 else values[..., ::-1])
    image = read_image(path, ImageReading(white=white))
    assert len(np.unique(image[..., 0])) == 256
    np.testing.assert_array_equal(image[0, :, 1], image[0, :: -1 if colours == 3 else 1, 0])
    held = read_held(path)
    assert held
    assert max(held.highs) == white
    with pytest.raises(DataError, match=r"reach from 0 to .*wanted 0\.\.255, as in the images"):
        read_image(path, ImageReading(white=255))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_colours_are_turned_as_shallow_ones_are(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    values = np.random.default_rng(2).integers(0, 65535, (6, 9, 3), dtype=np.uint16)
    path = tmp_path / f"turned.{suffix}"
    if suffix == "tif":
        tag = [(274, 3, 1, orientation, True)]
        tifffile.imwrite(path, values, photometric="rgb", extratags=tag)
    else:
        _, encoded = cv2.imencode(".png", values[..., ::-1])
        path.write_bytes(_with_orientation(encoded.tobytes(), orientation))
    shallow, deep = read_image(path), read_image(path, ImageReading(white=65534))
    assert deep.shape[:2] == read_size(path)
    assert np.abs(deep.astype(int) - shallow).max() <= 1


def _with_orientation(png: bytes, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    check = struct.pack(">I", zlib.crc32(b"eXIf" + body))
    return png[:33] + struct.pack(">I", len(body)) + b"eXIf" + body + check + png[33:]


# What is no image, and what is too much


@pytest.mark.parametrize("name", ["icc", "itxt", "ztxt"])
def test_large_profiles_and_texts_are_no_hindrance(name: str) -> None:
    path = case(f"11-png-large-chunk/{name}.png")
    assert read_image(path).shape == (64, 64, 3)
    assert read_size(path) == (64, 64)


def test_a_text_that_unpacks_to_gigabytes_costs_nothing(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(photo()).save(content, "PNG")
    png = content.getvalue()
    bomb = b"Comment\0\0" + zlib.compress(b"\0" * 2**28, 9)
    chunk = (
        struct.pack(">I", len(bomb))
        + b"zTXt"
        + bomb
        + struct.pack(">I", zlib.crc32(b"zTXt" + bomb))
    )
    path = tmp_path / "bomb.png"
    path.write_bytes(png[:33] + chunk + png[33:])
    np.testing.assert_array_equal(read_image(path), photo())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0", "raw file"),
        (b"FUJIFILMCCD-RAW 0201", "raw file"),
        (b"\0" * 128 + b"DICM" + b"\0" * 30, "DICOM"),
        (b"PK\x03\x04" + b"\0" * 40, "ZIP"),
    ],
)
@pytest.mark.parametrize("read", [read_image, read_mask, read_size])
def test_what_is_no_image_is_named_as_what_it_is(
    tmp_path: Path, read: Any, content: bytes, words: str
) -> None:
    path = tmp_path / "file.png"
    path.write_bytes(content)
    with pytest.raises(UnsupportedError, match=rf"file\.png: is .*{words}"):
        read(path)


@pytest.mark.parametrize("kind", ["dng", "preview"])
def test_a_raw_file_is_not_read_as_its_thumbnail(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "raw.dng"
    thumbnail = np.zeros((12, 16, 3), np.uint8)
    tags = [(50706, 1, 4, (1, 4, 0, 0), True)] if kind == "dng" else []
    with tifffile.TiffWriter(path) as writer:
        options: Any = {"photometric": "rgb", "subfiletype": 1, "extratags": tags}
        writer.write(thumbnail, subifds=1 if kind == "preview" else 0, **options)
        writer.write(
            np.zeros((120, 160), np.uint16), photometric="cfa" if kind == "dng" else "minisblack"
        )
    for read in (read_image, read_mask, read_size):
        with pytest.raises(UnsupportedError, match=r"raw\.dng: is a camera's raw file"):
            read(path)


# Thin foreground


@pytest.mark.parametrize("name", ["lines_aa", "crack_area4", "crack_full"])
def test_thin_soft_masks_are_cut_at_half(name: str) -> None:
    path = case(f"20-thin-soft-masks/{name}.png")
    values = np.asarray(Image.open(path))
    np.testing.assert_array_equal(read_mask(path).mask, values > 127)


@pytest.mark.parametrize("thickness", [1, 2, 3])
def test_antialiased_curves_of_any_depth_are_two_classes(tmp_path: Path, thickness: int) -> None:
    canvas = np.zeros((160, 200), np.uint8)
    cv2.ellipse(canvas, (100, 80), (70, 40), 25, 0, 360, 255, thickness, cv2.LINE_AA)
    cv2.line(canvas, (5, 5), (190, 61), 255, thickness, cv2.LINE_AA)
    for values in (canvas, canvas.astype(np.uint16) * np.uint16(257)):
        path = tmp_path / "mask.tif"
        tifffile.imwrite(path, values)
        np.testing.assert_array_equal(read_mask(path).mask, canvas > 127)


def test_labels_of_small_objects_are_still_no_soft_edges(tmp_path: Path) -> None:
    labels = np.zeros((96, 96), np.uint8)
    for number, (row, column) in enumerate(np.ndindex(12, 12)):
        labels[row * 8 : row * 8 + 2, column * 8 : column * 8 + 2] = min(255, 40 + number * 2)
    for size in (2, 4, 7):
        grown = cv2.dilate(labels, np.ones((size, size), np.uint8))
        path = saved(tmp_path / "labels.png", Image.fromarray(grown))
        with pytest.raises(DataError, match="instance labels"):
            read_mask(path)


def test_a_probability_map_is_still_no_mask(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:96, :96]
    level = np.exp(-((rows - 48) ** 2 + (columns - 48) ** 2) / 300)
    path = saved(tmp_path / "map.png", Image.fromarray((level * 255).astype(np.uint8)))
    with pytest.raises(DataError, match="a probability map"):
        read_mask(path)
