"""What validation decides: calibration and postprocessing, chosen on no other split.

Two passes over the images, which are predicted once where there is room to keep what came of it.
The first fits the calibration and the threshold; the second tries the Dice-optimal threshold of
each image and rules for components and holes. Each is measured on images that it was not chosen
on, and taken only where it helps there by more than noise: a network's own probabilities, cut at
0.5, stand until then.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from notan.data.samples import Joined
from notan.data.survey import least_foreground, several_objects_fraction
from notan.metrics.counts import Counts
from notan.metrics.statistics import CONFIDENCE
from notan.modelfile.postprocess import (
    EMPTY_BELOW,
    Postprocessing,
    foretold_dice_of_each,
    logit,
    sigmoid,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from notan.data.samples import Sample, Source
    from notan.prediction.predictor import Predictor
    from notan.types import Probability

    Real = npt.NDArray[np.float64]
    Rows = npt.NDArray[np.bool_]

PLAIN = 0.5
FEWEST = 5
"""Validation images without which nothing is chosen."""

FEWEST_TO_TRY = 10
"""Images without which nothing but calibration and threshold is tried."""

FOLDS = 10
"""Parts that are left out in turn; up to as many images, each is one of its own."""

STEP, LARGEST = 1 / 16, 16.0
"""Width of the bins of logits, and where they end: a probability in float32 goes no further."""

LOGITS = np.arange(-LARGEST, LARGEST, STEP)
"""Where the bins begin; a threshold that is one of them cuts exactly."""

THRESHOLDS = slice(int((LARGEST - 4.5) / STEP), int((LARGEST + 4.5) / STEP) + 1)
"""The bins that may be chosen to cut at: probabilities of 0.011 to 0.989, the plain one inside."""

UNCUT = int(4.5 / STEP)
"""The plain threshold among them."""

MOST_KEPT = 256 * 2**20
"""Bytes of images, masks and maps that are kept for the second pass."""

SCALES, BIASES = (1 / 8, 4.0), (-5.0, 5.0)
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


FILLING = Postprocessing(fill_holes_fraction=0.01)
"""Fills the holes that are filled also for no gain, where no true mask has any such."""


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what it is worth.

    Attributes:
        postprocessing: The rule.
        dice: Mean with the rule; flattering, because it was chosen on these images.
        iou: Likewise.
        plain_dice: Mean with a threshold of 0.5 and nothing else.
        held_out_dice: ``plain_dice``, and what each part of the rule gained on images that were
            left out when it was chosen: what to expect of the rule.
        reasons: One line for each part: what was tried, what was kept and why.
    """

    postprocessing: Postprocessing
    dice: float
    iou: float
    plain_dice: float
    held_out_dice: float
    reasons: tuple[str, ...]

    def scores(self) -> dict[str, float]:
        """Return the scores as a card keeps them."""
        names = ("dice", "iou", "plain_dice", "held_out_dice")
        return {name: getattr(self, name) for name in names}


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

    Source: temperature and bias by maximum likelihood, Platt 1999, shrunk by Takeuchi's criterion;
        the threshold by the rule of one standard error, Breiman, Friedman, Olshen and Stone 1984;
        the Dice-optimal threshold, Dai and Li 2023, arXiv:2206.13086. An image counts as one
        observation, however many pixels it has: those are not independent of each other.
    """
    plain = predictor.with_postprocessing(Postprocessing())
    return choose_on([(plain, source)], training=training, batch_size=batch_size, between=between)


def choose_on(
    judged: Sequence[tuple[Predictor, Source]],
    *,
    training: Source | None = None,
    batch_size: int = 1,
    between: Callable[[], None] = lambda: None,
) -> Choice:
    """Choose for several networks at once, each judged on validation images of its own.

    Args:
        judged: Predictors whose probabilities are taken as they are, and the images of each.
        training: As for ``choose_postprocessing``; likewise below.
        batch_size: See there.
        between: See there.
    """
    source = judged[0][1] if len(judged) == 1 else Joined([images for _, images in judged])

    def predictions() -> Iterator[tuple[Sample, Probability]]:
        for predictor, images in judged:
            for sample, prediction in predictor.predict_samples(images, batch_size=batch_size):
                between()
                yield sample, prediction.probability

    pixels, kept = _Pixels(), _Kept()
    for sample, probability in _counted(predictions(), len(source)):
        pixels.see(sample, probability)
        kept.add(sample, probability)
    least = least_foreground(training or source)
    postprocessing, reasons, gained = pixels.choose(EMPTY_BELOW * (least or 0.0))
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
        gained += rules.gained
    chosen = rules.chosen
    counts, foretold = rules.counts[chosen], np.array(rules.foretold[chosen])
    if pixels.hold_both_classes:
        if not few:
            scale, bias = _expectation(foretold, np.array([each.dice for each in counts]))
            found = {"expectation_scale": round(scale, 3), "expectation_bias": round(bias, 3)}
            chosen = chosen.model_copy(update=found)
            reasons.append(_expected_in_words(chosen))
        unsure = chosen.temper(float(np.quantile(foretold, UNSURE_FRACTION)))
        chosen = chosen.model_copy(update={"review_below": round(unsure, 4)})
    plain_dice = fmean(pixels.dice()[:, UNCUT].tolist())
    return Choice(
        chosen,
        dice=fmean(count.dice for count in counts),
        iou=fmean(count.iou for count in counts),
        plain_dice=plain_dice,
        held_out_dice=plain_dice + gained,
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


Setting = TypeVar("Setting")


class _Judged(NamedTuple, Generic[Setting]):
    """A choice, and what it is worth on images that were left out of it.

    Attributes:
        setting: Chosen on all images.
        gain: Mean over images, each by what others chose.
        noise: Half the interval that the gain has by Student's distribution of the images.
        taken: Whether the gain exceeds it, and the setting is better on the images that chose it.
    """

    setting: Setting
    gain: float
    noise: float
    taken: bool

    def in_words(self, what: str, measure: str, setting: str) -> str:
        """Say what was tried, whether it was taken, and what it is worth."""
        taken = "taken" if self.taken else "not taken"
        worth = f"{self.gain:+.4f} ± {self.noise:.4f}"
        return f"{what}: {taken}, {measure} {worth} on images left out ({setting})"


def _judge(
    number: int, choose: Callable[[Rows], Setting], gains: Callable[[Setting], Real]
) -> _Judged[Setting]:
    """Choose a setting, and say whether it is better than what stands by more than noise.

    Args:
        number: Of images.
        choose: Chooses by some of them, all that is to be chosen: what it gains is measured on
            the others.
        gains: What a setting gains on each image, over the choice that stands.
    """
    from scipy.special import stdtrit  # Student's quantile, in a tenth of SciPy's statistics

    folds = np.arange(number) % FOLDS
    left_out = np.empty(number)
    for fold in range(min(FOLDS, number)):
        out = folds == fold
        left_out[out] = gains(choose(~out))[out]
    gain = float(left_out.mean())
    noise = float(stdtrit(number - 1, (1 + CONFIDENCE) / 2) * _standard_error(left_out))
    setting = choose(np.ones(number, np.bool_))
    return _Judged(setting, gain, noise, gain > noise and float(gains(setting).mean()) > 0)


def _standard_error(values: Real) -> Real:
    """Return that of the means over the first axis, which are of images."""
    error: Real = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return error


class _Pixels:
    """How many background and foreground pixels of each image have which logit."""

    def __init__(self) -> None:
        self.counts: list[npt.NDArray[np.int64]] = []

    def see(self, sample: Sample, probability: Probability) -> None:
        counted = np.ones(sample.size, np.bool_) if sample.ignore is None else ~sample.ignore
        logits, foreground = logit(probability[counted]), sample.mask[counted]
        bins = np.floor((logits + np.float32(LARGEST)) / np.float32(STEP)).astype(np.int64)
        bins = np.clip(bins, 0, len(LOGITS) - 1) + len(LOGITS) * foreground
        both = np.bincount(bins, minlength=2 * len(LOGITS))
        self.counts.append(both.reshape(2, len(LOGITS)))

    def choose(self, empty_below: float) -> tuple[Postprocessing, list[str], float]:
        """Return the calibration and the threshold, what they do, and the mean Dice they gain.

        Args:
            empty_below: Share of an image below which foreground is taken for none, where that
                makes no mask worse on average; 0: never.
        """
        number = len(self.counts)
        if number < FEWEST:
            few = f"{number} validation images are too few to choose on"
            return Postprocessing(), [f"{few}: threshold {PLAIN:g}"], 0.0
        if not self.hold_both_classes:
            one = "no calibration: the validation masks hold one class only"
            return Postprocessing(), [one], 0.0
        likelihood, dice = _Likelihood(np.stack(self.counts)), self.dice()
        calibration = _judge(number, likelihood.fit, likelihood.gains)
        scale, bias = calibration.setting
        fitted = Postprocessing(temperature=round(1 / scale, 3), bias=round(bias, 3))
        moved = float(fitted.calibrate(_probability(UNCUT))[0])
        words = f"temperature {fitted.temperature:g}, bias {fitted.bias:g}; 0.5 becomes {moved:.2f}"
        measure = "mean log-likelihood of a pixel"
        reasons = [calibration.in_words("calibration", measure, words)]
        cut = _judge(number, lambda rows: _cut(dice[rows]), lambda at: dice[:, at] - dice[:, UNCUT])
        own = _probability(cut.setting)
        words = f"where the network's own probability is {float(own[0]):.2f}"
        reasons.append(cut.in_words("threshold", "mean Dice", words))
        chosen = fitted if calibration.taken else Postprocessing()
        # calibration moves no pixel to the other class: what is cut at moves with it
        at = chosen.calibrate(own if cut.taken else _probability(UNCUT))
        chosen = chosen.model_copy(update={"threshold": float(at[0])})
        gained = cut.gain if cut.taken else 0.0
        if empty_below:
            worth = self.gain_of_emptying(cut.setting if cut.taken else UNCUT, empty_below)
            how = "left empty" if worth >= 0 else "not left empty"
            reasons.append(
                f"masks of less than {empty_below:.2g} of the image: {how}, a tenth of the least "
                f"foreground that training masks have beside empty ones; mean Dice {worth:+.4f}"
            )
            if worth >= 0:  # learned from training masks, so that this is no flattery
                chosen = chosen.model_copy(update={"min_foreground_fraction": empty_below})
                gained += worth
        return chosen, reasons, gained

    def gain_of_emptying(self, cut: int, below: float) -> float:
        """Return the mean Dice gained where masks of less than a share of the image are emptied.

        Args:
            cut: One of ``THRESHOLDS``.
            below: The share.
        """
        counts = np.stack(self.counts)
        called = counts[:, :, THRESHOLDS.start + cut :].sum(axis=(1, 2))
        pixels, foreground = counts.sum(axis=(1, 2)), counts[:, 1].sum(axis=1)
        emptied = (called < below * pixels) & (called > 0)
        return float(np.mean(np.where(emptied, (foreground == 0) - self.dice()[:, cut], 0.0)))

    @property
    def hold_both_classes(self) -> bool:
        """Whether there is any pixel of each class, those aside that do not count."""
        return bool(np.sum(self.counts, axis=(0, 2)).all())

    def dice(self) -> Real:
        """Return the Dice of each image, cut at each of ``THRESHOLDS``: (images, thresholds)."""
        called = np.stack(self.counts)[:, :, ::-1].cumsum(axis=2)[:, :, ::-1]
        whole = called[:, :, THRESHOLDS].sum(axis=1) + called[:, 1, :1]
        shared: Real = 2 * called[:, 1, THRESHOLDS] / np.maximum(whole, 1)
        return np.where(whole, shared, 1.0)


def _probability(cut: int) -> Probability:
    """Return the network's own probability at one of ``THRESHOLDS``, as an array of one."""
    return sigmoid(LOGITS[THRESHOLDS][cut : cut + 1].astype(np.float32))


def _cut(dice: Real) -> int:
    """Return the threshold, an index, to cut at by the Dice of some images.

    The best one of a few images lies where their noise has put it. Taken is the nearest to the
    plain one that is worse than the best by no more than a standard error, and better than the
    plain one itself.
    """
    mean = dice.mean(axis=0)
    worse = dice[:, [int(np.argmax(mean))]] - dice
    as_good = worse.mean(axis=0) <= _standard_error(worse)
    allowed = np.flatnonzero(as_good & (mean >= mean[UNCUT]))
    return int(allowed[np.argmin(np.abs(allowed - UNCUT))])


class _Likelihood:
    """How likely a scale of the logits and a bias make the truth of the pixels of each image."""

    def __init__(self, counts: npt.NDArray[np.int64] | Real) -> None:
        pixels = counts.sum(axis=(1, 2), keepdims=True)
        self.shares = counts / np.maximum(pixels, 1)  # an image counts once, whatever its size
        middle = LOGITS + STEP / 2
        self.inputs = np.stack([middle, np.ones_like(middle)])

    def cross_entropy(self, setting: tuple[float, float]) -> Real:
        """Return the mean of each image's pixels, in nats."""
        scaled = np.asarray(setting) @ self.inputs
        background, foreground = np.logaddexp(0, scaled), np.logaddexp(0, -scaled)
        of_each: Real = self.shares[:, 0] @ background + self.shares[:, 1] @ foreground
        return of_each

    def gains(self, setting: tuple[float, float]) -> Real:
        """Return by how much each image's cross-entropy is smaller than without calibration."""
        return self.cross_entropy((1.0, 0.0)) - self.cross_entropy(setting)

    def fit(self, rows: Rows) -> tuple[float, float]:
        """Return the scale and the bias by some images, shrunk towards 1 and 0.

        The likeliest setting owes a part of its gain to chance: by Takeuchi's criterion, with
        images as the observations, so much is to be expected. By that share the way from no
        calibration to the likeliest one is shortened, to nothing where chance explains the whole
        gain. The cross-entropy is convex, so that any part of the way is better than none.

        Source: Takeuchi 1976, as in Stone 1977, "An Asymptotic Equivalence of Choice of Model by
            Cross-Validation and Akaike's Criterion"; the shrinkage is James and Stein's, 1961.
        """
        from scipy.optimize import minimize
        from scipy.special import expit

        shares = self.shares[rows]
        background, foreground = shares.mean(axis=0)

        def objective(setting: Real) -> tuple[float, Real]:
            scaled = setting @ self.inputs
            losses = background @ np.logaddexp(0, scaled) + foreground @ np.logaddexp(0, -scaled)
            chance = expit(scaled)
            slope = self.inputs @ (background * chance - foreground * (1 - chance))
            return float(losses), slope

        plain = np.array([1.0, 0.0])
        found = minimize(objective, plain, jac=True, bounds=(SCALES, BIASES), method="L-BFGS-B").x
        chance = expit(found @ self.inputs)
        slopes = (shares[:, 0] * chance - shares[:, 1] * (1 - chance)) @ self.inputs.T
        curve = (self.inputs * (background + foreground) * chance * (1 - chance)) @ self.inputs.T
        spread = np.cov(slopes, rowvar=False) / len(shares)
        by_chance = float(np.trace(np.linalg.pinv(curve) @ spread))
        gain = 2 * (objective(plain)[0] - objective(found)[0])
        kept = max(0.0, 1 - by_chance / gain) if gain > 0 else 0.0
        scale, bias = plain + kept * (found - plain)
        return float(scale), float(bias)


def _expectation(foretold: Real, dice: Real) -> tuple[float, float]:
    """Return by what scale and bias the foretold Dice of images becomes what came of them.

    Probabilities foretell the Dice as if pixels were wrong independently of each other. They are
    wrong together, a whole ear or cell at a time, so that masks of unsure images are worse than
    foretold; the more so, the less an image is like those of the training.

    Source: logistic regression of a fraction, Papke and Wooldridge 1996, "Econometric Methods for
        Fractional Response Variables"; shrunk as ``_Likelihood.fit`` says.
    """
    logits = logit(foretold.astype(np.float32))
    bins = np.clip(np.floor((logits + LARGEST) / STEP).astype(np.int64), 0, len(LOGITS) - 1)
    shares, images = np.zeros((len(dice), 2, len(LOGITS))), np.arange(len(dice))
    shares[images, 0, bins], shares[images, 1, bins] = 1 - dice, dice
    return _Likelihood(shares).fit(np.ones(len(dice), np.bool_))


def _expected_in_words(rule: Postprocessing) -> str:
    becomes = ", ".join(f"{each:g} becomes {rule.temper(each):.2f}" for each in (0.95, 0.85, 0.7))
    return f"expected Dice: by what came of the validation images, {becomes}"


class _Rules:
    """What every rule for thresholds and for components scores on each image.

    Attributes:
        chosen: The rule that stands.
        gained: Mean Dice that it has gained since the first one, on images left out.
        counts: Of each rule, of each image.
        foretold: Dice that the probabilities foretell of each rule's mask of each image.
        holes: True masks with a hole that ``FILLING`` would fill.
    """

    def __init__(self, postprocessing: Postprocessing, *, several_objects: float) -> None:
        self.chosen = postprocessing
        self.gained = 0.0
        self.several_objects = several_objects
        self.optimal = postprocessing.model_copy(update={"threshold_rule": "dice"})
        self.counts: dict[Postprocessing, list[Counts]] = {
            plain.model_copy(update=rule): []
            for plain in (postprocessing, self.optimal)
            for rule in ({}, *COMPONENT_RULES)
            if not ("keep_largest" in rule and several_objects >= OFTEN)
        }
        self.foretold: dict[Postprocessing, list[float]] = {rule: [] for rule in self.counts}
        self.holes = 0

    def see(self, sample: Sample, probability: Probability) -> None:
        plain = {
            each.threshold_rule: each.model_copy(update={"min_foreground_fraction": 0.0}).mask(
                probability
            )
            for each in (self.chosen, self.optimal)
        }
        masks = {rule: rule.postprocess(plain[rule.threshold_rule]) for rule in self.counts}
        different = {mask.tobytes(): mask for mask in masks.values()}  # most rules change nothing
        foretold = dict(
            zip(
                different,
                foretold_dice_of_each(
                    probability, different.values(), self.chosen.min_foreground_fraction
                ),
                strict=True,
            )
        )
        self.holes += not np.array_equal(FILLING.postprocess(sample.mask), sample.mask)
        counts = {
            content: Counts.of(mask, sample.mask, sample.ignore)
            for content, mask in different.items()
        }
        for rule, mask in masks.items():
            self.counts[rule].append(counts[mask.tobytes()])
            self.foretold[rule].append(foretold[mask.tobytes()])

    def choose(self) -> Iterator[str]:
        """Take what helps beyond noise, the threshold first; yield what was done and why."""
        yield self._try([self.optimal], "the Dice-optimal threshold")
        threshold_rule = self.chosen.threshold_rule
        others = [rule for rule in self.counts if rule.threshold_rule == threshold_rule]
        if self.several_objects >= OFTEN:
            share = f"{self.several_objects:.0%} of the training masks hold several objects"
            yield f"largest component only: not tried, {share}"
        yield self._try(others, "components and holes")
        if not (self.holes or self.chosen.fill_holes_fraction):
            yield self._fill()

    def _fill(self) -> str:
        """Fill the holes that no true mask has, where that makes no mask worse on average.

        They are too small to show in the Dice, and the first thing that a person sees.
        """
        fraction = FILLING.fill_holes_fraction
        filling = self.chosen.model_copy(update={"fill_holes_fraction": fraction})
        counts = self.counts.get(filling)
        if counts is None:
            return "holes: not filled, as components are removed by another rule"
        gain = fmean(each.dice for each in counts)
        gain -= fmean(each.dice for each in self.counts[self.chosen])
        taken = gain >= 0
        if taken:
            self.chosen = filling
        return (
            f"holes under {fraction:.0%} of the image: {'' if taken else 'not '}filled, as no "
            f"validation mask has any; mean Dice {gain:+.4f}"
        )

    def _try(self, rules: list[Postprocessing], what: str) -> str:
        """Take the best of some rules if it is better than what is chosen, beyond noise."""
        dice = np.array([[count.dice for count in self.counts[rule]] for rule in rules])
        now = np.array([count.dice for count in self.counts[self.chosen]])
        judged = _judge(
            len(now),
            lambda rows: int(np.argmax(dice[:, rows].mean(axis=1))),
            lambda rule: dice[rule] - now,
        )
        best = rules[judged.setting]
        if judged.taken:
            self.chosen = best
            self.gained += judged.gain
        return judged.in_words(what, "mean Dice", best.in_words())
