"""Comparison: what several models scored on the same images, each alone and each pair."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from notan.comparison.verdict import decide, in_words
from notan.metrics import EMPTY_RULE, Counts
from notan.metrics.statistics import Interval, PairedComparison, compare_paired, holm, mean_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notan.comparison.measure import Result
    from notan.data.sample import Source

MOST_DIFFERENT = 5
"""Images of a pair that are named."""


@dataclass(frozen=True)
class Contender:
    """A model, or the seeds of one run together.

    Attributes:
        name: Its own among the contenders.
        results: One for each seed.
        dice: Of every image, the mean over the seeds.
        mean: Of these, with its interval over images.
    """

    name: str
    results: tuple[Result, ...]
    dice: tuple[float, ...]
    mean: Interval

    @classmethod
    def of(cls, name: str, results: Sequence[Result]) -> Contender:
        """Join the results of one run's seeds."""
        dice = [fmean(scores) for scores in zip(*(each.dice for each in results), strict=True)]
        return cls(name, tuple(results), tuple(dice), mean_interval(dice))

    @property
    def iou(self) -> float:
        """Mean over images and seeds."""
        return fmean(result.score.mean_iou for result in self.results)

    @property
    def seed_spread(self) -> float | None:
        """Standard deviation of the mean Dice over the seeds; None for one seed."""
        means = [result.score.mean_dice for result in self.results]
        return stdev(means) if len(means) > 1 else None

    @property
    def images_per_second(self) -> float:
        """Mean over the seeds, which are networks of one kind."""
        return fmean(result.images_per_second for result in self.results)

    @property
    def title(self) -> str:
        """The name, with the number of seeds where there are several."""
        seeds = len(self.results)
        return f"{self.name} ({seeds} seeds)" if seeds > 1 else self.name

    def nearest(self, image: int) -> Result:
        """Return the seed whose score of an image is nearest to the mean of all."""
        mean = self.dice[image]
        return min(self.results, key=lambda result: abs(result.dice[image] - mean))

    def to_json(self) -> dict[str, object]:
        """Return the means, and every seed's result."""
        return {
            "name": self.name,
            "mean_dice": self.mean.mean,
            "low": finite(self.mean.low),
            "high": finite(self.mean.high),
            "mean_iou": self.iou,
            "seed_spread": self.seed_spread,
            "images_per_second": self.images_per_second,
            "parameters": self.results[0].parameters,
            "file_bytes": self.results[0].file_bytes,
            "seeds": [result.to_json() for result in self.results],
        }


@dataclass(frozen=True)
class Pair:
    """Two contenders against each other.

    Attributes:
        first: One of them.
        second: The other; differences are second minus first.
        compared: The statistics over images.
        p_value: The rank test's, corrected by Holm for the number of pairs.
        agreement: Mean Dice of one's masks against the other's, over images and seeds.
        most_different: Numbers of the images whose scores differ most, the most first.
    """

    first: Contender
    second: Contender
    compared: PairedComparison
    p_value: float
    agreement: float
    most_different: tuple[int, ...]

    @property
    def verdict(self) -> str:
        """Which is better and by how much, in a sentence."""
        words = in_words(self.compared, self.p_value, self.first.title, self.second.title)
        spread = max(self.first.seed_spread or 0.0, self.second.seed_spread or 0.0)
        if self.different and abs(self.compared.difference.mean) < spread:
            words += f"; yet seeds of one model lie as far apart (± {spread:.3f})"
        return words

    @property
    def different(self) -> bool:
        """Whether the two differ beyond noise."""
        return decide(self.compared, self.p_value) != "none"

    def to_json(self, names: Sequence[str]) -> dict[str, object]:
        """Return the statistics, the verdict and the images that differ most."""
        compared, difference = self.compared, self.compared.difference
        return {
            "first": self.first.name,
            "second": self.second.name,
            "verdict": self.verdict,
            "better": decide(compared, self.p_value),
            "difference": difference.mean,
            "low": finite(difference.low),
            "high": finite(difference.high),
            "p_value": compared.p_value,
            "p_value_holm": self.p_value,
            "effect_size": finite(compared.effect_size),
            "wins": compared.wins,
            "ties": compared.ties,
            "losses": compared.losses,
            "agreement": self.agreement,
            "most_different": [
                {
                    "name": names[each],
                    "first": self.first.dice[each],
                    "second": self.second.dice[each],
                }
                for each in self.most_different
            ],
        }


@dataclass(frozen=True)
class Comparison:
    """Several models on the same images.

    Attributes:
        contenders: In the order they were given.
        pairs: Each with each.
        source: The images.
        hardware: What the speeds were measured on.
        notes: What a reader must know besides, each a sentence.
    """

    contenders: tuple[Contender, ...]
    pairs: tuple[Pair, ...]
    source: Source
    hardware: str
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, contenders: Sequence[Contender], source: Source, hardware: str, notes: Sequence[str]
    ) -> Comparison:
        """Compare each contender with each other one."""
        couples = list(combinations(contenders, 2))
        compared = [compare_paired(first.dice, second.dice) for first, second in couples]
        corrected = holm([each.p_value for each in compared])
        pairs = [
            Pair(*couple, each, p_value, _agreement(*couple), _most_different(*couple))
            for couple, each, p_value in zip(couples, compared, corrected, strict=True)
        ]
        return cls(tuple(contenders), tuple(pairs), source, hardware, tuple(notes))

    def with_notes(self, notes: Sequence[str]) -> Comparison:
        """Return the same with further notes before its own."""
        return replace(self, notes=(*notes, *self.notes))

    @property
    def names(self) -> list[str]:
        """Of the images, in their order."""
        return [image.name for image in self.contenders[0].results[0].score.images]

    @property
    def over_seeds(self) -> bool:
        """Whether some contender is several seeds."""
        return any(len(contender.results) > 1 for contender in self.contenders)

    def to_json(self) -> dict[str, object]:
        """Return everything but the masks as plain dicts, lists and numbers; never NaN."""
        rules = self.contenders[0].results[0].score.rules
        return {
            "images": self.names,
            "rules": {
                "split": rules.split,
                "trimap_border": rules.trimap_border,
                "size": rules.size,
                "empty": EMPTY_RULE,
            },
            "hardware": self.hardware,
            "notes": list(self.notes),
            "models": [contender.to_json() for contender in self.contenders],
            "pairs": [pair.to_json(self.names) for pair in self.pairs],
        }


def finite(value: float) -> float | None:
    """Return a number that JSON has, None for one that it has not."""
    return value if math.isfinite(value) else None


def _agreement(first: Contender, second: Contender) -> float:
    """Return the mean Dice of masks against masks; every pixel counts, ignored ones too."""
    return fmean(
        Counts.of(mine.unpack(), theirs.unpack()).dice
        for one in first.results
        for other in second.results
        for mine, theirs in zip(one.masks, other.masks, strict=True)
    )


def _most_different(first: Contender, second: Contender) -> tuple[int, ...]:
    gaps = [abs(a - b) for a, b in zip(first.dice, second.dice, strict=True)]
    order = sorted(range(len(gaps)), key=lambda number: gaps[number], reverse=True)
    return tuple(number for number in order[:MOST_DIFFERENT] if gaps[number] > 0)
