"""The package as one would write it in Python: its functions, and the examples in them."""

from __future__ import annotations

import doctest
import io
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import notan
from image_files import photo, saved
from needs import WEIGHTS
from notan import api
from notan.config import seconds_of
from notan.errors import CheckpointError, ConfigError, DataError
from notan.prediction.predictor import Prediction, Predictor

if TYPE_CHECKING:
    from pathlib import Path

    from notan.config import Run


def test_the_examples_of_the_functions_run(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order in which they stand: a later one uses what an earlier one made."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn_folder, tmp_path / "cells")
    Image.fromarray(photo()).save("cat.jpg")
    names = {"notan": notan, "np": np, "seconds_of": seconds_of}
    functions: list[object] = [api.train, seconds_of, api.load, api.predict, api.evaluate]
    functions += [Prediction.cutout, Prediction.overlay, Prediction.to_png, Predictor.predict_many]
    functions += [notan.UNet, api.export, api.check, api.compare]
    runner, said = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), io.StringIO()
    for function in functions:
        for test in doctest.DocTestFinder(recurse=False).find(function, globs=names):
            assert test.examples
            runner.run(test, out=said.write)
    assert not runner.failures, said.getvalue()


def test_importing_the_package_and_predicting_load_no_torch(tmp_path: Path) -> None:
    image = saved(tmp_path / "cat.png", Image.fromarray(photo()))
    script = (
        "import sys, notan\n"
        "assert not {'numpy', 'pydantic', 'torch'} & {*sys.modules}, 'import notan is not light'\n"
        "mask = notan.predict(sys.argv[1]).mask\n"
        "assert mask.any() is not None and 'torch' not in sys.modules"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, str(image)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    "kind", [str, lambda path: path, lambda path: path.read_bytes(), Image.open, "array"]
)
def test_anything_that_holds_an_image_is_predicted(
    kind: object, small_checkpoint: Path, tmp_path: Path
) -> None:
    path = saved(tmp_path / "p.png", Image.fromarray(photo()))
    predictor = notan.load(small_checkpoint, device="cpu")
    thing = np.asarray(Image.open(path)) if kind == "array" else kind(path)  # type: ignore[operator]
    found = notan.predict(thing, predictor)
    np.testing.assert_array_equal(found.probability, predictor(path).probability)


def test_a_list_gives_a_list(small_checkpoint: Path) -> None:
    images = [photo(20, 30), photo(8, 9)]
    found = notan.predict(images, small_checkpoint, batch_size=2)
    assert [each.mask.shape for each in found] == [(20, 30), (8, 9)]
    assert notan.predict([], small_checkpoint) == []


def test_a_run_folder_stands_for_its_model(small_checkpoint: Path, tmp_path: Path) -> None:
    by_file, by_folder = notan.load(small_checkpoint), notan.load(str(small_checkpoint.parent))
    assert by_file.card == by_folder.card
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        notan.load(tmp_path)


def test_the_default_model_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    api._default_predictor.cache_clear()
    first = notan.predict(photo())
    monkeypatch.setattr(api, "load", None)
    np.testing.assert_array_equal(notan.predict(photo()).mask, first.mask)
    assert api._default_predictor.cache_info().misses == 1


def test_views_and_threshold_reach_the_predictor(small_checkpoint: Path) -> None:
    by_text = notan.load(small_checkpoint, tta="hflip,vflip", threshold=0.25)
    by_names = notan.load(small_checkpoint, tta=("hflip", "vflip"))
    assert by_text.augment == by_names.augment
    assert by_text.augment
    assert by_text.postprocessing.threshold == 0.25


def test_every_keyword_of_train_reaches_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Run] = []
    monkeypatch.setattr("notan.training.train", lambda run, **_: seen.append(run))
    notan.train(
        "cells",
        time_limit="10m",
        model="attention_unet",
        encoder="resnet34",
        pretrained=True,
        image_size=(64, 96),
        keep_aspect_ratio=True,
        epochs=3,
        batch_size=5,
        learning_rate=0.01,
        seed=7,
        device="cpu",
        trimap_border="ignore",
        overrides=["model.width=8"],
    )
    wanted = notan.load_run(
        flags={
            "data.path": "cells",
            "data.trimap_border": "ignore",
            "train.time_limit_seconds": 600,
            "train.pretrained": True,
            "train.epochs": 3,
            "train.batch_size": 5,
            "train.learning_rate": 0.01,
            "model.name": "attention_unet",
            "model.encoder": "resnet34",
            "model.width": 8,
            "preprocess.image_size": (64, 96),
            "preprocess.keep_aspect_ratio": True,
            "seed": 7,
            "device": "cpu",
        }
    )
    assert seen == [wanted]


def test_train_takes_a_run_and_gives_the_same_weights(
    small_run: Run, small_checkpoint: Path, tmp_path: Path
) -> None:
    result = notan.train(small_run, out=tmp_path / "run")
    assert notan.read_card(result.checkpoint).sha256 == notan.read_card(small_checkpoint).sha256
    with pytest.raises(ConfigError, match=r"train\.epochs, model\.width=3: a Run has all settings"):
        notan.train(small_run, epochs=3, overrides=["model.width=3"])
    with pytest.raises(ConfigError, match="auto: a Run has all settings"):
        notan.train(small_run, auto=True)


def test_a_recipe_and_a_look_at_the_data_exclude_each_other(drawn_folder: Path) -> None:
    with pytest.raises(ConfigError, match="leave one of the two"):
        notan.train(drawn_folder, auto=True, recipe="a.toml")


def test_train_may_choose_its_settings_itself(drawn_folder: Path, tmp_path: Path) -> None:
    quick = ["model.width=2", "train.trackers=[]"]
    out = tmp_path / "run"
    notan.train(drawn_folder, auto=True, epochs=1, out=out, overrides=quick)
    assert "chosen by notan" in (out / "auto.toml").read_text().lower()


def test_evaluate_scores_as_the_command_and_writes_where_it_is_told(
    small_checkpoint: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "score"
    score = notan.evaluate(small_checkpoint, drawn_folder, split="val", out=out, write_images=True)
    assert score.mean_dice == pytest.approx(
        notan.read_card(small_checkpoint).scores["dice"], abs=1e-6
    )
    assert {path.name for path in out.iterdir()} == {
        "score.json",
        "images.csv",
        "masks",
        "overlays",
    }
    with pytest.raises(ConfigError, match="give out="):
        notan.evaluate(small_checkpoint, drawn_folder, write_images=True)
    with pytest.raises(DataError, match="the model was trained on 24 of these 24 images"):
        notan.evaluate(small_checkpoint, drawn_folder, split="train")


def test_unet_is_a_plain_module_for_a_loop_of_ones_own() -> None:
    import torch

    network = notan.UNet(width=4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    logits = network(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 1, 32, 32)
    logits.mean().backward()
    optimizer.step()
    with pytest.raises(ConfigError, match="did you mean 'resnet34'"):
        notan.UNet(encoder="resnet43")


@WEIGHTS
def test_a_unet_may_start_from_published_weights() -> None:
    import torch

    torch.manual_seed(0)
    raw = notan.UNet(encoder="efficientnet_lite0", width=4)
    torch.manual_seed(0)
    learned = notan.UNet(encoder="efficientnet_lite0", width=4, pretrained=True)
    same = {
        name: torch.equal(raw.state_dict()[name], tensor)
        for name, tensor in learned.state_dict().items()
    }
    assert not all(equal for name, equal in same.items() if name.startswith("encoder."))
    assert all(equal for name, equal in same.items() if not name.startswith("encoder."))
