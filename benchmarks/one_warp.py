"""Compare the augmentation's single warp with the same geometry done step by step.

Run by hand: python benchmarks/one_warp.py
Prints milliseconds an image, on drawn images, one thread. Compare the ratios within one run.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from notan.config import Augment
from notan.data.synthetic import DrawnSource
from notan.data.transforms import Geometry
from notan.modelfile.preprocess import Preprocessor

if TYPE_CHECKING:
    from notan.types import RGBImage

IMAGES, SIZE, OUTPUT = 100, (375, 500), 256
ANGLE, ZOOM, AFFINE_ZOOM, CROP = 20.0, 1.1, 0.95, 0.9


def step_by_step(original: RGBImage) -> RGBImage:
    """Rescale, flip, rotate and zoom, crop and resize: four resamplings."""
    height, width = original.shape[:2]
    image = cv2.resize(original, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_LINEAR)
    image = cv2.flip(image, 1)
    centre = (image.shape[1] / 2, image.shape[0] / 2)
    matrix = cv2.getRotationMatrix2D(centre, ANGLE, AFFINE_ZOOM)
    image = cv2.warpAffine(image, matrix, image.shape[1::-1])
    rows, columns = int(height * CROP), int(width * CROP)
    image = cv2.resize(image[:rows, :columns], (300, 300), interpolation=cv2.INTER_LINEAR)
    result = cv2.resize(image, (OUTPUT, OUTPUT), interpolation=cv2.INTER_AREA)
    return cast("RGBImage", result)


def main() -> None:
    """Time both on the same images."""
    cv2.setNumThreads(1)
    settings = Augment(scale_probability=1, flip_probability=1, crop_probability=1)
    geometry = Geometry(settings, Preprocessor(image_size=(OUTPUT, OUTPUT)).fit)
    samples = list(DrawnSource(IMAGES, size=SIZE))
    draws = [geometry.draw(np.random.default_rng(i), SIZE) for i in range(IMAGES)]

    start = time.perf_counter()
    _ = [geometry.apply(s, d) for s, d in zip(samples, draws, strict=True)]
    middle = time.perf_counter()
    _ = [(step_by_step(s.image), step_by_step(s.image * 0)) for s in samples]
    end = time.perf_counter()

    one, many = (1000 * seconds / IMAGES for seconds in (middle - start, end - middle))
    print(f"one warp (image and mask)     {one:.2f} ms an image")
    print(f"step by step (image and mask) {many:.2f} ms an image, {many / one:.2f}x")


if __name__ == "__main__":
    main()
