"""choose_postprocessing: what validation decides, and what it leaves alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.special import expit

from notan.data.samples import Sample, Source
from notan.evaluation import calibrate
from notan.evaluation.calibrate import (
    FEWEST,
    FEWEST_TO_TRY,
    LOGITS,
    THRESHOLDS,
    UNCUT,
    choose_postprocessing,
)
from notan.metrics import Counts
from notan.modelfile.postprocess import Postprocessing
from notan.modelfile.preprocess import Preprocessor
from notan.prediction.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from notan.prediction.backends import Array
    from notan.types import Mask

SIDE = 48
Blur = "Callable[[np.random.Generator], Array]"


class Drawn(Source):
    """Images whose red channel holds a network's logits, so that a stub can answer with them."""

    def __init__(self, logits: Sequence[Array], masks: Sequence[Mask]) -> None:
        self.samples = [
            Sample(f"p{number}", _as_image(each), mask)
            for number, (each, mask) in enumerate(zip(logits, masks, strict=True))
        ]

    @property
    def names(self) -> list[str]:
        return [sample.name for sample in self.samples]

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def _as_image(logits: Array) -> np.ndarray:
    red = np.clip(np.round(logits * 8 + 128), 0, 255).astype(np.uint8)
    return np.repeat(red[..., None], 3, axis=2)


def answers(inputs: Array) -> Array:
    return ((inputs[:, :1] * 255 - 128) / 8).astype(np.float32)


PLAIN = Predictor(answers, Preprocessor(image_size=None, mean=(0, 0, 0), std=(1, 1, 1), stride=1))


def calibrated_images(number: int, *, sharper: float = 1.0, shift: float = 0.0) -> Drawn:
    """Truths drawn from the probabilities themselves; the network's logits are then spoilt."""
    logits, masks = [], []
    for seed in range(number):
        rng = np.random.default_rng(seed)
        field = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 6)
        true = 3 * field / field.std() - 1
        masks.append(rng.random((SIDE, SIDE)) < expit(true))
        logits.append(np.asarray(true * sharper + shift, dtype=np.float32))
    return Drawn(logits, masks)


def mean_dice(source: Drawn, postprocessing: Postprocessing) -> float:
    predictor = PLAIN.with_postprocessing(postprocessing)
    counts = [
        Counts.of(prediction.mask, sample.mask)
        for sample, prediction in predictor.predict_samples(source)
    ]
    return sum(count.dice for count in counts) / len(counts)


@pytest.mark.parametrize("sharper", [0.5, 1.0, 2.5])
def test_the_temperature_undoes_what_made_the_network_too_sure(sharper: float) -> None:
    choice = choose_postprocessing(PLAIN, calibrated_images(12, sharper=sharper))
    assert choice.postprocessing.temperature == pytest.approx(sharper, rel=0.1)
    assert choice.postprocessing.bias == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("shift", [-1.5, 1.0])
def test_the_bias_undoes_what_made_the_network_see_too_much_or_too_little(shift: float) -> None:
    choice = choose_postprocessing(PLAIN, calibrated_images(12, shift=shift))
    assert choice.postprocessing.bias == pytest.approx(-shift, abs=0.1)
    assert choice.postprocessing.temperature == pytest.approx(1, rel=0.1)


def test_the_threshold_follows_a_network_that_answers_too_low() -> None:
    source = calibrated_images(12, shift=-2.0)
    choice = choose_postprocessing(PLAIN, source)
    plain, chosen = mean_dice(source, Postprocessing()), mean_dice(source, choice.postprocessing)
    assert choice.plain_dice == pytest.approx(plain, abs=1e-9)
    assert choice.dice == pytest.approx(chosen, abs=1e-9)
    assert chosen > plain + 0.05
    best = max(mean_dice(source, Postprocessing(threshold=each)) for each in np.arange(1, 20) / 20)
    assert chosen >= best - 0.002
    assert any(reason.startswith("threshold: taken") for reason in choice.reasons)


def wrong_together(seeds: range) -> Drawn:
    """Images of which every third is seen half as surely, and its foreground in another place."""
    logits, masks = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        field = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 6, mode="wrap")
        seen = 4 * (field - np.median(field)) / field.std()
        moved = int(rng.integers(4, 12)) if seed % 3 == 0 else 1
        masks.append(np.roll(seen, moved, axis=0) > 0)
        logits.append(np.asarray(seen / (2 if moved > 1 else 1), dtype=np.float32))
    return Drawn(logits, masks)


def expected_and_true(predictor: Predictor, source: Drawn) -> npt.NDArray[np.float64]:
    return np.array(
        [
            (prediction.expected_dice, Counts.of(prediction.mask, sample.mask).dice)
            for sample, prediction in predictor.predict_samples(source)
        ]
    )


def test_the_expected_dice_learns_that_pixels_are_wrong_together() -> None:
    choice = choose_postprocessing(PLAIN, wrong_together(range(30)))
    rule, others = choice.postprocessing, wrong_together(range(100, 140))
    foretelling = rule.model_copy(update={"expectation_scale": 1.0, "expectation_bias": 0.0})
    before, after = (
        expected_and_true(PLAIN.with_postprocessing(each), others) for each in (foretelling, rule)
    )
    assert (before[:, 1] == after[:, 1]).all()  # masks are what they were
    off_before, off_after = (abs(each[:, 0] - each[:, 1]).mean() for each in (before, after))
    assert off_after < 0.7 * off_before
    assert abs(after[:, 0].mean() - after[:, 1].mean()) < 0.02
    assert (np.argsort(before[:, 0]) == np.argsort(after[:, 0])).all()
    assert any(reason.startswith("expected Dice: ") for reason in choice.reasons)


def test_one_in_ten_validation_images_is_to_be_looked_at() -> None:
    source = wrong_together(range(30))
    rule = choose_postprocessing(PLAIN, source).postprocessing
    predictions = PLAIN.with_postprocessing(rule).predict_samples(source)
    assert sum(bool(prediction.needs_review) for _, prediction in predictions) == 3


def test_what_is_right_is_expected_to_be_right() -> None:
    source = calibrated_images(12)
    rule = choose_postprocessing(PLAIN, source).postprocessing
    assert rule.temper(0.9) == pytest.approx(0.9, abs=0.02)


def test_a_rule_for_components_is_taken_where_it_helps_every_image() -> None:
    logits, masks = [], []
    for seed in range(FEWEST_TO_TRY + 2):
        rng = np.random.default_rng(seed)
        mask = np.zeros((SIDE, SIDE), np.bool_)
        mask[10:30, 12 : 30 + seed] = True
        seen = mask.copy()
        seen[rng.integers(34, SIDE, 12), rng.integers(0, SIDE, 12)] = True  # specks
        logits.append(np.where(seen, 6.0, -6.0).astype(np.float32))
        masks.append(mask)
    choice = choose_postprocessing(PLAIN, Drawn(logits, masks))
    assert choice.postprocessing.min_component_fraction or choice.postprocessing.keep_largest
    assert choice.dice > choice.plain_dice
    assert any(reason.startswith("components and holes: taken") for reason in choice.reasons)
    assert any(
        reason.startswith("the Dice-optimal threshold: not taken") for reason in choice.reasons
    )


def lone_objects(objects: int) -> tuple[Drawn, list[Mask]]:
    """Images of one square, far from which the network sees another one; and training masks."""
    logits, masks, training = [], [], []
    for seed in range(FEWEST_TO_TRY + 2):
        mask = np.zeros((SIDE, SIDE), np.bool_)
        mask[6:24, 6 : 24 + seed] = True
        seen = mask.copy()
        seen[34:46, 36:46] = True
        logits.append(np.where(seen, 6.0, -6.0).astype(np.float32))
        masks.append(mask)
        training.append(seen if seed < objects else mask)
    return Drawn(logits, masks), training


@pytest.mark.parametrize(("objects", "is_kept"), [(0, True), (1, True), (4, False)])
def test_the_largest_component_is_not_kept_alone_where_training_masks_often_hold_several(
    objects: int, is_kept: bool
) -> None:
    source, masks = lone_objects(objects)
    training = Drawn([np.zeros((SIDE, SIDE), np.float32)] * len(masks), masks)
    choice = choose_postprocessing(PLAIN, source, training=training)
    assert choice.postprocessing.keep_largest is is_kept
    said = any("training masks hold several objects" in reason for reason in choice.reasons)
    assert said is not is_kept


def test_without_training_masks_those_of_validation_say_whether_there_are_several_objects() -> None:
    source, seen = lone_objects(12)
    assert choose_postprocessing(PLAIN, source).postprocessing.keep_largest
    rng = np.random.default_rng(0)
    for number, sample in enumerate(source.samples):
        far = np.zeros((SIDE, SIDE), np.bool_)
        far[34:46, 36:46] = number % 4 == 0  # rare enough that keeping one would still help
        specks = rng.random((SIDE, SIDE)) < 0.001
        mask = sample.mask | far | (specks & ~seen[number])
        source.samples[number] = Sample(sample.name, sample.image, mask)
    assert not choose_postprocessing(PLAIN, source).postprocessing.keep_largest


def test_specks_are_no_objects() -> None:
    source, masks = lone_objects(0)
    for mask in masks:
        mask[46, 2] = True
    training = Drawn([np.zeros((SIDE, SIDE), np.float32)] * len(masks), masks)
    assert choose_postprocessing(PLAIN, source, training=training).postprocessing.keep_largest


def test_nothing_is_taken_that_does_not_help_beyond_noise() -> None:
    choice = choose_postprocessing(PLAIN, calibrated_images(12))
    chosen = choice.postprocessing
    assert (chosen.keep_largest, chosen.min_component_fraction, chosen.fill_holes_fraction) == (
        False,
        0,
        0,
    )


@pytest.mark.parametrize(
    ("images", "true_hole", "helpful", "filled"),
    [
        (FEWEST_TO_TRY, False, True, True),
        (FEWEST_TO_TRY, True, True, False),
        (FEWEST_TO_TRY, False, False, False),
        (FEWEST_TO_TRY - 1, False, True, False),
    ],
)
def test_holes_that_no_true_mask_has_are_filled_where_it_costs_nothing(
    images: int, *, true_hole: bool, helpful: bool, filled: bool
) -> None:
    logits, masks = [], []
    for number in range(images):
        mask = np.zeros((SIDE, SIDE), np.bool_)
        mask[6:40, 6 : 30 + number] = True
        seen = mask.copy()
        if not helpful:  # a hook of foreground around background that is none of its own
            mask[20:22, 6:12] = False
            seen[20:22, 7:12] = False
        elif number % 5 == 0:  # in so few that it is no gain beyond noise
            seen[20, 10] = False
        if true_hole and number == 3:
            mask[12, 12] = False
            seen[12, 12] = False
        logits.append(np.where(seen, 6.0, -6.0).astype(np.float32))
        masks.append(mask)
    choice = choose_postprocessing(PLAIN, Drawn(logits, masks))
    assert (choice.postprocessing.fill_holes_fraction > 0) is filled
    said = [reason for reason in choice.reasons if reason.startswith("holes under 1%")]
    assert bool(said) is (not true_hole and images >= FEWEST_TO_TRY)
    assert not filled or said[0].endswith(" no validation mask has any; mean Dice +0.0001")


def found_or_not(*, empty: int, missed: int) -> Drawn:
    """Eight images: squares of 20 to 27 pixels, and specks where there is nothing.

    Args:
        empty: Images without foreground, in which the network sees five pixels.
        missed: Images of whose square it sees five pixels.
    """
    logits, masks = [], []
    for number in range(8):
        mask = np.zeros((SIDE, SIDE), np.bool_)
        mask[10:30, 10 : 30 + number] = True
        seen = mask.copy()
        if number >= 8 - empty - missed:
            seen[:] = False
            seen[12, 12:17] = True
        mask &= number < 8 - empty
        logits.append(np.where(seen, 6.0, -6.0).astype(np.float32))
        masks.append(mask)
    return Drawn(logits, masks)


def test_specks_are_no_foreground_where_training_has_masks_without_any() -> None:
    source = found_or_not(empty=2, missed=1)
    choice = choose_postprocessing(PLAIN, source)
    least = 0.1 * 20 * 20 / SIDE**2
    assert choice.postprocessing.min_foreground_fraction == pytest.approx(least)
    assert choice.plain_dice < 0.65
    # two are right, the missed one loses the little that it had
    missed = 2 * 5 / (5 + 20 * 25)
    assert choice.dice - choice.plain_dice == pytest.approx((2 - missed) / 8)
    assert choice.held_out_dice == pytest.approx(choice.dice)
    assert any(reason.startswith("masks of less than 0.017") for reason in choice.reasons)
    assert mean_dice(source, choice.postprocessing) == pytest.approx(choice.dice)


@pytest.mark.parametrize(
    ("empty", "missed", "said"), [(0, 0, False), (0, 2, False), (8, 0, False), (1, 0, True)]
)
def test_training_masks_say_whether_and_what_is_too_little(
    empty: int, missed: int, *, said: bool
) -> None:
    training = found_or_not(empty=empty, missed=missed)
    choice = choose_postprocessing(PLAIN, found_or_not(empty=2, missed=0), training=training)
    assert (choice.postprocessing.min_foreground_fraction > 0) is said
    assert any("left empty" in reason for reason in choice.reasons) is said


def test_no_mask_is_left_empty_where_that_makes_them_worse() -> None:
    training = found_or_not(empty=2, missed=0)
    choice = choose_postprocessing(PLAIN, found_or_not(empty=0, missed=2), training=training)
    assert choice.postprocessing.min_foreground_fraction == 0
    (reason,) = (reason for reason in choice.reasons if "left empty" in reason)
    assert "not left empty" in reason
    assert "mean Dice -0.00" in reason


def test_few_images_choose_nothing_and_it_is_said() -> None:
    choice = choose_postprocessing(PLAIN, calibrated_images(4, shift=-2.0))
    assert choice.postprocessing == Postprocessing(review_below=choice.postprocessing.review_below)
    assert choice.reasons[0] == "4 validation images are too few to choose on: threshold 0.5"
    assert choice.dice == choice.plain_dice


@pytest.mark.parametrize("foreground", [False, True])
def test_masks_of_one_class_calibrate_nothing(foreground: bool) -> None:
    masks = [np.full((SIDE, SIDE), foreground)] * 6
    source = Drawn([np.zeros((SIDE, SIDE), np.float32)] * 6, masks)
    choice = choose_postprocessing(PLAIN, source)
    assert (choice.postprocessing.temperature, choice.postprocessing.bias) == (1, 0)
    assert choice.reasons[0] == "no calibration: the validation masks hold one class only"
    assert choice.dice == choice.plain_dice == foreground  # 0.5 throughout is called foreground


@pytest.mark.parametrize("foreground", [False, True])
def test_masks_of_one_class_choose_neither_threshold_nor_rule(foreground: bool) -> None:
    """The network sees specks in empty images, which a high threshold would hide, and so on."""
    logits = []
    for seed in range(FEWEST_TO_TRY + 2):
        specks = np.random.default_rng(seed).random((SIDE, SIDE)) < 0.01
        logits.append(np.where(specks != foreground, 1.0, -6.0).astype(np.float32))
    masks = [np.full((SIDE, SIDE), foreground)] * len(logits)
    choice = choose_postprocessing(PLAIN, Drawn(logits, masks))
    assert choice.postprocessing == Postprocessing()
    assert choice.reasons[1:] == ("threshold 0.5 and nothing else: there is nothing to choose by",)
    assert choice.dice == choice.plain_dice


def test_ignored_pixels_choose_nothing() -> None:
    source = calibrated_images(12, shift=-1.0)
    ignored = np.zeros((SIDE, SIDE), np.bool_)
    ignored[:, : SIDE // 3] = True

    def chosen(masks: Sequence[Mask]) -> Postprocessing:
        for number, mask in enumerate(masks):
            sample = source.samples[number]
            source.samples[number] = Sample(sample.name, sample.image, mask, ignored)
        return choose_postprocessing(PLAIN, source, training=source).postprocessing

    masks = [sample.mask for sample in source.samples]
    right = chosen(masks)
    assert right.is_calibrated
    spoilt = chosen([np.where(ignored, ~mask, mask) for mask in masks])
    assert spoilt == right


def test_one_validation_image_in_ten_is_named_for_a_check() -> None:
    source = calibrated_images(20)
    predictor = PLAIN.with_postprocessing(choose_postprocessing(PLAIN, source).postprocessing)
    named = [prediction.needs_review for _, prediction in predictor.predict_samples(source)]
    assert sum(map(bool, named)) == 2
    assert PLAIN(source.samples[0].image).needs_review is None


def test_the_choice_can_be_stopped_between_images() -> None:
    seen: list[int] = []

    def stop() -> None:
        seen.append(1)
        if len(seen) == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        choose_postprocessing(PLAIN, calibrated_images(12), between=stop)
    assert len(seen) == 15


class Counting(Drawn):
    """Counts how often an image is read."""

    reads = 0

    def __getitem__(self, index: int) -> Sample:
        self.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize(("room", "reads"), [(2**20, 12), (3 * SIDE**2 * 8, 24), (0, 24)])
def test_images_are_read_twice_only_where_they_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, room: int, reads: int
) -> None:
    drawn = calibrated_images(12, sharper=2.0)
    wanted = choose_postprocessing(PLAIN, drawn)
    monkeypatch.setattr(calibrate, "MOST_KEPT", room)
    source = Counting([], [])
    source.samples = drawn.samples
    assert choose_postprocessing(PLAIN, source, training=drawn) == wanted
    assert source.reads == reads


def test_a_threshold_that_makes_validation_worse_is_not_chosen() -> None:
    """A network that has learned nothing calls all foreground, and only one image holds much.

    Calibrated, its probabilities are 0.03 and 0.06: every threshold from 0.05 up cuts worse than
    its own 0.5, which calls all foreground.
    """
    logits, masks = [], []
    for number in range(8):
        unlikely = np.zeros((SIDE, SIDE), np.bool_)
        unlikely[: SIDE // 2 if number == 0 else 2 * SIDE // 3] = True
        logits.append(np.where(unlikely, 0.25, 1.0).astype(np.float32))
        mask = np.zeros((SIDE, SIDE), np.bool_)
        mask[:, : SIDE // 3] = number == 0
        mask[0, 0] = True
        masks.append(mask)
    source = Drawn(logits, masks)
    choice = choose_postprocessing(PLAIN, source)
    assert choice.dice == choice.plain_dice == choice.held_out_dice
    assert mean_dice(source, choice.postprocessing) == pytest.approx(choice.plain_dice)
    assert any(reason.startswith("threshold: not taken") for reason in choice.reasons)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    number=st.integers(1, 14),
    sharper=st.floats(0.2, 4),
    shift=st.floats(-3, 3),
)
def test_no_choice_makes_validation_worse_and_calibration_moves_no_pixel(
    seed: int, number: int, sharper: float, shift: float
) -> None:
    rng = np.random.default_rng(seed)
    true = rng.normal(rng.normal(-1, 1, (number, 1, 1)), 2, (number, 12, 12))
    masks = rng.random(true.shape) < expit(true)
    source = Drawn(list((true * sharper + shift).astype(np.float32)), list(masks))
    choice = choose_postprocessing(PLAIN, source)
    assert choice.dice >= choice.plain_dice - 1e-9
    assert choice.held_out_dice >= choice.plain_dice
    if choice.held_out_dice == choice.plain_dice:
        for sample, prediction in PLAIN.predict_samples(source):
            mask = choice.postprocessing.mask(
                choice.postprocessing.calibrate(prediction.probability)
            )
            assert np.array_equal(mask, prediction.probability >= 0.5), sample.name
    if number < FEWEST:
        plain = Postprocessing(review_below=choice.postprocessing.review_below)
        assert choice.postprocessing == plain


GRID = LOGITS[THRESHOLDS]


def curves(rng: np.random.Generator, best: float, number: int) -> npt.NDArray[np.float64]:
    """Dice of some images at each threshold; that of each is best at a logit of its own."""
    own = rng.normal(best, 1.0, (number, 1))
    dice: npt.NDArray[np.float64] = 0.8 - 0.02 * (GRID - own) ** 2
    return dice


def judge_cut(dice: npt.NDArray[np.float64]) -> calibrate._Judged[int]:
    """Choose a threshold as ``choose_postprocessing`` does, in a hundredth of the time."""

    def choose(rows: npt.NDArray[np.bool_]) -> int:
        return calibrate._cut(dice[rows])

    def gains(at: int) -> npt.NDArray[np.float64]:
        return dice[:, at] - dice[:, UNCUT]

    return calibrate._judge(len(dice), choose, gains)


def on_others(best: float, cut: int) -> float:
    """What a threshold gains on average on other images of ``curves``, over the plain one."""
    return float(0.02 * (best**2 - (GRID[cut] - best) ** 2))


@pytest.mark.parametrize(
    ("best", "number", "least", "most"),
    [
        (0.0, 8, -0.0005, 0.0),  # the best threshold of eight images loses 0.0025
        (0.0, 200, -0.0001, 0.0),
        (0.5, 8, 0.0, 0.005),
        (1.0, 8, 0.005, 0.02),
        (1.0, 200, 0.0185, 0.02),
    ],
)
def test_a_threshold_is_moved_as_far_as_the_images_can_tell(
    best: float, number: int, least: float, most: float
) -> None:
    gained, greedy = [], []
    for seed in range(200 if number == 8 else 50):
        dice = curves(np.random.default_rng(seed), best, number)
        judged = judge_cut(dice)
        gained.append(on_others(best, judged.setting) if judged.taken else 0.0)
        greedy.append(on_others(best, int(np.argmax(dice.mean(axis=0)))))
    assert least <= np.mean(gained) <= most
    if (best, number) == (0.0, 8):
        assert np.mean(greedy) < -0.002


def test_eight_images_shrink_a_calibration_that_two_hundred_bear() -> None:
    """Each image has a bias of its own beside the network's; only the latter is to be found."""
    found: dict[int, list[float]] = {}
    for number in (8, 200):
        for seed in range(20 if number == 8 else 2):
            rng = np.random.default_rng(seed)
            own = rng.normal(-0.6, 1.0, (number, 1))
            true = rng.normal(0, 2, (number, 400))
            truth = rng.random(true.shape) < expit(true + own)
            bins = np.digitize(true, LOGITS) - 1
            counts = np.zeros((number, 2, len(LOGITS)), np.int64)
            for image in range(number):
                np.add.at(counts[image], (truth[image].astype(int), bins[image]), 1)
            likelihood = calibrate._Likelihood(counts)
            judged = calibrate._judge(number, likelihood.fit, likelihood.gains)
            found.setdefault(number, []).append(judged.setting[1] if judged.taken else 0.0)
    assert np.mean(found[200]) == pytest.approx(-0.55, abs=0.12)
    assert -0.5 < np.mean(found[8]) <= 0


def test_what_is_expected_of_a_choice_is_what_it_gives_on_other_images() -> None:
    choice = choose_postprocessing(PLAIN, calibrated_images(12, shift=-2.0))
    others = calibrated_images(40, shift=-2.0)
    others.samples = others.samples[12:]
    assert choice.held_out_dice == pytest.approx(mean_dice(others, choice.postprocessing), abs=0.03)
    assert choice.held_out_dice > choice.plain_dice + 0.05
