"""Score: what an evaluation found, with the rules that it was taken by.

ScoreRules: what a number means, and the words that a summary says it with.

Whether a model knows when it is wrong: its expected Dice against the true one.

Measurements: the numbers of many images, with the rules that they were taken by.

What a score could not compute, and why: said in words, so that no blank looks like a fault.

The card: a score in the few lines that a person reads, with every rule behind it.

score.json: a score as plain dicts, lists, numbers and None.

Score: the numbers of many images, and how they are told to people and to programs.

Tally: adds images up to a Score, one after the other, keeping only their numbers.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from notan.errors import ConfigError, DataError, nearest
from notan.metrics.boundary import BoundaryScore, Tolerance
from notan.metrics.counts import Counts
from notan.metrics.groups import (
    FEWEST_FOREGROUNDS,
    FOREGROUND_SIZE,
    MEASURES,
    Grouping,
    ImageScore,
    by_foreground_size,
)
from notan.metrics.probabilities import (
    THRESHOLDS,
    ProbabilityHistogram,
    Ranking,
    ReliabilityBin,
    ThresholdSweep,
    average_precision,
    brier,
    dice_at_thresholds,
    expected_calibration_error,
    reliability,
)
from notan.metrics.statistics import FEWEST, Interval, mean_interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from notan.types import Mask, Probability

EMPTY_RULE = "an empty image predicted empty scores 1, a false alarm on an empty image scores 0"
"""How images without foreground are scored, in words; printed with every mean."""

BORDER_WORDS = {
    "foreground": "border counted as foreground",
    "background": "border counted as background",
    "ignore": "border left out",
    "none": "no border class in the data",
}
"""The border rules, and how a summary says them."""


@dataclass(frozen=True)
class ScoreRules:
    """What a number means: without these two scores cannot be compared.

    Attributes:
        trimap_border: ``foreground``, ``background`` or ``ignore``; ``none`` for data without a
            border class.
        size: The size at which masks were compared, in words.
        threshold: Probability from which a pixel is foreground, 0..1.
        split: Name of the split that was scored.
        weights: Where training began: ``from scratch``, or what the network was pretrained on.
        postprocessing: How probabilities became masks, in words; None: by the threshold alone.
        tolerance: How far a boundary may lie off and still count as right.
        seen: What the model has seen of these images before, in words.
        trained_trimap_border: The border rule of the model's training; None: it had no border
            class, or is not known.
        augment: Which views of each image the network was asked, in words; None: it alone.

    Raises:
        ConfigError: There is no such border rule, or the threshold is outside 0..1.
    """

    trimap_border: str
    threshold: float
    split: str
    size: str = "original size"
    weights: str = "from scratch"
    postprocessing: str | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    seen: str = "whether the model has seen these images is not known"
    trained_trimap_border: str | None = None
    augment: str | None = None

    def trimap_border_in_words(self) -> str:
        """Say the border rule, and the model's own where it was trained by another."""
        words = BORDER_WORDS[self.trimap_border]
        if self.trained_trimap_border in (None, self.trimap_border) or self.trimap_border == "none":
            return words
        return f"{words} (UNLIKE IN TRAINING: {BORDER_WORDS[self.trained_trimap_border]} there)"

    def __post_init__(self) -> None:
        if self.trimap_border not in BORDER_WORDS:
            hint = nearest(self.trimap_border, BORDER_WORDS)
            raise ConfigError(f"there is no border rule '{self.trimap_border}'{hint}")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"the threshold is {self.threshold}; it must be in 0..1")


@dataclass(frozen=True)
class Agreement:
    """How the Dice that a model expected of itself agrees with the Dice that it reached.

    Attributes:
        rank_correlation: Spearman's, -1..1; None where one of the two is the same throughout.
        flagged: Images that the model asked to have checked; 0 also where it could not say.
        flagged_mean_dice: Their mean true Dice; None without any.
        other_mean_dice: Mean true Dice of the rest; None without any.
    """

    rank_correlation: float | None
    flagged: int
    flagged_mean_dice: float | None
    other_mean_dice: float | None


def agreement(images: Sequence[ImageScore]) -> Agreement | None:
    """Compare expected with true Dice, image by image.

    Returns:
        The agreement; None where the model expected nothing of any image.

    Source: Spearman 1904; Kofler et al. 2021, arXiv:2109.14448, on guessing a mask's Dice.
    """
    pairs = [
        (each.expected_dice, each.counts.dice, bool(each.needs_review))
        for each in images
        if each.expected_dice is not None
    ]
    if not pairs:
        return None
    expected, true, _ = zip(*pairs, strict=True)
    flagged = [dice for _, dice, check in pairs if check]
    others = [dice for _, dice, check in pairs if not check]
    return Agreement(
        rank_correlation=_spearman(expected, true),
        flagged=len(flagged),
        flagged_mean_dice=fmean(flagged) if flagged else None,
        other_mean_dice=fmean(others) if others else None,
    )


def _spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    if len(set(first)) == 1 or len(set(second)) == 1:
        return None
    from scipy.stats import spearmanr  # late: SciPy's statistics take a second to import

    return float(spearmanr(first, second).statistic)


NOTHING = Interval(math.nan, math.nan, math.nan, 0)
"""The mean over no image."""


@dataclass(frozen=True)
class Measurements:
    """The scores of many images, with the rules they were taken by; means are worked out once.

    Attributes:
        images: One entry for each image, in the order of the source.
        rules: What the numbers mean.
        histogram: All images' pixels by probability; None: only masks were compared.
        sweep: Mean Dice at each threshold; None likewise.
        groupings: Ways to divide the images, beside the one by the foreground's size; of two with
            one name the later counts.

    Raises:
        DataError: There is no image.
    """

    images: tuple[ImageScore, ...]
    rules: ScoreRules
    histogram: ProbabilityHistogram | None = field(default=None, compare=False)
    sweep: ThresholdSweep | None = None
    groupings: tuple[Grouping, ...] = ()

    def __post_init__(self) -> None:
        if not self.images:
            raise DataError(
                f"nothing to score: split '{self.rules.split}' holds no image; "
                "check the data folder and the split"
            )

    @property
    def mean_dice(self) -> float:
        """Mean of the images' Dice, each image alike whatever its size."""
        return fmean(image.counts.dice for image in self.images)

    @property
    def mean_iou(self) -> float:
        """Mean of the images' IoU, each image alike whatever its size."""
        return fmean(image.counts.iou for image in self.images)

    @cached_property
    def pooled(self) -> Counts:
        """All images' counts, added up."""
        return sum((image.counts for image in self.images), start=Counts(0, 0, 0, 0))

    @property
    def pooled_dice(self) -> float:
        """Dice over the pixels of all images at once, each pixel alike."""
        return self.pooled.dice

    @property
    def pooled_iou(self) -> float:
        """IoU over the pixels of all images at once, each pixel alike."""
        return self.pooled.iou

    @property
    def empty_images(self) -> int:
        """How many images have no foreground in truth."""
        return sum(image.counts.truth_is_empty for image in self.images)

    @cached_property
    def means(self) -> dict[str, Interval]:
        """Mean of each of ``MEASURES`` over the images that define it, with its interval.

        Precision, recall, specificity and accuracy of a single image follow the empty rule; a
        mean over images that all do so would say nothing, so it is NaN, over 0 images.
        """
        rows = [image.numbers() for image in self.images]
        means = {}
        for name in MEASURES:
            values = [value for row in rows if (value := row[name]) is not None]
            by_rule_alone = name in self.by_rule_alone
            means[name] = mean_interval(values) if values and not by_rule_alone else NOTHING
        return means

    @property
    def by_rule_alone(self) -> dict[str, str]:
        """Name the measures that no pixel of any image decides, and say why."""
        pooled = self.pooled
        checks = {
            "precision": (pooled.prediction_is_empty, "every prediction is empty"),
            "recall": (pooled.truth_is_empty, "no image has a foreground"),
            "specificity": (pooled.pixels == pooled.foreground, "no image has background"),
            "accuracy": (pooled.pixels == 0, "every pixel is ignored"),
        }
        return {name: why for name, (alone, why) in checks.items() if alone}

    @cached_property
    def pooled_values(self) -> dict[str, float | None]:
        """Scores over the pixels of all images at once; None where no pixel decides them."""
        counts, histogram = self.pooled, self.histogram
        values: dict[str, float | None] = {
            "dice": counts.dice,
            "iou": counts.iou,
            "precision": counts.precision,
            "recall": counts.recall,
            "specificity": counts.specificity,
            "accuracy": counts.accuracy,
            "average_precision": average_precision(histogram) if histogram else None,
            "brier": brier(histogram) if histogram else None,
            "ece": expected_calibration_error(histogram) if histogram else None,
        }
        return values | dict.fromkeys(self.by_rule_alone)

    @cached_property
    def reliability(self) -> tuple[ReliabilityBin, ...]:
        """The pooled pixels' reliability curve."""
        return reliability(self.histogram) if self.histogram else ()

    @cached_property
    def expected(self) -> Agreement | None:
        """How expected and true Dice agree; None where the model expected nothing."""
        return agreement(self.images)

    @cached_property
    def all_groupings(self) -> dict[str, Grouping]:
        """The grouping by size of the foreground, if any, then the given ones, by name."""
        by_size = by_foreground_size(self.images)
        groupings = (by_size, *self.groupings) if by_size else self.groupings
        return {grouping.name: grouping for grouping in groupings}

    @cached_property
    def groups(self) -> dict[str, dict[str, Interval]]:
        """Mean Dice of each group of each grouping, with its interval."""
        dice = {image.name: image.counts.dice for image in self.images}
        return {
            name: {
                group: mean_interval(values)
                for group, values in _divided(dice, grouping.group_of).items()
            }
            for name, grouping in self.all_groupings.items()
        }


def _divided(dice: Mapping[str, float], group_of: Mapping[str, str]) -> dict[str, list[float]]:
    """Return the images' Dice by group, in the order in which the grouping names them."""
    groups: dict[str, list[float]] = {}
    for name, group in group_of.items():
        if name in dice:
            groups.setdefault(group, []).append(dice[name])
    return groups


def find_undefined(score: Measurements) -> tuple[str, ...]:
    """Return a line for everything that could not be computed, the gravest first."""
    return tuple(
        line
        for part in (_pixels, _rule_alone, _images, _intervals, _groups, _expected)
        for line in part(score)
    )


def _pixels(score: Measurements) -> Iterator[str]:
    """Tell of images of which no pixel counts: their scores are 1 by the empty rule."""
    number = len(score.images)
    ignored = sum(image.counts.pixels == 0 for image in score.images)
    if ignored == number:
        yield "every score: all pixels are ignored, so that each 1 is the empty rule's alone"
    elif ignored:
        yield (
            f"scores of {ignored} of {number} images: all their pixels are ignored, "
            "so that each 1 is the empty rule's alone"
        )


def _rule_alone(score: Measurements) -> Iterator[str]:
    for name, why in score.by_rule_alone.items():
        yield f"{MEASURES[name]}: {why}"
    if score.histogram is None:
        yield "ECE, reliability and threshold sweep: no probabilities were given"


def _images(score: Measurements) -> Iterator[str]:
    """Tell of measures that some images, or all, do not define."""
    boundaries = any(image.boundary for image in score.images)
    reasons = {
        "boundary_f": "boundaries were not measured",
        "surface_dice": "boundaries were not measured",
        "hausdorff95": "one of truth and prediction is empty, the other is not"
        if boundaries
        else "boundaries were not measured",
        "average_precision": "there is no foreground"
        if score.histogram
        else "no probabilities were given",
        "brier": "all pixels are ignored" if score.histogram else "no probabilities were given",
    }
    rows = [image.numbers() for image in score.images]
    for name, why in reasons.items():
        lacking = sum(row[name] is None for row in rows)
        if lacking == len(rows):
            yield f"{MEASURES[name]}: {why}"
        elif lacking:
            yield f"{MEASURES[name]} of {lacking} of {len(rows)} images: {why}"


def _intervals(score: Measurements) -> Iterator[str]:
    if len(score.images) < FEWEST:
        yield f"intervals: one image has no spread, at least {FEWEST} are needed"
        return
    single = [MEASURES[name] for name, mean in score.means.items() if 0 < mean.number < FEWEST]
    if single:
        yield f"intervals of {', '.join(single)}: only one image defines them"


def _groups(score: Measurements) -> Iterator[str]:
    if FOREGROUND_SIZE not in score.groups:
        yield (
            f"groups by {FOREGROUND_SIZE}: fewer than {FEWEST_FOREGROUNDS} images have a "
            "foreground, "
            "or all foregrounds have the same share of their image"
        )
    for name, groups in score.groups.items():
        single = sum(mean.number < FEWEST for mean in groups.values())
        if single:
            yield f"intervals of {single} of {len(groups)} groups by {name}: one image in each"


def _expected(score: Measurements) -> Iterator[str]:
    expected = score.expected
    if expected is None:
        return
    if expected.rank_correlation is None:
        yield "rank correlation of expected and true Dice: one of them is the same throughout"
    if all(image.needs_review is None for image in score.images):
        yield "images to check: the model was never told how sure is usual"
    elif expected.flagged_mean_dice is None:
        yield "mean Dice of images to check: the model asked for none"
    if expected.other_mean_dice is None:
        yield "mean Dice of the other images: the model asked to check all"


ROW = "{:<21} {:>8}  {:<16}  {:>8}"
MOST_GROUPS = 4
"""More groups than this are told by their worst and their best."""

MOST_GROUPINGS = 2
MOST_UNDEFINED = 2
"""The files beside the card hold all of them."""


def score_summary(score: Measurements) -> str:
    """Return the card, at most 27 lines."""
    number = len(score.images)
    heading = f"{number} image{'' if number == 1 else 's'}"
    lines = (
        ROW.format(heading, "mean", "95 % interval", "pooled"),
        *_measures(score),
        *_sweep(score),
        *_group_lines(score.groups),
        *_expected_line(score),
        *_rule_lines(score),
        *_undefined(score),
    )
    return "\n".join(line.rstrip() for line in lines)


def _measures(score: Measurements) -> Iterator[str]:
    for name, words in MEASURES.items():
        mean, pooled = score.means[name], score.pooled_values.get(name)
        if mean.number or pooled is not None:
            digits = 2 if name == "hausdorff95" else 4
            yield ROW.format(
                words, _number(mean.mean, digits), _ends(mean, digits), _number(pooled, digits)
            )
    if (ece := score.pooled_values["ece"]) is not None:
        yield ROW.format("ECE", "", "", _number(ece, 4))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _ends(interval: Interval, digits: int) -> str:
    low, high = _number(interval.low, digits), _number(interval.high, digits)
    return f"{low} - {high}" if low and high else ""


def _sweep(score: Measurements) -> Iterator[str]:
    if score.sweep:
        curve = score.sweep.mean_dice
        yield (
            f"thresholds 0.01..0.99: mean Dice {min(curve):.4f} to {max(curve):.4f}, "
            f"area {score.sweep.area:.4f}"
        )


def _group_lines(groupings: Mapping[str, Mapping[str, Interval]]) -> Iterator[str]:
    for name, groups in list(groupings.items())[:MOST_GROUPINGS]:
        words = [f"{group} {mean.mean:.4f} ({mean.number})" for group, mean in groups.items()]
        if len(words) > MOST_GROUPS:
            by_dice = sorted(groups, key=lambda group: groups[group].mean)
            told = [
                f"{group} {groups[group].mean:.4f} ({groups[group].number})"
                for group in (by_dice[0], by_dice[1], by_dice[-1])
            ]
            words = [f"worst {told[0]}", told[1], f"best of {len(groups)} {told[2]}"]
        yield f"by {name}: {', '.join(words)}"
    more = len(groupings) - MOST_GROUPINGS
    if more > 0:
        yield f"and by {more} more, in score.json"


def _expected_line(score: Measurements) -> Iterator[str]:
    expected = score.expected
    if expected is None:
        return
    correlation = _number(expected.rank_correlation, 2) or "undefined"
    flagged = _number(expected.flagged_mean_dice, 4) or "none"
    others = _number(expected.other_mean_dice, 4) or "none"
    yield (
        f"expected Dice: rank correlation with the true one {correlation}; "
        f"{expected.flagged} to check (mean Dice {flagged}), others {others}"
    )


def _rule_lines(score: Measurements) -> Iterator[str]:
    rules = score.rules
    postprocessing = rules.postprocessing or f"threshold {rules.threshold:g}"
    yield f"split {rules.split}, {postprocessing}, weights {rules.weights}"
    if rules.augment:
        yield f"test-time augmentation: {rules.augment}"
    yield rules.seen
    tolerance = rules.tolerance.in_words()
    border = rules.trimap_border_in_words()
    yield f"scored at {rules.size}, {border}, boundary tolerance {tolerance}"
    yield "mean: each image alike; pooled: each pixel alike; intervals: bootstrap over images"
    yield f"empty images: {score.empty_images} of {len(score.images)}; {EMPTY_RULE}"


def _undefined(score: Measurements) -> Iterator[str]:
    lines = find_undefined(score)
    yield from (f"undefined: {line}" for line in lines[:MOST_UNDEFINED])
    more = len(lines) - MOST_UNDEFINED
    if more > 0:
        yield f"undefined: {more} more, in score.json"


def score_document(score: Measurements) -> dict[str, object]:
    """Return everything that a score says; what is undefined is None, never NaN."""
    return {
        "mean_dice": score.mean_dice,
        "mean_iou": score.mean_iou,
        "pooled_dice": score.pooled_dice,
        "pooled_iou": score.pooled_iou,
        "empty_images": score.empty_images,
        "means": {name: _interval(mean, "mean") for name, mean in score.means.items()},
        "pooled": score.pooled_values,
        "reliability": [
            {
                "from": each.low,
                "to": each.high,
                "pixels": each.pixels,
                "mean_probability": each.mean_probability,
                "foreground_fraction": each.foreground_fraction,
            }
            for each in score.reliability
        ],
        "threshold_sweep": score.sweep
        and {
            "thresholds": list(THRESHOLDS),
            "mean_dice": list(score.sweep.mean_dice),
            "area": score.sweep.area,
        },
        "groups": {
            name: {group: _interval(mean, "mean_dice") for group, mean in groups.items()}
            for name, groups in score.groups.items()
        },
        "expected": score.expected and asdict(score.expected),
        "undefined": list(find_undefined(score)),
        "rules": _rules(score),
        "images": [_image(image) for image in score.images],
    }


def _rules(score: Measurements) -> dict[str, object]:
    return {
        **asdict(score.rules),
        "tolerance": str(score.rules.tolerance),
        "empty": EMPTY_RULE,
        "groups": {name: grouping.rule for name, grouping in score.all_groupings.items()},
    }


def _interval(interval: Interval, mean: str) -> dict[str, float | None]:
    return {
        "images": interval.number,
        mean: _finite(interval.mean),
        "low": _finite(interval.low),
        "high": _finite(interval.high),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _image(image: ImageScore) -> dict[str, object]:
    """Return one image's row: its name and size, its scores, its counts."""
    return {
        "name": image.name,
        "height": image.height,
        "width": image.width,
        **image.numbers(),
        "expected_dice": image.expected_dice,
        "needs_review": image.needs_review,
        **asdict(image.counts),
    }


@dataclass(frozen=True)
class Score(Measurements):
    """The scores of many images, with the rules they were taken by."""

    @property
    def undefined(self) -> tuple[str, ...]:
        """What could not be computed, and why: one line for each."""
        return find_undefined(self)

    def summary(self) -> str:
        """Return the card that a person reads: the scores, then every rule behind them."""
        return score_summary(self)

    def to_json(self) -> dict[str, object]:
        """Return everything as plain dicts, lists, numbers and None."""
        return score_document(self)


class Tally:
    """The scores so far."""

    def __init__(self, rules: ScoreRules) -> None:
        """Begin with no image.

        Args:
            rules: What the numbers mean; its tolerance is the one of the boundaries.
        """
        self._rules = rules
        self._images: list[ImageScore] = []
        self._histogram = ProbabilityHistogram.empty()
        self._dice = np.zeros(len(THRESHOLDS))

    def add(
        self,
        name: str,
        prediction: Mask,
        probability: Probability,
        truth: Mask,
        ignore: Mask | None = None,
        *,
        expected_dice: float | None = None,
        needs_review: bool | None = None,
    ) -> None:
        """Measure one image.

        Args:
            name: The sample's name.
            prediction: bool, (height, width), True = foreground.
            probability: float32, of the same shape, the chance of foreground, 0..1.
            truth: bool, of the same shape.
            ignore: bool, of the same shape, True = not counted; None = every pixel counts.
            expected_dice: The Dice that the model itself expects, 0..1.
            needs_review: Whether the model asks for a second look.

        Raises:
            ShapeError: The arrays are not of one shape and the types above.
        """
        counts = Counts.of(prediction, truth, ignore)
        ranking = Ranking.of(probability, truth, ignore)
        histogram = ProbabilityHistogram.of(ranking)
        self._images.append(
            ImageScore(
                name,
                counts,
                height=truth.shape[0],
                width=truth.shape[1],
                boundary=BoundaryScore.of(
                    prediction, truth, ignore, tolerance=self._rules.tolerance
                ),
                average_precision=ranking.average_precision(),
                brier=brier(histogram),
                expected_dice=expected_dice,
                needs_review=needs_review,
            )
        )
        self._histogram += histogram
        self._dice += dice_at_thresholds(histogram)

    def score(self, groupings: tuple[Grouping, ...] = ()) -> Score:
        """Return the score of the images so far.

        Raises:
            DataError: There is no image.
        """
        mean_dice = self._dice / max(1, len(self._images))
        return Score(
            tuple(self._images),
            self._rules,
            histogram=self._histogram,
            sweep=ThresholdSweep(tuple(mean_dice.tolist())),
            groupings=groupings,
        )
