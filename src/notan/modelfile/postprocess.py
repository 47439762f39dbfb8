"""Postprocessing: from a network's probability map to calibrated probabilities and a mask.

What validation chose stands in it, and it is stored in the card, so that evaluation, prediction and
every export decide alike. It works at the image's own size. NumPy and OpenCV only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import cv2
import numpy as np
from pydantic import Field

from notan.config.sections import Fraction, Section
from notan.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from notan.types import Mask, Probability

FLOAT32_EPSILON = float(np.finfo(np.float32).eps)
LEVELS = 2**16
"""Bins that ``dice_threshold`` sorts probabilities into; a power of two, so edges are exact."""

EMPTY_BELOW = 0.1
"""Of the least foreground that a training mask with any has, what is taken for none."""

NO_FOREGROUND = 2.0
"""A threshold that no probability reaches."""


class Postprocessing(Section):
    """How probabilities become a mask.

    Attributes:
        temperature: What logits are divided by; above 1 makes an overconfident network modest.
        bias: What is added to them then; below 0 for a network that sees too much foreground.
        threshold: Calibrated probability from which a pixel is foreground.
        threshold_rule: ``threshold``: the one above; ``dice``: for each image the threshold whose
            mask has the highest expected Dice under its own probabilities.
        min_component_fraction: Foreground components below this share of the image become
            background; of an image in tiles, of the part that a training image would show.
        fill_holes_fraction: Holes in the foreground below this share, likewise, are filled.
        keep_largest: Keep the largest foreground component alone.
        min_foreground_fraction: A mask that covers less than this share, likewise, is left empty.
        expectation_scale: What the logit of the Dice that the probabilities foretell is multiplied
            by; above 1 where masks that a network is less sure of are worse than it foretells.
        expectation_bias: What is added to it then; below 0 where all are.
        review_below: A mask whose expected Dice is lower should be looked at; None: not known.
    """

    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    bias: float = 0.0
    threshold: Fraction = 0.5
    threshold_rule: Literal["threshold", "dice"] = "threshold"
    min_component_fraction: Fraction = 0.0
    fill_holes_fraction: Fraction = 0.0
    keep_largest: bool = False
    min_foreground_fraction: Fraction = 0.0
    expectation_scale: Annotated[float, Field(gt=0.0)] = 1.0
    expectation_bias: float = 0.0
    review_below: Fraction | None = None

    def calibrate(self, probability: Probability) -> Probability:
        """Apply temperature and bias to a map of the network's own probabilities.

        Args:
            probability: float32, (height, width), 0..1.

        Source: Platt 1999; Guo et al. 2017, arXiv:1706.04599, who leave the bias out: a network
            that was trained for Dice as well needs it. It is done at the image's own size, after
            resizing; it keeps the order of the pixels, and so every threshold is still possible.
        """
        # by way of logits, because what was resized or blended from tiles is a probability
        if not self.is_calibrated:
            return probability
        return sigmoid(logit(probability) / np.float32(self.temperature) + np.float32(self.bias))

    def mask(self, probability: Probability) -> Mask:
        """Return the mask, bool (height, width), of a calibrated map."""
        threshold = dice_threshold(probability) if self.threshold_rule == "dice" else self.threshold
        return self.postprocess(probability >= threshold)

    def expected_dice(self, probability: Probability, mask: Mask) -> float:
        """Return the Dice that a mask is expected to have, 0..1.

        Args:
            probability: Calibrated, (height, width), 0..1.
            mask: bool, (height, width), True = foreground.
        """
        return self.temper(foretold_dice(probability, mask, self.min_foreground_fraction))

    def temper(self, foretold: float) -> float:
        """Return what validation taught to expect where the probabilities foretell a Dice."""
        if (self.expectation_scale, self.expectation_bias) == (1.0, 0.0):
            return foretold
        scaled = logit(np.array([foretold], np.float32)) * np.float32(self.expectation_scale)
        return float(sigmoid(scaled + np.float32(self.expectation_bias))[0])

    def needs_review(self, expected_dice: float) -> bool | None:
        """Whether a person should look at a mask of this expected Dice; None: not known."""
        return None if self.review_below is None else expected_dice < self.review_below

    @property
    def is_calibrated(self) -> bool:
        """Whether temperature and bias change anything."""
        return self.temperature != 1.0 or self.bias != 0.0

    @property
    def looks_at_other_pixels(self) -> bool:
        """Whether a pixel's class depends on the mask around it."""
        of_components = self.min_component_fraction or self.fill_holes_fraction
        return bool(self.keep_largest or of_components or self.min_foreground_fraction)

    def postprocess(self, mask: Mask) -> Mask:
        """Remove small components, fill holes and leave a mask empty as asked for.

        Components of the foreground are 8-connected, holes 4-connected. A part of the background
        that touches the image's edge is no hole.
        """
        if self.keep_largest or self.min_component_fraction:
            labels, areas, *_ = label_components(mask, 8)
            kept = areas >= self.min_component_fraction * mask.size
            if self.keep_largest:
                kept &= np.arange(len(areas)) == np.argmax(areas)
            mask = mask & kept[labels]
        if self.fill_holes_fraction:
            labels, areas, *edges = label_components(~mask, 4)
            small = (areas > 0) & (areas < self.fill_holes_fraction * mask.size)
            mask = mask | (small & ~np.any(edges, axis=0))[labels]
        if np.count_nonzero(mask) < self.min_foreground_fraction * mask.size:
            return np.zeros_like(mask)
        return mask

    def in_parts(self, share: float) -> Postprocessing:
        """Return the rule for an image of which a training image would show a part.

        Sizes were learned from such parts: in a mosaic of a hundred of them, a hundredth of the
        whole is as large as a training image was. And each part may hold a foreground of its own,
        so that the largest is not the only one to keep.

        Args:
            share: Of the image that a training image would show; from 1 on nothing changes.
        """
        if share >= 1 or not self.looks_at_other_pixels:
            return self
        smaller = {
            "min_component_fraction": self.min_component_fraction * share,
            "fill_holes_fraction": self.fill_holes_fraction * share,
            "min_foreground_fraction": self.min_foreground_fraction * share,
            "keep_largest": False,
        }
        return self.model_copy(update=smaller)

    def with_threshold(self, threshold: float) -> Postprocessing:
        """Return one with another threshold, without the rules for components of the old one.

        Raises:
            ConfigError: The threshold is outside 0..1.
        """
        if not 0 <= threshold <= 1:
            raise ConfigError(f"the threshold is {threshold}; it must be in 0..1")
        return Postprocessing(
            temperature=self.temperature,
            bias=self.bias,
            threshold=threshold,
            expectation_scale=self.expectation_scale,
            expectation_bias=self.expectation_bias,
            review_below=self.review_below,
        )

    def in_words(self) -> str:
        """Say the rule in a few words."""
        words = [
            "the Dice-optimal threshold of each image"
            if self.threshold_rule == "dice"
            else f"threshold {self.threshold:g}"
        ]
        if self.temperature != 1.0:
            words.append(f"temperature {self.temperature:g}")
        if self.bias:
            words.append(f"bias {self.bias:g}")
        if self.keep_largest:
            words.append("largest component only")
        if self.min_component_fraction:
            words.append(f"components under {self.min_component_fraction:.2%} of the image removed")
        if self.fill_holes_fraction:
            words.append(f"holes under {self.fill_holes_fraction:.2%} of the image filled")
        if self.min_foreground_fraction:
            least = f"{self.min_foreground_fraction:.2%}"
            words.append(f"no foreground where it is under {least} of the image")
        return ", ".join(words)


def sigmoid(logits: npt.NDArray[np.float32]) -> Probability:
    """Map logits to probabilities; the only place outside the losses that does."""
    values = np.clip(logits, -80, 80)
    np.exp(np.negative(values, out=values), out=values)  # in place: memory is what it takes
    np.divide(1, np.add(values, 1, out=values), out=values)
    return values


def logit(probability: Probability) -> npt.NDArray[np.float32]:
    """Map probabilities back to logits; 0 and 1 to those of float32's nearest neighbours."""
    inside = np.clip(probability, FLOAT32_EPSILON, 1 - FLOAT32_EPSILON)
    odds = np.divide(inside, 1 - inside, out=inside)
    return np.log(odds, out=odds)


def foretold_dice(probability: Probability, mask: Mask, empty_below: float = 0.0) -> float:
    """Return the Dice that the probabilities foretell of a mask: what to expect if they are right.

    Args:
        probability: Calibrated, (height, width), 0..1.
        mask: bool, (height, width), True = foreground.
        empty_below: The rule's ``min_foreground_fraction``.

    Returns:
        0..1. Of an empty mask, the chance that the image is empty: as if pixels were independent,
        or, where it is known how little foreground an image with any has, at least what Markov's
        inequality leaves: of images with so much, no more than (expected foreground) / (so much)
        can be there.

    Source: Dai and Li 2023 (RankSEG), arXiv:2206.13086: the expectation of 2 |Y and M| /
        (|Y| + |M|) over truths Y whose pixels are independent. It is developed to second order
        around the mean here, instead of summed over the number of foreground pixels; the rest falls
        with the square of that number.
    """
    (foretold,) = foretold_dice_of_each(probability, [mask], empty_below)
    return foretold


def foretold_dice_of_each(
    probability: Probability, masks: Iterable[Mask], empty_below: float = 0.0
) -> Iterator[float]:
    """Yield what ``foretold_dice`` says of each of several masks of one map, in less time."""
    sums = MaskSums(empty_below)
    sums.add(probability, np.zeros(probability.shape, np.bool_))
    chance = probability.astype(np.float64)
    spread = chance * (1 - chance)
    for mask in masks:
        sums.size = int(np.count_nonzero(mask))
        sums.inside, sums.inside_spread = chance[mask].sum(), spread[mask].sum()
        yield sums.foretold_dice()


def dice_threshold(probability: Probability) -> float:
    """Return the threshold whose mask has the highest expected Dice.

    Args:
        probability: Calibrated, (height, width), 0..1.

    Returns:
        A multiple of 1 / 65536; above 1 where an empty mask is best.

    Source: Dai and Li 2023 (RankSEG), arXiv:2206.13086: the best mask of each size holds the
        likeliest pixels, so only the number of pixels is to be found. Pixels are sorted into 65536
        levels here, and a level is taken whole.
    """
    sums = LevelSums()
    sums.add(probability)
    return sums.threshold()


class MaskSums:
    """What the foretold Dice of a mask needs, summed over the parts of an image."""

    def __init__(self, empty_below: float = 0.0) -> None:
        self.least = empty_below / EMPTY_BELOW  # that an image with foreground has of it
        self.size, self.pixels = 0, 0
        self.inside, self.whole, self.inside_spread, self.whole_spread = 0.0, 0.0, 0.0, 0.0
        self.log_empty = 0.0

    def add(self, probability: Probability, mask: Mask) -> Mask:
        """Take a part in: its calibrated map and its mask, which is returned."""
        chance = probability.astype(np.float64)
        spread = chance * (1 - chance)
        self.size += int(np.count_nonzero(mask))
        self.pixels += mask.size
        self.inside += chance[mask].sum()
        self.whole += chance.sum()
        self.inside_spread += spread[mask].sum()
        self.whole_spread += spread.sum()
        if not self.size:  # of a mask that holds anything it is not asked, and it takes long
            self.log_empty += _log_empty(chance)
        return mask

    def foretold_dice(self) -> float:
        """Return what ``foretold_dice`` says of the whole image, 0..1."""
        if not self.size and self.least:
            return float(max(0.0, 1 - self.whole / (self.least * self.pixels)))
        if not self.size:
            return float(np.exp(self.log_empty))
        outside, outside_spread = self.whole - self.inside, self.whole_spread - self.inside_spread
        sums = (self.size, self.inside, outside, self.inside_spread, outside_spread)
        return float(_expectation(*(np.asarray(each, np.float64) for each in sums)))


class LevelSums:
    """What ``dice_threshold`` needs, summed over the parts of an image."""

    def __init__(self) -> None:
        self.size = np.zeros(LEVELS, np.int64)
        self.inside, self.spread = np.zeros(LEVELS), np.zeros(LEVELS)
        self.log_empty = 0.0

    def add(self, probability: Probability) -> None:
        """Take the calibrated map of a part in, (height, width)."""
        levels = np.minimum((probability * np.float32(LEVELS)).astype(np.int64), LEVELS - 1).ravel()
        chance = probability.astype(np.float64).ravel()
        self.size += np.bincount(levels, minlength=LEVELS)
        self.inside += np.bincount(levels, chance, minlength=LEVELS)
        self.spread += np.bincount(levels, chance * (1 - chance), minlength=LEVELS)
        self.log_empty += _log_empty(chance)

    def threshold(self) -> float:
        """Return what ``dice_threshold`` says of the whole image."""
        size, inside, spread = (
            sums[::-1].cumsum() for sums in (self.size, self.inside, self.spread)
        )
        taken = np.flatnonzero(size)  # the masks that hold anything
        expected = _expectation(
            size[taken],
            inside[taken],
            inside[-1] - inside[taken],
            spread[taken],
            spread[-1] - spread[taken],
        )
        best = int(np.argmax(expected))
        if expected[best] < float(np.exp(self.log_empty)):
            return NO_FOREGROUND
        return float(LEVELS - 1 - taken[best]) / LEVELS


def _log_empty(chance: npt.NDArray[np.float64]) -> float:
    """Return the logarithm of the chance that no pixel is foreground."""
    return float(np.log1p(-np.minimum(chance, 1 - 1e-12)).sum())


def _expectation(
    size: npt.NDArray[np.int64 | np.float64],
    inside: npt.NDArray[np.float64],
    outside: npt.NDArray[np.float64],
    inside_spread: npt.NDArray[np.float64],
    outside_spread: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Return E[2 X / (size + X + Z)] to second order.

    X and Z are the foreground's pixels inside the mask and outside it, with these means and
    variances.
    """
    whole = size + inside + outside
    value = 2 * inside / whole
    curve = 2 * inside * outside_spread / whole**3 - 2 * (size + outside) * inside_spread / whole**3
    return np.clip(value + curve, 0.0, 1.0)


def label_components(
    mask: Mask, connectivity: Literal[4, 8]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], Mask, Mask, Mask]:
    """Label the connected components of a mask; label 0 is outside.

    Returns:
        The labels, int32 (height, width), and of each label: its area (0 for the outside), whether
        it touches the left or right edge, the upper edge, the lower edge.
    """
    # half the time of cv2.connectedComponentsWithStats
    number, found = cv2.connectedComponents(mask.astype(np.uint8), connectivity=connectivity)
    labels = np.asarray(found, np.int32)
    area = np.bincount(labels.ravel(), minlength=number).astype(np.int64)
    area[0] = 0

    def on(line: npt.NDArray[np.int32]) -> Mask:
        touches = np.zeros(number, np.bool_)
        touches[line] = True
        return touches

    sides = on(labels[:, 0]) | on(labels[:, -1])
    return labels, area, sides, on(labels[0]), on(labels[-1])
