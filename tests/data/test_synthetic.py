"""The drawn images: repeatable, exact, and no easier than they claim to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.data.samples import Sample, Source
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import ConfigError, DataError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from notan.types import Mask


def dice(prediction: Mask, mask: Mask) -> float:
    total = int(prediction.sum()) + int(mask.sum())
    return 1.0 if total == 0 else 2 * int((prediction & mask).sum()) / total


def test_the_same_seed_draws_the_same_pixels() -> None:
    one, other = DrawnSource(3, seed=5), DrawnSource(3, seed=5)
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left.image, right.image)
        np.testing.assert_array_equal(left.mask, right.mask)


def test_another_seed_draws_other_images() -> None:
    assert not np.array_equal(DrawnSource(1, seed=1)[0].image, DrawnSource(1, seed=2)[0].image)


def test_an_image_does_not_depend_on_the_stretch_it_is_read_from() -> None:
    whole, tail = DrawnSource(10, size=(40, 40)), DrawnSource(4, size=(40, 40), first=6)
    assert whole[7].name == tail[1].name == "drawn-0007"
    np.testing.assert_array_equal(whole[7].image, tail[1].image)
    np.testing.assert_array_equal(whole[7].mask, tail[1].mask)


def test_neighbouring_stretches_share_no_name_and_no_image() -> None:
    train, test = DrawnSource(12, size=(16, 16)), DrawnSource(12, size=(16, 16), first=12)
    assert not set(train.names) & set(test.names)
    images = {sample.image.tobytes() for source in (train, test) for sample in source}
    assert len(images) == 24


def test_there_is_nothing_past_the_last_image() -> None:
    source = DrawnSource(3, size=(8, 8), first=4)
    assert len(source) == len(source.names) == len(list(source)) == 3
    with pytest.raises(IndexError):
        source[3]


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(8, 97),
    width=st.integers(8, 97),
    seed=st.integers(0, 2**40),
    first=st.integers(0, 10**6),
)
def test_any_size_gives_an_image_and_a_mask_of_that_size(
    height: int, width: int, seed: int, first: int
) -> None:
    sample = DrawnSource(1, size=(height, width), seed=seed, first=first)[0]
    assert sample.image.shape == (height, width, 3)
    assert sample.image.dtype == np.uint8
    assert sample.mask.shape == (height, width)
    assert sample.mask.dtype == np.bool_
    assert sample.ignore is None


def test_an_odd_size_works() -> None:
    assert DrawnSource(1, size=(33, 57))[0].size == (33, 57)


def test_most_images_have_a_foreground_and_a_few_are_empty() -> None:
    masks = [sample.mask for sample in DrawnSource(300, size=(32, 32))]
    empty = sum(not mask.any() for mask in masks)
    assert 3 <= empty <= 40
    assert 0.1 < np.mean(masks) < 0.4
    assert not any(mask.all() for mask in masks)


def test_the_mask_ends_where_the_foreground_does() -> None:
    """On average the colour jumps more across the mask's edge than anywhere near it."""
    jumps: dict[int, list[float]] = {offset: [] for offset in (-4, 0, 4)}
    for sample in DrawnSource(40, size=(96, 96)):
        steps = np.abs(np.diff(sample.image.astype(float), axis=1)).sum(axis=2)
        edges = np.diff(sample.mask.astype(int), axis=1) != 0
        for offset in jumps:
            moved = np.zeros_like(edges)
            moved[:, 8:-8] = np.roll(edges, offset, axis=1)[:, 8:-8]
            jumps[offset] += steps[moved].tolist()
    assert np.mean(jumps[0]) > 2 * np.mean(jumps[4])
    assert np.mean(jumps[0]) > 2 * np.mean(jumps[-4])


def test_no_grey_threshold_solves_the_task() -> None:
    """Neither one threshold for all images, nor the best one chosen for each with its mask."""
    scores = np.array(
        [
            [
                dice(side, sample.mask)
                for threshold in range(0, 256, 8)
                for side in (grey > threshold, grey <= threshold)
            ]
            for sample in DrawnSource(80, size=(48, 48))
            for grey in [sample.image.mean(axis=2)]
        ]
    )
    assert scores.mean(axis=0).max() < 0.5
    assert scores.max(axis=1).mean() < 0.8


def test_foreground_and_background_use_the_same_range_of_colours() -> None:
    samples = list(DrawnSource(200, size=(32, 32)))
    foreground = np.concatenate([sample.image[sample.mask] for sample in samples]).astype(float)
    background = np.concatenate([sample.image[~sample.mask] for sample in samples]).astype(float)
    np.testing.assert_allclose(foreground.mean(axis=0), background.mean(axis=0), atol=30)
    np.testing.assert_allclose(foreground.std(axis=0), background.std(axis=0), rtol=0.35)


def cracks(count: int, side: int = 96) -> list[Sample]:
    return list(DrawnSource(count, size=(side, side), kind="cracks"))


def test_cracks_are_the_same_pixels_for_the_same_seed_and_no_shapes() -> None:
    one, other = cracks(2), cracks(2)
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left.image, right.image)
        np.testing.assert_array_equal(left.mask, right.mask)
    assert not np.array_equal(one[0].image, DrawnSource(1, size=(96, 96))[0].image)
    assert not np.array_equal(one[0].mask, one[1].mask)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(8, 97), width=st.integers(8, 97), seed=st.integers(0, 2**40))
def test_cracks_of_any_size_have_a_mask_of_that_size(height: int, width: int, seed: int) -> None:
    sample = DrawnSource(1, size=(height, width), seed=seed, kind="cracks")[0]
    assert sample.image.shape == (height, width, 3)
    assert sample.image.dtype == np.uint8
    assert sample.mask.shape == (height, width)
    assert sample.mask.dtype == np.bool_


def test_cracks_are_thin_lines_of_1_to_4_pixels_in_nearly_every_image() -> None:
    masks = [sample.mask for sample in cracks(60, 128)]
    assert 1 <= sum(not mask.any() for mask in masks) <= 10
    assert 0.01 < np.mean(masks) < 0.08
    # only where cracks cross or leave one another is anything wider than 4 pixels
    square = np.ones((5, 5), dtype=np.uint8)
    wider = [cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, square) for mask in masks]
    assert np.sum(wider) < 0.1 * np.sum(masks)
    widths = {int(brush) for brush in np.unique(np.concatenate([runs(mask) for mask in masks]))}
    assert {1, 2, 3, 4} <= widths


def runs(mask: Mask) -> list[int]:
    """How many foreground pixels lie side by side, in each row."""
    ends = np.flatnonzero(np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(int).ravel()))
    return [int(length) for length in ends[1::2] - ends[::2]]


def test_each_crack_hangs_together() -> None:
    """At most three walks an image, each with its branches, whatever leaves the image between."""
    for sample in cracks(20, 128):
        pieces, _, sizes, _ = cv2.connectedComponentsWithStats(sample.mask.astype(np.uint8))
        assert pieces - 1 <= 12
        if pieces > 1:
            assert sizes[1:, cv2.CC_STAT_AREA].max() > 20


def test_cracks_are_darker_than_what_is_beside_them_but_hardly_than_the_grain() -> None:
    contrasts, grains = [], []
    for sample in cracks(40, 128):
        grey = sample.image.mean(axis=2)
        near, far = (
            cv2.dilate(sample.mask.astype(np.uint8), np.ones((side, side))) > 0 for side in (3, 9)
        )
        beside = far & ~near
        if sample.mask.any():
            contrasts.append(grey[beside].mean() - grey[sample.mask].mean())
            grains.append(grey[beside].std())
    assert min(contrasts) > 5
    assert np.mean(contrasts) < 2.5 * np.mean(grains)


def test_no_grey_threshold_finds_cracks() -> None:
    best = [
        max(dice(grey <= threshold, sample.mask) for threshold in range(0, 256, 4))
        for sample in cracks(40, 128)
        if sample.mask.any()
        for grey in [sample.image.mean(axis=2)]
    ]
    assert np.mean(best) < 0.5


def test_an_unknown_kind_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"no kind 'crack'; did you mean 'cracks'\?.*shapes and"):
        DrawnSource(1, kind="crack")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"count": 0}, "count is 0; give 1 or more"),
        ({"count": 1, "size": (7, 64)}, "height is 7; give 8 or more"),
        ({"count": 1, "size": (64, 7)}, "width is 7; give 8 or more"),
        ({"count": 1, "seed": -1}, "seed is -1"),
        ({"count": 1, "first": -1}, "first is -1"),
    ],
)
def test_numbers_that_are_too_small_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DrawnSource(**arguments)  # type: ignore[arg-type]


def test_a_written_folder_holds_the_same_pixels(tmp_path: Path) -> None:
    source = DrawnSource(5, size=(33, 57), first=2)
    write_folder(source, tmp_path / "drawn")
    for part in ("images", "masks"):
        files = sorted(path.name for path in (tmp_path / "drawn" / part).iterdir())
        assert files == [f"{name}.png" for name in source.names]
    for sample in source:
        image = cv2.imread(str(tmp_path / "drawn" / "images" / f"{sample.name}.png"))
        mask = cv2.imread(
            str(tmp_path / "drawn" / "masks" / f"{sample.name}.png"), cv2.IMREAD_UNCHANGED
        )
        assert image is not None
        assert mask is not None
        np.testing.assert_array_equal(image[..., ::-1], sample.image)
        assert mask.ndim == 2
        np.testing.assert_array_equal(mask, sample.mask * np.uint8(255))


class OneSample(Source):
    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    @property
    def names(self) -> list[str]:
        return [self.sample.name]

    def __getitem__(self, index: int) -> Sample:
        return self.sample


def test_an_ignored_area_is_not_lost_in_silence(tmp_path: Path) -> None:
    plain = DrawnSource(1, size=(8, 8))[0]
    bordered = Sample("cat", plain.image, plain.mask, ignore=np.ones((8, 8), dtype=np.bool_))
    with pytest.raises(DataError, match="cat: its mask has an ignored area"):
        write_folder(OneSample(bordered), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(StorageError, match="taken"):
        write_folder(DrawnSource(1, size=(8, 8)), tmp_path / "taken")
