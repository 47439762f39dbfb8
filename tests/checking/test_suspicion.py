"""The ranking, by a stub that knows the truth and by numbers made up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from notan.checking.suspicion import (
    Explanation,
    Suspect,
    dilate,
    erode,
    find_kinds,
    judge_all,
    look_of,
    rank,
)
from notan.config import Data
from notan.data.folders import open_split
from notan.data.samples import Sample
from notan.data.synthetic import DrawnSource
from notan.modelfile.postprocess import Postprocessing
from notan.prediction.predictor import Prediction

if TYPE_CHECKING:
    from pathlib import Path

    from notan.types import Mask

IMAGES = [sample for sample in DrawnSource(24, size=(64, 64)) if 0.05 < sample.mask.mean() < 0.6]


def sure(truth: Mask) -> Prediction:
    """Predict as a network that knows the truth and is fairly sure of it."""
    return Prediction(np.where(truth, 0.95, 0.05).astype(np.float32), Postprocessing())


def judged(spoilt: dict[int, Mask], predicted: list[Mask] | None = None) -> list[Suspect]:
    truths = predicted or [sample.mask for sample in IMAGES]
    samples = [
        replace(sample, mask=spoilt.get(place, sample.mask)) for place, sample in enumerate(IMAGES)
    ]
    return judge_all(zip(samples, map(sure, truths), strict=True))


def test_planted_faults_come_first_with_their_names() -> None:
    masks = [sample.mask for sample in IMAGES]
    spoilt = {
        0: ~masks[0],
        3: np.roll(masks[3], (9, -6), axis=(0, 1)),
        5: masks[8],
        8: masks[5],
    }
    ranking = rank(judged(spoilt))
    found = {each.name: each for each in ranking.suspects[:4]}
    kinds = {IMAGES[0].name: "inverted", IMAGES[3].name: "shifted"}
    kinds |= {IMAGES[5].name: "swapped", IMAGES[8].name: "swapped"}
    assert {name: each.explanation and each.explanation.kind for name, each in found.items()} == (
        kinds
    )
    assert {each.name for each in ranking.above_threshold} == set(kinds)
    assert "shifted by 9 pixels down and 6 pixels to the left" in found[IMAGES[3].name].in_words()


def test_healthy_masks_are_all_beneath_the_threshold_without_explanations() -> None:
    ranking = rank(judged({}))
    assert ranking.above_threshold == ()
    assert all(each.explanation is None for each in ranking.suspects)
    assert len(ranking.suspects) == len(IMAGES)


def test_a_network_that_draws_everything_fat_accuses_nobody_but_the_thin_mask() -> None:
    masks = [sample.mask for sample in IMAGES]
    fat = [dilate(mask, 2) for mask in masks]
    thickest = max(range(len(masks)), key=lambda place: float(erode(masks[place], 5).mean()))
    healthy = rank(judged({}, predicted=fat))
    assert healthy.above_threshold == ()
    found = rank(judged({thickest: erode(masks[thickest], 5)}, predicted=fat)).suspects[0]
    assert found.name == IMAGES[thickest].name
    assert found.explanation
    assert found.explanation.kind == "eroded"


def made_up(name: str, dice: float, expected: float, *explanations: Explanation) -> Suspect:
    return Suspect(name, dice, expected, {each.kind: each for each in explanations})


HEALTHY = [made_up(f"h{place}", 0.9 - place / 1000, 0.9) for place in range(9)]


def test_a_sure_disagreement_is_reported_in_words_without_an_explanation() -> None:
    suspect = rank([*HEALTHY, made_up("odd", 0.2, 0.9)]).suspects[0]
    assert suspect.name == "odd"
    assert suspect.in_words() == (
        "disagrees with the model (Dice 0.20, where the model expects 0.90 of itself)"
    )


def test_an_unsure_network_accuses_nobody() -> None:
    ranking = rank([*HEALTHY, made_up("hard", 0.2, 0.25)])
    assert ranking.above_threshold == ()


def test_a_network_that_has_lost_its_way_is_ranked_high_but_not_reported() -> None:
    unsure = [made_up(f"u{place}", 0.9, 0.6) for place in range(9)]
    ranking = rank([*unsure, made_up("lost", 0.0, 0.2)])
    assert ranking.suspects[0].name == "lost"
    assert ranking.suspects[0].score > ranking.typical.threshold
    assert ranking.above_threshold == ()


def test_a_gain_that_leaves_the_mask_in_disagreement_explains_nothing() -> None:
    poor = Explanation("shifted", 0.05, 0.3, down=4)
    suspect = rank([*HEALTHY, made_up("hard", 0.05, 0.1, poor)]).suspects[0]
    assert suspect.explanation is None


STAINED = (0.8, 0.7, 0.85, 0.1, 0.1, 0.1)
"""The look of tissue under the microscope; that of the healthy ones is black throughout."""


def turned(name: str, *, stained: bool = True) -> Suspect:
    """Make up a mask that a network says, and is sure, is the wrong way round."""
    found = made_up(name, 0.05, 0.9, Explanation("inverted", 0.05, 0.9))
    return replace(found, look=STAINED) if stained else found


def test_where_most_masks_of_a_kind_of_image_look_wrong_the_networks_are_doubted() -> None:
    ranking = rank([*HEALTHY, *(turned(f"t{place}") for place in range(4))])
    assert ranking.above_threshold == ()
    (kind,) = ranking.lost_kinds
    assert [each.name for each in kind.suspects] == ["t0", "t1", "t2", "t3"]
    assert kind.dice == 0.05
    judged = {each.name: each for each in ranking.suspects}
    assert all(judged[f"t{place}"].explanation is None for place in range(4))
    assert "the networks got most images of its kind wrong" in judged["t0"].in_words()
    assert ranking.suspects[0].name == "h8"  # what is not judged stands last


def test_a_kind_that_most_networks_got_right_keeps_its_wrong_masks() -> None:
    right = [replace(each, name=f"r{each.name}", look=STAINED) for each in HEALTHY[:4]]
    ranking = rank([*HEALTHY, *right, turned("t0"), turned("t1")])
    assert [each.name for each in ranking.above_threshold] == ["t0", "t1"]
    assert ranking.lost_kinds == ()


def test_two_images_are_no_kind() -> None:
    ranking = rank([*HEALTHY, turned("t0"), turned("t1")])
    assert {each.name for each in ranking.above_threshold} == {"t0", "t1"}


def test_unsure_networks_are_doubted_for_the_whole_kind_too() -> None:
    unsure = [replace(turned(f"u{place}"), dice=0.3, expected_dice=0.35) for place in range(3)]
    ranking = rank([*HEALTHY, *unsure, turned("t0"), turned("t1")])
    assert ranking.above_threshold == ()
    assert [each.name for each in ranking.lost_kinds[0].suspects] == ["t0", "t1", "u0", "u1", "u2"]


def test_a_lost_kind_does_not_spoil_what_is_typical_of_the_others() -> None:
    lost = [turned(f"t{place:02d}") for place in range(12)]
    ranking = rank([*HEALTHY, *lost, turned("odd", stained=False)])
    assert ranking.typical.dice > 0.89
    assert [each.name for each in ranking.above_threshold] == ["odd"]


def test_where_every_kind_is_lost_the_networks_have_learned_too_little() -> None:
    ranking = rank([turned(f"t{place}") for place in range(4)])
    assert not ranking.typical.is_sound
    assert (ranking.above_threshold, ranking.lost_kinds) == ((), ())


def test_real_tissue_and_real_fluorescence_are_kinds_of_their_own(nuclei_folder: Path) -> None:
    source = open_split(Data(path=nuclei_folder), "train", seed=0)
    looks = {sample.name: look_of(sample.image) for sample in source}
    kinds = find_kinds(list(looks.values()))
    is_tissue = np.array([look[0] > 0.4 for look in looks.values()])
    assert 8 <= is_tissue.sum() <= 20
    assert not set(kinds[is_tissue]) & set(kinds[~is_tissue])
    assert len(set(kinds)) <= 4


def test_right_masks_of_real_tissue_are_not_accused_by_what_knows_fluorescence_alone(
    nuclei_folder: Path,
) -> None:
    """The brighter pixels are the nuclei, where they glow, and the background of stained ones."""

    def bright(sample: Sample) -> Mask:
        grey = cv2.cvtColor(sample.image, cv2.COLOR_RGB2GRAY)
        return np.asarray(cv2.threshold(grey, 0, 1, cv2.THRESH_OTSU)[1], bool)

    samples = list(open_split(Data(path=nuclei_folder), "train", seed=0))
    tissue = {sample.name for sample in samples if sample.image[..., 0].mean() > 100}
    ranking = rank(judge_all((sample, sure(bright(sample))) for sample in samples))
    assert ranking.typical.is_sound
    not_judged = {each.name for kind in ranking.lost_kinds for each in kind.suspects}
    assert not_judged == tissue
    assert not {each.name for each in ranking.above_threshold} & tissue


def test_of_very_many_images_a_part_tells_the_kinds() -> None:
    looks = [(0.1,) * 6, (0.9,) * 6, (0.12,) * 6] * 3000
    kinds = find_kinds(looks)
    assert (kinds[0], kinds[1]) == (kinds[2], kinds[4])
    assert kinds[0] != kinds[1]
    assert len(kinds) == 9000


def test_it_takes_two_to_swap() -> None:
    swap = Explanation("swapped", 0.1, 0.8, other="partner")
    turned = Explanation("inverted", 0.1, 0.9)
    shift = Explanation("shifted", 0.2, 0.8, down=4)
    back = Explanation("swapped", 0.1, 0.8, other="odd")
    odd = made_up("odd", 0.1, 0.9, swap, shift)
    for partner, kind in (
        (made_up("partner", 0.1, 0.9, turned, back), "shifted"),
        (made_up("partner", 0.1, 0.9, back), "swapped"),
    ):
        ranked = {each.name: each for each in rank([*HEALTHY, odd, partner]).suspects}
        found = ranked["odd"].explanation
        assert found
        assert found.kind == kind


def test_the_order_of_equal_scores_is_that_of_the_names() -> None:
    names = [each.name for each in rank([*reversed(HEALTHY)]).suspects]
    assert names == [each.name for each in rank(HEALTHY).suspects]


def test_what_is_ignored_counts_for_nothing() -> None:
    sample = IMAGES[0]
    ignore = np.zeros_like(sample.mask)
    ignore[:20] = True
    unsure = np.where(ignore, 0.5, np.where(sample.mask, 1, 0)).astype(np.float32)
    spoilt = replace(sample, mask=sample.mask ^ ignore, ignore=ignore)
    (judgement,) = judge_all([(spoilt, Prediction(unsure, Postprocessing()))])
    assert judgement.dice == 1.0
    assert judgement.expected_dice == 1.0


def test_a_single_image_can_be_ranked() -> None:
    sample = Sample("one", np.zeros((4, 4, 3), np.uint8), np.eye(4, dtype=bool))
    assert rank(judge_all([(sample, sure(sample.mask))])).suspects[0].score == 0
