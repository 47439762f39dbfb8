"""What validation decides: calibration and postprocessing, chosen on no other split.

Two passes over the images, which are predicted once where there is room to keep what came of it.
The first fits the calibration and the threshold; the second tries the Dice-optimal threshold of
each image and rules for components and holes, and keeps them only where they help beyond noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from notan.data.survey import several_objects_fraction
from notan.metrics.counts import Counts
from notan.metrics.statistics import CONFIDENCE, compare_paired
from notan.modelfile.postprocess import Postprocessing, expected_dice_of_each, logit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from notan.data.samples import Sample, Source
    from notan.prediction.predictor import Predictor
    from notan.types import Probability

PLAIN = 0.5
FEWEST = 5
"""Validation images without which nothing is chosen."""

FEWEST_TO_TRY = 10
"""Images without which nothing but calibration and threshold is tried."""

LEVELS = 4096
THRESHOLDS = np.arange(5, 96) / 100
AS_GOOD = 0.001
"""Thresholds that score so close to the best are one plateau; its middle is taken."""

MOST_KEPT = 256 * 2**20
"""Bytes of images, masks and maps that are kept for the second pass."""

PIXELS = 2000
"""Of each image, drawn at random, to fit the calibration on."""

TEMPERATURES, BIASES = (0.25, 8.0), (-5.0, 5.0)
"""Bounds, for a network that validation finds no fault with would otherwise become certain."""

OFTEN = 0.1
"""From this share of training masks with several objects on, none but the largest is no choice: of
pets 1 % have several, of cell nuclei 98 %."""

UNSURE_FRACTION = 0.1
"""The share of validation images that ``needs_review`` would name."""

COMPONENT_RULES: tuple[dict[str, float | bool], ...] = (
    {"min_component_fraction": 0.001},
    {"min_component_fraction": 0.01},
    {"fill_holes_fraction": 0.001},
    {"fill_holes_fraction": 0.01},
    {"min_component_fraction": 0.001, "fill_holes_fraction": 0.001},
    {"min_component_fraction": 0.01, "fill_holes_fraction": 0.01},
    {"keep_largest": True},
    {"keep_largest": True, "fill_holes_fraction": 0.01},
)


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what it is worth on the images that it was chosen on.

    Attributes:
        postprocessing: The rule.
        dice: Mean with the rule; flattering, because it was chosen on these images.
        iou: Likewise.
        plain_dice: Mean with a threshold of 0.5 and nothing else.
        reasons: One line for each part: what was tried, what was kept and why.
    """

    postprocessing: Postprocessing
    dice: float
    iou: float
    plain_dice: float
    reasons: tuple[str, ...]


def choose_postprocessing(
    predictor: Predictor,
    source: Source,
    *,
    training: Source | None = None,
    batch_size: int = 1,
    between: Callable[[], None] = lambda: None,
) -> Choice:
    """Choose how probabilities become masks, on validation images.

    Args:
        predictor: Its own postprocessing does not matter.
        source: The validation images with their masks; each is read once, or twice where together
            they take more than ``MOST_KEPT``.
        training: What the network learned from; its masks say whether images often hold several
            objects. None: those of ``source`` do.
        batch_size: Images to predict at once.
        between: Called between images; what it raises ends the choice.

    Source: temperature and bias by maximum likelihood, Platt 1999; the Dice-optimal threshold, Dai
        and Li 2023, arXiv:2206.13086. What is tried beyond one threshold is kept only where the
        bootstrap interval of its gain lies above 0, widened by Bonferroni's correction for the
        number of things tried.
    """
    plain = predictor.with_postprocessing(Postprocessing())

    def predictions() -> Iterator[tuple[Sample, Probability]]:
        for sample, prediction in plain.predict_samples(source, batch_size=batch_size):
            between()
            yield sample, prediction.probability

    pixels, kept = _Pixels(), _Kept()
    for sample, probability in _counted(predictions(), len(source)):
        pixels.see(sample, probability)
        kept.add(sample, probability)
    postprocessing, reasons = pixels.choose()
    few = len(source) < FEWEST_TO_TRY
    several = 0.0 if few else several_objects_fraction(training or source)
    rules = _Rules(postprocessing, several_objects=several)
    for sample, probability in _counted(kept.pairs or predictions(), len(source)):
        between()
        rules.see(sample, postprocessing.calibrate(probability))
    if not pixels.hold_both_classes:
        reasons.append(f"threshold {PLAIN:g} and nothing else: there is nothing to choose by")
    elif few:
        reasons.append(f"{len(source)} images are too few to try other postprocessing")
    else:
        reasons.extend(rules.choose())
    chosen = rules.chosen
    counts, expected = rules.counts[chosen], rules.expected[chosen]
    unsure = round(float(np.quantile(expected, UNSURE_FRACTION)), 4)
    unsure_below = unsure if pixels.hold_both_classes else None
    return Choice(
        chosen.model_copy(update={"review_below": unsure_below}),
        dice=fmean(count.dice for count in counts),
        iou=fmean(count.iou for count in counts),
        plain_dice=pixels.mean_dice(PLAIN),
        reasons=tuple(reasons),
    )


def _counted(
    pairs: Iterable[tuple[Sample, Probability]], number: int
) -> Iterable[tuple[Sample, Probability]]:
    """Show how many of the images are done."""
    return tqdm(pairs, total=number, desc="choosing", unit="image", leave=False, disable=None)


class _Kept:
    """What the first pass saw, where it is little enough.

    Attributes:
        pairs: All images with their maps; empty where they were too much.
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[Sample, Probability]] = []
        self._room = MOST_KEPT

    def add(self, sample: Sample, probability: Probability) -> None:
        """Keep one more, or let all go."""
        self._room -= sample.image.nbytes + sample.mask.nbytes + probability.nbytes
        if self._room >= 0:
            self.pairs.append((sample, probability))
        else:
            self.pairs.clear()


class _Pixels:
    """Every image's histogram of the network's own probabilities, and some of its pixels."""

    def __init__(self) -> None:
        self.tables: list[npt.NDArray[np.int64]] = []
        self.logits: list[npt.NDArray[np.float64]] = []
        self.foreground: list[npt.NDArray[np.bool_]] = []

    def see(self, sample: Sample, probability: Probability) -> None:
        counted = np.ones(sample.size, np.bool_) if sample.ignore is None else ~sample.ignore
        chance, foreground = probability[counted], sample.mask[counted]
        levels = np.minimum((chance * np.float32(LEVELS)).astype(np.int64), LEVELS - 1)
        both = np.bincount(levels + LEVELS * foreground, minlength=2 * LEVELS).reshape(2, LEVELS)
        # how many pixels of background and of foreground would be called foreground from each
        # level up
        self.tables.append(both[:, ::-1].cumsum(axis=1)[:, ::-1])
        some = np.random.default_rng(len(self.tables)).integers(0, chance.size, PIXELS)
        if chance.size:
            self.logits.append(logit(chance[some]).astype(np.float64))
            self.foreground.append(foreground[some])

    def choose(self) -> tuple[Postprocessing, list[str]]:
        """Return the calibration and the threshold, and what they do."""
        if len(self.tables) < FEWEST:
            few = f"{len(self.tables)} validation images are too few to choose on"
            return Postprocessing(), [f"{few}: threshold {PLAIN:g}"]
        if not self.hold_both_classes:
            return Postprocessing(), ["no calibration: the validation masks hold one class only"]
        temperature, bias, why = self.calibration()
        threshold, dice = self.threshold(temperature, bias)
        gain = f"mean Dice {self.mean_dice(PLAIN):.4f} -> {dice:.4f}"
        postprocessing = Postprocessing(temperature=temperature, bias=bias, threshold=threshold)
        return postprocessing, [why, f"threshold {threshold:g}: {gain}"]

    @property
    def hold_both_classes(self) -> bool:
        """Whether there is any pixel of each class, those aside that do not count."""
        return bool(np.sum([table[:, 0] for table in self.tables], axis=0).all())

    def mean_dice(self, threshold: float) -> float:
        """Return the mean Dice at a threshold of the network's own probability."""
        level = min(round(threshold * LEVELS), LEVELS - 1)
        return fmean(_dice(table, level) for table in self.tables)

    def threshold(self, temperature: float, bias: float) -> tuple[float, float]:
        """Return the best threshold of the calibrated probability, and its mean Dice."""
        own = 1 / (1 + np.exp(-temperature * (np.log(THRESHOLDS / (1 - THRESHOLDS)) - bias)))
        dice = np.array([self.mean_dice(float(threshold)) for threshold in own])
        as_good = THRESHOLDS[dice >= dice.max() - AS_GOOD]
        chosen = round(float(np.median(as_good)), 2)
        return chosen, float(dice[np.argmin(np.abs(THRESHOLDS - chosen))])

    def calibration(self) -> tuple[float, float, str]:
        """Return the temperature and the bias that make the pixels likeliest, and what they do."""
        from scipy.optimize import minimize

        logits, foreground = np.concatenate(self.logits), np.concatenate(self.foreground)

        def cross_entropy(settings: Sequence[float]) -> float:
            scaled = logits * np.exp(-settings[0]) + settings[1]
            return float(np.mean(np.logaddexp(0, np.where(foreground, -scaled, scaled))))

        bounds = ((np.log(TEMPERATURES[0]), np.log(TEMPERATURES[1])), BIASES)
        found = minimize(cross_entropy, (0.0, 0.0), bounds=bounds, method="L-BFGS-B").x
        temperature, bias = round(float(np.exp(found[0])), 3), round(float(found[1]), 3)
        return (
            temperature,
            bias,
            f"temperature {temperature:g}, bias {bias:g}: mean cross-entropy of a pixel "
            f"{cross_entropy((0.0, 0.0)):.4f} -> {cross_entropy(found):.4f} nats",
        )


class _Rules:
    """What every rule for thresholds and for components scores on each image."""

    def __init__(self, postprocessing: Postprocessing, *, several_objects: float) -> None:
        self.chosen = postprocessing
        self.several_objects = several_objects
        self.optimal = postprocessing.model_copy(update={"threshold_rule": "dice"})
        self.counts: dict[Postprocessing, list[Counts]] = {
            plain.model_copy(update=rule): []
            for plain in (postprocessing, self.optimal)
            for rule in ({}, *COMPONENT_RULES)
            if not ("keep_largest" in rule and several_objects >= OFTEN)
        }
        self.expected: dict[Postprocessing, list[float]] = {rule: [] for rule in self.counts}

    def see(self, sample: Sample, probability: Probability) -> None:
        plain = {
            each.threshold_rule: each.mask(probability) for each in (self.chosen, self.optimal)
        }
        masks = {rule: rule.postprocess(plain[rule.threshold_rule]) for rule in self.counts}
        different = {mask.tobytes(): mask for mask in masks.values()}  # most rules change nothing
        expected = dict(
            zip(different, expected_dice_of_each(probability, different.values()), strict=True)
        )
        counts = {
            content: Counts.of(mask, sample.mask, sample.ignore)
            for content, mask in different.items()
        }
        for rule, mask in masks.items():
            self.counts[rule].append(counts[mask.tobytes()])
            self.expected[rule].append(expected[mask.tobytes()])

    def choose(self) -> Iterator[str]:
        """Take what helps beyond noise, the threshold first; yield what was done and why."""
        yield self._try([self.optimal], "the Dice-optimal threshold")
        threshold_rule = self.chosen.threshold_rule
        others = [rule for rule in self.counts if rule.threshold_rule == threshold_rule]
        others.remove(self.chosen)
        if self.several_objects >= OFTEN:
            share = f"{self.several_objects:.0%} of the training masks hold several objects"
            yield f"largest component only: not tried, {share}"
        yield self._try(others, "components and holes")

    def _try(self, rules: Sequence[Postprocessing], what: str) -> str:
        """Take the best of some rules if it is better than what is chosen, beyond noise."""
        best = max(rules, key=lambda rule: fmean(self._dice(rule)))
        confidence = 1 - (1 - CONFIDENCE) / len(rules)
        now, then = self._dice(self.chosen), self._dice(best)
        gain = compare_paired(now, then, confidence=confidence).difference
        text = f"mean Dice {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        if not gain.low > 0:
            return f"{what}: not taken, {text} at best ({best.in_words()})"
        self.chosen = best
        return f"{what}: taken, {text} ({best.in_words()})"

    def _dice(self, rule: Postprocessing) -> list[float]:
        return [count.dice for count in self.counts[rule]]


def _dice(table: npt.NDArray[np.int64], level: int) -> float:
    """Return the Dice of calling foreground what is at a level or above."""
    false, true = (int(part[level]) for part in table)
    background, foreground = (int(part[0]) for part in table)
    return Counts(true, false, foreground - true, background - false).dice
