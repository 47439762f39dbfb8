"""Suspicion: how much a mask's disagreement with a held-out prediction looks like an error.

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

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from notan.labels.explanations import KINDS, Explanation, Kind, explain
from notan.labels.swaps import Swaps
from notan.metrics import Counts
from notan.postprocessing import expected_dice

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from notan.data.sample import Sample
    from notan.predict.predictor import Prediction
    from notan.types import Mask

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
