"""How the images of a data set are read is decided once, by what all of them hold."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

import notan
from notan.config import Augment, Data
from notan.data.folders import open_split
from notan.data.samples import Sample, Source
from notan.data.survey import (
    choose_reading,
    look_into,
    look_into_channels,
    measure_statistics,
    read_as_a_whole,
    reading_lines,
    survey,
)
from notan.data.transforms import augment, build_geometry, build_strong, build_transforms
from notan.errors import DataError
from notan.io.images import ImageReading, read_channels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LEVELS = np.random.default_rng(1).integers(0, 256, (20, 30, 5), dtype=np.uint8)


def files(folder: Path, *arrays: npt.NDArray[Any]) -> list[Path]:
    """Write arrays as NPY, which hold any."""
    paths = [folder / f"{number}.npy" for number in range(len(arrays))]
    for path, values in zip(paths, arrays, strict=True):
        np.save(path, values)
    return paths


def reading_of(paths: Sequence[Path], **data: Any) -> ImageReading:
    return choose_reading(Data(**data), [look_into(path) for path in paths])


@pytest.mark.parametrize(
    ("counts", "expected"), [([1, 1], 3), ([1, 3], 3), ([3, 3], 3), ([4, 4], 4), ([2], 2)]
)
def test_grey_and_colours_are_read_as_colours_and_others_as_they_are(
    tmp_path: Path, counts: list[int], expected: int
) -> None:
    paths = files(tmp_path, *(LEVELS[..., :count] for count in counts))
    reading = reading_of(paths)
    assert reading == ImageReading(channels=expected)
    lines = [*reading_lines(reading, [look_into(path) for path in paths])]
    assert ("the network takes as many" in " ".join(lines)) == (expected != 3)


def test_images_of_different_numbers_are_refused_by_name(tmp_path: Path) -> None:
    paths = files(tmp_path, LEVELS[..., :4], LEVELS[..., :4], LEVELS)
    with pytest.raises(DataError, match=r"2\.npy: has 5 channels, 0\.npy and others have 4"):
        reading_of(paths)
    with pytest.raises(DataError, match=r"2\.npy: can be read as 5 channels; data\.channels = 4"):
        reading_of(paths, channels=4)


def test_what_some_images_have_beside_their_colours_is_dropped(tmp_path: Path) -> None:
    paths = [tmp_path / "a.tif", tmp_path / "b.png"]
    tifffile.imwrite(paths[0], LEVELS[..., :4], photometric="rgb", extrasamples=["unspecified"])
    Image.fromarray(LEVELS[..., :3]).save(paths[1])
    assert reading_of(paths).channels == 3
    assert reading_of(paths[:1]).channels == 4
    assert reading_of(paths[:1], channels=3).channels == 3


def test_the_owner_asks_for_grey_alone_or_for_transparency(tmp_path: Path) -> None:
    grey, rgba = tmp_path / "grey.png", tmp_path / "rgba.png"
    Image.fromarray(LEVELS[..., 0]).save(grey)
    Image.fromarray(LEVELS[..., :4]).save(rgba)
    assert reading_of([grey], channels=1).channels == 1
    assert [reading_of([rgba], **each).channels for each in ({}, {"channels": 4})] == [3, 4]
    with pytest.raises(DataError, match=r"rgba\.png: can be read as 3 or 4 channels.* = 1 was"):
        reading_of([grey, rgba], channels=1)


FLAT = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30, 1)


@pytest.mark.parametrize(
    ("arrays", "ranges", "floats"),
    [
        # each channel has its own range
        ([np.dstack([FLAT, 200 * FLAT])], ((0, 1), (0, 255)), True),
        ([np.dstack([4000 * FLAT, 70 * FLAT]).astype(np.uint16)], ((0, 4095), (0, 255)), False),
        ([np.dstack([500 * FLAT, 50 * FLAT]).astype(np.int32),
          np.dstack([3000 * FLAT, 99 * FLAT]).astype(np.int32)], ((0, 4095), (0, 255)), False),
        # of three, all have one
        ([np.dstack([FLAT, FLAT / 9, FLAT / 99])], ((0, 1),) * 3, True),
        ([np.dstack([FLAT, FLAT, 99 * FLAT])], ((0, 255),) * 3, True),
        ([FLAT[..., 0]], ((0, 1),) * 3, True),
        ([(FLAT * 300).astype(np.uint16)], (), False),
    ],
)  # fmt: skip
def test_values_are_read_on_the_scale_that_all_images_fit(
    tmp_path: Path, arrays: list[npt.NDArray[Any]], ranges: Any, *, floats: bool
) -> None:
    reading = reading_of(files(tmp_path, *arrays))
    assert (reading.ranges, reading.floats) == (ranges, floats)


def test_values_on_no_usual_scale_are_read_between_what_nearly_all_lie(tmp_path: Path) -> None:
    hounsfield = (FLAT * 3000 - 1000).astype(np.float32)
    hounsfield[0, 0] = 1e6  # one hot pixel of 600
    dim = FLAT / 100
    paths = files(tmp_path, np.tile(np.dstack([hounsfield, dim]), (60, 1, 1)))
    (low, high), small = reading_of(paths).ranges
    assert low == pytest.approx(-1000, abs=10)
    # the hot pixel is more than one in a thousand here; without it the scale is the others'
    assert high == 1e6
    assert small == pytest.approx((0, 0.01), abs=1e-4)
    hounsfield[0, 0] = 2000
    paths = files(tmp_path, np.tile(np.dstack([hounsfield, dim]), (60, 1, 1)))
    assert reading_of(paths).ranges[0] == pytest.approx((-1000, 2000), abs=10)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ([FLAT[..., [0, 0]], (FLAT * 900).astype(np.uint16)[..., [0, 0]]],
         r"1\.npy: holds integers of more than 8 bits, and 0\.npy values that fit no common"),
        ([FLAT[..., [0, 0]] - 5, LEVELS[..., :2]], r"1\.npy: holds 8 or 16 bits, and 0\.npy"),
        ([FLAT[..., [0, 0, 0]] - 5, LEVELS[..., :3]], r"1\.npy: holds 8 or 16 bits, and 0\.npy"),
    ],
)  # fmt: skip
def test_types_of_numbers_that_share_no_scale_are_refused_by_name(
    tmp_path: Path, arrays: list[npt.NDArray[Any]], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        reading_of(files(tmp_path, *arrays))


def test_floats_of_two_scales_are_refused_where_one_would_become_black(tmp_path: Path) -> None:
    paths = files(tmp_path, FLAT[..., [0, 0, 0]], 255 * FLAT[..., [0, 0, 0]])
    with pytest.raises(DataError, match=r"0\.npy: its floats lie within 0\.\.1, and .* 0\.\.255"):
        reading_of(paths)


def test_channels_in_files_of_their_own_are_known_as_one_image(tmp_path: Path) -> None:
    deep = (FLAT[..., 0] * 4000).astype(np.uint16)
    paths = files(tmp_path, deep, LEVELS[..., 0], FLAT[..., 0], LEVELS[..., :3])
    image = look_into_channels(paths[:2])
    assert (image.contents.channels, image.contents.size) == ((2,), (20, 30))
    reading = choose_reading(Data(), [image])
    assert reading.ranges == ((0, 4095), (0, 255))
    pixels = read_channels(paths[:2], reading)
    np.testing.assert_array_equal(pixels[..., 1], LEVELS[..., 0])
    assert pixels[..., 0].max() == round(4000 / 4095 * 255)
    assert look_into_channels(paths[:1]) == look_into(paths[0])
    assert look_into_channels([paths[1], paths[1]]).held is None
    with pytest.raises(DataError, match=r"2\.npy: holds another type of numbers"):
        look_into_channels([paths[0], paths[2]])
    with pytest.raises(DataError, match=r"3\.npy: has 3 channels; 1 wanted"):
        look_into_channels([paths[0], paths[3]])


def test_the_owner_says_what_is_white_in_every_channel(tmp_path: Path) -> None:
    paths = files(tmp_path, (FLAT * 900).astype(np.uint16)[..., [0, 0]])
    assert reading_of(paths, white=2000).ranges == ((0, 2000), (0, 2000))
    paths = files(tmp_path, (FLAT * 900).astype(np.uint16)[..., 0], FLAT[..., 0])
    both = reading_of(paths, white=2000)
    assert (both.white, both.ranges) == (2000, ((0, 1),) * 3)


def test_a_value_that_is_no_number_is_found_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0\.npy: holds NaN or infinity.*fill these places"):
        reading_of(files(tmp_path, np.where(FLAT > 0.5, np.nan, FLAT)))


def data_folder(folder: Path, arrays: Sequence[npt.NDArray[Any]]) -> Path:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    files(folder / "images", *arrays)
    for number in range(len(arrays)):
        mask = np.zeros((20, 30), bool)
        mask[4:12, number : number + 9] = True
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def noise(seed: int, channels: int = 4) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, channels), dtype=np.uint8)


def test_check_says_how_channels_are_read_and_which_image_differs(tmp_path: Path) -> None:
    folder = data_folder(tmp_path / "data", [noise(seed) for seed in range(6)])
    diagnosis = notan.check(folder)
    assert diagnosis.exit_code() == 0
    assert diagnosis.reading.channels == 4
    assert len(diagnosis.statistics[0].colour_mean) == 4
    assert "images of 4 channels: the network takes as many" in diagnosis.summary()
    np.save(folder / "images" / "3.npy", noise(3, 5))
    diagnosis = notan.check(folder)
    found = {finding.kind: finding.message for finding in diagnosis.findings}
    assert "3.npy: has 5 channels" in found["mixed-channels"]
    assert diagnosis.statistics[0].images == 5


def test_copies_are_told_in_images_of_other_channels_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    smooth = [np.kron(noise(seed)[:4, :6], np.ones((5, 5, 1), np.uint8)) for seed in range(9)]
    folder = data_folder(tmp_path / "data", [*smooth, smooth[0]])
    with caplog.at_level(logging.INFO, "notan"):
        open_split(Data(path=folder), "train", seed=0)
    assert "from 9 groups; 2 are copies of each other" in caplog.text


def test_statistics_are_those_of_all_training_pixels(tmp_path: Path) -> None:
    arrays = [noise(seed) for seed in range(3)]
    arrays[0][..., 3] = arrays[1][..., 3] = arrays[2][..., 3] = 7
    folder = data_folder(tmp_path / "data", arrays)
    source = read_as_a_whole(open_split(Data(path=folder), "all", seed=0), Data())
    mean, std = measure_statistics(source)
    pixels = np.stack(arrays).reshape(-1, 4) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(std[:3], pixels.std(axis=0)[:3], atol=1e-6)
    assert std[3] == pytest.approx(1 / 255, abs=1e-6)  # never 0, which would divide


def test_the_survey_reads_no_pixel_of_eight_bits_and_says_what_it_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data_folder(tmp_path / "data", [noise(seed) for seed in range(2)])
    source: Source = open_split(Data(path=folder), "all", seed=0)
    monkeypatch.setattr("notan.data.survey.read_held", pytest.fail)
    assert [*survey(source).images[0].contents.channels] == [4]  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_every_augmentation_takes_any_number_of_channels(channels: int) -> None:
    mask = np.zeros((20, 30), bool)
    mask[5:9, 5:9] = True
    sample = Sample("a", LEVELS[..., :channels], mask)
    always = Augment().model_copy(
        update={name: 1.0 for name in Augment.model_fields if name.endswith("_probability")}
    )
    whole = [*build_transforms(always, lambda _: (16, 24)), *build_strong()]
    varied = augment(sample, whole, np.random.default_rng(0))
    assert varied.image.shape == (16, 24, channels)
    assert varied.image.dtype == np.uint8
    still = build_geometry(always.model_copy(update={"enabled": False}), lambda size: size)
    same = augment(sample, [still], np.random.default_rng(0))
    np.testing.assert_array_equal(same.image, sample.image)
