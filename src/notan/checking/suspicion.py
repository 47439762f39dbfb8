"""How suspicious a mask is, and what would explain it.

Swapped masks: would two images agree far better if they changed masks?

Small copies of all masks and predictions are kept, a bit for each pixel, so that every image can
be compared with every other of its size: 10,000 images take 80 MB.

What may have gone wrong with a mask: each explanation is tried out against a prediction.

A mask that was shifted, eroded, dilated or inverted agrees with a good prediction once that is
undone. Shifts are tried all at once by cross-correlation, sizes by thresholds on a distance map.

Suspicion: how much a mask's disagreement with a held-out prediction looks like an error.

The score of an image is the sum of two differences in Dice, each beyond what is typical of the
whole data set, so that a network that draws every foreground a little fat accuses nobody:

- the Dice that the network expects of its own mask minus the Dice with the given one: it is sure,
  and it disagrees;
- what the best explanation gains, where it makes the mask agree about as well as masks usually do.

Source: the first part follows the idea of confident learning (Northcutt, Jiang and Chuang 2021,
arXiv:1911.00068) that a held-out prediction counts as much as it is sure of itself; Lad and Mueller
2023, arXiv:2307.05080, rank segmentation masks by a soft minimum of the pixels' self-confidence
instead, which finds fewer faults here (``benchmarks/planted_labels.py`` prints both).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from notan.metrics import Counts
from notan.modelfile.postprocess import expected_dice
from notan.modelfile.preprocess import resize_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from notan.data.samples import Sample
    from notan.prediction.predictor import Prediction
    from notan.types import Mask, Size

LONG_SIDE = 128
ROWS = 256
"""Predictions compared with all masks at once; keeps the table of Dice scores small."""

Bits = npt.NDArray[np.uint8]
Table = npt.NDArray[np.float32]


class _Small(NamedTuple):
    name: str
    mask: Bits
    prediction: Bits


class Swaps:
    """Collects masks and predictions, then finds for each image whose mask may be its own."""

    def __init__(self) -> None:
        self._of_size: dict[Size, list[_Small]] = defaultdict(list)

    def add(self, name: str, mask: Mask, prediction: Mask) -> None:
        """Keep small copies of an image's mask and of its prediction, both of one size."""
        height, width = mask.shape
        scale = min(1.0, LONG_SIDE / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        bits = (np.packbits(resize_mask(each, size)) for each in (mask, prediction))
        self._of_size[height, width].append(_Small(name, *bits))

    def explanations(self) -> Iterator[tuple[str, Explanation]]:
        """Give each image's name with the image of its size that it best changes masks with.

        Both Dice scores are means over the two images, of the small copies: among many masks
        one fits any prediction by chance, but not the other way round too. An image that is
        alone in its size has none.
        """
        for group in self._of_size.values():
            if len(group) < 2:
                continue
            masks = _unpacked([each.mask for each in group])
            predictions = _unpacked([each.prediction for each in group])
            own = np.concatenate(
                [
                    _dice(row[None], mask[None])[0]
                    for row, mask in zip(predictions, masks, strict=True)
                ]
            )
            for first in range(0, len(group), ROWS):
                rows = slice(first, first + ROWS)
                there = _dice(predictions[rows], masks)
                back = _dice(predictions, masks[rows]).T
                before, after = (own[rows, None] + own) / 2, (there + back) / 2
                gains = after - before
                for row, place in enumerate(range(len(group))[rows]):
                    gains[row, place] = -np.inf  # an image changes masks with another one
                    best = int(gains[row].argmax())
                    scores = float(before[row, best]), float(after[row, best])
                    yield group[place].name, Explanation("swapped", *scores, other=group[best].name)


def _unpacked(bits: list[Bits]) -> Table:
    return np.unpackbits(np.stack(bits), axis=1).astype(np.float32)


def _dice(predictions: Table, masks: Table) -> Table:
    """Return Dice of every prediction (rows) with every mask (columns); 1 where both are empty."""
    areas = predictions.sum(axis=1)[:, None] + masks.sum(axis=1)[None]
    overlap = predictions @ masks.T
    return np.where(areas > 0, 2 * overlap / np.maximum(areas, 1), 1).astype(np.float32)


Kind: TypeAlias = Literal["inverted", "shifted", "eroded", "dilated", "swapped"]
KINDS: tuple[Kind, ...] = ("inverted", "shifted", "eroded", "dilated", "swapped")

EXPLAINED_LONG_SIDE = 512
"""Shifts and sizes are searched at this long side at most, and then applied at the mask's own."""

REACH_FRACTION = 0.2
"""The farthest shift tried, as a share of each side."""

SIZE_FRACTION = 0.1
"""The most that is eroded or dilated, as a share of the short side."""

Plane: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """One thing that may have gone wrong with a mask, and what undoing it gives.

    Attributes:
        kind: What went wrong.
        before: Dice of the mask as it is with the prediction, 0..1.
        after: Dice once it is undone, 0..1; of a swap, both are means over the two images.
        down: How far down the mask was shifted, in pixels; negative: up.
        right: How far to the right, in pixels; negative: to the left.
        pixels: How many pixels were eroded or dilated.
        other: The image whose mask it was swapped with.
    """

    kind: Kind
    before: float
    after: float
    down: int = 0
    right: int = 0
    pixels: int = 0
    other: str = ""

    @property
    def gain(self) -> float:
        """How much better the mask agrees once it is undone, -1..1."""
        return self.after - self.before

    def in_words(self) -> str:
        """Say what happened and by which numbers."""
        looks, undone = {
            "inverted": ("inverted", "the other way round"),
            "shifted": (f"shifted by {way(self.down, self.right)}", "shifted back"),
            "eroded": (f"eroded by {_pixels(self.pixels)}", "dilated again"),
            "dilated": (f"dilated by {_pixels(self.pixels)}", "eroded again"),
            "swapped": (f"swapped with that of {self.other}", "swapped back"),
        }[self.kind]
        numbers = f"Dice with the model {self.before:.2f} as it is, {self.after:.2f} {undone}"
        return f"looks {looks} ({numbers})"


def way(down: int, right: int) -> str:
    """Return a shift in words, such as ``"12 down, 7 right"``."""
    vertical = f"{abs(down)} {'down' if down > 0 else 'up'}" if down else ""
    horizontal = f"{abs(right)} {'right' if right > 0 else 'left'}" if right else ""
    return ", ".join(part for part in (vertical, horizontal) if part)


def _pixels(count: int) -> str:
    return f"{count} pixel" if count == 1 else f"{count} pixels"


def explain(mask: Mask, prediction: Mask, ignore: Mask | None = None) -> Iterator[Explanation]:
    """Try out what may have gone wrong with a mask, the best of each kind.

    Whether an explanation is worth anything, its gain says.

    Args:
        mask: The given mask, bool, (height, width).
        prediction: What a network makes of the image, of the same size.
        ignore: True = not counted; None = every pixel counts.
    """
    counted = np.ones_like(mask) if ignore is None else ~ignore
    before = Counts.of(prediction, mask, ignore).dice
    yield Explanation("inverted", before, Counts.of(prediction, ~mask, ignore).dice)
    height, width = mask.shape
    scale = min(1.0, EXPLAINED_LONG_SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = [resize_mask(each, size) for each in (mask & counted, prediction & counted, counted)]
    yield from _shifted(mask, prediction, counted, _best_shift(*small), 1 / scale)
    yield from _resized(mask, prediction, counted, small, 1 / scale)


def _shifted(
    mask: Mask, prediction: Mask, counted: Mask, shift: tuple[int, int], scale: float
) -> Iterator[Explanation]:
    down, right = (round(step * scale) for step in shift)
    if (down, right) == (0, 0):
        return
    before = Counts.of(prediction, mask, ~counted).dice
    back = moved(mask & counted, -down, -right)
    yield Explanation("shifted", before, Counts.of(prediction, back, ~counted).dice, down, right)


def moved(mask: Mask, down: int, right: int) -> Mask:
    """Shift a mask; what comes in from outside the image is background."""
    result = np.zeros_like(mask)
    (top, rows), (left, columns) = (
        _window(step, side) for step, side in zip((down, right), mask.shape, strict=True)
    )
    result[rows, columns] = mask[top, left]
    return result


def _window(step: int, side: int) -> tuple[slice, slice]:
    """Return where a shift by ``step`` takes pixels of a side from, and where it puts them."""
    step = max(-side, min(side, step))
    return slice(max(0, -step), side - max(0, step)), slice(max(0, step), side - max(0, -step))


def _best_shift(mask: Mask, prediction: Mask, counted: Mask) -> tuple[int, int]:
    """Return by how much the mask is shifted against the prediction: where Dice is highest.

    Equal shifts: the shortest. The mask is moved back into a frame of background: were only the
    part counted that both show, a far shift would gain by leaving the prediction's faults outside.
    """
    height, width = mask.shape
    reach = tuple(max(1, int(side * REACH_FRACTION)) for side in (height, width))
    overlap = _correlation(mask, prediction, reach)
    areas = _correlation(mask, counted, reach) + np.count_nonzero(prediction)
    dice = 2 * overlap / np.maximum(areas, 1)
    rows, columns = np.mgrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    dice = np.round(dice, 6) - 1e-9 * np.hypot(rows, columns)
    row, column = np.unravel_index(int(dice.argmax()), dice.shape)
    return int(row) - reach[0], int(column) - reach[1]


def _correlation(one: Mask, other: Mask, reach: tuple[int, ...]) -> Plane:
    """Count the pixels true in both, for every shift of ``one`` against ``other``, by FFT."""
    shape = [cv2.getOptimalDFTSize(side + far) for side, far in zip(one.shape, reach, strict=True)]
    product = np.fft.rfft2(one, shape) * np.conj(np.fft.rfft2(other, shape))
    counts = np.fft.irfft2(product, shape)
    rows, columns = (np.arange(-far, far + 1) for far in reach)
    return np.asarray(np.round(counts[np.ix_(rows, columns)]), np.float64)


def _resized(
    mask: Mask, prediction: Mask, counted: Mask, small: list[Mask], scale: float
) -> Iterator[Explanation]:
    """Find how far the mask must be dilated, and how far eroded, to agree best."""
    before = Counts.of(prediction, mask, ~counted).dice
    tries: tuple[tuple[Kind, Callable[[Mask, float], Mask], bool], ...] = (
        ("eroded", dilate, False),
        ("dilated", erode, True),
    )
    for kind, undo, of_background in tries:
        pixels = max(1, round(_best_growth(*small, of_background=of_background) * scale))
        after = Counts.of(prediction, undo(mask, pixels), ~counted).dice
        yield Explanation(kind, before, after, pixels=pixels)


def _best_growth(mask: Mask, prediction: Mask, counted: Mask, *, of_background: bool) -> int:
    """Return by how many pixels foreground or background must grow for the highest Dice."""
    most = max(1, int(min(mask.shape) * SIZE_FRACTION))
    rings = np.ceil(_distance(~mask if of_background else mask)).clip(max=most + 1).astype(np.int64)
    grown = np.cumsum(np.bincount(rings[counted], minlength=most + 2))
    overlap = np.cumsum(np.bincount(rings[counted & prediction], minlength=most + 2))
    predicted = overlap[-1]
    if of_background:
        grown, overlap = grown[-1] - grown, overlap[-1] - overlap
    dice = 2 * overlap / np.maximum(grown + predicted, 1)
    return 1 + int(dice[1 : most + 1].argmax())


def dilate(mask: Mask, pixels: float) -> Mask:
    """Add every pixel within a distance of the foreground."""
    return np.asarray(_distance(mask) <= pixels, bool)


def erode(mask: Mask, pixels: float) -> Mask:
    """Keep every pixel farther from the background than a distance; the frame is no background."""
    return ~dilate(~mask, pixels)


def _distance(mask: Mask) -> Plane:
    """Return each pixel's distance to the foreground, in pixels; infinity where there is none."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    background = (~mask).astype(np.uint8)
    return np.asarray(
        cv2.distanceTransform(background, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float64
    )


LEAST_GAIN = 0.1
"""An explanation counts from this much more Dice on, beyond what is typical of its kind."""

LEAST_SHARE = 0.6
"""And if it makes up for at least this share of what the mask lacks to a typical Dice. Without an
explanation, a network that is not this many times as sure as usual has lost its way itself."""

LEAST_TYPICAL_DICE = 0.5
"""Networks that agree less than this with the masks as a whole are no judges."""

LEAST_SCORE = 0.25
DEVIATIONS = 2.5
"""The cut is so many robust standard deviations of the disagreement, or the least score."""


@dataclass(frozen=True)
class Judgement:
    """What a network that never saw an image makes of its mask.

    Attributes:
        name: The sample's.
        dice: Of the given mask with the prediction, 0..1.
        expected_dice: The Dice that the network expects of its prediction, 0..1.
        explanations: What may have gone wrong, the best of each kind, whether it gains or not.
    """

    name: str
    dice: float
    expected_dice: float
    explanations: Mapping[Kind, Explanation]

    @property
    def disagreement(self) -> float:
        """How much less the mask agrees than the network expects, -1..1."""
        return self.expected_dice - self.dice

    def gain(self, kind: Kind) -> float:
        """Return what an explanation gains; 0 where there is none of its kind."""
        found = self.explanations.get(kind)
        return found.gain if found else 0.0


@dataclass(frozen=True)
class Typical:
    """What is usual in a data set: medians over all images.

    Attributes:
        dice: Of given masks with held-out predictions.
        expected_dice: What the networks expect of their predictions.
        disagreement: Expected Dice minus the given mask's.
        deviation: The disagreement's robust standard deviation, from the median deviation.
        gains: What each kind of explanation gains, at least 0.
    """

    dice: float
    expected_dice: float
    disagreement: float
    deviation: float
    gains: Mapping[Kind, float]

    @classmethod
    def of(cls, judgements: Sequence[Judgement]) -> Typical:
        """Take the medians of at least one judgement."""
        from scipy.stats import median_abs_deviation

        gaps = [each.disagreement for each in judgements]
        return cls(
            dice=float(np.median([each.dice for each in judgements])),
            expected_dice=float(np.median([each.expected_dice for each in judgements])),
            disagreement=float(np.median(gaps)),
            deviation=float(median_abs_deviation(gaps, scale="normal")),
            gains={
                kind: max(0.0, float(np.median([each.gain(kind) for each in judgements])))
                for kind in KINDS
            },
        )

    def beyond(self, explanation: Explanation) -> float:
        """Return how much more an explanation gains than its kind usually does."""
        return explanation.gain - self.gains[explanation.kind]

    @property
    def cut(self) -> float:
        """The score from which on a mask is reported."""
        return max(LEAST_SCORE, DEVIATIONS * self.deviation)


@dataclass(frozen=True)
class Suspect:
    """A mask with its place in the ranking.

    Attributes:
        judgement: What was found.
        score: How suspicious it is; 0 and more, most are near 0.
        explanation: What went wrong with it by the looks of it, where that can be told.
    """

    judgement: Judgement
    score: float
    explanation: Explanation | None

    def in_words(self) -> str:
        """Say why it is suspected."""
        if self.explanation:
            return self.explanation.in_words()
        found, expected = self.judgement.dice, self.judgement.expected_dice
        return (
            f"disagrees with the model (Dice {found:.2f}, where the model expects {expected:.2f} "
            "of itself)"
        )


@dataclass(frozen=True)
class Ranking:
    """All masks, the most suspicious first.

    Attributes:
        suspects: One for each image.
        typical: What their scores are measured against.
    """

    suspects: tuple[Suspect, ...]
    typical: Typical

    @property
    def is_sound(self) -> bool:
        """Whether the networks have learned enough for their doubts to mean anything."""
        return self.typical.dice >= LEAST_TYPICAL_DICE

    @property
    def beyond_cut(self) -> tuple[Suspect, ...]:
        """Those that are worth a look; none where the networks have learned too little."""
        return tuple(each for each in self.suspects if self.is_beyond_cut(each))

    def is_beyond_cut(self, suspect: Suspect) -> bool:
        """Say whether one of the masks is worth a look."""
        sure = suspect.judgement.expected_dice >= LEAST_SHARE * self.typical.expected_dice
        told = suspect.explanation is not None or sure
        return self.is_sound and told and suspect.score >= self.typical.cut


def judge_all(pairs: Iterable[tuple[Sample, Prediction]]) -> list[Judgement]:
    """Judge masks by predictions of networks that never saw them.

    Args:
        pairs: Every sample once; they are not kept.
    """
    swaps, found = Swaps(), []
    for sample, prediction in pairs:
        swaps.add(sample.name, sample.mask, prediction.mask)
        judgement = Judgement(
            sample.name,
            Counts.of(prediction.mask, sample.mask, sample.ignore).dice,
            _expected_dice(prediction, sample.ignore),
            {each.kind: each for each in explain(sample.mask, prediction.mask, sample.ignore)},
        )
        found.append(judgement)
    swapped = {name: {each.kind: each} for name, each in swaps.explanations()}
    return [
        replace(each, explanations={**each.explanations, **swapped.get(each.name, {})})
        for each in found
    ]


def _expected_dice(prediction: Prediction, ignore: Mask | None) -> float:
    if ignore is None:
        return prediction.expected_dice
    probability = np.where(ignore, np.float32(0), prediction.probability)
    return expected_dice(probability, prediction.mask & ~ignore)


def rank(judgements: Sequence[Judgement]) -> Ranking:
    """Rank masks by suspicion, against what is typical of all of them."""
    typical = Typical.of(judgements)
    found = {each.name: _best(each.explanations.values(), each, typical) for each in judgements}
    suspects = []
    for each in judgements:
        explanation = found[each.name]
        if explanation and explanation.kind == "swapped":
            partner = found[explanation.other]
            if partner is None or partner.other != each.name:  # it takes two to swap
                alone = [one for one in each.explanations.values() if one.kind != "swapped"]
                explanation = _best(alone, each, typical)
        suspects.append(_suspect(each, explanation, typical))
    suspects.sort(key=lambda each: (-each.score, each.judgement.name))
    return Ranking(tuple(suspects), typical)


def _best(
    explanations: Iterable[Explanation], judgement: Judgement, typical: Typical
) -> Explanation | None:
    """Return the explanation that gains most beyond what is typical, if any is believable."""
    believable = [
        each
        for each in explanations
        if typical.beyond(each) >= LEAST_GAIN
        and each.gain >= LEAST_SHARE * (typical.dice - judgement.dice)
    ]
    return max(believable, key=typical.beyond, default=None)


def _suspect(judgement: Judgement, explanation: Explanation | None, typical: Typical) -> Suspect:
    gain = typical.beyond(explanation) if explanation else 0.0
    disagreement = max(0.0, judgement.disagreement - typical.disagreement)
    return Suspect(judgement, disagreement + gain, explanation)
