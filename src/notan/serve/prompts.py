"""Points, a box and an initial mask: what a person says of an image beside it.

The network itself takes no prompts. They decide what is made of its probability, the same way each
time, so that a client gets what it asked for and knows why:

* a **box**: outside it nothing is foreground;
* an **initial mask**: evidence beside the network's, worth ``PRIOR`` to 1 on each pixel;
* a **foreground point**: selects the region around it, for which the threshold falls as low as the
  point needs; where there are such points, nothing else is foreground;
* a **background point**: the region that it lies in is none; one that is selected by a foreground
  point shrinks, by a higher threshold, until the background point is outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from notan.modelfile.postprocess import dice_threshold, label_components, logit, sigmoid
from notan.web.answers import RefusedError

if TYPE_CHECKING:
    from typing import Self

    from notan.modelfile.postprocess import Postprocessing
    from notan.types import Mask, Probability, Size

PRIOR = 9.0
"""Odds: alone, such a mask makes the chance of its foreground 0.9 and of the rest 0.1."""

MOST_POINTS = 64

LEVELS = 256
"""Thresholds between which a point is told from another."""

FOREGROUND, BACKGROUND = 1, 0

Coordinate = Annotated[float, Field(allow_inf_nan=False, ge=0.0)]


class Prompts(BaseModel):
    """What is asked for, in pixels of the upright image, x first, as SAM's clients have it.

    Attributes:
        points: (x, y) each; (0.0, 0.0) is the upper left corner of the first pixel.
        labels: Of each point: 1 foreground, 0 background; none: all are foreground.
        box: x0, y0, x1, y1: left, upper, right and lower edge; every pixel that it touches is
            inside.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    points: Annotated[tuple[tuple[Coordinate, Coordinate], ...], Field(max_length=MOST_POINTS)] = ()
    labels: Annotated[tuple[Literal[0, 1], ...], Field(max_length=MOST_POINTS)] = ()
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = None

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.labels and len(self.labels) != len(self.points):
            raise ValueError(
                f"{len(self.labels)} labels for {len(self.points)} points; one of each is wanted"
            )
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError("the box is empty; x0, y0, x1, y1 with x0 < x1 and y0 < y1 is wanted")
        return self

    def pixels(self, label: int, size: Size) -> list[tuple[int, int]]:
        """Return the (row, column) of the points of one label.

        Raises:
            RefusedError: One lies outside the image.
        """
        labels = self.labels or (FOREGROUND,) * len(self.points)
        found = []
        for (x, y), its in zip(self.points, labels, strict=True):
            if x >= size[1] or y >= size[0]:
                raise RefusedError(422, f"the point ({x:g}, {y:g}) lies outside {_said(size)}")
            if its == label:
                found.append((int(y), int(x)))
        return found


def _said(size: Size) -> str:
    return f"the image of {size[0]}x{size[1]} pixels (height x width)"


def prompted(
    probability: Probability,
    postprocessing: Postprocessing,
    prompts: Prompts,
    initial: Mask | None = None,
) -> tuple[Probability, Mask]:
    """Return the probability and the mask that are asked for.

    Args:
        probability: Calibrated, float32, (height, width), 0..1.
        postprocessing: How it becomes a mask where no foreground point says otherwise.
        prompts: What is asked for.
        initial: An initial mask, bool, (height, width).

    Returns:
        The box and the initial mask change both; points change the mask alone.

    Raises:
        RefusedError: A point or the box lies outside the image, the initial mask is of another
            size, or a background point cannot be told from a foreground one.
    """
    size = (probability.shape[0], probability.shape[1])
    wanted, unwanted = (prompts.pixels(label, size) for label in (FOREGROUND, BACKGROUND))
    probability = _with_prior(probability, initial)
    probability = _within(probability, prompts.box)
    if not wanted:
        mask = postprocessing.mask(probability)
        if unwanted:
            labels, *_ = label_components(mask, 8)
            mask = mask & ~np.isin(labels, [labels[point] for point in unwanted])
        return probability, mask
    rule = postprocessing.threshold_rule
    usual = dice_threshold(probability) if rule == "dice" else postprocessing.threshold
    mask = np.zeros(size, np.bool_)
    for point in wanted:
        mask |= _region(probability, point, unwanted, usual)
    return probability, mask


def _with_prior(probability: Probability, initial: Mask | None) -> Probability:
    """Multiply the odds: Bayes' rule, as if the mask were a second, independent witness."""
    if initial is None:
        return probability
    if initial.shape != probability.shape:
        raise RefusedError(
            422,
            f"the initial mask is {initial.shape[0]}x{initial.shape[1]} and does not fit "
            f"{_said((probability.shape[0], probability.shape[1]))}",
        )
    weight = np.float32(np.log(PRIOR))
    return sigmoid(logit(probability) + np.where(initial, weight, -weight))


def _within(probability: Probability, box: tuple[float, float, float, float] | None) -> Probability:
    if box is None:
        return probability
    height, width = probability.shape
    left, upper = int(box[0]), int(box[1])
    if left >= width or upper >= height:
        raise RefusedError(422, f"the box lies outside {_said((height, width))}")
    rows, columns = slice(upper, int(np.ceil(box[3]))), slice(left, int(np.ceil(box[2])))
    inside = np.zeros_like(probability)
    inside[rows, columns] = probability[rows, columns]
    return inside


def _region(
    probability: Probability,
    point: tuple[int, int],
    unwanted: list[tuple[int, int]],
    usual: float,
) -> Mask:
    """Return the region around a foreground point that holds no background point."""
    highest = float(probability[point])

    def around(threshold: float) -> Mask:
        labels, *_ = label_components(probability >= threshold, 8)
        return np.asarray(labels == labels[point], np.bool_)

    def is_free(region: Mask) -> bool:
        return not any(region[each] for each in unwanted)

    if highest <= 0:
        return np.zeros(probability.shape, np.bool_)  # outside the box
    lowest = min(usual, highest)
    region = around(lowest)
    if is_free(region):
        return region
    region = around(highest)  # the smallest that there is
    if not is_free(region):
        x, y = point[1], point[0]
        raise RefusedError(
            422,
            f"the model's probability does not tell the foreground point ({x}, {y}) from a "
            "background point; move one of them, or leave it out",
        )
    steps = np.linspace(lowest, highest, LEVELS)
    free, taken = LEVELS - 1, 0
    while free - taken > 1:  # the higher the threshold, the smaller the region: halve the steps
        middle = (free + taken) // 2
        smaller = around(float(steps[middle]))
        if is_free(smaller):
            free, region = middle, smaller
        else:
            taken = middle
    return region
