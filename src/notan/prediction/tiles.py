"""Overlapping tiles with smooth seams, for images too large to go through the network at once.

A tile holds what a training image held: training shrank every image to the network's input, so
a tile is as many of the image's own pixels as shrink to one input at the same scale. Where
training kept the images' own pixels, tiles begin at multiples of the network's stride and end
where the padded image ends, so that a network sees in a tile what it would see in the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol

import numpy as np
from pydantic import Field

from notan.config.sections import ImageSize, Section
from notan.errors import ConfigError
from notan.io.headers import MAX_PIXELS
from notan.modelfile.preprocess import resize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from notan.modelfile.preprocess import Preprocessor
    from notan.types import Image8, Probability, Size

    Predict = Callable[[Iterable[Image8]], Iterator[Probability]]

MARGIN = 0.25
"""The share of an overlap, at either tile's edge, that counts for nothing: a tile that ends there
knows too little of what lies beyond."""

MAX_SCALE = 16.0
OWN_INPUT = (512, 512)
OWN_PIXELS = 4_000_000
"""Input pixels that a network without a size of its own gets at once; a U-Net of width 64 takes
some 4 GB for them."""


class Tiling(Section):
    """When an image is cut into tiles, and how.

    Attributes:
        always: Cut even an image that could be predicted whole.
        scale: Input pixels for each pixel of the image; None: as in training where the model
            file says it, else 1.
        overlap: Share of a tile's side that it has in common with the next one.
        whole_pixels: The largest image that is predicted whole; None: 89 million pixels for a
            network that shrinks every image to its input, 4 million for one that does not.
        input_size: (height, width) of a tile's input; None: the network's own, else 512x512.
    """

    always: bool = False
    scale: Annotated[float, Field(gt=0.0, le=MAX_SCALE)] | None = None
    overlap: Annotated[float, Field(ge=0.0, le=0.75)] = 0.25
    whole_pixels: Annotated[int, Field(ge=1)] | None = None
    input_size: ImageSize | None = None

    def cuts(self, size: Size, preprocessor: Preprocessor) -> bool:
        """Say whether an image of a (height, width) is cut into tiles."""
        usual = OWN_PIXELS if preprocessor.image_size is None else MAX_PIXELS
        return self.always or size[0] * size[1] > (self.whole_pixels or usual)

    def grid(self, size: Size, preprocessor: Preprocessor, trained: Size | None = None) -> TileGrid:
        """Lay tiles over an image.

        Args:
            size: (height, width) of the image.
            preprocessor: The network's.
            trained: (height, width) of the middle one of the training images, where it is known.

        Raises:
            ConfigError: The scale is so small that one tile would be a huge image itself.
        """
        wanted = self.input_size or preprocessor.image_size or OWN_INPUT
        stride = preprocessor.stride
        inputs = [math.ceil(side / stride) * stride for side in wanted]
        scales = self._scales(preprocessor, trained)
        shown = preprocessor.fit(trained) if trained else inputs
        sides = zip(shown, scales, size, strict=True)
        part = math.prod(min(1.0, side / scale / length) for side, scale, length in sides)
        axes, tile = [], []
        for length, side, scale in zip(size, inputs, scales, strict=True):
            own = max(1, round(side / scale))
            tile.append(min(own, length))
            axes.append(_spans(length, own, round(own * self.overlap), stride if scale == 1 else 1))
        if tile[0] * tile[1] > MAX_PIXELS:
            raise ConfigError(
                f"at a scale of {scales[0]:g} one tile would cover {tile[0]}x{tile[1]} pixels of "
                f"the image, more than {MAX_PIXELS:,}; give a larger --scale"
            )
        return TileGrid(size, axes[0], axes[1], (tile[0], tile[1]), scales, part)

    def _scales(self, preprocessor: Preprocessor, trained: Size | None) -> tuple[float, float]:
        """Return input pixels for each pixel of the image, downwards and across."""
        if self.scale is not None:
            return self.scale, self.scale
        if preprocessor.image_size is None or trained is None:
            return 1.0, 1.0
        (height, width), (rows, columns) = preprocessor.fit(trained), trained
        return height / rows, width / columns


def make_tiling(*, always: bool, scale: float | None) -> Tiling:
    """Return the settings that the flags of a command ask for.

    Raises:
        ConfigError: The scale is out of bounds.
    """
    if scale is not None and not 0 < scale <= MAX_SCALE:
        raise ConfigError(
            f"--scale is {scale:g}; network pixels for each pixel of the image are wanted, above "
            f"0 and at most {MAX_SCALE:g}, such as 0.5"
        )
    return Tiling(always=always, scale=scale)


class Pixels(Protocol):
    """An image of which any part can be had."""

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""

    def read(self, top: int, left: int, height: int, width: int) -> Image8:
        """Return a part that lies inside: uint8, (height, width, channels)."""


@dataclass(frozen=True)
class PixelsInMemory:
    """An image that is there already: uint8, (height, width, channels)."""

    image: Image8

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]

    def read(self, top: int, left: int, height: int, width: int) -> Image8:
        """Return a part: uint8, (height, width, channels)."""
        return self.image[top : top + height, left : left + width]


@dataclass(frozen=True)
class Span:
    """A tile's place along one side of the image.

    Attributes:
        start: Its first pixel.
        stop: The pixel after its last.
        weights: float32, (stop - start,); those of all tiles add up to 1 at every pixel.
    """

    start: int
    stop: int
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one image.

    Attributes:
        size: (height, width) of the image.
        rows: Places of the rows of tiles, from the top.
        columns: Places of the columns of tiles, from the left.
        tile: (height, width) of the largest tile in pixels of the image.
        scales: Input pixels for each pixel of the image, downwards and across.
        part: Share of the image that a training image would show, at most 1.
    """

    size: Size
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    tile: Size
    scales: tuple[float, float]
    part: float

    def bands(self, predict: Predict, pixels: Pixels) -> Iterator[Probability]:
        """Predict tile by tile; give the image's map out from the top, as it gets finished.

        No more than one row of tiles is held. Probabilities are blended and not logits: they stay
        in 0..1, a tile that is very sure cannot outvote its neighbour, and the way back to the
        image's own pixels is the one that whole images take.

        Args:
            predict: From images to the network's own probabilities, in their order; takes them
                as it needs them.
            pixels: The image.

        Yields:
            float32, (rows, width of the image); together all of its rows.
        """
        band = np.zeros((self.tile[0], self.size[1]), np.float32)
        following = [row.start for row in self.rows[1:]] + [self.size[0]]
        for row, next_start in zip(self.rows, following, strict=True):
            answers = predict(self._inputs(row, pixels))
            for column, answer in zip(self.columns, answers, strict=True):
                place = (row.stop - row.start, column.stop - column.start)
                weighted = resize(answer, place) * row.weights[:, None] * column.weights
                band[: place[0], column.start : column.stop] += weighted
            finished = next_start - row.start
            yield np.minimum(band[:finished], 1)
            rest = band[finished:].copy()
            band[: len(rest)], band[len(rest) :] = rest, 0

    def _inputs(self, row: Span, pixels: Pixels) -> Iterator[Image8]:
        """Read the tiles of a row, at the network's scale."""
        for column in self.columns:
            height, width = row.stop - row.start, column.stop - column.start
            part = pixels.read(row.start, column.start, height, width)
            sides = zip((height, width), self.scales, strict=True)
            rows, columns = (max(1, round(side * scale)) for side, scale in sides)
            yield resize(part, (rows, columns))

    def in_words(self) -> str:
        """Say how the image is cut."""
        down, across = self.scales
        scale = f"{down:.3g}" if f"{down:.3g}" == f"{across:.3g}" else f"{down:.3g} x {across:.3g}"
        return (
            f"{self.size[0]}x{self.size[1]} pixels (height x width) in {len(self.rows)} x "
            f"{len(self.columns)} overlapping tiles of {self.tile[0]}x{self.tile[1]}, at a scale "
            f"of {scale}"
        )


def _spans(length: int, tile: int, overlap: int, align: int) -> tuple[Span, ...]:
    """Place tiles along one side.

    Args:
        length: Pixels of the side.
        tile: Pixels of a tile; a multiple of ``align``.
        overlap: What neighbours have in common at least.
        align: Tiles start at multiples of this; the last one reaches to a multiple of it.
    """
    last = math.ceil(length / align) * align - tile
    step = max(align, (tile - overlap) // align * align)
    starts = [*range(0, last, step), last] if last > 0 else [0]
    stops = [min(start + tile, length) for start in starts]
    # alignment may leave neighbours less in common than was asked for; the ends are no seams
    before = [0, *(min(overlap, s - t) for s, t in zip(stops[:-1], starts[1:], strict=True))]
    after = [*before[1:], 0]
    raw = [
        _rise(stop - start, shared) * _rise(stop - start, shared_after)[::-1]
        for start, stop, shared, shared_after in zip(starts, stops, before, after, strict=True)
    ]
    total = np.zeros(length)
    for start, stop, weights in zip(starts, stops, raw, strict=True):
        total[start:stop] += weights
    return tuple(
        Span(start, stop, (weights / total[start:stop]).astype(np.float32))
        for start, stop, weights in zip(starts, stops, raw, strict=True)
    )


def _rise(length: int, overlap: int) -> npt.NDArray[np.float64]:
    """Return weights that rise from 0 to 1 over the middle of an overlap, as half a cosine wave."""
    if not overlap:
        return np.ones(length)
    margin = overlap * MARGIN
    way = (np.arange(length) + 0.5 - margin) / (overlap - 2 * margin)
    rise: npt.NDArray[np.float64] = 0.5 - 0.5 * np.cos(np.pi * np.clip(way, 0, 1))
    return rise
