"""Samples that stay on a device: the batches made there are those of today's workers."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.config import Augment
from notan.data import loading, on_device
from notan.data.batches import BatchLoader, SampleDataset
from notan.data.folders import folder_source
from notan.data.loading import hindrance, open_on_device
from notan.data.on_device import DeviceBatchLoader, DeviceSamples
from notan.data.synthetic import write_folder
from notan.data.transforms import OwnPipeline, build_transforms
from notan.errors import DataError, ShapeError
from notan.modelfile.preprocess import Preprocessor
from photographs import SIZES, Kept, photographs
from waits import META, NoWaiting, refused

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.data.batches import Batch
    from notan.data.samples import Source
    from notan.types import Size

CPU = torch.device("cpu")
LEVEL = 1.5
"""Grey levels by which a pixel may differ."""
DIMMED = 2.5
"""Where the light was changed: a level off before it may be two after it."""
GEOMETRY = Augment(brightness_contrast_probability=0, grid_dropout_probability=0)
UNLIT = Augment(brightness_contrast_probability=0, grid_dropout_probability=1)
STILL = Augment(enabled=False)


def dataset(source: Source, size: Size = (48, 48), augment: Augment | None = None) -> SampleDataset:
    channels = source[0].image.shape[2]
    values = {"mean": (0.4, 0.5, 0.6, 0.3)[:channels], "std": (0.2, 0.25, 0.3, 0.2)[:channels]}
    preprocessor = Preprocessor(image_size=size, channels=channels, stride=16, **values)
    transforms = build_transforms(augment or Augment(), preprocessor.fit)
    return SampleDataset(source, preprocessor, transforms=transforms, seed=5)


def on(
    images: SampleDataset, batch_size: int = 4, device: torch.device = CPU, **more: Any
) -> DeviceBatchLoader:
    more["resized"] = not images.transforms
    source = images.source
    samples = DeviceSamples(source, source.sizes(), images.preprocessor, device, **more)
    return DeviceBatchLoader(images, samples, batch_size, shuffle=True)


def epoch_of(
    loader: BatchLoader | DeviceBatchLoader, epoch: int = 1, batch: int = 0
) -> list[Batch]:
    loader.set_epoch(epoch, batch)
    return list(loader)


def levels_of(batch: Batch, preprocessor: Preprocessor) -> torch.Tensor:
    """The images before they were normalised."""
    scale, shift = map(torch.from_numpy, preprocessor.scale_and_shift())
    return (batch.images - shift[:, None, None]) / scale[:, None, None]


def mask_levels(images: SampleDataset, *, what: str) -> list[torch.Tensor]:
    """What ``mask >= 128`` is asked of: the mask as an image of its own, warped today's way."""
    samples = []
    for sample in images.source:
        area = sample.mask if what == "mask" else sample.ignore
        area = np.zeros(sample.size, bool) if area is None else area
        samples.append(dataclasses.replace(sample, image=area[..., None] * np.uint8(255)))
    augment = GEOMETRY if images.transforms else STILL
    size = images.preprocessor.image_size
    assert size is not None
    drawn = dataset(Kept(samples), size, augment)
    batches = epoch_of(BatchLoader(drawn, 4, shuffle=True))
    return [levels_of(batch, drawn.preprocessor) for batch in batches]


def assert_alike(images: SampleDataset, most: float = LEVEL) -> None:
    today, device = epoch_of(BatchLoader(images, 4, shuffle=True)), epoch_of(on(images))
    assert [batch.names for batch in device] == [batch.names for batch in today]
    planes = [mask_levels(images, what=what) for what in ("mask", "ignored area")]
    differences = []
    for one, other, masks, ignored in zip(device, today, *planes, strict=True):
        assert one.images.shape == other.images.shape
        assert (one.images.dtype, one.targets.dtype) == (torch.float32, torch.float32)
        both = [levels_of(each, images.preprocessor) for each in (one, other)]
        differences.append((both[0] - both[1]).abs().flatten())
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        clear = (masks - 128).abs() > LEVEL
        assert torch.equal(one.targets[clear], other.targets[clear])
        clear = (ignored - 128).abs() > LEVEL
        assert torch.equal(one.valid[clear], other.valid[clear])
    every = torch.cat(differences)
    assert every.max() <= most
    assert every.mean() < 0.01


@pytest.mark.parametrize("size", [(48, 48), (50, 77), (16, 160)], ids=str)
@pytest.mark.parametrize(
    ("augment", "most"),
    [(UNLIT, LEVEL), (Augment(), DIMMED), (STILL, 0)],
    ids=["holes", "all", "still"],
)
def test_pixels_are_todays_to_rounding(size: Size, augment: Augment, most: float) -> None:
    assert_alike(dataset(photographs(), size, augment), most)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("ignores", [True, False])
def test_any_channels_and_masks_with_or_without_ignored_areas(channels: int, ignores: bool) -> None:
    assert_alike(dataset(photographs(channels=channels, ignores=ignores)), DIMMED)


def test_photographs_of_full_size_shrink_alike() -> None:
    assert_alike(dataset(photographs([(375, 500), (600, 431), (512, 512)]), (128, 128), UNLIT))


def test_what_nothing_varies_is_bit_for_bit_as_before() -> None:
    for source in (photographs(), photographs([(48, 48)] * 3)):
        images = dataset(source, augment=STILL)
        assert_same(epoch_of(on(images)), epoch_of(BatchLoader(images, 4, shuffle=True)))


sides = st.integers(1, 70)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=4),
    size=st.tuples(st.integers(16, 60), st.integers(16, 60)),
    degrees=st.integers(0, 180),
    seed=st.integers(0, 99),
)
def test_any_size_and_angle(sizes: list[Size], size: Size, degrees: int, seed: int) -> None:
    wild = {"rotate_degrees": degrees, "translate": 0.9, "affine_scale": 0.9, "crop_area": 0.1}
    augment = UNLIT.model_copy(update=wild)
    images = dataset(photographs(sizes, seed=seed), size, augment)
    one, other = epoch_of(on(images)), epoch_of(BatchLoader(images, 4, shuffle=True))
    for device, today in zip(one, other, strict=True):
        both = [levels_of(each, images.preprocessor) for each in (device, today)]
        assert (both[0] - both[1]).abs().max() <= LEVEL


def test_an_epoch_begun_in_its_middle_is_the_tail_of_the_whole_bit_for_bit() -> None:
    loader = on(dataset(photographs()), batch_size=2)
    whole, tail = epoch_of(loader, 3), epoch_of(loader, 3, batch=2)
    assert len(whole) == len(loader) == 5
    assert_same(whole[2:], tail)
    assert not torch.equal(whole[0].images, epoch_of(loader, 4)[0].images)


def assert_same(one: Sequence[Batch], other: Sequence[Batch]) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.names == right.names
        for field in ("images", "targets", "valid"):
            assert torch.equal(getattr(left, field), getattr(right, field))


def test_an_epoch_that_is_left_early_leaves_nothing_behind() -> None:
    loader = on(dataset(photographs()), batch_size=2)
    whole = epoch_of(loader)
    loader.set_epoch(1)
    first = list(itertools.islice(loader, 1))
    loader.close()
    assert_same(whole[:1], first)
    assert_same(whole, epoch_of(loader))


def test_images_that_would_fill_the_memory_are_shrunk_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = dataset(photographs())
    at_once = epoch_of(on(images))
    assert len(list(on_device._parts([((99, 99), (40, 40))] * 7))) == 1
    monkeypatch.setattr(on_device, "MOST_PIXELS", 5000)
    parts = list(on_device._parts([((99, 99), (40, 40))] * 7))
    assert [count for count, _ in parts] == [3, 3, 1]
    assert_same(at_once, epoch_of(on(images)))


def test_pixels_in_the_hosts_memory_make_the_same_batches() -> None:
    images = dataset(photographs())
    assert_same(epoch_of(on(images)), epoch_of(on(images, resident=False)))


def test_masks_are_held_at_their_own_sizes() -> None:
    source = photographs()
    held = on(dataset(source, augment=STILL)).samples.masks
    assert sorted(held) == source.names
    for sample in source:
        codes = held[sample.name].numpy()
        np.testing.assert_array_equal(codes >= 128, sample.mask)
        ignored = np.zeros(sample.size, bool) if sample.ignore is None else sample.ignore
        np.testing.assert_array_equal(np.isin(codes, (1, 254)), ignored)


def test_no_batch_waits_for_the_device() -> None:
    loader = on(dataset(photographs()))
    with NoWaiting():
        assert len(epoch_of(loader)) == 3
    # where nothing has a value, nothing can be read
    batch = next(iter(on(dataset(photographs([(61, 83)])), device=META)))
    assert (batch.images.device, batch.images.shape) == (META, (1, 3, 48, 48))
    assert refused(lambda: batch.images.to("cpu"))
    assert refused(torch.ones(1).item)


def test_what_cannot_be_made_there_is_named() -> None:
    plain = dataset(photographs())
    assert hindrance(plain, None) is None
    assert hindrance(dataset(photographs(), augment=STILL), None) is None
    own = SampleDataset(
        plain.source, plain.preprocessor, transforms=[OwnPipeline(dict, plain.preprocessor.fit)]
    )
    assert "transform of your own" in str(hindrance(own, None))
    assert "without masks" in str(hindrance(plain, object()))  # type: ignore[arg-type]
    for update in ({"image_size": None}, {"keep_aspect_ratio": True}):
        preprocessor = plain.preprocessor.model_copy(update=update)
        assert "one size" in str(hindrance(SampleDataset(plain.source, preprocessor), None))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a processor stand for a GPU."""
    monkeypatch.setattr(loading, "DEVICES", ("cuda", "cpu"))


opened = partial(open_on_device, batch_size=4, device=CPU, shuffle=True, what="training")


@pytest.mark.usefixtures("here")
def test_where_decoded_images_lie_is_said_and_goes_by_their_size(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    images = dataset(photographs())
    size = 4 * sum(height * width for height, width in SIZES)

    def line(on_gpu: int, in_all: int) -> str:
        monkeypatch.setattr(loading, "free_on", lambda _: on_gpu)
        monkeypatch.setattr(loading, "free_memory", lambda: in_all)
        caplog.clear()
        kept = opened(images)
        assert (kept is not None) == ("decoded once" in caplog.text)
        return caplog.messages[0]

    words = f"training images: 9 decoded once, {size / 1e6:.1f} MB in "
    assert line(4 * size, 0) == f"{words}GPU memory"
    assert line(4 * size - 4, 4 * size) == f"{words}page-locked memory, copied for each batch"
    streamed = line(0, 4 * size - 4)
    assert streamed.startswith(
        "training images: their batches are made by the processor: decoded, they"
    )


@pytest.mark.usefixtures("here")
def test_whoever_wants_nothing_kept_gets_todays_batches(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    images = dataset(photographs())
    assert opened(images, decode_once=False) is None
    assert caplog.messages == []
    assert opened(images, unlabelled=object()) is None  # type: ignore[arg-type]
    assert "images without masks" in caplog.text


def test_a_processor_reads_as_before() -> None:
    assert opened(dataset(photographs())) is None


@pytest.mark.usefixtures("here")
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_folder(photographs([(20, 24)] * 3, ignores=False), tmp_path)
    source = folder_source(tmp_path)
    images = SampleDataset(source, Preprocessor(image_size=(32, 32)))
    assert opened(images) is not None
    path = source.pairs[1].image
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=path.name):
        opened(images)


def test_an_image_that_changes_meanwhile_is_refused() -> None:
    class Changing(Kept):
        def sizes(self) -> list[Size]:
            return [(9, 9), *super().sizes()[1:]]

    with pytest.raises(DataError, match=r"photograph-0: the image is 61x83 .* was 9x9 a moment"):
        on(dataset(Changing(photographs().samples)))


def test_images_of_other_channels_are_refused() -> None:
    images = dataset(photographs(channels=4))
    odd = photographs([(5, 5)], channels=3).samples
    with pytest.raises(ShapeError, match=r"\(5, 5, 3\)"):
        on(SampleDataset(Kept([*photographs(channels=4).samples, *odd]), images.preprocessor))
