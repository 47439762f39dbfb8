"""The size at which the network sees the images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from notan.auto.case import ChosenSetting
from notan.auto.effort import USUAL_SIDE, images_in_memory, passes_within

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notan.auto.case import Case
    from notan.types import Size

STRIDE = 32
LEAST_SIDE, MOST_SIDE = 64, 2048
THINNEST = 4.0
"""Pixels that the thinnest fifth of the foregrounds is to keep: the finest features of a network
on an encoder have a stride of 2, so that less is a guess."""

PASSES, PASSES_EACH = 4000, 15
"""Images that a training wants to see at least, in all and for each training image, before a
larger size is worth its time."""

FEWEST_AT_ONCE = 2


def input_size(case: Case) -> Iterator[ChosenSetting]:
    """Shrink images as far as time asks for it, and not so far that thin foregrounds vanish.

    The shape is that of the middle image.
    """
    own = case.images.usual_size
    needed = _scale_for_thin(case)
    scale, why = _usual_scale(own), f"an area of {USUAL_SIDE}x{USUAL_SIDE}, which mostly is enough"
    affordable = _affordable_scale(case)
    if affordable is not None:
        scale = affordable
        why = f"as large as {case.get('train.time_limit_seconds'):.0f} seconds allow"
    if scale >= 1:
        scale, why = 1.0, "the images' own size; larger shows nothing new"
    thin = case.images.thin
    if thin is not None and needed > scale:
        scale = needed
        why = f"large enough that the thinnest fifth of the foregrounds keeps {thin * scale:.0f} px"
    size = _size_at(case, scale)
    if min(size) == LEAST_SIDE and scale == 1:
        why = f"the least that a network has something to look at in, {LEAST_SIDE} px a side"
    fitting = _within_memory(case, size)
    if fitting != size:
        size, why = fitting, "as large as the memory allows"
        if thin is not None and thin * _scale_of(size, own) < THINNEST / 2:
            why += "; the thinnest parts of the foregrounds may be lost: cut the images into parts"
    height, wide = case.images.size
    yield ChosenSetting(
        "preprocess.image_size", size, f"{why} (the middle image has {height}x{wide})"
    )


def _usual_scale(own: Size) -> float:
    return USUAL_SIDE / math.sqrt(own[0] * own[1])


def _scale_for_thin(case: Case) -> float:
    thin = case.images.thin
    return 0.0 if not thin else min(1.0, THINNEST / thin)


def _affordable_scale(case: Case) -> float | None:
    """Return the scale at which the time limit is enough for the passes that are wanted."""
    own = case.images.usual_size
    possible = passes_within(case, own)
    if possible is None:
        return None
    wanted = max(PASSES, PASSES_EACH * case.images.training)
    return math.sqrt(possible / wanted)


def _size_at(case: Case, scale: float) -> Size:
    """Return the input size with the middle image's shape at a scale of the usual size."""
    own, (height, width) = case.images.usual_size, case.images.size
    area = own[0] * own[1] * scale**2
    tall = math.sqrt(area * height / width)
    return _whole(tall), _whole(area / tall)


def _whole(side: float) -> int:
    return min(max(LEAST_SIDE, round(side / STRIDE) * STRIDE), MOST_SIDE)


def _within_memory(case: Case, size: Size) -> Size:
    possible = images_in_memory(case, size)
    while possible is not None and possible < FEWEST_AT_ONCE and max(size) > LEAST_SIDE:
        size = (_whole(size[0] * 0.9 - STRIDE / 2), _whole(size[1] * 0.9 - STRIDE / 2))
        possible = images_in_memory(case, size)
    return size


def _scale_of(size: Size, own: Size) -> float:
    return math.sqrt(size[0] * size[1] / (own[0] * own[1]))


INPUT_RULES = (input_size,)
