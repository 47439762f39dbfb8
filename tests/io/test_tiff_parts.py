"""TIFF files part by part: the very pixels of the whole, and a clear word where they are broken."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from notan.errors import DataError
from notan.io import tiff as tiff_parts
from notan.io.images import read_image
from notan.io.tiff import TiffParts, is_large_tiff

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

RANDOM = np.random.default_rng(0)
COLOUR = np.kron(RANDOM.integers(0, 256, (15, 20, 3), dtype=np.uint8), np.ones((4, 3, 1), np.uint8))
GREY = COLOUR[..., 0]
DEEP = GREY.astype(np.uint16) * 251

KINDS: dict[str, tuple[npt.NDArray[Any], dict[str, Any]]] = {
    "one piece": (COLOUR, {}),
    "strips": (COLOUR, {"rowsperstrip": 7}),
    "tiles": (COLOUR, {"tile": (32, 48)}),
    "deflate and predictor": (COLOUR, {"tile": (32, 48), "compression": "zlib", "predictor": True}),
    "BigTIFF": (COLOUR, {"tile": (16, 16), "compression": "zlib", "bigtiff": True}),
    "big-endian": (COLOUR, {"rowsperstrip": 9, "byteorder": ">"}),
    "grey": (GREY, {"photometric": "minisblack", "rowsperstrip": 13, "compression": "zlib"}),
    "white is 0": (GREY, {"photometric": "miniswhite", "rowsperstrip": 13}),
    "16-bit grey": (DEEP, {"photometric": "minisblack", "tile": (16, 32), "compression": "zlib"}),
    "16-bit grey, big-endian": (DEEP, {"photometric": "minisblack", "byteorder": ">"}),
    "alpha": (np.dstack([COLOUR, GREY]), {"tile": (32, 32), "extrasamples": ["unassalpha"]}),
    "planes in tiles": (
        COLOUR.transpose(2, 0, 1).copy(),
        {"planarconfig": "separate", "tile": (16, 32), "compression": "zlib"},
    ),
    "planes in one piece": (COLOUR.transpose(2, 0, 1).copy(), {"planarconfig": "separate"}),
    **{
        f"orientation {number}": (
            COLOUR,
            {"tile": (32, 48), "extratags": [(274, 3, 1, number, True)]},
        )
        for number in range(2, 9)
    },
}


def written(path: Path, pixels: npt.NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, pixels, **{"photometric": "rgb", **options})
    return path


def assert_same_parts(path: Path) -> None:
    whole = read_image(path)
    height, width = whole.shape[:2]
    with TiffParts(path) as parts:
        assert parts.size == (height, width)
        np.testing.assert_array_equal(parts.read(0, 0, height, width), whole)
        for _ in range(20):
            top, bottom = sorted(RANDOM.choice(height + 1, 2, replace=False).tolist())
            left, right = sorted(RANDOM.choice(width + 1, 2, replace=False).tolist())
            part = parts.read(top, left, bottom - top, right - left)
            np.testing.assert_array_equal(part, whole[top:bottom, left:right])


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_parts_of_the_image_that_is_read_at_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_parts, "CUT_PIXELS", 500)  # eight rows
    monkeypatch.setattr(tiff_parts, "CACHE_BYTES", 6000)  # a few parts
    pixels, options = KINDS[kind]
    assert_same_parts(written(tmp_path / "a.tif", pixels, **options))


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate"])
def test_every_compression_of_small_images_is_one_of_large_ones(
    compression: str, tmp_path: Path
) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.tif", compression=compression)
    assert_same_parts(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["P", "CMYK", "1"])
def test_rare_modes_are_read_too(mode: str, tmp_path: Path) -> None:
    Image.fromarray(COLOUR).convert(mode).save(tmp_path / "a.tif", compression="tiff_lzw")
    assert_same_parts(tmp_path / "a.tif")


def test_no_more_is_kept_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_parts, "CACHE_BYTES", 5000)
    with TiffParts(written(tmp_path / "a.tif", COLOUR, tile=(16, 16))) as parts:
        parts.read(0, 0, 60, 60)
        assert 0 < parts._part.cache_info().currsize * 16 * 16 * 3 <= 5000


def claim(path: Path, tag: int, value: int) -> Path:
    """Change the value of a tag in a little-endian classic TIFF."""
    content = bytearray(path.read_bytes())
    start = struct.unpack_from("<I", content, 4)[0]
    for entry in range(struct.unpack_from("<H", content, start)[0]):
        place = start + 2 + 12 * entry
        if struct.unpack_from("<H", content, place)[0] == tag:
            struct.pack_into("<HII", content, place + 2, 4, 1, value)
    path.write_bytes(content)
    return path


def test_a_file_that_was_cut_short_is_refused_before_any_work(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", COLOUR, tile=(16, 16))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"a\.tif: is damaged or cut short.*copy it again"):
        TiffParts(path)


def test_a_huge_claim_without_pixels_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", COLOUR, tile=(16, 16))
    claim(claim(path, 256, 65_535), 257, 65_535)
    with path.open("rb") as file:
        assert is_large_tiff(file, str(path))
    with pytest.raises(DataError, match=r"65535x65535 pixels in parts of 16x16 make 16,777,216"):
        TiffParts(path)


@pytest.mark.parametrize(("tag", "value"), [(322, 2**31), (323, 2**30), (322, 0)])
def test_tiles_of_a_senseless_size_are_refused(tmp_path: Path, tag: int, value: int) -> None:
    path = claim(written(tmp_path / "a.tif", COLOUR, tile=(16, 16)), tag, value)
    with pytest.raises(DataError, match=r"a\.tif: (one tile holds|its header claims|is damaged)"):
        TiffParts(path)


def test_a_huge_strip_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_parts, "PART_PIXELS", 3000)
    path = written(tmp_path / "a.tif", COLOUR, rowsperstrip=60, compression="zlib")
    with pytest.raises(DataError, match=r"one strip holds 60x60 pixels.*save it as a tiled TIFF"):
        TiffParts(path)


def test_a_broken_tile_is_named_when_it_is_met(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", COLOUR, tile=(16, 16), compression="zlib")
    with TiffParts(path) as parts:
        start = parts._layout.offsets[5]
    content = bytearray(path.read_bytes())
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    with TiffParts(path) as parts:
        parts.read(0, 0, 16, 16)
        with pytest.raises(DataError, match=r"a\.tif \(part 6\): is damaged"):
            parts.read(0, 0, 60, 60)


def test_a_tile_that_unpacks_to_more_than_it_claims_takes_no_more(tmp_path: Path) -> None:
    bomb = np.zeros((4096, 4096), np.uint8)
    path = written(
        tmp_path / "a.tif", bomb, photometric="minisblack", tile=(4096, 4096), compression="zlib"
    )
    for tag in (256, 257, 322, 323):
        claim(path, tag, 32)
    with TiffParts(path) as parts:
        assert parts.read(0, 0, 32, 32).max() == 0


def test_a_directory_that_points_to_itself_is_read_once(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", COLOUR, tile=(16, 16))
    content = bytearray(path.read_bytes())
    start = struct.unpack_from("<I", content, 4)[0]
    entries = struct.unpack_from("<H", content, start)[0]
    struct.pack_into("<I", content, start + 2 + 12 * entries, start)
    path.write_bytes(content)
    with TiffParts(path) as parts:
        np.testing.assert_array_equal(parts.read(0, 0, *parts.size), COLOUR)


@pytest.mark.parametrize("end", [0, 4, 8, 100])
def test_a_file_without_its_header_is_refused(tmp_path: Path, end: int) -> None:
    path = written(tmp_path / "a.tif", COLOUR, tile=(16, 16))
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(DataError, match=r"a\.tif"):
        TiffParts(path)


def test_floats_and_other_formats_are_refused_with_advice(tmp_path: Path) -> None:
    floats = written(tmp_path / "f.tif", GREY.astype(np.float32), photometric="minisblack")
    with pytest.raises(DataError, match=r"values are floats.*save it as a tiled TIFF"):
        TiffParts(floats)
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a PNG file of 60x60.*save it as a tiled TIFF"):
        TiffParts(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file:
        assert not is_large_tiff(file, "a.png")
