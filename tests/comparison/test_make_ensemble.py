"""notan ensemble: several model files become one that any other command takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from notan.checking.label_errors import plan_search
from notan.cli.main import main
from notan.comparison import make_ensemble
from notan.comparison.ensemble import FEWEST, choose_weights
from notan.data.folders import folder_source
from notan.errors import CheckpointError, ConfigError, DataError, NotanError
from notan.evaluation.evaluate import evaluate
from notan.modelfile.card import FORMAT, KEY, read_card
from notan.prediction.predictor import Predictor
from notan.training import train
from runs import Own, train_own

if TYPE_CHECKING:
    from pathlib import Path

    from notan.comparison.ensemble import Chances
    from notan.config import Run


def changed(run: Run, section: str, **values: Any) -> Run:
    return run.model_copy(update={section: getattr(run, section).model_copy(update=values)})


@pytest.fixture(scope="module")
def members(
    small_run: Run, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Model files of two networks; not to be changed."""
    folder = tmp_path_factory.mktemp("members")
    other = changed(small_run, "model", name="attention_unet").model_copy(update={"seed": 1})
    return [small_checkpoint, train(other, out=folder / "gated").checkpoint]


@pytest.fixture(scope="module")
def ensemble(members: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their ensemble; not to be changed."""
    return make_ensemble(members, tmp_path_factory.mktemp("ensemble") / "e.safetensors").path


def altered(checkpoint: Path, path: Path, **fields: Any) -> Path:
    """Copy a checkpoint with some fields of its card changed; a new hash where it is asked for."""
    weights = load_file(checkpoint)
    card = json.loads(read_card(checkpoint).model_dump_json()) | fields
    save_file(weights, path, metadata={KEY: json.dumps(card)})
    return path


def test_the_file_answers_with_the_mean_of_its_members(
    members: list[Path], ensemble: Path, drawn_folder: Path
) -> None:
    image = folder_source(drawn_folder / "test")[0].image
    whole = Predictor.load(ensemble)
    inputs, _ = whole.preprocessor(image)
    mean = np.zeros((1, 1, *inputs.shape[1:]))
    for path, member in zip(members, whole.card.members, strict=True):  # type: ignore[union-attr]
        part = Predictor.load(path)
        assert (member.temperature, member.bias) == (
            part.postprocessing.temperature,
            part.postprocessing.bias,
        )
        scaled = part.backend(inputs[None]) / member.temperature + member.bias
        mean += member.weight / (1 + np.exp(-scaled.astype(np.float64)))
    np.testing.assert_allclose(1 / (1 + np.exp(-whole.backend(inputs[None]))), mean, atol=1e-5)


def test_the_card_says_what_it_is_made_of(members: list[Path], ensemble: Path) -> None:
    card, parts = read_card(ensemble), [read_card(path) for path in members]
    assert (card.format, card.model, card.model_class) == (FORMAT, None, "Ensemble")
    assert [member.model for member in card.members] == [part.model for part in parts]
    assert [member.sha256 for member in card.members] == [part.sha256 for part in parts]
    assert sum(member.weight for member in card.members) == pytest.approx(1, abs=0.002)
    assert card.parameters == sum(part.parameters or 0 for part in parts)
    assert card.data.training_hashes == tuple(sorted(parts[0].data.training_hashes))
    assert card.scores["dice"] > 0
    assert card.postprocessing.review_below is not None
    assert card.choices[0] == "6 validation images are too few to weigh members: all alike"


def test_it_is_scored_like_any_model_and_guarded_like_one(
    ensemble: Path, drawn_folder: Path
) -> None:
    predictor = Predictor.load(ensemble)
    score = evaluate(predictor, folder_source(drawn_folder / "test"), split="test")
    assert score.rules.seen == "the model has seen none of these images"
    with pytest.raises(DataError, match="trained on 24 of these 24 images"):
        evaluate(predictor, folder_source(drawn_folder / "train"), split="train")


def test_the_commands_take_it(
    members: list[Path],
    ensemble: Path,
    drawn_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["compare", *map(str, members), str(ensemble), "--out", str(tmp_path / "c")])
    compared = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert len(compared["models"]) == 3
    data = ["--data-path", str(drawn_folder)]
    main(
        [
            "evaluate",
            "--model",
            str(ensemble),
            *data,
            "--out",
            str(tmp_path / "s"),
            "--tta",
            "hflip",
        ]
    )
    assert (tmp_path / "s" / "score.json").exists()
    with pytest.raises(CheckpointError, match="this model is an ensemble, of which no fresh one"):
        plan_search(ensemble)
    capsys.readouterr()
    main(["ensemble", *map(str, members), "--out", str(tmp_path / "again.safetensors")])
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["weight", "validation", "Dice"]
    assert said[1].split()[0] == "small"
    assert said[1].split()[1] == "0.500"
    assert said[3].split() == ["ensemble", f"{read_card(ensemble).scores['dice']:.4f}"]
    assert said[-1] == str(tmp_path / "again.safetensors")
    assert read_card(tmp_path / "again.safetensors").sha256 == read_card(ensemble).sha256


def test_the_training_images_of_all_members_are_known(
    members: list[Path], drawn_folder: Path, tmp_path: Path
) -> None:
    card = read_card(members[1])
    data = json.loads(card.data.model_dump_json())
    hashes = [*card.data.training_hashes[:3], "another"]
    other = altered(
        members[1], tmp_path / "o.safetensors", data={**data, "training_hashes": hashes}
    )
    joined = make_ensemble([members[0], other], tmp_path / "e.safetensors", data_path=drawn_folder)
    assert set(joined.card.data.training_hashes) == {*card.data.training_hashes, "another"}
    assert joined.card.data.training_images == 25
    unknown = altered(members[1], tmp_path / "u.safetensors", data={**data, "training_hashes": []})
    joined = make_ensemble(
        [members[0], unknown], tmp_path / "f.safetensors", data_path=drawn_folder
    )
    assert joined.card.data.training_hashes == ()
    assert "what u was trained on is not known" in joined.card.choices


def test_a_member_that_was_trained_on_the_validation_images_is_refused(
    members: list[Path], drawn_folder: Path, tmp_path: Path
) -> None:
    card = read_card(members[1])
    data = json.loads(card.data.model_dump_json())
    leak = [*card.data.training_hashes, *card.data.validation_hashes[:2]]
    other = altered(members[1], tmp_path / "o.safetensors", data={**data, "training_hashes": leak})
    with pytest.raises(DataError, match=r"o was trained on 2 of the 6 validation images of small"):
        make_ensemble([members[0], other], tmp_path / "e.safetensors", data_path=drawn_folder)
    assert not (tmp_path / "e.safetensors").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"trimap_border": "background"},
            "trimap_border = none and o with trimap_border = background; train them with one",
        ),
        ({"preprocess": {"image_size": 64}}, r"preprocess.image_size is \(32, 32\) in small and "),
        ({"preprocess": {"image_size": 32, "std": [1, 1, 1]}}, "preprocess.std is "),
        (
            {"preprocess": {"image_size": 32, "white": 4095}},
            "data.white is 65535 in small and 4095",
        ),
        (
            {"preprocess": {"channels": 4, "mean": [0.5] * 4, "std": [0.5] * 4}},
            "data.channels is 3 in small and 4 in",
        ),
        (
            {"preprocess": {"image_size": 32, "ranges": [[0, 9]] * 3, "floats": True}},
            r"preprocess.ranges is \(\) in small and ",
        ),
        ({"model": None, "model_class": "Mine"}, "o is of Mine, a class of your own"),
    ],
)
def test_members_that_do_not_fit_are_refused(
    members: list[Path], tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    other = altered(members[1], tmp_path / "o.safetensors", **fields)
    with pytest.raises(ConfigError, match=words):
        make_ensemble([members[0], other], tmp_path / "e.safetensors")


def test_what_makes_no_ensemble_is_refused(
    members: list[Path], ensemble: Path, tmp_path: Path
) -> None:
    out = tmp_path / "e.safetensors"
    wrong: list[tuple[list[Path], type[NotanError], str]] = [
        ([], ConfigError, "two or more runs or model files; none was given"),
        (members[:1], ConfigError, "only .*best.safetensors was given"),
        ([members[0], members[0]], ConfigError, "hold the same weights"),
        ([members[0], ensemble], ConfigError, "is an ensemble itself; give its members instead"),
        ([members[0], tmp_path / "no.safetensors"], CheckpointError, "there is no such model file"),
        ([members[0], tmp_path], CheckpointError, "there is no best.safetensors here"),
    ]
    for models, kind, words in wrong:
        with pytest.raises(kind, match=words):
            make_ensemble(models, out)
    with pytest.raises(ConfigError, match="something is here already; choose another --out"):
        make_ensemble(members, ensemble)
    with pytest.raises(SystemExit) as end:
        main(["ensemble", str(members[0]), str(members[1])])
    assert end.value.code == 2  # --out is missing


def test_images_that_are_nowhere_are_missed(members: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        make_ensemble(members, tmp_path / "e.safetensors", data_path=tmp_path / "nowhere")


def test_damage_in_an_ensembles_card_is_refused(ensemble: Path, tmp_path: Path) -> None:
    card = json.loads(read_card(ensemble).model_dump_json())
    fewer = altered(ensemble, tmp_path / "fewer.safetensors", members=card["members"][:1])
    with pytest.raises(CheckpointError, match="the weights do not fit Ensemble"):
        Predictor.load(fewer)
    first = {**card["members"][0], "weight": -1}
    wrong = altered(ensemble, tmp_path / "w.safetensors", members=[first, card["members"][1]])
    with pytest.raises(CheckpointError, match=r"members.0.weight: Input should be greater than 0"):
        Predictor.load(wrong)


def test_a_module_of_ones_own_cannot_be_a_member(members: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = train_own(read_card(members[0]).run, tmp_path / "own", model=Own()).checkpoint
    with pytest.raises(ConfigError, match="own is of Own, a class of your own"):
        make_ensemble([members[0], own], tmp_path / "e.safetensors")


def noise(number: int, *quality: float) -> list[Chances]:
    """What members of such qualities give to the truth: the higher, the surer of it."""
    rng = np.random.default_rng(0)
    wanted = np.array(quality)[:, None]
    return [1 / (1 + np.exp(-rng.normal(wanted, 1.0, (len(quality), 500)))) for _ in range(number)]


def test_a_better_member_weighs_more_and_a_useless_one_is_left_out() -> None:
    weights, reason = choose_weights(noise(20, 3.0, 2.8, -3.0))
    assert weights[2] == 0
    assert weights[0] > weights[1] > 0.1
    assert sum(weights) == pytest.approx(1, abs=0.002)
    assert reason.startswith("weights: fitted, mean cross-entropy of a pixel -")


def test_members_that_are_alike_keep_equal_weights() -> None:
    weights, reason = choose_weights(noise(20, 2.0, 2.0, 2.0))
    assert weights == (1 / 3, 1 / 3, 1 / 3)
    assert reason.startswith("weights: all alike; fitted ones give mean cross-entropy")


def test_few_images_weigh_nothing() -> None:
    weights, reason = choose_weights(noise(FEWEST - 1, 3.0, -3.0))
    assert weights == (0.5, 0.5)
    assert reason == "9 validation images are too few to weigh members: all alike"
