"""Batches: even, complete, and decided by the seed alone, however many processes read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.config import Augment
from notan.data.batches import BalancedBatchSampler, Batch, BatchLoader, SampleDataset, one_batch
from notan.data.folders import folder_source
from notan.data.samples import Sample, Source
from notan.data.synthetic import DrawnSource, write_folder
from notan.data.transforms import build_transforms
from notan.errors import DataError, NotanError, ShapeError
from notan.modelfile.preprocess import Preprocessor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

PREPROCESSOR = Preprocessor(image_size=(32, 32), stride=16)

counts = st.integers(1, 400)
batch_sizes = st.integers(1, 70)
seeds = st.integers(0, 2**32 - 1)
epochs = st.integers(0, 1000)


def varied(source: Source, *, seed: int = 0, augment: Augment | None = None) -> SampleDataset:
    transforms = build_transforms(augment or Augment(), PREPROCESSOR.fit)
    return SampleDataset(source, PREPROCESSOR, transforms=transforms, seed=seed)


def read(loader: BatchLoader, epoch: int = 0) -> list[Batch]:
    loader.set_epoch(epoch)
    return list(loader)


def names(batches: Sequence[Batch]) -> list[str]:
    return [truth.name for batch in batches for truth in batch.truths]


def assert_same(one: Sequence[Batch], other: Sequence[Batch]) -> None:
    assert names(one) == names(other)
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.targets, right.targets)
        assert torch.equal(left.valid, right.valid)


@settings(max_examples=100, deadline=None)
@given(count=counts, batch_size=batch_sizes, seed=seeds, epoch=epochs, shuffle=st.booleans())
def test_batches_are_even_and_cover_every_image_once(
    count: int, batch_size: int, seed: int, epoch: int, shuffle: bool
) -> None:
    order = BalancedBatchSampler(count, batch_size, seed=seed, shuffle=shuffle)
    order.epoch = epoch
    batches = list(order)
    lengths = [len(batch) for batch in batches]
    assert len(batches) == len(order) == -(-count // batch_size)
    assert max(lengths) <= batch_size
    assert max(lengths) - min(lengths) <= 1
    keys = [key for batch in batches for key in batch]
    assert {number for number, _ in keys} == {epoch}
    indices = [index for _, index in keys]
    assert sorted(indices) == list(range(count))
    assert shuffle or indices == list(range(count))


@settings(max_examples=100, deadline=None)
@given(
    kinds=st.lists(st.integers(0, 2), min_size=1, max_size=200),
    batch_size=batch_sizes,
    seed=seeds,
    epoch=epochs,
)
def test_batches_are_of_one_kind_but_where_two_kinds_meet(
    kinds: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    order = BalancedBatchSampler(len(kinds), batch_size, seed=seed, shuffle=True, kinds=kinds)
    order.epoch = epoch
    batches = [[index for _, index in batch] for batch in order]
    assert sorted(index for batch in batches for index in batch) == list(range(len(kinds)))
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    mixed = [batch for batch in batches if len({kinds[index] for index in batch}) > 1]
    assert len(mixed) < len(set(kinds))
    order.first = 1
    assert [[index for _, index in batch] for batch in order] == batches[1:]


def test_kinds_come_in_another_order_in_each_epoch() -> None:
    kinds = [0] * 20 + [1] * 20
    order = BalancedBatchSampler(40, 4, seed=0, shuffle=True, kinds=kinds)
    seen = set()
    for order.epoch in range(6):
        batches = list(order)
        seen.add(tuple(kinds[batch[0][1]] for batch in batches))
    assert len(seen) > 3


@settings(max_examples=50, deadline=None)
@given(count=counts, batch_size=batch_sizes, seed=seeds, epoch=epochs)
def test_the_order_depends_on_seed_and_epoch_only(
    count: int, batch_size: int, seed: int, epoch: int
) -> None:
    fresh = BalancedBatchSampler(count, batch_size, seed=seed, shuffle=True)
    used = BalancedBatchSampler(count, batch_size, seed=seed, shuffle=True)
    for earlier in range(3):
        used.epoch = earlier
        list(used)
    np.random.default_rng(seed).random(7)
    torch.manual_seed(count)
    fresh.epoch = used.epoch = epoch
    assert list(fresh) == list(used)


def test_another_epoch_and_another_seed_have_an_order_of_their_own() -> None:
    orders = set()
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        order = BalancedBatchSampler(50, 8, seed=seed, shuffle=True)
        order.epoch = epoch
        orders.add(tuple(index for batch in order for _, index in batch))
    assert len(orders) == 4


def test_any_number_of_processes_gives_the_same_training() -> None:
    source = DrawnSource(7, size=(24, 28))
    alone = BatchLoader(varied(source), 3, shuffle=True)
    helped = BatchLoader(varied(source), 3, shuffle=True, workers=2)
    for epoch in (1, 2):
        assert_same(read(alone, epoch), read(helped, epoch))
    assert_same(read(alone, 1), read(helped, 1))
    assert len(alone) == len(helped) == 3


def test_another_epoch_and_another_seed_vary_the_images_differently() -> None:
    source = DrawnSource(3, size=(24, 28))
    still = Augment(
        brightness_contrast_probability=0, grid_dropout_probability=0
    )  # the geometry alone
    results = [
        read(BatchLoader(varied(source, seed=seed, augment=still), 3, shuffle=False), epoch)[0]
        for seed, epoch in ((0, 1), (0, 2), (1, 1))
    ]
    assert names([results[0]]) == names([results[1]]) == source.names
    for one, other in ((0, 1), (0, 2), (1, 2)):
        for image in range(3):
            images = results[one].images[image], results[other].images[image]
            assert not torch.equal(*images)


def test_two_images_of_one_batch_are_not_varied_alike() -> None:
    twin = DrawnSource(1, size=(24, 28))[0]
    batch = read(BatchLoader(varied(SampleList([twin, twin])), 2, shuffle=False))[0]
    assert not torch.equal(batch.images[0], batch.images[1])


def test_without_transforms_every_epoch_is_the_same() -> None:
    loader = BatchLoader(
        SampleDataset(DrawnSource(5, size=(24, 28)), PREPROCESSOR), 2, shuffle=False
    )
    assert_same(read(loader, 1), read(loader, 2))


def test_a_batch_holds_what_the_preprocessor_makes_and_the_truth_at_full_size() -> None:
    source = DrawnSource(2, size=(24, 28))
    (batch,) = BatchLoader(SampleDataset(source, PREPROCESSOR), 2, shuffle=False)
    assert batch.images.shape == (2, 3, 32, 32)
    assert batch.targets.shape == batch.valid.shape == (2, 1, 32, 32)
    assert {tensor.dtype for tensor in batch[:3]} == {torch.float32}
    for index, sample in enumerate(source):
        truth = batch.truths[index]
        np.testing.assert_array_equal(batch.images[index], PREPROCESSOR(sample.image)[0])
        np.testing.assert_array_equal(batch.targets[index, 0], PREPROCESSOR.mask(sample.mask))
        np.testing.assert_array_equal(truth.mask, sample.mask)
        assert (truth.name, truth.ignore) == (sample.name, None)
        assert truth.placement.original == sample.size


class SampleList(Source):
    """Samples that are in memory already."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    @property
    def names(self) -> list[str]:
        return [sample.name for sample in self.samples]

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def test_images_of_several_sizes_are_padded_to_the_largest_sides() -> None:
    preprocessor = Preprocessor(image_size=(40, 40), keep_aspect_ratio=True, stride=8)
    samples = [DrawnSource(1, size=size, first=n)[0] for n, size in enumerate(((20, 40), (33, 9)))]
    (batch,) = BatchLoader(SampleDataset(SampleList(samples), preprocessor), 2, shuffle=False)
    assert batch.images.shape == (2, 3, 40, 40)
    for index, sample in enumerate(samples):
        own, placement = preprocessor(sample.image)
        height, width = placement.padded
        images = batch.images[index]
        np.testing.assert_array_equal(images[:, :height, :width], own)
        last_row, last_column = images[:, height - 1 : height], images[..., width - 1 : width]
        assert torch.equal(images[:, height:], last_row.expand(-1, 40 - height, -1))
        assert torch.equal(images[..., width:], last_column.expand(-1, -1, 40 - width))
        assert batch.valid[index].sum() == sample.mask.size
        assert batch.targets[index].sum() == sample.mask.sum()
        restored = batch.truths[index].placement.restore(batch.targets[index, 0].numpy()) > 0.5
        np.testing.assert_array_equal(restored, sample.mask)


def valid_area(sample: Sample, preprocessor: Preprocessor) -> npt.NDArray[np.float32]:
    area: npt.NDArray[np.float32] = one_batch(sample, preprocessor).valid[0, 0].numpy()
    return area


def test_padding_is_not_valid() -> None:
    sample = DrawnSource(1, size=(20, 40))[0]
    own_size = valid_area(sample, Preprocessor(image_size=None, stride=16))
    assert own_size.shape == (32, 48)
    assert (own_size[:20, :40] == 1).all()
    assert own_size.sum() == 20 * 40
    fixed = valid_area(sample, Preprocessor(image_size=(40, 50), stride=16))
    assert fixed.shape == (48, 64)
    assert (fixed[:40, :50] == 1).all()
    assert fixed.sum() == 40 * 50


def test_ignored_pixels_are_not_valid() -> None:
    plain = DrawnSource(1, size=(20, 40))[0]
    ignore = np.zeros((20, 40), dtype=np.bool_)
    ignore[4:8, 10:30] = True
    bordered = Sample("cat", plain.image, plain.mask, ignore)
    area = valid_area(bordered, Preprocessor(image_size=None, stride=4))
    np.testing.assert_array_equal(area, ~ignore)
    padded = valid_area(bordered, Preprocessor(image_size=(40, 50), stride=16))
    assert (padded[8:16, 13:37] == 0).all()
    assert (padded[:7, :50] == 1).all()
    assert (padded[40:] == 0).all()


def broken_folder(folder: Path) -> Source:
    """Four pairs, of which the third image is cut short."""
    write_folder(DrawnSource(4, size=(24, 28)), folder)
    path = folder / "images" / "drawn-0002.png"
    path.write_bytes(path.read_bytes()[:200])
    return folder_source(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_one_line_that_names_it(tmp_path: Path, workers: int) -> None:
    images = varied(broken_folder(tmp_path))
    loader = BatchLoader(images, 2, shuffle=False, workers=workers)
    with pytest.raises(DataError, match=r"drawn-0002\.png: is cut short") as caught:
        list(loader)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_images_before_the_unreadable_one_still_arrive(tmp_path: Path) -> None:
    batches = iter(BatchLoader(varied(broken_folder(tmp_path)), 2, shuffle=False))
    assert names([next(batches)]) == ["drawn-0000", "drawn-0001"]
    with pytest.raises(NotanError):
        next(batches)


def test_an_image_that_does_not_fit_is_one_line_as_well() -> None:
    grey = Sample("grey", np.zeros((8, 8), np.uint8), np.zeros((8, 8), dtype=np.bool_))
    loader = BatchLoader(
        SampleDataset(SampleList([grey]), PREPROCESSOR), 1, shuffle=False, workers=1
    )
    with pytest.raises(ShapeError, match=r"an image of shape \(8, 8\)") as caught:
        list(loader)
    assert "\n" not in str(caught.value)
