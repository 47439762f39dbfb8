"""Samples and sources of them."""

from __future__ import annotations

import numpy as np
import pytest

from notan.data.samples import Subset
from notan.data.synthetic import DrawnSource

SOURCE = DrawnSource(8, size=(12, 16))


def test_a_part_keeps_the_order_and_reads_the_same_samples() -> None:
    part = Subset(SOURCE, frozenset([SOURCE.names[5], SOURCE.names[2], "nobody"]))
    assert part.names == [SOURCE.names[2], SOURCE.names[5]]
    assert np.array_equal(part[1].image, SOURCE[5].image)
    with pytest.raises(IndexError):
        part[2]
