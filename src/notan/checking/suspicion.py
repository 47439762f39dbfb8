"""How suspicious a mask is, and what would explain it.

A network that never saw an image predicts it. The score of the given mask is the sum of two
differences in Dice, each beyond what is typical of the whole data set, so that a network that
draws every foreground a little fat accuses nobody:

- the Dice that the network expects of its own mask minus the Dice with the given one: it is sure,
  and it disagrees;
- what the best explanation gains, where it makes the mask agree about as well as masks usually do.

Explanations are tried out: a mask that was shifted, eroded, dilated, inverted or swapped agrees
with a good prediction once that is undone.

Where the networks disagree with most masks of a kind of image, as its colours tell kinds apart,
they have not learned that kind, and its masks are not judged at all.

Source: the first part follows the idea of confident learning (Northcutt, Jiang and Chuang 2021,
arXiv:1911.00068) that a held-out prediction counts as much as it is sure of itself; Lad and Mueller
2023, arXiv:2307.05080, rank segmentation masks by a soft minimum of the pixels' self-confidence
instead, which finds fewer faults here (``benchmarks/planted_labels.py`` prints both).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from notan.checking.alignment import shift_in_words
from notan.checking.diagnosis import number_of
from notan.metrics import Counts
from notan.modelfile.preprocess import resize_mask

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from notan.data.samples import Sample
    from notan.prediction.predictor import Prediction
    from notan.types import Mask, RGBImage, Size

Kind: TypeAlias = Literal["inverted", "shifted", "eroded", "dilated", "swapped"]
KINDS: tuple[Kind, ...] = ("inverted", "shifted", "eroded", "dilated", "swapped")

Plane = npt.NDArray[np.float64]

Bits = npt.NDArray[np.uint8]
Table = npt.NDArray[np.float32]

SEARCHED_LONG_SIDE = 512
"""Shifts and sizes are searched at this long side at most, and then applied at the mask's own."""

REACH_FRACTION = 0.2
"""The farthest shift tried, as a share of each side."""

SIZE_FRACTION = 0.1
"""The most that is eroded or dilated, as a share of the short side."""

SWAPPED_LONG_SIDE = 128
"""Long side of the copies that are compared with every other: 10,000 images take 80 MB."""

ROWS = 256
"""Predictions compared with all masks at once; keeps the table of Dice scores small."""

LEAST_GAIN = 0.1
"""An explanation counts from this much more Dice on, beyond what is typical of its kind."""

LEAST_SHARE = 0.6
"""And if it makes up for at least this share of what the mask lacks to a typical Dice. Without an
explanation, a network that is not this many times as sure as usual has lost its way itself."""

LEAST_TYPICAL_DICE = 0.5
"""Networks that agree less than this with the masks as a whole are no judges."""

LEAST_SCORE = 0.25
DEVIATIONS = 2.5
"""The threshold is so many robust standard deviations of the disagreement, or the least score."""

Look: TypeAlias = tuple[float, ...]
"""Means and standard deviations of an image's red, green and blue, 0..1."""

UNLIKE = 0.25
"""Looks farther apart than this are two kinds: stained tissue and fluorescence are 0.4 apart, and
photographs of pets fall into few kinds."""

FEWEST_OF_A_KIND = 3
"""Of fewer images nothing is most, and so few masks are soon looked at."""

COMPARED_LOOKS = 2000
"""Of more images a part is compared with each other, which takes 32 MB; the others join them."""


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
        pixels = number_of(self.pixels, "pixel")
        looks, undone = {
            "inverted": ("inverted", "the other way round"),
            "shifted": (f"shifted by {shift_in_words(self.down, self.right)}", "shifted back"),
            "eroded": (f"eroded by {pixels}", "dilated again"),
            "dilated": (f"dilated by {pixels}", "eroded again"),
            "swapped": (f"swapped with that of {self.other}", "swapped back"),
        }[self.kind]
        numbers = f"Dice with the model {self.before:.2f} as it is, {self.after:.2f} {undone}"
        return f"looks {looks} ({numbers})"


def explain(mask: Mask, prediction: Mask, ignore: Mask | None = None) -> Iterator[Explanation]:
    """Try out what may have gone wrong with a mask by itself, the best of each kind.

    Whether an explanation is worth anything, its gain says.

    Args:
        mask: The given mask, bool, (height, width).
        prediction: What a network makes of the image, of the same size.
        ignore: True = not counted; None = every pixel counts.
    """
    counted = np.ones_like(mask) if ignore is None else ~ignore

    def dice(candidate: Mask) -> float:
        return Counts.of(prediction, candidate, ignore).dice

    before = dice(mask)
    yield Explanation("inverted", before, dice(~mask))
    small, scale = _shrunk(SEARCHED_LONG_SIDE, mask & counted, prediction & counted, counted)
    down, right = (round(step * scale) for step in _best_shift(*small))
    if (down, right) != (0, 0):
        back = moved(mask & counted, -down, -right)
        yield Explanation("shifted", before, dice(back), down, right)
    pixels = max(1, round(_best_growth(*small) * scale))
    yield Explanation("eroded", before, dice(dilate(mask, pixels)), pixels=pixels)
    pixels = max(1, round(_best_growth(*small, of_background=True) * scale))
    yield Explanation("dilated", before, dice(erode(mask, pixels)), pixels=pixels)


def _shrunk(long_side: int, *masks: Mask) -> tuple[list[Mask], float]:
    """Return masks of one size, shrunk, and how many of their pixels one stands for."""
    height, width = masks[0].shape
    scale = min(1.0, long_side / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return [resize_mask(each, size) for each in masks], 1 / scale


def moved(mask: Mask, down: int, right: int) -> Mask:
    """Shift a mask; what comes in from outside the image is background."""
    height, width = mask.shape
    rows, columns = np.arange(height) - down, np.arange(width) - right
    inside = np.ix_((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
    result = np.zeros_like(mask)
    result[inside] = np.roll(mask, (down, right), axis=(0, 1))[inside]
    return result


def _best_shift(mask: Mask, prediction: Mask, counted: Mask) -> tuple[int, int]:
    """Return by how much the mask is shifted against the prediction: where Dice is highest.

    Equal shifts: the shortest. The mask is moved back into a frame of background: were only the
    part counted that both show, a far shift would gain by leaving the prediction's faults outside.
    """
    reach = [max(1, int(side * REACH_FRACTION)) for side in mask.shape]
    shape = [cv2.getOptimalDFTSize(side + far) for side, far in zip(mask.shape, reach, strict=True)]
    window = np.ix_(*(np.arange(-far, far + 1) for far in reach))

    def overlap(other: Mask) -> Plane:
        """Count the pixels true in both, for every shift of the mask, all at once by FFT."""
        product = np.fft.rfft2(mask, shape) * np.conj(np.fft.rfft2(other, shape))
        return np.asarray(np.round(np.fft.irfft2(product, shape)[window]), np.float64)

    areas = overlap(counted) + np.count_nonzero(prediction)
    dice = 2 * overlap(prediction) / np.maximum(areas, 1)
    rows, columns = np.mgrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    dice = np.round(dice, 6) - 1e-9 * np.hypot(rows, columns)
    row, column = np.unravel_index(int(dice.argmax()), dice.shape)
    return int(row) - reach[0], int(column) - reach[1]


def _best_growth(
    mask: Mask, prediction: Mask, counted: Mask, *, of_background: bool = False
) -> int:
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


class Swaps:
    """Collects masks and predictions, then finds for each image whose mask may be its own."""

    def __init__(self) -> None:
        self._of_size: dict[Size, list[tuple[str, Bits, Bits]]] = defaultdict(list)

    def add(self, name: str, mask: Mask, prediction: Mask) -> None:
        """Keep small copies of an image's mask and of its prediction, a bit for each pixel."""
        small, _ = _shrunk(SWAPPED_LONG_SIDE, mask, prediction)
        size = (mask.shape[0], mask.shape[1])
        self._of_size[size].append((name, np.packbits(small[0]), np.packbits(small[1])))

    def explanations(self) -> Iterator[tuple[str, Explanation]]:
        """Give each image's name with the image of its size that it best changes masks with.

        Both Dice scores are means over the two images, of the small copies: among many masks
        one fits any prediction by chance, but not the other way round too. An image that is
        alone in its size has none.
        """
        for group in self._of_size.values():
            if len(group) < 2:
                continue
            names, *bits = zip(*group, strict=True)
            masks, predictions = (
                np.unpackbits(np.stack(each), axis=1).astype(np.float32) for each in bits
            )
            own = _dice(np.sum(predictions * masks, axis=1), predictions.sum(1), masks.sum(1))
            for first in range(0, len(names), ROWS):
                rows = slice(first, first + ROWS)
                there = _dice_of_all(predictions[rows], masks)
                back = _dice_of_all(predictions, masks[rows]).T
                before, after = (own[rows, None] + own) / 2, (there + back) / 2
                gains = after - before
                for row, name in enumerate(names[rows]):
                    gains[row, first + row] = -np.inf  # an image changes masks with another one
                    best = int(gains[row].argmax())
                    scores = float(before[row, best]), float(after[row, best])
                    yield name, Explanation("swapped", *scores, other=names[best])


def _dice_of_all(predictions: Table, masks: Table) -> Table:
    """Return Dice of every prediction (rows) with every mask (columns)."""
    return _dice(predictions @ masks.T, predictions.sum(axis=1)[:, None], masks.sum(axis=1))


def _dice(overlap: Table, predicted: Table, given: Table) -> Table:
    """Return Dice from the areas in pixels; 1 where both are empty."""
    areas = predicted + given
    return np.where(areas > 0, 2 * overlap / np.maximum(areas, 1), 1).astype(np.float32)


@dataclass(frozen=True)
class Suspect:
    """What a network that never saw an image makes of its mask.

    Attributes:
        name: The sample's.
        dice: Of the given mask with the prediction, 0..1.
        expected_dice: The Dice that the network expects of its prediction, 0..1.
        explanations: What may have gone wrong, the best of each kind, whether it gains or not.
        score: How suspicious the mask is among the others; 0 and more, most are near 0.
        explanation: What went wrong with it by the looks of it, where that can be told.
        is_above_threshold: Whether the mask is worth a look.
        look: Of the image, by which kinds are told apart.
        is_of_lost_kind: Whether the networks got most images of its kind wrong, so that it is not
            judged.
    """

    name: str
    dice: float
    expected_dice: float
    explanations: Mapping[Kind, Explanation] = field(default_factory=dict)
    score: float = 0.0
    explanation: Explanation | None = None
    is_above_threshold: bool = False
    look: Look = (0.0,) * 6
    is_of_lost_kind: bool = False

    @property
    def disagreement(self) -> float:
        """How much less the mask agrees than the network expects, -1..1."""
        return self.expected_dice - self.dice

    def gain(self, kind: Kind) -> float:
        """Return what an explanation gains; 0 where there is none of its kind."""
        found = self.explanations.get(kind)
        return found.gain if found else 0.0

    def in_words(self) -> str:
        """Say why it is suspected, or why it is not judged."""
        if self.is_of_lost_kind:
            return (
                "not judged: the networks got most images of its kind wrong "
                f"(Dice {self.dice:.2f} here)"
            )
        if self.explanation:
            return self.explanation.in_words()
        return (
            f"disagrees with the model (Dice {self.dice:.2f}, where the model expects "
            f"{self.expected_dice:.2f} of itself)"
        )


@dataclass(frozen=True)
class Typical:
    """What is usual in a data set: medians over all images.

    Attributes:
        dice: Of given masks with held-out predictions.
        expected_dice: What the networks expect of their predictions.
        disagreement: Expected Dice minus the given mask's.
        threshold: The score from which on a mask is reported.
        gains: What each kind of explanation gains, at least 0.
    """

    dice: float
    expected_dice: float
    disagreement: float
    threshold: float
    gains: Mapping[Kind, float]

    @classmethod
    def of(cls, suspects: Sequence[Suspect]) -> Typical:
        """Take the medians of at least one mask."""
        from scipy.stats import median_abs_deviation

        gaps = [each.disagreement for each in suspects]
        deviation = float(median_abs_deviation(gaps, scale="normal"))
        gains = {kind: [each.gain(kind) for each in suspects] for kind in KINDS}
        return cls(
            dice=float(np.median([each.dice for each in suspects])),
            expected_dice=float(np.median([each.expected_dice for each in suspects])),
            disagreement=float(np.median(gaps)),
            threshold=max(LEAST_SCORE, DEVIATIONS * deviation),
            gains={kind: max(0.0, float(np.median(every))) for kind, every in gains.items()},
        )

    @property
    def is_sound(self) -> bool:
        """Whether the networks have learned enough for their doubts to mean anything."""
        return self.dice >= LEAST_TYPICAL_DICE

    def beyond(self, explanation: Explanation) -> float:
        """Return how much more an explanation gains than its kind usually does."""
        return explanation.gain - self.gains[explanation.kind]

    def best(self, suspect: Suspect, kinds: Iterable[Kind] = KINDS) -> Explanation | None:
        """Return the explanation that gains most beyond what is usual, if any is believable."""
        found = [suspect.explanations[kind] for kind in kinds if kind in suspect.explanations]
        believable = [
            each
            for each in found
            if self.beyond(each) >= LEAST_GAIN
            and each.gain >= LEAST_SHARE * (self.dice - suspect.dice)
        ]
        return max(believable, key=self.beyond, default=None)

    def judged(self, suspect: Suspect, explanation: Explanation | None) -> Suspect:
        """Return a suspect with its score and whether that is reported."""
        score = max(0.0, suspect.disagreement - self.disagreement)
        score += self.beyond(explanation) if explanation else 0.0
        sure = suspect.expected_dice >= LEAST_SHARE * self.expected_dice
        above = self.is_sound and (explanation is not None or sure) and score >= self.threshold
        return replace(suspect, score=score, explanation=explanation, is_above_threshold=above)


@dataclass(frozen=True)
class LostKind:
    """Images of one look, most of whose masks the networks disagree with.

    Attributes:
        suspects: All of them, by name.
    """

    suspects: tuple[Suspect, ...]

    @property
    def dice(self) -> float:
        """Median Dice of given masks with held-out predictions."""
        return median(each.dice for each in self.suspects)


@dataclass(frozen=True)
class SuspectRanking:
    """All masks, the most suspicious first, and last those that are not judged.

    Attributes:
        suspects: One for each image.
        typical: What their scores are measured against.
        lost_kinds: The kinds of image that the networks have not learned.
    """

    suspects: tuple[Suspect, ...]
    typical: Typical
    lost_kinds: tuple[LostKind, ...] = ()

    @property
    def judged(self) -> int:
        """How many masks the networks are fit to judge, as far as kinds of image go."""
        return sum(not each.is_of_lost_kind for each in self.suspects)

    @property
    def above_threshold(self) -> tuple[Suspect, ...]:
        """Those that are worth a look; none where the networks have learned too little."""
        return tuple(each for each in self.suspects if each.is_above_threshold)


def judge_all(pairs: Iterable[tuple[Sample, Prediction]]) -> list[Suspect]:
    """Judge masks by predictions of networks that never saw them; nothing is ranked yet.

    Args:
        pairs: Every sample once; they are not kept.
    """
    swaps, found = Swaps(), []
    for sample, prediction in pairs:
        swaps.add(sample.name, sample.mask, prediction.mask)
        suspect = Suspect(
            sample.name,
            Counts.of(prediction.mask, sample.mask, sample.ignore).dice,
            _expected_dice(prediction, sample.ignore),
            {each.kind: each for each in explain(sample.mask, prediction.mask, sample.ignore)},
            look=look_of(sample.image),
        )
        found.append(suspect)
    swapped: dict[str, Mapping[Kind, Explanation]] = {
        name: {each.kind: each} for name, each in swaps.explanations()
    }
    return [
        replace(each, explanations={**each.explanations, **swapped.get(each.name, {})})
        for each in found
    ]


def _expected_dice(prediction: Prediction, ignore: Mask | None) -> float:
    if ignore is None:
        return prediction.expected_dice
    probability = np.where(ignore, np.float32(0), prediction.probability)
    return prediction.postprocessing.expected_dice(probability, prediction.mask & ~ignore)


def look_of(image: RGBImage) -> Look:
    """Return by what an image's kind is told."""
    mean, std = cv2.meanStdDev(image)
    return tuple((np.concatenate([mean, std]).ravel() / 255).tolist())


def find_kinds(looks: Sequence[Look]) -> npt.NDArray[np.int64]:
    """Return a number for each image, the same for images of one kind.

    Source: average linkage, Sokal and Michener 1958, cut at ``UNLIKE``.
    """
    from scipy.cluster.hierarchy import fclusterdata
    from scipy.spatial import KDTree

    places = np.asarray(looks, np.float64)
    some = places[:: -(-len(places) // COMPARED_LOOKS)]
    if len(some) < 2:
        return np.zeros(len(places), np.int64)
    kinds = fclusterdata(some, UNLIKE, criterion="distance", method="average")
    return np.asarray(kinds[KDTree(some).query(places)[1]], np.int64)


def rank(suspects: Sequence[Suspect]) -> SuspectRanking:
    """Rank masks by suspicion, against what is typical of all that can be judged."""
    of_kind: dict[int, list[Suspect]] = defaultdict(list)
    for suspect, kind in zip(suspects, find_kinds([each.look for each in suspects]), strict=True):
        of_kind[int(kind)].append(suspect)
    lost: set[int] = set()
    while True:
        rest = [each for kind in of_kind.keys() - lost for each in of_kind[kind]]
        ranking = _rank(rest)
        more = lost | _lost(of_kind, ranking)
        if more == of_kind.keys():  # no judges at all, as what is typical then says
            return _rank(suspects)
        if more == lost:
            break
        lost = more
    kinds = (sorted(of_kind[kind], key=lambda each: each.name) for kind in sorted(lost))
    lost_kinds = tuple(
        LostKind(tuple(replace(each, is_of_lost_kind=True) for each in kind)) for kind in kinds
    )
    not_judged = [each for kind in lost_kinds for each in kind.suspects]
    return SuspectRanking((*ranking.suspects, *not_judged), ranking.typical, lost_kinds)


def _lost(of_kind: Mapping[int, Sequence[Suspect]], ranking: SuspectRanking) -> set[int]:
    """Return the kinds among those in a ranking most of whose masks the networks disagree with."""
    disagreeing = {
        each.name: each.is_above_threshold or each.dice < LEAST_TYPICAL_DICE
        for each in ranking.suspects
    }
    shares = {
        kind: [disagreeing[each.name] for each in every]
        for kind, every in of_kind.items()
        if len(every) >= FEWEST_OF_A_KIND and every[0].name in disagreeing
    }
    return {kind for kind, those in shares.items() if sum(those) > len(those) / 2}


def _rank(suspects: Sequence[Suspect]) -> SuspectRanking:
    """Rank masks against what is typical of all of them."""
    typical = Typical.of(suspects)
    best = {each.name: typical.best(each) for each in suspects}
    ranked = []
    for each in suspects:
        explanation = best[each.name]
        if explanation and explanation.kind == "swapped":
            partner = best.get(explanation.other)  # None: of a kind that is not judged
            if partner is None or partner.other != each.name:  # it takes two to swap
                explanation = typical.best(each, [kind for kind in KINDS if kind != "swapped"])
        ranked.append(typical.judged(each, explanation))
    ranked.sort(key=lambda each: (-each.score, each.name))
    return SuspectRanking(tuple(ranked), typical)
