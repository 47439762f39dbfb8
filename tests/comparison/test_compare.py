"""A comparison finds what is different, and nothing where nothing is."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from comparison_runs import LEARNED, train_small
from notan.comparison import Comparison, compare
from notan.comparison.candidates import PackedMask, distinct_names
from notan.comparison.comparison import text_of
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import CheckpointError, ConfigError, DataError
from notan.metrics import Counts
from notan.prediction.predictor import Predictor
from notan.runtime import count_cores
from notan.training import train
from runs import tiny

if TYPE_CHECKING:
    from pathlib import Path

    from notan.data.samples import Source
    from notan.types import Mask


def compared(images: Source, *runs: Path) -> Comparison:
    return compare(runs, source=images)


def test_a_model_that_learned_is_better_than_one_that_did_not(
    seeded_runs: dict[str, Path], unseen: Source
) -> None:
    pair = compared(unseen, seeded_runs["raw-s0"], seeded_runs["trained-s0"]).pairs[0]
    assert pair.low is not None
    assert pair.low > 0
    assert pair.p_value_holm < 0.01
    assert pair.verdict.startswith("trained-s0 is better by 0.")
    assert pair.agreement < 0.9
    assert pair.wins > pair.losses


def test_the_same_training_twice_makes_no_difference(
    seeded_runs: dict[str, Path], unseen: Source, tmp_path: Path
) -> None:
    again = train_small(tmp_path / "again", **LEARNED)
    comparison = compared(unseen, seeded_runs["trained-s0"], again)
    pair = comparison.pairs[0]
    assert pair.p_value_holm == 1
    assert pair.ties == len(unseen)
    assert pair.agreement == 1
    assert pair.most_different == ()
    assert pair.verdict.startswith("no difference: trained-s0 and again score the same on each of")
    assert any("hold the same weights" in note for note in comparison.notes)


def test_a_run_given_twice_is_said_to_be(seeded_runs: dict[str, Path], unseen: Source) -> None:
    comparison = compared(unseen, seeded_runs["raw-s0"], seeded_runs["raw-s0"] / "best.safetensors")
    assert [each.name for each in comparison.models] == ["raw-s0", "raw-s0 (2)"]
    assert any("was given twice: it is compared with itself" in note for note in comparison.notes)
    assert comparison.pairs[0].p_value_holm == 1


def test_seeds_of_one_run_are_taken_together(seeded_runs: dict[str, Path], unseen: Source) -> None:
    comparison = compared(unseen, *seeded_runs.values())
    assert [each.title for each in comparison.models] == ["trained (2 seeds)", "raw (2 seeds)"]
    trained = comparison.models[0]
    single = [
        compared(unseen, path, seeded_runs["raw-s0"]).models[0] for path in seeded_runs.values()
    ][:2]
    assert trained.dice == pytest.approx(np.mean([each.dice for each in single], axis=0))
    means = [each.mean_dice for each in single]
    assert trained.mean_dice == pytest.approx(np.mean(means))
    assert trained.seed_spread == pytest.approx(np.std(means, ddof=1))
    assert "over seeds" in text_of(comparison)
    assert "Several seeds count as their mean on each image" in text_of(comparison)


def test_two_seeds_alone_are_compared_with_each_other(
    seeded_runs: dict[str, Path], unseen: Source
) -> None:
    comparison = compared(unseen, seeded_runs["trained-s0"], seeded_runs["trained-s1"])
    assert [each.name for each in comparison.models] == ["trained-s0", "trained-s1"]
    assert any("Each model is one training" in note for note in comparison.notes)


def test_other_settings_make_another_group(
    seeded_runs: dict[str, Path], unseen: Source, tmp_path: Path
) -> None:
    wider = train_small(tmp_path / "wider", seed=2, model__width=5)
    comparison = compared(unseen, seeded_runs["raw-s0"], seeded_runs["raw-s1"], wider)
    assert [each.title for each in comparison.models] == ["raw (2 seeds)", "wider"]
    assert len({each.parameters for each in comparison.models}) == 2


def test_p_values_are_corrected_for_the_number_of_pairs(
    seeded_runs: dict[str, Path], unseen: Source, tmp_path: Path
) -> None:
    wider = train_small(tmp_path / "wider", model__width=5)
    comparison = compared(unseen, seeded_runs["raw-s0"], seeded_runs["trained-s0"], wider)
    assert len(comparison.pairs) == 3
    smallest = min(comparison.pairs, key=lambda pair: pair.p_value)
    assert smallest.p_value_holm == pytest.approx(3 * smallest.p_value)
    assert "corrected by Holm for 3 pairs" in text_of(comparison)


def test_agreement_is_the_dice_of_one_mask_against_the_other(
    seeded_runs: dict[str, Path], unseen: Source
) -> None:
    pair = compared(unseen, seeded_runs["raw-s0"], seeded_runs["trained-s0"]).pairs[0]
    predictors = [
        Predictor.load(seeded_runs[name] / "best.safetensors") for name in ("raw-s0", "trained-s0")
    ]
    dice = [
        Counts.of(*(predictor(sample.image).mask for predictor in predictors)).dice
        for sample in unseen
    ]
    assert pair.agreement == pytest.approx(np.mean(dice))


def test_the_images_that_differ_most_come_first(
    seeded_runs: dict[str, Path], unseen: Source
) -> None:
    comparison = compared(unseen, seeded_runs["raw-s0"], seeded_runs["trained-s0"])
    pair = comparison.pairs[0]
    gaps = np.abs(np.diff([model.dice for model in comparison.models], axis=0)[0])
    shown = [each.number for each in pair.most_different]
    assert list(gaps[shown]) == sorted(gaps, reverse=True)[:5]
    assert [each.name for each in pair.most_different] == [comparison.images[n] for n in shown]
    assert pair.most_different[0].name in text_of(comparison)


def test_the_json_holds_every_number_and_no_nan(
    seeded_runs: dict[str, Path], unseen: Source
) -> None:
    comparison = compared(unseen, *seeded_runs.values())
    read = json.loads(comparison.model_dump_json(), parse_constant=pytest.fail)
    assert read["images"] == list(unseen.names)
    assert read["rules"]["split"] == "test"
    assert {model["name"] for model in read["models"]} == {"trained", "raw"}
    first = read["models"][0]
    assert first["images_per_second"] > 0
    assert first["parameters"] > 0
    assert first["file_bytes"] == (seeded_runs["trained-s0"] / "best.safetensors").stat().st_size
    assert [seed["seed"] for seed in first["seeds"]] == [0, 1]
    assert len(first["seeds"][0]["dice"]) == len(unseen)
    assert read["pairs"][0]["better"] in {"first", "second", "none", "unclear"}


def test_one_image_is_compared_without_a_claim(seeded_runs: dict[str, Path]) -> None:
    one = DrawnSource(1, size=(24, 30), first=101)
    comparison = compared(one, seeded_runs["raw-s0"], seeded_runs["trained-s0"])
    assert comparison.pairs[0].verdict == "too few images to tell: 1, where 6 are the least"
    assert json.loads(comparison.model_dump_json(), parse_constant=pytest.fail)
    assert "nan" not in text_of(comparison)


def test_models_of_different_images_are_said_to_be(
    seeded_runs: dict[str, Path], unseen: Source, tmp_path: Path
) -> None:
    fewer = train_small(tmp_path / "fewer", training=DrawnSource(16, size=(24, 24)))
    notes = compared(unseen, seeded_runs["raw-s0"], fewer).notes
    assert "The models were trained on different images (raw-s0 on 24; fewer on 16)." in notes


def test_a_single_run_is_refused(seeded_runs: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"two or more runs or model files; only .*raw-s0 was"):
        compare([seeded_runs["raw-s0"]])
    with pytest.raises(ConfigError, match="two or more runs or model files; none was given"):
        compare([])


def test_a_run_that_is_not_there_is_named(seeded_runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: there is no such model file"):
        compare([seeded_runs["raw-s0"], tmp_path / "nowhere"])


def test_a_folder_without_a_model_is_named(seeded_runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no best.safetensors here; a run folder"):
        compare([seeded_runs["raw-s0"], tmp_path])


def test_a_pickle_is_not_opened(seeded_runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(CheckpointError, match=r"model.pth: this is a PyTorch pickle"):
        compare([seeded_runs["raw-s0"], tmp_path / "model.pth"])


def test_a_run_without_a_data_folder_wants_one(seeded_runs: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="no data folder was given; name one with --data-path"):
        compare([seeded_runs["raw-s0"], seeded_runs["trained-s0"]])


def test_a_folder_without_the_split_is_refused(
    seeded_runs: dict[str, Path], drawn_folder: Path
) -> None:
    with pytest.raises(DataError, match="there is no test part"):
        compare(
            [seeded_runs["raw-s0"], seeded_runs["trained-s0"]], data_path=drawn_folder / "train"
        )


def test_the_first_runs_own_images_are_the_default(small_checkpoint: Path) -> None:
    comparison = compare([small_checkpoint, small_checkpoint])
    assert len(comparison.images) == 6


def test_images_that_a_model_was_trained_on_are_refused(small_checkpoint: Path) -> None:
    with pytest.raises(DataError, match="the model was trained on 24 of these 24 images"):
        compare([small_checkpoint, small_checkpoint], split="train")


def test_images_that_a_model_was_trained_on_are_marked_where_they_are_wanted(
    small_checkpoint: Path,
) -> None:
    comparison = compare(
        [small_checkpoint, small_checkpoint], split="train", allow_training_images=True
    )
    assert any("Of each model: NOT A TEST" in note for note in comparison.notes)


def test_models_that_set_different_images_aside_are_not_compared_on_them(
    tmp_path: Path,
) -> None:
    write_folder(DrawnSource(12, size=(24, 24)), tmp_path / "data")
    runs = [
        train(tiny(data__path=tmp_path / "data", seed=seed), out=tmp_path / str(seed)).checkpoint
        for seed in (0, 1)
    ]
    with pytest.raises(ConfigError, match="the models set different images aside"):
        compare(runs, split="val")


def test_names_tell_paths_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "unet", tmp_path / "b" / "unet", tmp_path / "b" / "wide"]
    assert distinct_names(paths[1:]) == ["unet", "wide"]
    assert distinct_names(paths) == ["a/unet", "b/unet", "b/wide"]
    assert distinct_names([paths[0], paths[0]]) == ["unet", "unet (2)"]


def test_a_copied_run_is_found_out(
    seeded_runs: dict[str, Path], unseen: Source, tmp_path: Path
) -> None:
    shutil.copytree(seeded_runs["trained-s0"], tmp_path / "copy")
    notes = compared(unseen, seeded_runs["trained-s0"], tmp_path / "copy").notes
    assert "trained-s0 and copy hold the same weights." in notes


def test_an_onnx_model_is_timed_on_as_many_threads_as_its_checkpoint(
    portable: Path, small_checkpoint: Path, unseen: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    core_of = pytest.importorskip("openvino").Core
    threads: dict[str, int] = {}
    compile_model = core_of.compile_model

    def watched(core: Any, *arguments: Any) -> Any:
        compiled = compile_model(core, *arguments)
        threads["openvino"] = compiled.get_property("INFERENCE_NUM_THREADS")
        return compiled

    monkeypatch.setattr(core_of, "compile_model", watched)
    for count in (1, 2)[: count_cores()]:  # OpenVINO takes no more than there are
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        comparison = compared(unseen, small_checkpoint, portable)
        assert threads.pop("openvino") == count
        assert comparison.hardware.endswith("1 thread" if count == 1 else "2 threads")


@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_a_packed_mask_comes_back_whole(mask: Mask) -> None:
    back = PackedMask.of(mask).unpack()
    assert back.dtype == np.bool_
    assert np.array_equal(back, mask)


@given(st.integers(1, 30))
def test_an_empty_mask_takes_next_to_no_room(side: int) -> None:
    assert len(PackedMask.of(np.zeros((side, 100 * side), np.bool_)).bits) < 400
