"""A user's own augmentation: what it is given, what it may return, and what is refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from noise_samples import FIT, OUT, once, random_sample
from notan.config import load_run
from notan.data.synthetic import DrawnSource
from notan.data.transforms import OwnPipeline
from notan.errors import DataError
from notan.training import train

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from notan.types import Mask, RGBImage


def test_a_pipeline_of_ones_own_gets_codes_and_its_result_is_resized() -> None:
    seen: list[tuple[RGBImage, npt.NDArray[np.uint8]]] = []

    def spy(image: RGBImage, mask: npt.NDArray[np.uint8]) -> dict[str, Any]:
        seen.append((image, mask))
        return {"image": image[:, ::-1], "mask": mask[:, ::-1], "more": "is ignored"}

    sample = random_sample(OUT, ignore=True)
    result = once(OwnPipeline(spy, FIT), sample)
    assert sample.ignore is not None
    np.testing.assert_array_equal(seen[0][0], sample.image)
    np.testing.assert_array_equal(seen[0][1], np.where(sample.ignore, 255, sample.mask))
    np.testing.assert_array_equal(result.image, sample.image[:, ::-1])
    np.testing.assert_array_equal(result.mask, (sample.mask & ~sample.ignore)[:, ::-1])
    np.testing.assert_array_equal(result.ignore, sample.ignore[:, ::-1])


IMAGE, CODES = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ({"image": IMAGE.astype(np.float32), "mask": CODES}, "image of float32"),
        ({"image": IMAGE.transpose(2, 0, 1), "mask": CODES}, r"\(3, 4, 4\)"),
        ({"image": IMAGE[..., :1], "mask": CODES}, r"\(4, 4, 1\)"),
        ({"image": IMAGE, "mask": CODES[:2]}, r"mask of \(2, 4\)"),
        ({"image": IMAGE, "mask": CODES[..., None]}, r"mask of \(4, 4, 1\)"),
        ({"image": IMAGE, "mask": CODES + 128}, "other values than 0"),
        ({"image": IMAGE}, "no mapping with 'image' and 'mask'"),
        ((IMAGE, CODES), "no mapping with 'image' and 'mask'"),
        (None, "no mapping with 'image' and 'mask'"),
    ],
)
def test_a_pipeline_that_returns_something_else_is_refused(returned: object, words: str) -> None:
    def broken(**_: object) -> Mapping[str, Any]:
        return returned  # type: ignore[return-value]

    with pytest.raises(DataError, match=rf"^cat: your transform returned.*{words}"):
        once(OwnPipeline(broken, FIT), random_sample((8, 8)))


def test_a_pipeline_that_pads_may_leave_the_padding_out() -> None:
    def padding(image: RGBImage, mask: Mask) -> dict[str, Any]:
        wide = ((0, 0), (0, OUT[1]))
        return {
            "image": np.pad(image, (*wide, (0, 0))),
            "mask": np.pad(mask, wide, constant_values=255),
        }

    sample = random_sample(OUT)
    result = once(OwnPipeline(padding, FIT), sample)
    assert sample.ignore is None
    assert result.ignore is not None
    assert result.ignore.mean() == pytest.approx(0.5)


def test_a_callable_from_python_goes_through_training(tmp_path: Path) -> None:
    shapes: list[tuple[int, ...]] = []

    def brighten(image: RGBImage, mask: Mask) -> dict[str, Any]:
        shapes.append(image.shape)
        return {"image": cv2.add(image, np.full_like(image, 9)), "mask": mask}

    flags = {"model.width": 2, "preprocess.image_size": 32, "train.epochs": 2}
    run = load_run(flags={**flags, "train.trackers": (), "device": "cpu"})
    training, validation = DrawnSource(4, size=(24, 30)), DrawnSource(2, size=(24, 30), first=4)
    result = train(
        run, out=tmp_path / "own", training=training, validation=validation, transform=brighten
    )
    assert result.checkpoint.is_file()
    assert math.isfinite(result.dice)
    assert shapes == [(24, 30, 3)] * 4 * 2, "training images only, once an epoch"
