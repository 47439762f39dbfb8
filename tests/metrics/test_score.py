"""Score: means with intervals, pools, groups, what is undefined, and the rules beside them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from statistics import fmean

import numpy as np
import pytest
from scipy.stats import spearmanr

from notan.errors import ConfigError, DataError
from notan.metrics import Counts, Grouping, Score, ScoreRules, Tally, Tolerance
from notan.metrics.counts import MEASURES
from notan.metrics.probabilities import (
    THRESHOLDS,
    ProbabilityHistogram,
    Ranking,
    dice_at_thresholds,
)
from notan.metrics.statistics import mean_interval
from scores import ALL, NONE, RULES, random_pairs, random_probability, score_of, tallied


def test_every_mean_is_over_the_images_that_define_it_with_its_interval() -> None:
    score = tallied(*random_pairs(9), (random_probability(20), NONE))
    rows = [image.numbers() for image in score.images]
    assert list(score.means) == list(MEASURES)
    for name, mean in score.means.items():
        values = [value for row in rows if (value := row[name]) is not None]
        assert mean == mean_interval(values)
        assert mean.low < mean.mean < mean.high
    undefined = {name for name, mean in score.means.items() if mean.images == 9}
    assert undefined == {"hausdorff95", "average_precision"}
    assert score.means["dice"].mean == score.mean_dice


def test_pooled_are_those_of_the_images_as_one() -> None:
    pairs = random_pairs(4)
    score = tallied(*pairs)
    as_one = tallied(tuple(np.concatenate(side) for side in zip(*pairs, strict=True)))  # type: ignore[arg-type]
    assert score.pooled == pytest.approx(as_one.pooled)
    assert as_one.pooled["brier"] == as_one.means["brier"].mean
    assert as_one.pooled["dice"] == score.pooled_dice


def test_the_sweep_is_the_mean_over_images_at_each_threshold() -> None:
    pairs = random_pairs(5)
    score = tallied(*pairs)
    dice = [dice_at_thresholds(ProbabilityHistogram.of(Ranking.of(*pair))) for pair in pairs]
    assert score.threshold_sweep.mean_dice == pytest.approx(np.mean(dice, axis=0))
    assert score.threshold_sweep.mean_dice[THRESHOLDS.index(0.5)] == pytest.approx(score.mean_dice)


def test_groups_have_the_mean_of_their_images() -> None:
    pairs = random_pairs(6)
    place = {f"image {index}": "left" if index < 4 else "right" for index in range(6)}
    score = tallied(*pairs, groupings=(Grouping("place", place, "a test"),))
    dice = [image.dice for image in score.images]
    groups = score.groups["place"]
    assert groups == {"left": mean_interval(dice[:4]), "right": mean_interval(dice[4:])}
    assert groups["left"].mean == fmean(dice[:4])
    assert "by place: left " in score.summary()
    assert f"right {fmean(dice[4:]):.4f} (2)" in score.summary()


def test_many_groups_are_told_by_the_worst_two_and_the_best() -> None:
    pairs = random_pairs(6)
    names = {f"image {index}": f"place {index}" for index in range(6)}
    score = tallied(*pairs, groupings=(Grouping("place", names, ""),))
    ranked = sorted(score.groups["place"].items(), key=lambda item: item[1].mean)
    worst, second, best = (f"{ranked[i][0]} {ranked[i][1].mean:.4f} (1)" for i in (0, 1, -1))
    assert f"by place: worst {worst}, {second}, best of 6 {best}" in score.summary()
    assert len(score.groups["place"]) == 6


def test_of_two_groupings_with_one_name_the_later_counts() -> None:
    first, second = (
        Grouping("place", dict.fromkeys(("image 0", "image 1"), group), "")
        for group in ("near", "far")
    )
    assert list(tallied(*random_pairs(2), groupings=(first, second)).groups["place"]) == ["far"]


def test_what_the_model_expected_is_set_against_what_it_reached() -> None:
    expected = (0.9, 0.2, 0.6, 0.4, 0.7)
    score = tallied(*random_pairs(5), expected=expected)
    dice = [image.dice for image in score.images]
    found = score.expected
    assert found is not None
    assert found.rank_correlation == pytest.approx(spearmanr(expected, dice).statistic)
    assert found.flagged == 2
    assert found.flagged_mean_dice == pytest.approx(fmean([dice[1], dice[3]]))
    assert found.other_mean_dice == pytest.approx(fmean([dice[0], dice[2], dice[4]]))
    assert "2 to check" in score.summary()
    assert score.images[1].needs_review is True


def test_a_model_that_expects_nothing_has_no_such_section() -> None:
    score = tallied(*random_pairs(3))
    assert score.expected is None
    assert "expected Dice" not in score.summary()


def test_the_summary_is_aligned_and_states_every_rule() -> None:
    rules = ScoreRules(
        trimap_border="ignore",
        threshold=0.45,
        split="test",
        weights="ImageNet weights",
        tolerance=Tolerance(2, percent=False),
    )
    counts = Counts(true_positive=3, false_positive=1, false_negative=1, true_negative=7)
    summary = score_of(counts, Counts.of(NONE, NONE), rules=rules).summary()
    assert summary.splitlines()[:3] == [
        "2 images                  mean  95 % interval       pooled",
        "Dice                    0.8750  0.7500 - 1.0000     0.7500",
        "IoU                     0.8000  0.6000 - 1.0000     0.6000",
    ]
    for words in (
        "split test",
        "threshold 0.45",
        "weights ImageNet weights",
        "scored at original size",
        "border left out",
        "boundary tolerance 2 pixels",
        "mean: each image alike; pooled: each pixel alike",
        "empty images: 1 of 2",
        "an empty image predicted empty scores 1, a false alarm on an empty image scores 0",
    ):
        assert words in summary


def test_the_summary_says_how_probabilities_became_masks() -> None:
    rules = ScoreRules(
        trimap_border="none", threshold=0.5, split="val", postprocessing="the best cut, tidied"
    )
    summary = score_of(Counts(1, 0, 0, 0), rules=rules).summary()
    assert "split val, the best cut, tidied, weights from scratch" in summary


def test_the_card_of_many_groups_and_faults_stays_short() -> None:
    names = [f"image {index}" for index in range(7)]
    groupings = tuple(
        Grouping(f"column {column}", {name: name for name in names}, "") for column in range(4)
    )
    pairs = [*random_pairs(6), (random_probability(3), NONE)]
    score = tallied(*pairs, groupings=groupings, expected=tuple(index / 10 for index in range(7)))
    assert len(score.groups) == 5
    assert "and by 3 more, in score.json" in score.summary()
    assert f"undefined: {len(score.undefined) - 2} more, in score.json" in score.summary()
    assert len(score.summary().splitlines()) == 26  # and one more for test-time augmentation


def test_a_score_is_read_back_from_its_json_whole() -> None:
    score = tallied(*random_pairs(4), (random_probability(8), NONE), expected=(0.1,) * 5)
    plain = json.loads(score.model_dump_json())
    assert list(plain) == [
        *("mean_dice", "mean_iou", "pooled_dice", "pooled_iou", "empty_images"),
        *("means", "pooled", "reliability", "threshold_sweep", "groups", "expected"),
        *("undefined", "rules", "images", "content"),
    ]
    assert list(plain["means"]) == list(MEASURES)
    assert list(plain["means"]["dice"]) == ["mean", "low", "high", "images"]
    assert len(plain["threshold_sweep"]["mean_dice"]) == 99
    assert list(plain["images"][0]) == [
        *("name", "height", "width", *MEASURES, "expected_dice", "needs_review"),
        *("true_positive", "false_positive", "false_negative", "true_negative"),
    ]
    again = Score.model_validate_json(score.model_dump_json())
    assert again.model_dump_json() == score.model_dump_json()
    assert again.summary() == score.summary()
    assert (again.rules, again.images) == (score.rules, score.images)


def test_what_a_newer_version_adds_to_a_score_is_passed_over() -> None:
    score = tallied(*random_pairs(3))
    plain = {**json.loads(score.model_dump_json()), "new": 1}
    plain["images"][0]["new"] = plain["means"]["dice"]["new"] = plain["rules"]["new"] = 1
    assert Score.model_validate(plain).summary() == score.summary()


def test_the_rules_in_the_json_say_how_every_number_was_taken() -> None:
    score = tallied(*random_pairs(4))
    rules = json.loads(score.model_dump_json())["rules"]
    assert list(rules.pop("groups")) == ["foreground size"]
    assert rules == {
        "trimap_border": "foreground",
        "threshold": 0.5,
        "split": "val",
        "size": "original size",
        "weights": "from scratch",
        "postprocessing": None,
        "tolerance": "0.75%",
        "seen": "whether the model has seen these images is not known",
        "trained_trimap_border": None,
        "augment": None,
        "precision": None,
        "empty": "an empty image predicted empty scores 1, "
        "a false alarm on an empty image scores 0",
    }


def test_the_mean_weighs_images_alike_and_the_pool_weighs_pixels_alike() -> None:
    large = Counts(true_positive=900, false_positive=100, false_negative=0, true_negative=0)
    small = Counts(true_positive=1, false_positive=0, false_negative=9, true_negative=90)
    score = score_of(large, small)
    assert score.mean_dice == pytest.approx((1800 / 1900 + 2 / 11) / 2)
    assert score.mean_iou == pytest.approx((0.9 + 0.1) / 2)
    assert score.pooled_dice == pytest.approx(1802 / 1911)
    assert score.pooled_iou == pytest.approx(901 / 1010)


def test_empty_images_are_counted_by_their_truth() -> None:
    score = score_of(Counts.of(NONE, NONE), Counts.of(ALL, NONE), Counts.of(NONE, ALL))
    assert score.empty_images == 2
    assert score.mean_dice == pytest.approx(1 / 3)


def test_a_score_of_no_images_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to score: split 'val' holds no image"):
        Tally(RULES).score()


@pytest.mark.parametrize(
    ("trimap_border", "words"),
    [
        ("foreground", "border counted as foreground"),
        ("background", "border counted as background"),
        ("ignore", "border left out"),
        ("none", "no border class in the data"),
    ],
)
def test_the_summary_says_what_became_of_the_border(trimap_border: str, words: str) -> None:
    rules = ScoreRules(trimap_border=trimap_border, threshold=0.5, split="val")
    summary = score_of(Counts(1, 0, 0, 0), rules=rules).summary()
    assert words in summary
    assert "from scratch" in summary
    assert summary.startswith("1 image ")


@pytest.mark.parametrize(
    ("trimap_border", "trained", "said"),
    [
        ("foreground", "background", True),
        ("background", "background", False),
        ("foreground", None, False),
    ],
)
def test_a_border_rule_unlike_that_of_the_training_is_said(
    trimap_border: str, trained: str | None, *, said: bool
) -> None:
    rules = ScoreRules(
        trimap_border=trimap_border, threshold=0.5, split="val", trained_trimap_border=trained
    )
    summary = score_of(Counts(3, 1, 1, 5), rules=rules).summary()
    words = "border counted as foreground (UNLIKE IN TRAINING: border counted as background there)"
    assert (words in summary) == said


def test_an_unknown_border_rule_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"no border rule 'ignored'; did you mean 'ignore'\?"):
        ScoreRules(trimap_border="ignored", threshold=0.5, split="val")


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_a_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"threshold is .*must be in 0\.\.1"):
        ScoreRules(trimap_border="none", threshold=threshold, split="val")


def test_metrics_run_without_torch() -> None:
    code = "import sys, notan.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
