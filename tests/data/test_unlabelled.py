"""Images without masks: which are read, in what order, and in which two views."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.config import Augment
from notan.data.batches import (
    Batch,
    BatchLoader,
    SampleDataset,
    UnlabelledFile,
    UnlabelledImages,
    UnlabelledKey,
    find_unlabelled,
    fingerprint_unlabelled,
)
from notan.data.folders import folder_source
from notan.data.samples import Sample
from notan.data.synthetic import DrawnSource, write_folder
from notan.data.transforms import (
    Blur,
    Colour,
    Transform,
    augment,
    build_geometry,
    build_strong,
    build_transforms,
)
from notan.errors import DataError
from notan.io.images import read_image
from notan.modelfile.preprocess import Preprocessor

SIZE = (24, 24)
PREPROCESSOR = Preprocessor(image_size=SIZE, stride=16)
LABELLED = DrawnSource(7, size=(20, 26))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images without masks; not to be changed."""
    where = tmp_path_factory.mktemp("unlabelled")
    write_folder(DrawnSource(5, size=(20, 26), first=50), where)
    return where / "images"


def images(folder: Path, *, seed: int = 0, **augment: Any) -> UnlabelledImages:
    geometry = build_geometry(Augment(**augment), PREPROCESSOR.fit)
    files = find_unlabelled(folder)
    return UnlabelledImages(files, PREPROCESSOR, geometry=geometry, light=build_strong(), seed=seed)


def loader(unlabelled: UnlabelledImages, **more: Any) -> BatchLoader:
    transforms = build_transforms(Augment(), PREPROCESSOR.fit)
    labelled = SampleDataset(LABELLED, PREPROCESSOR, transforms=transforms)
    return BatchLoader(labelled, 3, shuffle=True, unlabelled=unlabelled, **more)


def read(batches: BatchLoader, epoch: int, first: int = 0) -> list[Batch]:
    batches.set_epoch(epoch, first)
    return list(batches)


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left.images, right.images)
        assert left.unlabelled
        assert right.unlabelled
        assert left.unlabelled.names == right.unlabelled.names
        for view in ("plain", "varied", "inside"):
            assert torch.equal(getattr(left.unlabelled, view), getattr(right.unlabelled, view))


def test_the_images_of_a_folder_are_found_whatever_else_lies_there(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "more")
    (tmp_path / "more" / "notes.txt").write_text("no image")
    (tmp_path / "more" / "._000050.png").write_text("no image either")
    (tmp_path / "more" / "deeper").mkdir()
    found = find_unlabelled(tmp_path / "more")
    assert [file.path.name for file in found] == sorted(path.name for path in folder.iterdir())
    assert fingerprint_unlabelled(found) == fingerprint_unlabelled(find_unlabelled(folder))
    assert fingerprint_unlabelled(found[1:]) != fingerprint_unlabelled(found)


def test_a_data_folder_gives_the_images_in_its_images(folder: Path) -> None:
    assert find_unlabelled(folder.parent) == find_unlabelled(folder)


def test_copies_are_known_by_their_file_and_by_their_image(folder: Path) -> None:
    files = find_unlabelled(folder)
    in_files = set(folder_source(folder.parent).hashes())
    assert all(file.is_among(in_files) for file in files)
    in_memory = set(DrawnSource(5, size=(20, 26), first=50).hashes())
    assert all(file.is_among(in_memory) for file in files)
    assert not any(file.is_among(set(LABELLED.hashes())) for file in files)


def test_what_cannot_be_read_is_left_out_and_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder, tmp_path / "more")
    first, second, *_ = sorted((tmp_path / "more").iterdir())
    first.write_bytes(first.read_bytes()[:-60])
    second.touch()
    second.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert len(find_unlabelled(tmp_path / "more")) == 3
    (record,) = caplog.records
    assert f"2 images cannot be read and left out: {first}" in record.getMessage()


def test_a_folder_without_images_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no image")
    for path, words in (
        (tmp_path / "nowhere", "nowhere: there is no such folder; check --unlabelled"),
        (tmp_path / "empty", "empty: no images here; files ending in .*jpg"),
        (tmp_path / "broken", r"broken: none of the 1 images can be read; .*a\.png: begins with"),
        (folder.parent.parent, "no images here; .* in the folder itself or in images/"),
        (next(folder.iterdir()), "this is a file; --unlabelled wants a folder of images"),
    ):
        with pytest.raises(DataError, match=words):
            find_unlabelled(path)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40),
    size=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
    first=st.integers(0, 500),
)
def test_every_image_is_seen_before_any_is_seen_again(
    count: int, size: int, seed: int, first: int
) -> None:
    files = [UnlabelledFile(Path("image.png"), "", "") for _ in range(count)]
    geometry = build_geometry(Augment(), PREPROCESSOR.fit)
    known = UnlabelledImages(files, PREPROCESSOR, geometry=geometry, light=(), seed=seed)
    steps = [known.keys(step, size) for step in range(first, first + 2 * count)]
    assert {len(keys) for keys in steps} == {min(size, count)}
    keys = [key for step in steps for key in step]
    assert len(set(keys)) == len(keys)
    assert keys == sorted(keys, key=lambda key: key.turn)
    whole = [key.turn for key in keys if keys[0].turn < key.turn < keys[-1].turn]
    assert all(whole.count(turn) == count for turn in set(whole))
    assert {key.number for key in keys} == set(range(count))


def test_turns_and_seeds_have_orders_of_their_own(folder: Path) -> None:
    one = images(folder)
    orders = {tuple(key.number for key in one.keys(turn, 5)) for turn in range(10)}
    assert len(orders) > 5
    other = images(folder, seed=1)
    assert [one.keys(n, 5) for n in range(5)] != [other.keys(n, 5) for n in range(5)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_depends_on_seed_and_step_alone(folder: Path, workers: int) -> None:
    whole = [read(loader(images(folder)), epoch) for epoch in (1, 2)]
    assert [len(epoch) for epoch in whole] == [3, 3]
    others = loader(images(folder), workers=workers)
    assert_same(read(others, 2, 1), whole[1][1:])
    assert_same(read(others, 1, 2), whole[0][2:])
    others.close()
    names = [batch.unlabelled.names for epoch in whole for batch in epoch if batch.unlabelled]
    assert [len(each) for each in names] == [3] * 6
    assert len({name for each in names[:2] for name in each}) == 5


def test_images_with_masks_are_the_same_with_and_without_the_others(folder: Path) -> None:
    transforms = build_transforms(Augment(), PREPROCESSOR.fit)
    alone = BatchLoader(
        SampleDataset(LABELLED, PREPROCESSOR, transforms=transforms), 3, shuffle=True
    )
    for one, other in zip(read(alone, 4), read(loader(images(folder)), 4), strict=True):
        assert one.unlabelled is None
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)


def test_both_views_have_one_geometry_and_the_varied_one_another_light(folder: Path) -> None:
    whole = images(folder)
    bare = UnlabelledImages(
        whole.files, PREPROCESSOR, geometry=whole.geometry, light=(), seed=whole.seed
    )
    different = 0
    for turn in range(12):
        key = UnlabelledKey(turn, turn % 5)
        seen, unlit = whole[key], bare[key]
        assert not isinstance(seen, DataError)
        assert not isinstance(unlit, DataError)
        assert torch.equal(seen.plain, unlit.plain)
        assert torch.equal(unlit.plain, unlit.varied)
        different += not torch.equal(seen.varied, seen.plain)
    assert different > 6


def test_padding_is_outside(folder: Path) -> None:
    seen = images(folder)[UnlabelledKey(0, 0)]
    assert not isinstance(seen, DataError)
    assert seen.varied.shape == (1, 3, 32, 32)
    assert seen.inside[0, 0, :24, :24].all()
    assert seen.inside.sum() == 24 * 24


def test_without_augmentation_the_geometry_is_a_mere_resizing(folder: Path) -> None:
    still = images(folder, enabled=False)
    seen = still[UnlabelledKey(3, 2)]
    assert not isinstance(seen, DataError)
    plain, _ = PREPROCESSOR(read_image(still.files[2].path))
    np.testing.assert_allclose(seen.plain[0].numpy(), plain, atol=0.2)


def test_an_image_that_is_damaged_later_ends_the_epoch_with_its_name(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "more")
    batches = loader(images(tmp_path / "more"))
    for path in (tmp_path / "more").iterdir():
        path.write_text("no image")
    with pytest.raises(DataError, match=r"\.png: begins with"):
        read(batches, 1)


NOISE = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
PHOTO = cv2.resize(NOISE, (40, 30)).astype(np.uint8)
SAMPLE = Sample("photo", PHOTO, np.eye(30, 40, dtype=bool))


@pytest.mark.parametrize("transform", build_strong(), ids=lambda each: type(each).__name__)
def test_what_changes_the_look_leaves_the_mask_alone_and_can_be_replayed(
    transform: Transform[Any],
) -> None:
    changed = 0
    for seed in range(20):
        draws = [transform.draw(np.random.default_rng(seed), SAMPLE.size) for _ in range(2)]
        one, other = (transform.apply(SAMPLE, draw) for draw in draws)
        assert np.array_equal(one.image, other.image)
        assert one.image.dtype == np.uint8
        assert np.array_equal(one.mask, SAMPLE.mask)
        changed += not np.array_equal(one.image, SAMPLE.image)
    assert changed >= 5
    assert np.array_equal(SAMPLE.image, PHOTO)


def test_colour_goes_between_grey_and_more_than_there_is() -> None:
    grey = Colour().apply(SAMPLE, 0.0).image
    assert np.array_equal(grey[..., 0], grey[..., 1])
    assert np.array_equal(grey[..., 0], cv2.cvtColor(PHOTO, cv2.COLOR_RGB2GRAY))
    assert np.array_equal(Colour().apply(SAMPLE, 1.0).image, PHOTO)
    spread = [np.ptp(Colour().apply(SAMPLE, factor).image, axis=2).mean() for factor in (0.5, 1.5)]
    assert spread[0] < np.ptp(PHOTO, axis=2).mean() < spread[1]


def test_blur_takes_away_detail_and_keeps_the_mean() -> None:
    blurred = Blur().apply(SAMPLE, 2.0).image
    assert np.abs(np.diff(blurred.astype(float), axis=0)).mean() < 0.7 * (
        np.abs(np.diff(PHOTO.astype(float), axis=0)).mean()
    )
    assert abs(blurred.mean() - PHOTO.mean()) < 5


def test_the_whole_is_decided_by_the_generator() -> None:
    views = [
        augment(SAMPLE, build_strong(), np.random.default_rng(seed)).image for seed in (5, 5, 6)
    ]
    assert np.array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])
