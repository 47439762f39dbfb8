"""Images of any number of channels and of any depth, as one rule for a data set reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from notan.errors import DataError, UnsupportedError
from notan.io import images
from notan.io.headers import read_contents
from notan.io.images import (
    ImageReading,
    convert_image,
    read_channels,
    read_held,
    read_image,
    shown,
)
from notan.io.masks import read_mask
from notan.io.tiff import TiffPages, TiffParts
from notan.prediction.inputs import Found
from notan.prediction.items import items_of

if TYPE_CHECKING:
    from pathlib import Path

LEVELS = np.random.default_rng(1).integers(0, 256, (20, 30, 9), dtype=np.uint8)
GREY = {"photometric": "minisblack"}


def tiff(path: Path, values: npt.NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, values, **options)
    return path


@pytest.mark.parametrize("channels", [2, 4, 5, 7, 9])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_channels_of_a_tiff_are_read_however_they_lie(
    tmp_path: Path, channels: int, planar: str, compression: str | None
) -> None:
    values = LEVELS[..., :channels]
    stored = values if planar == "contig" else values.transpose(2, 0, 1)
    path = tiff(tmp_path / "a.tif", stored, planarconfig=planar, compression=compression, **GREY)
    assert read_contents(path).channels == (channels,)
    image = read_image(path, ImageReading(channels=channels))
    np.testing.assert_array_equal(image, values)
    with pytest.raises(UnsupportedError, match=rf"{channels} channels that are not said"):
        read_image(path)
    with pytest.raises(DataError, match=rf"has {channels} channels; 8 wanted.*data\.channels"):
        read_image(path, ImageReading(channels=8))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_channel_beside_the_colours_is_read_where_it_is_wanted(
    tmp_path: Path, dtype: Any, orientation: int
) -> None:
    values = LEVELS[..., :4].astype(dtype) * (257 if dtype is np.uint16 else 1)
    path = tiff(
        tmp_path / "near-infrared.tif",
        values,
        photometric="rgb",
        extrasamples=["unspecified"],
        extratags=[(274, 3, 1, orientation, True)],
    )
    contents = read_contents(path)
    assert contents.channels == (4, 3)
    assert [*contents.choices_for(3)] == ["channels beyond the colours, which are dropped"]
    assert [*contents.choices_for(4)] == []
    upright = np.rot90(LEVELS, -1) if orientation == 6 else LEVELS
    image = read_image(path, ImageReading(channels=4))
    np.testing.assert_array_equal(image, upright[..., :4])
    assert image.shape[:2] == contents.size
    np.testing.assert_array_equal(read_image(path), upright[..., :3])


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparency_is_a_channel_only_where_it_is_asked_for(
    tmp_path: Path, suffix: str, dtype: Any
) -> None:
    values = LEVELS[..., :4].astype(dtype) * (257 if dtype is np.uint16 else 1)
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), values[..., [2, 1, 0, 3]])
    contents = read_contents(path)
    assert contents.channels == (3, 4)
    assert [*contents.choices_for(3)] == ["transparency, which is dropped"]
    assert [*contents.choices_for(4)] == []
    np.testing.assert_array_equal(read_image(path, ImageReading(channels=4)), LEVELS[..., :4])
    np.testing.assert_array_equal(read_image(path), LEVELS[..., :3])


def test_grey_is_one_channel_two_with_transparency_or_three(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(LEVELS[..., :2], "LA").save(path)
    assert read_contents(path).channels == (1, 3, 2)
    for channels in (1, 2):
        image = read_image(path, ImageReading(channels=channels))
        np.testing.assert_array_equal(image, LEVELS[..., :channels])
    np.testing.assert_array_equal(read_image(path)[..., 2], LEVELS[..., 0])
    opened = Image.open(path)
    np.testing.assert_array_equal(
        convert_image(opened, "a", ImageReading(channels=1)), LEVELS[..., :1]
    )


@pytest.mark.parametrize("way", ["imagej", "ome", "plain"])
def test_pages_are_channels_only_where_the_header_says_so(tmp_path: Path, way: str) -> None:
    said = {"metadata": {"axes": "CYX"}, **({way: True} if way != "plain" else {}), **GREY}
    pages = np.ascontiguousarray(LEVELS[..., :4].transpose(2, 0, 1))
    path = tiff(tmp_path / "a.tif", pages, **said)
    four = ImageReading(channels=4)
    assert read_contents(path).channels == (4, 1, 3)
    assert [*read_contents(path).choices_for(4)] == []
    np.testing.assert_array_equal(read_image(path, four), LEVELS[..., :4])
    (item,) = items_of(Found("a", path), reading=four)
    np.testing.assert_array_equal(item.read(), LEVELS[..., :4])
    # for colours and grey they stay images of their own, as stacks do
    assert len([*items_of(Found("a", path))]) == 4
    with pytest.raises(DataError, match=r"4 pages or frames.*--mask-channel 3"):
        read_mask(path)
    stack = tiff(tmp_path / "stack.tif", pages, **GREY)
    assert read_contents(stack).channels == (1, 3)
    with pytest.raises(DataError, match="has 1 channel; 4 wanted"):
        read_image(stack, four)
    with path.open("rb") as file:
        assert TiffPages(file, "a", ImageReading(channels=1)).numbers == [0, 1, 2, 3]


def test_a_float_beyond_a_usual_scale_is_cut_off_where_there_are_no_colours(
    tmp_path: Path,
) -> None:
    reflectance = np.array([[[0.5, 1.02], [0.25, 1.0]]], np.float32)
    path = tmp_path / "a.tif"
    tiff(path, reflectance, planarconfig="contig", **GREY)
    rule = ImageReading(channels=2, ranges=((0.0, 1.0),) * 2, floats=True)
    assert read_image(path, rule).tolist() == [[[128, 255], [64, 255]]]


RANGES = ((-10.0, 10.0), (0.0, 1000.0))


def test_each_channel_has_the_range_of_its_data_set(tmp_path: Path) -> None:
    values = np.array([[[-10, 0], [10, 1000]], [[0, 500], [-40, 2000]]], np.float32)
    path = tiff(tmp_path / "a.tif", np.tile(values, (1, 1, 1)), planarconfig="contig", **GREY)
    rule = ImageReading(channels=2, ranges=RANGES, floats=True)
    expected = [[[0, 0], [255, 255]], [[128, 128], [0, 255]]]
    assert read_image(path, rule).tolist() == expected
    held = read_held(path)
    assert held
    assert (held.floats, held.lows, held.highs) == (True, (-40, 0), (10, 2000))


@pytest.mark.parametrize(
    ("values", "rule", "words"),
    [
        (np.full((9, 9, 2), 5000.0), ImageReading(channels=2, ranges=RANGES, floats=True),
         r"reach from 5000 to 5000; wanted -10\.\.10 and 0\.\.1000.*preprocess\.ranges"),
        (np.full((9, 9, 2), np.nan), ImageReading(channels=2, ranges=RANGES, floats=True),
         "holds NaN or infinity"),
        (np.full((9, 9, 2), 5, np.int16), ImageReading(channels=2, ranges=RANGES, floats=True),
         r"integers; wanted floats within -10\.\.10, 0\.\.1000"),
        (np.full((9, 9, 2), 5, np.uint8), ImageReading(channels=2, ranges=RANGES, floats=True),
         "8 bits; wanted floats"),
        (np.full((9, 9, 2), 0.5), ImageReading(channels=2, ranges=((0, 4095),) * 2),
         r"floats; wanted integers within 0\.\.4095"),
        (np.full((9, 9, 2), 4096, np.uint16), ImageReading(channels=2, ranges=((0, 4095),) * 2),
         r"reach from 4096 to 4096; wanted 0\.\.4095"),
        (np.full((9, 9, 3), 0.5), ImageReading(ranges=((5, 6),) * 3, floats=True),
         r"reach from 0\.5 to 0\.5; wanted 5\.\.6"),
        (np.full((9, 9, 3), 900, np.uint16), ImageReading(ranges=((5, 6),) * 3, floats=True),
         r"integers; wanted floats within 5\.\.6"),
    ],
)  # fmt: skip
def test_values_that_the_data_set_does_not_hold_are_refused(
    tmp_path: Path, values: npt.NDArray[Any], rule: ImageReading, words: str
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, values)
    with pytest.raises(DataError, match=words):
        read_image(path, rule)


def test_an_image_of_a_file_a_channel_is_put_together(tmp_path: Path) -> None:
    paths = [tmp_path / f"case_000{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        Image.fromarray(LEVELS[..., number]).save(path)
    for count in (1, 2, 3, 4):
        image = read_channels(paths[:count], ImageReading(channels=count))
        np.testing.assert_array_equal(image, LEVELS[..., :count])
    np.testing.assert_array_equal(read_channels(paths[:1])[..., 2], LEVELS[..., 0])
    with pytest.raises(DataError, match=r"case_0000\.png: 4 files.*5 channels.*data\.channels=4"):
        read_channels(paths, ImageReading(channels=5))
    Image.fromarray(LEVELS[:9, :9, 0]).save(paths[2])
    with pytest.raises(DataError, match=r"case_0002\.png: is 9x9 .*case_0000\.png.* is 20x30"):
        read_channels(paths, ImageReading(channels=4))
    Image.fromarray(LEVELS[..., :3]).save(paths[2])
    with pytest.raises(DataError, match=r"case_0002\.png: has 3 channels; 1 wanted"):
        read_channels(paths, ImageReading(channels=4))


def test_of_files_of_one_channel_each_takes_its_own_range(tmp_path: Path) -> None:
    paths = [tmp_path / "a.tif", tmp_path / "b.tif"]
    for path, (low, high) in zip(paths, RANGES, strict=True):
        tiff(path, np.array([[low, high]], np.float32))
    image = read_channels(paths, ImageReading(channels=2, ranges=RANGES, floats=True))
    assert image.tolist() == [[[0, 0], [255, 255]]]


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (1, GREY),
        (4, {"photometric": "rgb"}),
        (4, {"photometric": "rgb", "extrasamples": ["unspecified"]}),
        (4, {"photometric": "rgb", "planarconfig": "separate"}),
    ],
)
@pytest.mark.parametrize("tiled", [False, True])
def test_parts_of_a_large_tiff_have_as_many_channels(
    tmp_path: Path, channels: int, options: dict[str, Any], *, tiled: bool
) -> None:
    values = np.tile(LEVELS[..., :channels], (3, 2, 1))
    stored = values[..., 0] if channels == 1 else values
    if "planarconfig" in options:
        stored = np.ascontiguousarray(values.transpose(2, 0, 1))
    more = {"tile": (16, 16)} if tiled else {"rowsperstrip": 7}
    path = tiff(tmp_path / "large.tif", stored, **options, **more)
    with TiffParts(path, ImageReading(channels=channels)) as parts:
        np.testing.assert_array_equal(parts.read(5, 3, 40, 50), values[5:45, 3:53])
    with pytest.raises(DataError, match="2 wanted"):
        TiffParts(path, ImageReading(channels=2))


def test_parts_of_floats_are_read_on_the_range_of_the_data_set(tmp_path: Path) -> None:
    values = np.linspace(-5, 5, 900, dtype=np.float32).reshape(30, 30)
    path = tiff(tmp_path / "large.tif", values, tile=(16, 16))
    rule = ImageReading(channels=1, ranges=((-5.0, 5.0),), floats=True)
    with TiffParts(path, rule) as parts:
        np.testing.assert_array_equal(parts.read(0, 0, 30, 30), read_image(path, rule))
    with pytest.raises(DataError, match="its values are floats"):
        TiffParts(path)


def test_more_values_than_fit_in_memory_are_refused_before_they_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MOST_VALUES", 5000)
    pages = {"imagej": True, "metadata": {"axes": "CYX"}}
    for stored, way in ((LEVELS, {"planarconfig": "contig"}), (LEVELS.transpose(2, 0, 1), pages)):
        path = tiff(tmp_path / "bomb.tif", np.ascontiguousarray(stored), **way, **GREY)
        with pytest.raises(DataError, match=r"5,400 values; at most 5,000 are decoded"):
            read_image(path, ImageReading(channels=9))


@pytest.mark.parametrize(("channels", "taken"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (5, [0, 1, 2])])
def test_the_first_channels_are_shown(channels: int, taken: list[int]) -> None:
    np.testing.assert_array_equal(shown(LEVELS[..., :channels]), LEVELS[..., taken])
    colours = np.ascontiguousarray(LEVELS[..., :3])
    assert shown(colours) is colours
