"""Preprocessor (image -> model input) and Placement (the way back to original pixels).

The one place that resizes, pads and normalises: training, evaluation, prediction and export all
go through it, so they cannot disagree. NumPy and OpenCV only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import cv2
import numpy as np
from pydantic import model_validator

from notan.config.sections import ImageSize, PerChannel, Section
from notan.errors import ShapeError
from notan.io.images import FULL_DEPTH, ImageReading
from notan.io.images import RGB_CHANNELS as RGB_CHANNELS

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    import numpy.typing as npt

    from notan.types import Image8, Mask, ModelInput, Probability, Size

Pixel = TypeVar("Pixel", np.uint8, np.float32)


@dataclass(frozen=True)
class Placement:
    """Where an image lies inside its model input, and so the way back.

    Attributes:
        original: (height, width) of the image.
        resized: (height, width) after resizing.
        padded: (height, width) of the model input; padding is below and to the right.
    """

    original: Size
    resized: Size
    padded: Size

    def restore(self, probability: Probability) -> Probability:
        """Cut off the padding and resize a map back to the image's own size.

        Args:
            probability: float32, of the padded size.

        Returns:
            float32, of the original size.

        Raises:
            ShapeError: The map is not of the padded size.
        """
        if probability.shape != self.padded:
            raise ShapeError(
                f"a map of shape {probability.shape} came back from the model, "
                f"{self.padded} (the size of its input) was wanted"
            )
        return resize(probability[: self.resized[0], : self.resized[1]], self.original)


class Preprocessor(Section):
    """Resize to a fixed size (or not), normalise, pad to the model's stride.

    Attributes:
        channels: Of the images; 3: red, green and blue.
        image_size: (height, width) every image is resized to; None keeps its own size.
        keep_aspect_ratio: Only shrink an image that is larger than that, until it fits, both sides
            by the same factor.
        mean: Per channel (0..1), subtracted.
        std: Per channel (0..1), divided by.
        stride: Model inputs are padded to multiples of this.
        white: The value of 16-bit images that is read as white.
        ranges: Of each channel, what is read as 0 and as 255 in images of more than 8 bits; of
            three channels, in floats only; none: as ``white`` says, floats within 0..1 or 0..255.
        floats: Whether the ranges are those of floats.
    """

    channels: int = RGB_CHANNELS
    image_size: ImageSize | None = (256, 256)
    keep_aspect_ratio: bool = False
    mean: PerChannel = (0.485, 0.456, 0.406)
    std: PerChannel = (0.229, 0.224, 0.225)
    stride: int = 16
    white: int = FULL_DEPTH
    ranges: tuple[tuple[float, float], ...] = ()
    floats: bool = False

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> Self:
        for name in ("mean", "std", "ranges"):
            values = getattr(self, name)
            if len(values) != self.channels and (values or name != "ranges"):
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels")
        if any(low >= high for low, high in self.ranges):
            raise ValueError("every range must go from its lower end to its upper one")
        return self

    @property
    def reading(self) -> ImageReading:
        """How image files become 8 bits a channel."""
        return ImageReading(
            white=self.white, channels=self.channels, ranges=self.ranges, floats=self.floats
        )

    def __call__(self, image: Image8) -> tuple[ModelInput, Placement]:
        """Turn an image into a model input.

        Args:
            image: uint8, (height, width, channels), RGB where there are three; any size from 1x1
                up.

        Returns:
            float32 (channels, padded height, padded width), and the way back.

        Raises:
            ShapeError: Not a uint8 image with so many channels.
        """
        self.require(image)
        placement = self.place((image.shape[0], image.shape[1]))
        resized = resize(image, placement.resized)
        return self.normalize(pad(resized, placement.padded)), placement

    def takes(self, image: npt.NDArray[np.generic]) -> bool:
        """Say whether an array is an image of so many channels."""
        return (
            image.dtype == np.uint8
            and image.ndim == 3
            and image.shape[2] == self.channels
            and image.size > 0
        )

    def require(self, image: npt.NDArray[np.generic]) -> None:
        """Refuse what is no image of so many channels.

        Raises:
            ShapeError: Not a uint8 image with so many channels.
        """
        if not self.takes(image):
            raise ShapeError(
                f"an image of shape {image.shape} and type {image.dtype} was given; "
                f"uint8 of shape (height, width, {self.channels}) is wanted"
            )

    def fit(self, size: Size) -> Size:
        """Return the (height, width) that an image of a (height, width) is resized to."""
        if self.image_size is None:
            return size
        if not self.keep_aspect_ratio:
            return self.image_size
        shrinking = min(
            1.0, *(most / side for most, side in zip(self.image_size, size, strict=True))
        )
        height, width = (max(1, round(side * shrinking)) for side in size)
        return height, width

    def place(self, size: Size) -> Placement:
        """Say where an image of a given (height, width) will lie."""
        resized = self.fit(size)
        height, width = (-(-side // self.stride) * self.stride for side in resized)
        return Placement(original=size, resized=resized, padded=(height, width))

    def mask(self, mask: Mask) -> Mask:
        """Bring a mask to the model input's geometry; padding is False."""
        placement = self.place((mask.shape[0], mask.shape[1]))
        resized = resize_mask(mask, placement.resized)
        below, right = (p - r for p, r in zip(placement.padded, placement.resized, strict=True))
        return np.pad(resized, ((0, below), (0, right))) if below or right else resized

    def normalize(self, image: Image8) -> ModelInput:
        """Scale uint8 (height, width, channels) to mean 0, variance 1, channels first."""
        scale, shift = self.scale_and_shift()
        levels = np.arange(256, dtype=np.uint8)[:, None] * scale + shift  # all that a pixel can be
        normalized = np.empty((image.shape[2], *image.shape[:2]), np.float32)
        for channel, plane in enumerate(normalized):  # a stack of new ones takes six times as long
            cv2.LUT(image[..., channel], levels[:, channel], plane)
        return normalized

    def scale_and_shift(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return, for each channel, what grey levels are multiplied by and what is added then."""
        scale = (1.0 / (255.0 * np.asarray(self.std))).astype(np.float32)
        shift = (-np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)
        return scale, shift


def resize(image: npt.NDArray[Pixel], size: Size) -> npt.NDArray[Pixel]:
    """Resize an array (height, width, ...): area averaging where a side shrinks, else linear.

    One step for each, because OpenCV's area averaging needs both sides to shrink, and linear
    interpolation of a shrinking side would drop pixels.
    """
    height, width = size
    smaller = (min(height, image.shape[0]), min(width, image.shape[1]))
    for (rows, columns), method in ((smaller, cv2.INTER_AREA), (size, cv2.INTER_LINEAR)):
        if image.shape[:2] != (rows, columns):
            work = partial(cv2.resize, dsize=(columns, rows), interpolation=method)
            image = by_channels(work, image)
    return image


MOST_AT_ONCE = 4
"""Channels that OpenCV takes at once."""


def by_channels(work: Callable[..., object], image: npt.NDArray[Pixel]) -> npt.NDArray[Pixel]:
    """Do something of OpenCV's with an image of any number of channels.

    Args:
        work: Takes (height, width, channels) of at most four channels, to which OpenCV's functions
            are limited, and returns as many; of one channel it may forget the last axis, as they
            do.
        image: (height, width) or (height, width, channels).
    """
    if image.ndim == 2 or 1 < image.shape[2] <= MOST_AT_ONCE:
        return cast("npt.NDArray[Pixel]", work(image))
    parts = [
        cast("npt.NDArray[Pixel]", work(np.ascontiguousarray(image[..., at : at + MOST_AT_ONCE])))
        for at in range(0, image.shape[2], MOST_AT_ONCE)
    ]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)


def resize_mask(mask: Mask, size: Size) -> Mask:
    """Resize a mask; a pixel is foreground where at least half of what it covers is."""
    if mask.shape == size:
        return mask
    resized: Mask = resize(mask.astype(np.uint8) * np.uint8(255), size) >= 128
    return resized


def pad(image: npt.NDArray[Pixel], size: Size) -> npt.NDArray[Pixel]:
    """Repeat the last row and column of (height, width, channels) up to the size asked for."""
    below, right = size[0] - image.shape[0], size[1] - image.shape[1]
    if not (below or right):
        return image
    return np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")
