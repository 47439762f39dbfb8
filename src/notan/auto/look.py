"""What a data folder and the machine are like: measured, never asked.

Only training images are opened; of the validation images the number is known, of the test images
nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from statistics import median, median_low
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import cv2
import numpy as np
from tqdm import tqdm

from notan.data.folders import makes_validation, open_split
from notan.data.survey import read_as_a_whole
from notan.io.images import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from notan.config import Data
    from notan.data.samples import FileSource, Sample
    from notan.types import Mask, Size

    StepSeconds: TypeAlias = Callable[[str, str | None, int], float]

WIDTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""What is wider than the last counts as that wide."""

PIXELS_OF_A_DISC = 8
"""A disc is at least as wide on a mask that is shrunk for it, and less than twice as wide."""

MOSTLY = 0.5
"""The share of foreground from which a pixel of a shrunken mask is foreground."""

MOST_SIDE = 2048
"""Of a larger mask, the part of this side with the most foreground is measured."""


def thickness(mask: Mask, shares: Sequence[float]) -> tuple[float, ...]:
    """Return the widths under which shares of a foreground lie, in pixels.

    A pixel is as wide as the widest disc that lies in the foreground and covers it. Foreground that
    reaches the image's edge is taken to go on beyond it.

    Source: the granulometry of Matheron 1975, Random Sets and Integral Geometry, by openings with
    discs; here through two distance transforms a width, on a mask that is shrunk until the disc is
    some ten pixels wide, and linear between the widths.

    Args:
        mask: bool, (height, width), with foreground.
        shares: Of the foreground's area, 0..1, such as 0.5 for the median width.
    """
    thinner = cache(partial(_thinner, _fullest_part(mask)))

    def width_of(share: float) -> float:
        # what is thinner than a width grows with the width: a few of them are tried
        place = bisect_left(WIDTHS, share, key=thinner)
        if place == len(WIDTHS):
            return float(WIDTHS[-1])
        low, above = (WIDTHS[place - 1], thinner(WIDTHS[place - 1])) if place else (0, 0.0)
        return float(np.interp(share, (above, thinner(WIDTHS[place])), (low, WIDTHS[place])))

    return tuple(map(width_of, shares))


def _thinner(mask: Mask, width: int) -> float:
    """Return the share of a foreground that is thinner than a width."""
    shrink = 1 << max(0, (width // PIXELS_OF_A_DISC).bit_length() - 1)
    foreground, radius = mask.astype(np.float32), width / shrink / 2 + 0.25
    if shrink > 1:
        height, wide = (max(1, side // shrink) for side in mask.shape)
        foreground = np.asarray(
            cv2.resize(foreground, (wide, height), interpolation=cv2.INTER_AREA)
        )
    edge = round(2 * radius) + 1
    bits = np.pad((foreground >= MOSTLY).astype(np.uint8), edge, mode="edge")
    # lines of 2n-1 and of 2n pixels are both n deep, as depths lead to centres of pixels
    core = np.asarray(cv2.distanceTransform(bits, cv2.DIST_L2, 5)) >= radius
    if not core.any():
        return 1.0
    outside = (~core).astype(np.uint8)
    away = np.asarray(cv2.distanceTransform(outside, cv2.DIST_L2, 5))[edge:-edge, edge:-edge]
    return float(foreground[away >= radius].sum() / foreground.sum())


def _fullest_part(mask: Mask) -> Mask:
    """Return the square part of a large mask that holds the most foreground."""
    if max(mask.shape) <= MOST_SIDE:
        return mask
    parts = (
        mask[top : top + MOST_SIDE, left : left + MOST_SIDE]
        for top in range(0, mask.shape[0], MOST_SIDE)
        for left in range(0, mask.shape[1], MOST_SIDE)
    )
    return max(parts, key=np.count_nonzero)


THREADS = 4
FEWEST_LOOKED_AT, MOST_IMAGES = 50, 200
"""So many are opened, spread over a larger folder: beyond the second number the medians hardly move
any more, below the first they are luck."""

SECONDS_FOR_A_LOOK = 3.0
"""Of a time limit, for each image that is opened: some hundredth of it goes into that."""

THIN_SHARE, USUAL_SHARE = 0.2, 0.5
FEW_PIXELS = 3
"""Of so many rows and columns one is looked at for colour."""

GREY_LEVELS = 2.0
"""How far apart the channels of a grey image may lie: JPEG tints it by a level or two."""

FEWEST_FOR_UPRIGHT = 20
CHANCE = 2.0
"""Standard errors from which a mean is no chance any more."""


@dataclass(frozen=True)
class Fingerprint:
    """What the training images are like; widths and sizes in their own pixels.

    Attributes:
        training: Training images.
        validation: Validation images.
        makes_validation: Whether those are taken from the training images, for want of any.
        opened: Training images that were opened for the numbers below.
        size: Median (height, width).
        usual_size: (height, width) that three in four images do not exceed.
        largest: (height, width) of the image with the most pixels.
        coverage: Median share of foreground, of the masks that have any; 0 where none has.
        empty: Share of masks without foreground.
        full: Share of masks that are nothing but foreground.
        width: How wide half of the foreground is at most, the median over images; None without
            foreground.
        thin: Likewise of the thinnest fifth of the foreground.
        grey: Whether the images have no colour.
        upright: Whether they have a top and a bottom as far as can be seen: foregrounds or light
            lie higher or lower than chance would put them. True also where they are too few to say.
    """

    training: int
    validation: int
    makes_validation: bool
    opened: int
    size: Size
    usual_size: Size
    largest: Size
    coverage: float
    empty: float
    full: float
    width: float | None
    thin: float | None
    grey: bool
    upright: bool

    def in_words(self) -> str:
        """Say in a line or two what was seen."""
        height, width = self.size
        foreground = (
            "no foreground in any mask"
            if self.width is None or self.thin is None
            else f"foreground on {self.coverage:.1%} of an image, half of it less than "
            f"{_in_pixels(self.width)} wide, a fifth less than {_in_pixels(self.thin)}"
        )
        return (
            f"{self.training} training and {self.validation} validation images, "
            f"{height}x{width} (height x width) in the middle, "
            f"{'grey' if self.grey else 'in colour'}; {foreground}"
        )


def _in_pixels(width: float) -> str:
    return f"{width:.0f} px{' or more' if width >= WIDTHS[-1] else ''}"


class _Look(NamedTuple):
    """One image in numbers; those of the foreground are None without any."""

    coverage: float
    width: float | None
    thin: float | None
    height_of_foreground: float | None
    height_of_light: float
    colour: float


def take_fingerprint(data: Data, *, seed: int, time_limit: float | None = None) -> Fingerprint:
    """Open training images and measure them, with a progress bar where it takes a while.

    Args:
        data: Where the data are and how to read them.
        seed: The run's, which decides the validation split where the data have none.
        time_limit: Seconds of the training, of which this is a part; in a short one fewer images
            are opened. None: there is none.

    Raises:
        ConfigError: No data folder was given.
        DataError: It is missing, holds no training pairs, or a file in it cannot be read.
    """
    training = open_split(data, "train", seed=seed)
    training = read_as_a_whole(training, data)
    validation = open_split(data, "validation", seed=seed)
    affordable = math.inf if time_limit is None else time_limit / SECONDS_FOR_A_LOOK
    looks = _look_at(training, int(min(MOST_IMAGES, max(FEWEST_LOOKED_AT, affordable))))
    heights, widths = (np.array(sides) for sides in zip(*training.sizes(), strict=True))
    largest = int(np.argmax(heights * widths))
    with_foreground = [look for look in looks if look.coverage > 0]
    return Fingerprint(
        training=len(training),
        validation=len(validation),
        makes_validation=makes_validation(data),
        opened=len(looks),
        size=(median_low(heights.tolist()), median_low(widths.tolist())),
        usual_size=(_upper_quarter(heights.tolist()), _upper_quarter(widths.tolist())),
        largest=(int(heights[largest]), int(widths[largest])),
        coverage=median(look.coverage for look in with_foreground) if with_foreground else 0.0,
        empty=1 - len(with_foreground) / len(looks),
        full=sum(look.coverage == 1 for look in looks) / len(looks),
        width=_middle([look.width for look in looks]),
        thin=_middle([look.thin for look in looks]),
        grey=median(look.colour for look in looks) <= GREY_LEVELS
        and max(look.colour for look in looks) <= 2 * GREY_LEVELS,
        upright=_have_a_top(looks),
    )


def _upper_quarter(sides: Sequence[int]) -> int:
    return sorted(sides)[(3 * len(sides)) // 4]


def _middle(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return median(there) if there else None


def _look_at(source: FileSource, most: int) -> list[_Look]:
    step = max(1, len(source) / most)
    chosen = [int(index * step) for index in range(min(len(source), most))]
    with ThreadPoolExecutor(THREADS) as pool:
        work = pool.map(lambda index: _look(source[index]), chosen)
        bar = partial(tqdm, total=len(chosen), desc="looking at images", unit="image")
        return list(bar(work, leave=False, delay=1, disable=None))


def _look(sample: Sample) -> _Look:
    mask = sample.mask
    rows = mask.mean(axis=1)
    some = sample.image[::FEW_PIXELS, ::FEW_PIXELS]  # over few channels these take their time
    spread = some.max(axis=2).astype(np.float32) - some.min(axis=2)
    light = np.asarray(cv2.cvtColor(shown(sample.image), cv2.COLOR_RGB2GRAY)).mean(axis=1)
    has_foreground = bool(mask.any())
    usual, thin = thickness(mask, (USUAL_SHARE, THIN_SHARE)) if has_foreground else (None, None)
    return _Look(
        coverage=float(mask.mean()),
        width=usual,
        thin=thin,
        height_of_foreground=_centre(rows) if has_foreground else None,
        height_of_light=_centre(light),
        colour=float(spread.mean()),
    )


def _centre(rows: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """Return where the weight of an image's rows lies: -0.5 is its top, 0.5 its bottom."""
    places = (np.arange(len(rows)) + 0.5) / len(rows) - 0.5
    total = float(rows.sum())
    return float((rows * places).sum()) / total if total else 0.0


def _have_a_top(looks: Sequence[_Look]) -> bool:
    """Say whether foregrounds or light lie higher, or lower, than chance would put them.

    A mean that is two standard errors from the middle is none of chance's. What lies in the middle
    on the whole may still be upright, as faces are: turning such images costs some strength and
    breaks nothing.
    """
    foregrounds = [
        look.height_of_foreground for look in looks if look.height_of_foreground is not None
    ]
    lights = [look.height_of_light for look in looks]
    if len(foregrounds) < FEWEST_FOR_UPRIGHT:
        return True
    return any(_is_off_centre(np.array(heights)) for heights in (foregrounds, lights))


def _is_off_centre(heights: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bool:
    error = float(heights.std(ddof=1)) / float(np.sqrt(len(heights)))
    return abs(float(heights.mean())) > CHANCE * error


@dataclass(frozen=True)
class Machine:
    """What there is to train with.

    Attributes:
        device: ``cpu``, ``cuda`` or ``mps``.
        threads: Of the processor, that a network may use.
        memory_bytes: Free at present, the GPU's on ``cuda``; None where it cannot be told.
        seconds: From a network's ``model.name``, ``model.encoder`` and ``model.width`` to the
            seconds of a training step for each image of 256x256, as measured there.
        published_weights: Encoders whose published weights are installed.
    """

    device: str
    threads: int
    memory_bytes: int | None
    seconds: StepSeconds
    published_weights: frozenset[str]

    def in_words(self) -> str:
        """Say in a line what there is."""
        memory = "unknown" if self.memory_bytes is None else f"{self.memory_bytes / 2**30:.1f} GiB"
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.device}, {threads}, free memory {memory}"


def look_at_machine(device: str, seconds: StepSeconds) -> Machine:
    """Look at what there is.

    Args:
        device: As ``Run.device``: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        seconds: As in a Machine.

    Raises:
        ConfigError: There is no such device.
    """
    import torch

    from notan.models.encoder_weights import installed_weights
    from notan.runtime import find_device, free_memory

    found = find_device(device)
    memory = torch.cuda.mem_get_info(found)[0] if found.type == "cuda" else free_memory()
    return Machine(
        device=found.type,
        threads=torch.get_num_threads(),
        memory_bytes=memory,
        seconds=seconds,
        published_weights=installed_weights(),
    )
