"""Images whose masks leave a trace whenever they are read, in any process, and their store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from notan.data import store
from notan.data.samples import FileSource, ImageReading, Labels, Pair
from notan.data.store import keep_decoded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from notan.config import Cache
    from notan.data.samples import Sample

COUNT = 6
RECORDS = len(store.FORMAT) + store.DIGEST
PIXELS = RECORDS + COUNT * store.RECORD.size
"""Where those of the first sample are."""


def read_codes(path: Path, *, with_ignored: bool = True) -> Labels:
    """Read a mask of 0, 1 and 2 (ignored), and leave a trace for each time it is read."""
    with path.with_suffix(".reads").open("ab") as trace:
        trace.write(b".")
    codes = np.load(path)
    return Labels(codes == 1, codes == 2 if with_ignored else None, "codes")


def write(folder: Path, count: int = COUNT, channels: int = 3, first: int = 0) -> FileSource:
    """Write images of different sizes, with masks that leave a trace when they are read."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        size = (20 + number, 40 - number)
        pair = Pair(f"{number}.npy", folder / f"{number}.npy", folder / f"{number}.mask.npy")
        np.save(pair.image, rng.integers(0, 256, (*size, channels), np.uint8))
        np.save(pair.mask, rng.integers(0, 3, size, np.uint8))
        pairs.append(pair)
    return FileSource(pairs, read_codes, ImageReading(channels=channels))


def reads(source: FileSource) -> list[int]:
    """Return how often each mask was read."""
    traces = [pair.mask.with_suffix(".reads") for pair in source.pairs]
    return [path.stat().st_size if path.exists() else 0 for path in traces]


def forget(source: FileSource) -> None:
    for pair in source.pairs:
        pair.mask.with_suffix(".reads").unlink(missing_ok=True)


def kept(source: FileSource, cache: Cache = "disk", **more: Any) -> FileSource:
    return keep_decoded([source], cache, **more)[0]


def assert_same(samples: Sequence[Sample], wanted: Sequence[Sample]) -> None:
    for sample, other in zip(samples, wanted, strict=True):
        assert sample.name == other.name
        for name in ("image", "mask", "ignore"):
            found, expected = getattr(sample, name), getattr(other, name)
            assert (found is None) == (expected is None)
            if found is not None:
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected)
                with pytest.raises(ValueError, match="read-only"):
                    found[:] = 0


def the_file(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path
