"""Score: what an evaluation found, with the rules that it was taken by.

A score is one model: ``Tally`` fills it image by image, score.json holds it and is read back into
it, and ``summary`` says it in the few lines that a person reads.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from notan.errors import ConfigError, DataError, nearest
from notan.metrics.boundary import BoundaryScore, Tolerance
from notan.metrics.counts import COUNTED, MEASURES, Counts, ImageScore
from notan.metrics.groups import FEWEST_FOREGROUNDS, FOREGROUND_SIZE, by_foreground_size
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

    import numpy.typing as npt

    from notan.metrics.groups import Grouping
    from notan.types import Mask, Probability

EMPTY_RULE = "an empty image predicted empty scores 1, a false alarm on an empty image scores 0"
"""How images without foreground are scored, in words; printed with every mean."""

NOT_KNOWN = "whether the model has seen these images is not known"

TRIMAP_BORDER_WORDS = {
    "foreground": "border counted as foreground",
    "background": "border counted as background",
    "ignore": "border left out",
    "none": "no border class in the data",
}
"""The rules for a trimap's border, and how a summary says them."""

NOTHING = Interval(math.nan, math.nan, math.nan, 0)
"""The mean over no image."""


class ScoreRules(BaseModel):
    """What a number means: without these two scores cannot be compared.

    Attributes:
        trimap_border: ``foreground``, ``background`` or ``ignore``; ``none`` for data without a
            border class.
        threshold: Probability from which a pixel is foreground, 0..1.
        split: Name of the split that was scored.
        size: The size at which masks were compared, in words.
        weights: Where training began: ``from scratch``, or what the network was pretrained on.
        postprocessing: How probabilities became masks, in words; None: by the threshold alone.
        tolerance: How far a boundary may lie off and still count as right.
        seen: What the model has seen of these images before, in words.
        trained_trimap_border: The border rule of the model's training; None: it had no border
            class, or is not known.
        augment: Which views of each image the network was asked, in words; None: it alone.
        precision: What the network computed in, ``fp32`` or ``bf16``; None: not known.
        empty: How images without foreground are scored, in words.
        groups: How the groups were made, in words.

    Raises:
        ConfigError: There is no such border rule, or the threshold is outside 0..1.
    """

    model_config = ConfigDict(frozen=True)

    trimap_border: str
    threshold: float
    split: str
    size: str = "original size"
    weights: str = "from scratch"
    postprocessing: str | None = None
    tolerance: Annotated[
        Tolerance,
        BeforeValidator(lambda value: Tolerance.parse(value) if isinstance(value, str) else value),
        PlainSerializer(str),
    ] = Tolerance()
    seen: str = NOT_KNOWN
    trained_trimap_border: str | None = None
    augment: str | None = None
    precision: str | None = None
    empty: str = EMPTY_RULE
    groups: dict[str, str] = {}

    @model_validator(mode="after")
    def _check(self) -> ScoreRules:
        if self.trimap_border not in TRIMAP_BORDER_WORDS:
            hint = nearest(self.trimap_border, TRIMAP_BORDER_WORDS)
            raise ConfigError(f"there is no border rule '{self.trimap_border}'{hint}")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"the threshold is {self.threshold}; it must be in 0..1")
        return self

    def trimap_border_in_words(self) -> str:
        """Say the border rule, and the model's own where it was trained by another."""
        words = TRIMAP_BORDER_WORDS[self.trimap_border]
        if self.trained_trimap_border in (None, self.trimap_border) or self.trimap_border == "none":
            return words
        return (
            f"{words} (UNLIKE IN TRAINING: {TRIMAP_BORDER_WORDS[self.trained_trimap_border]} there)"
        )


class Agreement(BaseModel):
    """How the Dice that a model expected of itself agrees with the Dice that it reached.

    Attributes:
        rank_correlation: Spearman's, -1..1; None where one of the two is the same throughout.
        flagged: Images that the model asked to have checked; 0 also where it could not say.
        flagged_mean_dice: Their mean true Dice; None without any.
        other_mean_dice: Mean true Dice of the rest; None without any.

    Source: Spearman 1904; Kofler et al. 2021, arXiv:2109.14448, on guessing a mask's Dice.
    """

    model_config = ConfigDict(frozen=True)

    rank_correlation: float | None
    flagged: int
    flagged_mean_dice: float | None
    other_mean_dice: float | None

    @classmethod
    def of(cls, images: Sequence[ImageScore]) -> Agreement | None:
        """Compare expected with true Dice; None where the model expected nothing of any image."""
        told = [image for image in images if image.expected_dice is not None]
        if not told:
            return None
        expected, true = [image.expected_dice for image in told], [image.dice for image in told]
        correlation = None
        if len(set(expected)) > 1 and len(set(true)) > 1:
            from scipy.stats import spearmanr  # late: SciPy's statistics take a second to import

            correlation = float(spearmanr(expected, true).statistic)
        flagged = [image.dice for image in told if image.needs_review]
        others = [image.dice for image in told if not image.needs_review]
        return cls(
            rank_correlation=correlation,
            flagged=len(flagged),
            flagged_mean_dice=fmean(flagged) if flagged else None,
            other_mean_dice=fmean(others) if others else None,
        )


class Score(BaseModel):
    """The scores of many images, with the rules they were taken by.

    In JSON what is not defined is null, never NaN. What a file has beyond these fields is passed
    over.

    Attributes:
        mean_dice: Mean of the images' Dice, each image alike whatever its size.
        mean_iou: Likewise of IoU.
        pooled_dice: Dice over the pixels of all images at once, each pixel alike.
        pooled_iou: Likewise of IoU.
        empty_images: How many images have no foreground in truth.
        means: Mean of each of ``MEASURES`` over the images that define it, with its interval.
            Precision, recall, specificity and accuracy of a single image follow the empty rule; a
            mean over images that all do so would say nothing, so it is NaN, over 0 images.
        pooled: Scores over the pixels of all images at once; None where no pixel decides them.
        reliability: The pooled pixels' reliability curve.
        threshold_sweep: Mean Dice at each threshold.
        groups: Mean Dice of each group of each grouping, with its interval.
        expected: How expected and true Dice agree; None where the model expected nothing.
        undefined: What could not be computed, and why: one line for each, the gravest first.
        rules: What the numbers mean.
        images: One entry for each image, in the order of the source.
        content: A hash of all images and masks that were scored; None in older scores.
    """

    model_config = ConfigDict(frozen=True)

    mean_dice: float
    mean_iou: float
    pooled_dice: float
    pooled_iou: float
    empty_images: int
    means: dict[str, Interval]
    pooled: dict[str, float | None]
    reliability: tuple[ReliabilityBin, ...]
    threshold_sweep: ThresholdSweep
    groups: dict[str, dict[str, Interval]]
    expected: Agreement | None
    undefined: tuple[str, ...]
    rules: ScoreRules
    images: tuple[ImageScore, ...] = Field(min_length=1)
    content: str | None = None

    def summary(self) -> str:
        """Return the card that a person reads, at most 27 lines, every rule among them."""
        number = len(self.images)
        lines = (
            ROW.format(f"{number} image{'' if number == 1 else 's'}", "mean", INTERVAL, "pooled"),
            *_measure_lines(self),
            *_group_lines(self),
            *_expected_line(self),
            *_rule_lines(self),
            *_cut("undefined: {}", self.undefined, MOST_UNDEFINED, "undefined: {} more"),
        )
        return "\n".join(line.rstrip() for line in lines)


def _means(images: Sequence[ImageScore], alone: frozenset[str]) -> dict[str, Interval]:
    rows = [image.numbers() for image in images]
    means = {}
    for measure in MEASURES:
        values = [value for row in rows if (value := row[measure]) is not None]
        means[measure] = mean_interval(values) if values and measure not in alone else NOTHING
    return means


def _pooled(counts: Counts, histogram: ProbabilityHistogram) -> dict[str, float | None]:
    return {
        **{measure: getattr(counts, measure) for measure in COUNTED},
        "average_precision": average_precision(histogram),
        "brier": brier(histogram),
        "ece": expected_calibration_error(histogram),
        **dict.fromkeys(_by_rule_alone(counts)),
    }


def _by_rule_alone(counts: Counts) -> dict[str, str]:
    """Name the measures that no pixel of any image decides, and say why."""
    checks = {
        "precision": (counts.prediction_is_empty, "every prediction is empty"),
        "recall": (counts.truth_is_empty, "no image has a foreground"),
        "specificity": (counts.pixels == counts.foreground, "no image has background"),
        "accuracy": (counts.pixels == 0, "every pixel is ignored"),
    }
    return {name: why for name, (alone, why) in checks.items() if alone}


def _groups(images: Sequence[ImageScore], group_of: Mapping[str, str]) -> dict[str, Interval]:
    """Return each group's mean Dice, in the order in which the grouping names them."""
    dice = {image.name: image.dice for image in images}
    groups: dict[str, list[float]] = {}
    for name, group in group_of.items():
        if name in dice:
            groups.setdefault(group, []).append(dice[name])
    return {group: mean_interval(values) for group, values in groups.items()}


def _undefined_measures(score: Score, counts: Counts) -> Iterator[str]:
    """Tell of images of which no pixel counts, and of what some images, or all, do not define."""
    number = len(score.images)
    ignored = sum(image.counts.pixels == 0 for image in score.images)
    if ignored:
        scores = "every score: all pixels"
        some = f"scores of {ignored} of {number} images: all their pixels"
        yield (
            f"{scores if ignored == number else some} are ignored, "
            "so that each 1 is the empty rule's alone"
        )
    for name, why in _by_rule_alone(counts).items():
        yield f"{MEASURES[name]}: {why}"
    reasons = {
        "hausdorff95": "one of truth and prediction is empty, the other is not",
        "average_precision": "there is no foreground",
        "brier": "all pixels are ignored",
    }
    for name, why in reasons.items():
        lacking = number - score.means[name].images
        if lacking:
            some = "" if lacking == number else f" of {lacking} of {number} images"
            yield f"{MEASURES[name]}{some}: {why}"


def _undefined_intervals(score: Score) -> Iterator[str]:
    if len(score.images) < FEWEST:
        yield f"intervals: one image has no spread, at least {FEWEST} are needed"
    elif single := [MEASURES[name] for name, mean in score.means.items() if mean.images == 1]:
        yield f"intervals of {', '.join(single)}: only one image defines them"
    if FOREGROUND_SIZE not in score.groups:
        yield (
            f"groups by {FOREGROUND_SIZE}: fewer than {FEWEST_FOREGROUNDS} images have a "
            "foreground, or all foregrounds have the same share of their image"
        )
    for name, groups in score.groups.items():
        alone = sum(mean.images < FEWEST for mean in groups.values())
        if alone:
            yield f"intervals of {alone} of {len(groups)} groups by {name}: one image in each"


def _undefined_expectations(score: Score) -> Iterator[str]:
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


ROW, INTERVAL = "{:<21} {:>8}  {:<16}  {:>8}", "95 % interval"
MOST_GROUPS = 4
"""More groups than this are told by their worst and their best."""

MOST_GROUPINGS, MOST_UNDEFINED = 2, 2
"""The files beside the card hold all of them."""


def _number(value: float | None, digits: int = 4, otherwise: str = "") -> str:
    return otherwise if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _cut(line: str, values: Sequence[str], most: int, more: str) -> Iterator[str]:
    """Yield a line for each of the first values, and one that counts the rest."""
    yield from (line.format(value) for value in values[:most])
    if len(values) > most:
        yield f"{more.format(len(values) - most)}, in score.json"


def _measure_lines(score: Score) -> Iterator[str]:
    for name, words in {**MEASURES, "ece": "ECE"}.items():
        mean, pooled = score.means.get(name, NOTHING), score.pooled.get(name)
        if mean.images or pooled is not None:
            digits = 2 if name == "hausdorff95" else 4
            low, high = _number(mean.low, digits), _number(mean.high, digits)
            ends = f"{low} - {high}" if low and high else ""
            yield ROW.format(words, _number(mean.mean, digits), ends, _number(pooled, digits))
    curve = score.threshold_sweep.mean_dice
    yield (
        f"thresholds 0.01..0.99: mean Dice {min(curve):.4f} to {max(curve):.4f}, "
        f"area {score.threshold_sweep.area:.4f}"
    )


def _group_lines(score: Score) -> Iterator[str]:
    lines = []
    for name, groups in score.groups.items():
        told = {group: f"{group} {mean.mean:.4f} ({mean.images})" for group, mean in groups.items()}
        words = list(told.values())
        if len(words) > MOST_GROUPS:
            worst, second, *_, best = sorted(groups, key=lambda group: groups[group].mean)
            words = [f"worst {told[worst]}", told[second], f"best of {len(words)} {told[best]}"]
        lines.append(f"by {name}: {', '.join(words)}")
    return _cut("{}", lines, MOST_GROUPINGS, "and by {} more")


def _expected_line(score: Score) -> Iterator[str]:
    if expected := score.expected:
        yield (
            "expected Dice: rank correlation with the true one "
            f"{_number(expected.rank_correlation, 2, 'undefined')}; "
            f"{expected.flagged} to check (mean Dice "
            f"{_number(expected.flagged_mean_dice, otherwise='none')}), "
            f"others {_number(expected.other_mean_dice, otherwise='none')}"
        )


def _rule_lines(score: Score) -> Iterator[str]:
    rules = score.rules
    postprocessing = rules.postprocessing or f"threshold {rules.threshold:g}"
    yield f"split {rules.split}, {postprocessing}, weights {rules.weights}"
    if rules.augment:
        yield f"test-time augmentation: {rules.augment}"
    if rules.precision == "bf16":
        yield "computed in bf16, which may move pixels at the edge: --precision fp32 does not"
    yield rules.seen
    tolerance = rules.tolerance.in_words()
    border = rules.trimap_border_in_words()
    yield f"scored at {rules.size}, {border}, boundary tolerance {tolerance}"
    yield "mean: each image alike; pooled: each pixel alike; intervals: bootstrap over images"
    yield f"empty images: {score.empty_images} of {len(score.images)}; {rules.empty}"


class Measured(NamedTuple):
    """The numbers of one image.

    Attributes:
        image: Its scores.
        histogram: Of its probabilities.
        dice: At each of the thresholds of the sweep.
    """

    image: ImageScore
    histogram: ProbabilityHistogram
    dice: npt.NDArray[np.float64]


class Tally:
    """Adds images up to a score, one after the other, keeping only their numbers."""

    def __init__(self, rules: ScoreRules) -> None:
        """Begin with no image.

        Args:
            rules: What the numbers mean; its tolerance is the one of the boundaries.
        """
        self._rules = rules
        self._images: list[ImageScore] = []
        self._histogram = ProbabilityHistogram.empty()
        self._dice = np.zeros(len(THRESHOLDS))

    def measure(
        self,
        name: str,
        prediction: Mask,
        probability: Probability,
        truth: Mask,
        ignore: Mask | None = None,
        *,
        expected_dice: float | None = None,
        needs_review: bool | None = None,
    ) -> Measured:
        """Measure one image, in any thread; ``add`` counts it.

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
        row = {
            "name": name,
            "height": truth.shape[0],
            "width": truth.shape[1],
            **{measure: getattr(counts, measure) for measure in COUNTED},
            **asdict(BoundaryScore.of(prediction, truth, ignore, tolerance=self._rules.tolerance)),
            "average_precision": ranking.average_precision(),
            "brier": brier(histogram),
            "expected_dice": expected_dice,
            "needs_review": needs_review,
            **asdict(counts),
        }
        return Measured(ImageScore.model_validate(row), histogram, dice_at_thresholds(histogram))

    def add(self, measured: Measured) -> None:
        """Count an image; sums of floats are the same only in the same order."""
        self._images.append(measured.image)
        self._histogram += measured.histogram
        self._dice += measured.dice

    def score(self, groupings: Sequence[Grouping] = ()) -> Score:
        """Return the score of the images so far.

        Args:
            groupings: Ways to divide the images, beside the one by the foreground's size; of two
                with one name the later counts.

        Raises:
            DataError: There is no image.
        """
        images, rules = self._images, self._rules
        if not images:
            raise DataError(
                f"nothing to score: split '{rules.split}' holds no image; "
                "check the data folder and the split"
            )
        pooled = sum((image.counts for image in images), start=Counts(0, 0, 0, 0))
        by_size = by_foreground_size({image.name: image.counts for image in images})
        divided = {each.name: each for each in (*([by_size] if by_size else ()), *groupings)}
        score = Score(
            mean_dice=fmean(image.dice for image in images),
            mean_iou=fmean(image.iou for image in images),
            pooled_dice=pooled.dice,
            pooled_iou=pooled.iou,
            empty_images=sum(image.counts.truth_is_empty for image in images),
            means=_means(images, frozenset(_by_rule_alone(pooled))),
            pooled=_pooled(pooled, self._histogram),
            reliability=reliability(self._histogram),
            threshold_sweep=ThresholdSweep.of((self._dice / len(images)).tolist()),
            groups={name: _groups(images, each.group_of) for name, each in divided.items()},
            expected=Agreement.of(images),
            undefined=(),
            rules=rules.model_copy(
                update={"groups": {name: each.rule for name, each in divided.items()}}
            ),
            images=tuple(images),
        )
        undefined = (
            *_undefined_measures(score, pooled),
            *_undefined_intervals(score),
            *_undefined_expectations(score),
        )
        return score.model_copy(update={"undefined": undefined})
