"""Settings: what wins over what, what is refused and with which words, and the way to TOML."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from notan.config import Augment, Data, LossTerms, Model, Preprocess, Run, Train, load_run
from notan.config import run_to_toml as to_toml
from notan.errors import ConfigError

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.toml"))


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_anything_the_defaults_hold() -> None:
    assert load_run() == load_run(flags={}, overrides=[]) == Run()


def test_the_defaults_are_the_reference_recipes() -> None:
    run = Run()
    assert run.model == Model(name="unet", width=64, residual="standard")
    assert run.preprocess.image_size == (256, 256)
    assert run.data.trimap_border == "foreground"
    assert run.loss.weights == {"bce": 1.0, "dice": 1.0}
    assert (run.train.batch_size, run.train.learning_rate, run.train.gamma) == (32, 1e-4, 0.98)


def test_overrides_win_over_flags_over_the_recipe_over_the_defaults(tmp_path: Path) -> None:
    recipe = written(
        tmp_path,
        "seed = 1\n[train]\nepochs = 10\nbatch_size = 10\nlearning_rate = 0.1\n[model]\nwidth = 8",
    )
    run = load_run(
        recipe,
        flags={"train.epochs": 20, "train.batch_size": 20, "data.path": Path("flags")},
        overrides=["train.epochs=30", "device=cpu"],
    )
    assert (run.train.epochs, run.train.batch_size, run.train.learning_rate) == (30, 20, 0.1)
    assert (run.seed, run.model.width, run.device) == (1, 8, "cpu")
    assert run.data.path == Path("flags")
    assert run.train.weight_decay == Train().weight_decay


def test_a_flag_that_was_not_given_leaves_the_recipe_alone(tmp_path: Path) -> None:
    recipe = written(tmp_path, "[train]\nepochs = 10")
    assert load_run(recipe, flags={"train.epochs": None, "seed": None}).train.epochs == 10


def test_the_last_of_two_overrides_wins() -> None:
    assert load_run(overrides=["seed=1", "seed=2"]).seed == 2


def test_the_word_none_takes_a_value_back(tmp_path: Path) -> None:
    recipe = written(tmp_path, "[train]\npatience = 3\n[data]\nlimit = 5")
    assert load_run(recipe).train.patience == 3
    run = load_run(recipe, overrides=["train.patience=none", "data.limit=None"])
    assert run.train.patience is None
    assert run.data.limit is None


def test_a_recipe_takes_a_default_back_with_the_same_word(tmp_path: Path) -> None:
    recipe = written(tmp_path, '[train]\ngradient_clip = "none"\nema_decay = "None"')
    run = load_run(recipe, flags={"train.unlabelled": "more"})
    assert run.train.gradient_clip is None
    assert run.train.ema_decay is None


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("preprocess.image_size=128", (128, 128)),
        ("preprocess.image_size=[96, 160]", (96, 160)),
        (" preprocess.image_size = 64 ", (64, 64)),
        ("preprocess.image_size='32'", (32, 32)),
    ],
)
def test_one_number_for_the_size_means_a_square(word: str, expected: tuple[int, int]) -> None:
    assert load_run(overrides=[word]).preprocess.image_size == expected


def test_a_bare_word_is_text_and_a_toml_value_is_what_it_says() -> None:
    run = load_run(
        overrides=[
            "model.name=attention_unet",
            "data.path=some where/a=b",
            "augment.enabled=false",
            "train.learning_rate=3e-4",
            "preprocess.mean=[0.5, 0.5, 0.5]",
            "device=cuda:1",
        ]
    )
    assert run.model.name == "attention_unet"
    assert run.data.path == Path("some where/a=b")
    assert run.augment.enabled is False
    assert run.train.learning_rate == 3e-4
    assert run.preprocess.mean == (0.5, 0.5, 0.5)
    assert run.device == "cuda:1"


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("model.widht=16", r"^model\.widht: there is no such setting; did you mean 'width'\?"),
        ("trian.epochs=1", r"^trian: there is no such setting; did you mean 'train'\?"),
        ("data.border=ignore", r"^data\.border: there .*; did you mean 'trimap_border'\?"),
        ("train.time_limit=60", r"^train\.time_limit: .*; did you mean 'time_limit_seconds'\?"),
        ("train.ema=0.99", r"^train\.ema: there is no such setting; .*ema_decay, "),
        ("zzz=1", r"^zzz: there is no such setting; choose one of \(augment, data, device"),
        ("loss.bce_weight=1", r"^loss\.bce_weight: there is no such setting"),
        ("train.epochs=0", r"^train\.epochs: .*greater than or equal to 1 \(found 0\)"),
        ("train.epochs=many", r"^train\.epochs: .*valid integer.*\(found 'many'\)"),
        ("train.epochs=1.5", r"^train\.epochs: .*\(found 1\.5\)"),
        ("train.learning_rate=inf", r"^train\.learning_rate: .*finite"),
        ("train.schedule=linear", r"^train\.schedule: .*'exponential' or 'cosine'"),
        (
            "data.trimap_border=edge",
            r"^data\.trimap_border: .*'foreground', 'background' or 'ignore'.*\(found 'edge'\)",
        ),
        ("preprocess.image_size=0", r"^preprocess\.image_size\.0: .*\(found 0\)"),
        ("preprocess.image_size=[1, 2, 3]", r"^preprocess\.image_size"),
        ("preprocess.std=[1, 1, 0]", r"^preprocess: every channel's std must be above 0"),
        ("augment.grid_dropout_ratio=1", r"^augment\.grid_dropout_ratio: .*less than 1"),
        ("seed=-1", r"^seed: "),
        ("seed=none", r"^seed: .*\(found None\)"),
        ("model=unet", r"^model: "),
        ("seed.x=1", r"^seed: "),
    ],
)
def test_an_override_that_does_not_fit_is_refused_with_its_name(word: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_run(overrides=[word])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["model.width", "=16", " = 16", ""])
def test_an_override_without_a_name_or_a_sign_shows_how_one_looks(word: str) -> None:
    with pytest.raises(
        ConfigError, match=r"an override looks like section\.key=value, say model\.width=16"
    ):
        load_run(overrides=[word])


def test_a_value_where_a_section_is_wanted_is_refused(tmp_path: Path) -> None:
    recipe = written(tmp_path, "train = 5")
    with pytest.raises(ConfigError, match=r"train\.epochs: 'train' is a value, not a section"):
        load_run(recipe, overrides=["train.epochs=2"])


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: there is no such recipe"):
        load_run(tmp_path / "absent.toml")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the recipe cannot be read"):
        load_run(tmp_path)


def test_a_recipe_that_is_no_toml_says_where_it_breaks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.toml: not valid TOML: .*line 2"):
        load_run(written(tmp_path, "seed = 1\n[train\n"))


def test_a_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"recipe\.toml: the recipe cannot be read"):
        load_run(path)


def test_an_unknown_key_of_a_recipe_is_refused_with_the_nearest(tmp_path: Path) -> None:
    recipe = written(tmp_path, "[train]\nepoch = 3")
    with pytest.raises(ConfigError, match=r"train\.epoch: .*did you mean 'epochs'"):
        load_run(recipe)


def test_a_run_cannot_be_changed() -> None:
    run = Run()
    for section, key in ((run, "seed"), (run.train, "epochs"), (run.model, "width")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 1)


def test_only_terms_with_a_weight_count_in_the_loss() -> None:
    assert LossTerms(bce=0, dice=0.5, lovasz=2).weights == {"dice": 0.5, "lovasz": 2.0}


fractions = st.floats(0, 1)
paths = st.text("abcÄ猫 '\"\\#=[]\n\t/.-_", min_size=1, max_size=20).map(Path)
runs = st.builds(
    Run,
    data=st.builds(
        Data,
        path=st.none() | paths,
        trimap_border=st.sampled_from(["foreground", "background", "ignore"]),
        limit=st.none() | st.integers(1, 10**6),
    ),
    preprocess=st.builds(
        Preprocess,
        image_size=st.tuples(st.integers(1, 8192), st.integers(1, 8192)),
        mean=st.tuples(fractions, fractions, fractions),
    ),
    augment=st.builds(Augment, enabled=st.booleans(), flip_probability=fractions),
    train=st.builds(
        Train,
        learning_rate=st.floats(0, 1e6, exclude_min=True),
        patience=st.none() | st.integers(1, 99),
        gradient_clip=st.none() | st.just(1.0),
        unlabelled=st.none() | paths,
        ema_decay=st.none() | st.just(0.9),
        time_limit_seconds=st.none() | st.just(60.0),
    ),
    seed=st.integers(0, 2**32 - 1),
)


@settings(max_examples=100, deadline=None)
@given(run=runs)
def test_a_run_written_as_toml_is_read_back_the_same(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_bytes(to_toml(run).encode())
    assert load_run(path) == run


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_states_its_command(recipe: Path) -> None:
    assert load_run(recipe) == load_run(recipe)
    assert "notan train" in recipe.read_text(encoding="utf-8")


def test_settings_are_read_without_importing_torch() -> None:
    code = "import sys, notan.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
