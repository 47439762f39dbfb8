"""Augmentation: each transform draws its random numbers in one method and applies them in another.

So every variation can be replayed and tested. All geometry is composed into one matrix and done
in one warp of the original pixels, in half the time of a resampling at each step.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from notan.config import Augment
from notan.data.samples import Sample
from notan.errors import DataError
from notan.io.images import RGB_CHANNELS
from notan.modelfile.preprocess import by_channels, resize, resize_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from notan.types import Image8, Mask, Size

Draw = TypeVar("Draw")
Fit: TypeAlias = "Callable[[Size], Size]"
"""From an image's (height, width) to what it is resized to: ``Preprocessor.fit``."""
Matrix: TypeAlias = npt.NDArray[np.float64]
"""3x3, homogeneous; maps (x, y) in pixels, where an image spans 0..width and 0..height."""


class Transform(ABC, Generic[Draw]):
    """A random change of a sample: ``draw`` holds the randomness, ``apply`` the work."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, size: Size) -> Draw:
        """Draw the random numbers for a sample of (height, width)."""

    @abstractmethod
    def apply(self, sample: Sample, draw: Draw) -> Sample:
        """Change a sample as drawn; the same draw always gives the same sample."""


def augment(
    sample: Sample, transforms: Sequence[Transform[Any]], rng: np.random.Generator
) -> Sample:
    """Put a sample through transforms in their order."""
    for transform in transforms:
        sample = transform.apply(sample, transform.draw(rng, sample.size))
    return sample


def build_transforms(settings: Augment, fit: Fit) -> tuple[Transform[Any], ...]:
    """Return the transforms of a training: geometry, brightness and contrast, grid dropout.

    Args:
        settings: Ranges and probabilities.
        fit: Says at which (height, width) the warp of an image of a (height, width) ends.
    """
    if not settings.enabled:
        return ()
    return (Geometry(settings, fit), BrightnessContrast(settings), GridDropout(settings))


class Geometry(Transform[Matrix]):
    """Zoom, flip, quarter turn, affine and resized crop as one warp of image and mask alike.

    What comes from outside the image is its mirror image, and so is the mask: black would shift
    the statistics of batch norm away from those of whole images.
    """

    def __init__(self, settings: Augment, fit: Fit) -> None:
        self.settings = settings
        self.fit = fit

    def draw(self, rng: np.random.Generator, size: Size) -> Matrix:
        """Draw the matrix that maps the image's pixels to the output's."""
        settings = self.settings
        height, width = size
        centre = _shift(width / 2, height / 2)
        steps = np.eye(3)
        if rng.random() < settings.scale_probability:
            zoom = rng.uniform(1 - settings.scale, 1 + settings.scale)
            steps = _scale(zoom, zoom) @ steps
        if rng.random() < settings.flip_probability:
            steps = _scale(-1, 1) @ steps
        if 0 < settings.quarter_turn_probability > rng.random():
            quarters = int(rng.integers(1, 4)) if height == width else 2
            steps = np.linalg.matrix_power(_QUARTER_TURN, quarters) @ steps
        steps = self._draw_affine(rng, size) @ steps
        return self._draw_crop(rng, size) @ centre @ steps @ np.linalg.inv(centre)

    def _draw_affine(self, rng: np.random.Generator, size: Size) -> Matrix:
        settings = self.settings
        zoom = rng.uniform(1 - settings.affine_scale, 1 + settings.affine_scale)
        angle = math.radians(rng.uniform(-settings.rotate_degrees, settings.rotate_degrees))
        shift_y, shift_x = rng.uniform(-settings.translate, settings.translate, 2) * size
        return _shift(shift_x, shift_y) @ _rotation(angle) @ _scale(zoom, zoom)

    def _draw_crop(self, rng: np.random.Generator, size: Size) -> Matrix:
        """Map a box of the image, or all of it, onto the output."""
        height, width = size
        box_height, box_width, top, left = float(height), float(width), 0.0, 0.0
        if rng.random() < self.settings.crop_probability:
            area = rng.uniform(self.settings.crop_area, 1.0)
            # no further than the image reaches, so that the box keeps its area
            furthest = min(math.log(4 / 3), math.log(1 / area)) / 2
            stretch = math.exp(rng.uniform(-furthest, furthest))
            box_height = height * math.sqrt(area) / stretch
            box_width = width * math.sqrt(area) * stretch
            top, left = rng.uniform(0, 1, 2) * (height - box_height, width - box_width)
        out_height, out_width = self.fit(size)
        return _scale(out_width / box_width, out_height / box_height) @ _shift(-left, -top)

    def apply(self, sample: Sample, draw: Matrix) -> Sample:
        """Warp image, mask and ignored area by the drawn matrix."""
        small, matrix = shrink_first(draw, sample.size)
        output = self.fit(sample.size)

        def warp_mask(mask: Mask) -> Mask:
            levels = resize(mask.view(np.uint8) * np.uint8(255), small)
            return _warp(levels, matrix, output) >= 128

        return Sample(
            name=sample.name,
            image=_warp(resize(sample.image, small), matrix, output),
            mask=warp_mask(sample.mask),
            ignore=None if sample.ignore is None else warp_mask(sample.ignore),
        )


class BrightnessContrast(Transform["tuple[float, float] | None"]):
    """Brightness and contrast; image only."""

    def __init__(self, settings: Augment) -> None:
        self.settings = settings

    def draw(self, rng: np.random.Generator, size: Size) -> tuple[float, float] | None:
        """Draw (contrast factor, brightness offset in grey levels), or None for no change."""
        del size  # the same at every size
        if rng.random() >= self.settings.brightness_contrast_probability:
            return None
        contrast = 1 + rng.uniform(-self.settings.contrast, self.settings.contrast)
        return contrast, 255 * rng.uniform(-self.settings.brightness, self.settings.brightness)

    def apply(self, sample: Sample, draw: tuple[float, float] | None) -> Sample:
        """Scale and offset every grey level; clipped to 0..255."""
        if draw is None:
            return sample
        image: Image8 = np.asarray(cv2.LUT(sample.image, light_table(*draw)))
        return dataclasses.replace(sample, image=image.reshape(sample.image.shape))


def light_table(contrast: float, brightness: float) -> Image8:
    """Return what becomes of each grey level, uint8 (256,), as ``BrightnessContrast`` draws it."""
    levels = np.rint(np.arange(256) * contrast + brightness)
    table: Image8 = np.clip(levels, 0, 255).astype(np.uint8)
    return table


class GridDropout(Transform["tuple[int, int, int, int] | None"]):
    """Black holes on a grid; image only.

    Source: Chen et al. 2020, GridMask, arXiv:2001.04086; the unit is a tenth of the shorter side.
    """

    def __init__(self, settings: Augment) -> None:
        self.settings = settings

    def draw(self, rng: np.random.Generator, size: Size) -> tuple[int, int, int, int] | None:
        """Draw (unit, hole, top, left) in pixels, or None for no holes."""
        if (
            rng.random() >= self.settings.grid_dropout_probability
            or self.settings.grid_dropout_ratio == 0
        ):
            return None
        unit = max(2, min(size) // 10)
        hole = min(max(1, round(unit * self.settings.grid_dropout_ratio)), unit - 1)
        top, left = (int(value) for value in rng.integers(0, unit, 2))
        return unit, hole, top, left

    def apply(self, sample: Sample, draw: tuple[int, int, int, int] | None) -> Sample:
        """Blacken the holes."""
        if draw is None:
            return sample
        unit, hole, top, left = draw
        rows = (np.arange(sample.size[0]) + top) % unit < hole
        columns = (np.arange(sample.size[1]) + left) % unit < hole
        image = sample.image.copy()
        image[np.ix_(rows, columns)] = 0
        return dataclasses.replace(sample, image=image)


class OwnPipeline(Transform[None]):
    """A user's own augmentation: any callable ``transform(image=, mask=) -> dict``.

    The mask it gets and gives back is uint8: 0 background, 1 foreground, 255 ignored, so a
    pipeline that pads may fill with 255. Albumentations pipelines fit.
    Its randomness is its own, so ``Run.seed`` does not reach it.
    """

    def __init__(self, pipeline: Callable[..., Mapping[str, Any]], fit: Fit) -> None:
        self.pipeline = pipeline
        self.fit = fit

    def draw(self, rng: np.random.Generator, size: Size) -> None:
        """Draw nothing: the pipeline has randomness of its own."""
        del rng, size

    def apply(self, sample: Sample, draw: None) -> Sample:
        """Call the pipeline and bring what it returns to the model's size.

        Raises:
            DataError: It did not return a uint8 RGB image and a mask of one size.
        """
        del draw
        codes = sample.mask.astype(np.uint8)
        if sample.ignore is not None:
            codes[sample.ignore] = 255
        # a copy, because a pipeline may write into what it gets
        result: object = self.pipeline(image=sample.image.copy(), mask=codes)
        if not isinstance(result, Mapping) or not {"image", "mask"} <= set(result):
            raise DataError(
                f"{sample.name}: your transform returned no mapping with 'image' and 'mask'; "
                "return dict(image=..., mask=...)"
            )
        image, codes = np.asarray(result["image"]), np.asarray(result["mask"])
        channels = sample.image.shape[2]
        wanted = (*codes.shape[:2], channels)
        if image.dtype != np.uint8 or image.shape != wanted or codes.ndim != 2:
            raise DataError(
                f"{sample.name}: your transform returned an image of {image.dtype} "
                f"{image.shape} and a mask of {codes.shape}; a uint8 (height, width, "
                f"{channels}) image and a (height, width) mask of one size are wanted: leave "
                "normalising and tensors to notan"
            )
        ignored: Mask = codes == 255
        keeps_ignored = sample.ignore is not None or bool(ignored.any())
        if not np.isin(codes, (0, 1, 255)).all():
            raise DataError(
                f"{sample.name}: your transform returned a mask with other values than "
                "0 (background), 1 (foreground) and 255 (ignored); it must not scale or blend the "
                "mask"
            )
        size = self.fit((image.shape[0], image.shape[1]))
        return Sample(
            sample.name,
            np.ascontiguousarray(resize(image, size)),
            resize_mask(codes == 1, size),
            resize_mask(ignored, size) if keeps_ignored else None,
        )


def _shift(x: float, y: float) -> Matrix:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _scale(x: float, y: float) -> Matrix:
    return np.diag([x, y, 1.0])


def _rotation(angle: float) -> Matrix:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


_QUARTER_TURN: Matrix = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def shrink_first(matrix: Matrix, size: Size) -> tuple[Size, Matrix]:
    """Split a warp that shrinks into area averaging and a warp at scale 1, against aliasing.

    Returns:
        The (height, width) to shrink to, and the matrix from there, as OpenCV counts pixels.
    """
    height, width = size
    stretch_x, stretch_y = np.linalg.norm(matrix[:2, :2], axis=0)
    small = (_shrunk(height, stretch_y), _shrunk(width, stretch_x))
    from_small = matrix @ _scale(width / small[1], height / small[0])
    # OpenCV puts pixel centres at whole numbers, our matrices at halves.
    return small, _shift(-0.5, -0.5) @ from_small @ _shift(0.5, 0.5)


def _warp(image: Image8, matrix: Matrix, size: Size) -> Image8:
    height, width = size
    work = partial(
        cv2.warpAffine, M=matrix[:2], dsize=(width, height), borderMode=cv2.BORDER_REFLECT
    )
    return by_channels(work, image)


def _shrunk(side: int, stretch: float) -> int:
    return side if stretch >= 1 else max(1, round(side * stretch))


STRENGTH = {
    "brightness": 0.4,
    "contrast": 0.5,
    "brightness_contrast_probability": 0.8,
    "grid_dropout_ratio": 0.5,
    "grid_dropout_probability": 0.5,
}
SATURATION, SATURATION_PROBABILITY, GREY_PROBABILITY = 0.8, 0.5, 0.2
WIDEST_BLUR, BLUR_PROBABILITY = 0.02, 0.5
STILL = {
    "scale_probability": 0.0,
    "flip_probability": 0.0,
    "quarter_turn_probability": 0.0,
    "affine_scale": 0.0,
    "translate": 0.0,
    "rotate_degrees": 0.0,
    "crop_probability": 0.0,
}


def build_geometry(settings: Augment, fit: Fit) -> Geometry:
    """Return the geometry of a training's augmentation; a mere resizing where that is off."""
    still = {} if settings.enabled else STILL
    return Geometry(settings.model_copy(update=still), fit)


def build_strong() -> tuple[Transform[Any], ...]:
    """Return what changes how an image looks and leaves alone where things are.

    Source:
        Yang, Qi, Feng, Zhang and Shi 2023, arXiv:2208.09910: jitter, grey and blur at such
        strengths. Here hue is left alone and holes on a grid are added (Chen et al. 2020,
        arXiv:2001.04086).
    """
    settings = Augment().model_copy(update=STRENGTH)
    return (BrightnessContrast(settings), Colour(), Blur(), GridDropout(settings))


class Colour(Transform["float | None"]):
    """Paler or stronger colours, or none; image only."""

    def draw(self, rng: np.random.Generator, size: Size) -> float | None:
        """Draw what the distance to grey is multiplied by, or None for no change."""
        del size
        grey, changed = rng.random(2)
        factor = 1 + rng.uniform(-SATURATION, SATURATION)
        if grey < GREY_PROBABILITY:
            return 0.0
        return factor if changed < SATURATION_PROBABILITY else None

    def apply(self, sample: Sample, draw: float | None) -> Sample:
        """Move every pixel's channels away from its grey level, or towards it, if they are RGB."""
        if draw is None or sample.image.shape[2] != RGB_CHANNELS:
            return sample
        grey = cv2.cvtColor(sample.image, cv2.COLOR_RGB2GRAY)[..., None]
        levels = grey + draw * (sample.image.astype(np.float32) - grey)
        image = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return dataclasses.replace(sample, image=image)


class Blur(Transform["float | None"]):
    """Less sharpness; image only."""

    def draw(self, rng: np.random.Generator, size: Size) -> float | None:
        """Draw the standard deviation in pixels, or None for no change."""
        chance, share = rng.random(2)
        return max(0.1, share * WIDEST_BLUR * min(size)) if chance < BLUR_PROBABILITY else None

    def apply(self, sample: Sample, draw: float | None) -> Sample:
        """Blur by a Gaussian."""
        if draw is None:
            return sample
        blurred = by_channels(partial(cv2.GaussianBlur, ksize=(0, 0), sigmaX=draw), sample.image)
        return dataclasses.replace(sample, image=blurred)
