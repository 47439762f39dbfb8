"""A pretraining learns, leaves an encoder that a training starts from, and goes on after a stop."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from notan.config import Data, Pretrain, load_run
from notan.data.folders import open_split
from notan.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    StoppedBySignal,
    StorageError,
)
from notan.evaluation.evaluate import find_seen
from notan.modelfile.card import read_card
from notan.models.encoder_weights import read_weights
from notan.models.encoders import ENCODERS
from notan.pretraining import pretrain, resume
from notan.pretraining.pretrainer import Pretrainer, prepare, reconstruction_loss
from notan.training import train
from notan.training.state import StateFolder
from runs import Crash, ask_to_stop, crash, flat, lines_of, names_in
from tiny_encoder import TinyEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from notan.losses import LossValue


@pytest.fixture(autouse=True, scope="module")
def _tiny_encoder() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "tiny", TinyEncoder)
        yield


@pytest.fixture(scope="module")
def uninterrupted(drawn_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How the pretraining of the images ends that nothing stops."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    pretrain(tiny(drawn_folder / "test" / "images"), out=folder)
    return fate(folder)


@pytest.fixture(scope="module")
def images(drawn_folder: Path) -> Path:
    """Six drawn images without masks: five to learn from, one held out."""
    return drawn_folder / "test" / "images"


def tiny(images: Path, **more: Any) -> Pretrain:
    settings = {"path": images, "encoder": "tiny", "width": 1, "image_size": 64, "patch": 16}
    learning = {"epochs": 3, "batch_size": 2, "learning_rate": 3e-3, "warmup_epochs": 0}
    train = {name: value for name, value in more.items() if name not in Pretrain.model_fields}
    others = {name: value for name, value in more.items() if name not in train}
    return Pretrain.model_validate({**settings, **others, "train": {**learning, **train}})


def before_step(number: int, action: Callable[[Any], object]) -> Callable[..., None]:
    """Return an ``after_step`` that does something just before the end of one step."""
    after_step = Pretrainer.after_step

    def replaced(pretrainer: Pretrainer, *arguments: Any, **named: Any) -> None:
        if pretrainer.progress.step + 1 == number:
            action(pretrainer)
        after_step(pretrainer, *arguments, **named)

    return replaced


def fate(folder: Path) -> dict[str, Any]:
    """Return all that two runs must agree on to be one, clocks aside."""
    state = StateFolder(folder / "last").load()
    assert state is not None
    return flat(
        {
            "state": {**state, "settings": None},
            "history": lines_of(folder / "history.jsonl"),
            "encoder": dict(read_weights(folder / "encoder.safetensors").weights),
            "image": (folder / "reconstructions.png").read_bytes(),
        }
    )


def test_what_is_hidden_is_filled_in_better_and_better(drawn_folder: Path, tmp_path: Path) -> None:
    settings = tiny(drawn_folder / "train" / "images", epochs=40, learning_rate=1e-2, batch_size=4)
    result = pretrain(settings, out=tmp_path / "run")
    lines = lines_of(tmp_path / "run" / "history.jsonl")
    losses = [line["held_out/loss"] for line in lines]
    assert len(losses) == 40
    assert (result.lowest.score, result.lowest.epoch) == (
        min(losses),
        1 + losses.index(min(losses)),
    )
    # room for the roundings of other processors: this seed has 0.79 and 0.68 on one of them
    assert result.lowest.score < 0.95 * result.lowest.baseline
    assert lines[0]["held_out/baseline_loss"] == lines[-1]["held_out/baseline_loss"]
    assert lines[-1]["train/loss"] < 0.9 * lines[0]["train/loss"]


def test_the_run_folder_holds_the_encoder_and_an_image(images: Path, tmp_path: Path) -> None:
    result = pretrain(tiny(images), out=tmp_path / "run")
    assert names_in(tmp_path / "run") == {
        *("encoder.safetensors", "reconstructions.png", "pretrain.toml", "history.jsonl", "last")
    }
    assert result.encoder == tmp_path / "run" / "encoder.safetensors"
    file = read_weights(result.encoder)
    assert file.encoder == "tiny"
    assert f"on 5 images of {images}, " in file.origin
    assert file.origin.endswith("of 3 epochs, starting from nothing")
    TinyEncoder().load_state_dict(file.weights)
    with Image.open(tmp_path / "run" / "reconstructions.png") as sheet:
        assert sheet.width == 3 * 64 + 2 * 4  # three columns, with gaps between them
        columns = np.asarray(sheet)
    seen, filled, whole = (columns[:, start : start + 64] for start in (0, 68, 136))
    grey = (np.abs(seen.astype(int) - [124, 116, 104]) <= 1).all(axis=2)
    assert 0.5 < grey.mean() < 0.7
    assert (seen[~grey] == whole[~grey]).all()
    assert (filled[~grey] == whole[~grey]).all()
    assert (filled[grey] != whole[grey]).any()


def test_the_encoder_has_the_statistics_of_whole_images(images: Path, tmp_path: Path) -> None:
    result = pretrain(tiny(images, batch_size=8), out=tmp_path / "run")
    weights = read_weights(result.encoder).weights
    encoder = TinyEncoder()
    encoder.load_state_dict(weights)
    parts = prepare(tiny(images, batch_size=8))
    parts.training_batches.set_epoch(0)
    (batch,) = parts.training_batches
    first = encoder.get_submodule("levels.0.0")(batch.targets)
    running = weights["levels.0.1.running_mean"]
    torch.testing.assert_close(running, first.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("action", [ask_to_stop, crash])
@pytest.mark.parametrize("step", [1, 3, 4, 8, 9])
def test_a_stopped_pretraining_ends_as_if_it_had_not_been_stopped(
    images: Path,
    tmp_path: Path,
    uninterrupted: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    action: Callable[[Any], None],
) -> None:
    settings = tiny(images, checkpoint_every_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(Pretrainer, "after_step", before_step(step, action))
        with pytest.raises((StoppedBySignal, Crash)):
            pretrain(settings, out=tmp_path / "run")
    torch.rand(3)
    resume(tmp_path / "run")
    assert fate(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("part", ["until_stopped", "_whole_images"])
def test_one_stopped_while_it_looks_at_images_goes_on_too(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    uninterrupted: dict[str, Any],
) -> None:
    looking = getattr(Pretrainer, part)

    def stopped(pretrainer: Pretrainer, *batches: Any) -> Iterator[Any]:
        ask_to_stop(pretrainer)  # type: ignore[arg-type]
        return iter(looking(pretrainer, *batches))

    with monkeypatch.context() as patch:
        patch.setattr(Pretrainer, part, stopped)
        with pytest.raises(StoppedBySignal, match=r"go on with: notan pretrain --resume .*run$"):
            pretrain(tiny(images), out=tmp_path / "run")
    resume(tmp_path / "run")
    assert fate(tmp_path / "run") == uninterrupted


def test_a_finished_pretraining_is_not_trained_further(images: Path, tmp_path: Path) -> None:
    result = pretrain(tiny(images), out=tmp_path / "run")
    before = fate(tmp_path / "run")
    assert resume(tmp_path / "run") == result
    assert fate(tmp_path / "run") == before


def test_one_killed_before_its_first_state_begins_again(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: dict[str, Any],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Pretrainer, "after_step", before_step(4, crash))
        with pytest.raises(Crash):
            pretrain(tiny(images), out=tmp_path / "run")
    assert "last" not in names_in(tmp_path / "run")
    resume(tmp_path / "run")
    assert fate(tmp_path / "run") == uninterrupted


def test_settings_and_images_that_make_another_run_are_refused(
    images: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    pretrain(tiny(images), out=tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"pretrain.patch \(16 -> 8\), pretrain.seed \(0 -> 1\) would make it"
    ):
        resume(tmp_path / "run", settings=tiny(images, patch=8, seed=1))
    others = drawn_folder / "val" / "images"
    with pytest.raises(DataError, match=r"val/images: these are not the images that the run"):
        resume(tmp_path / "run", settings=tiny(others))


def test_images_that_hold_something_else_by_now_are_refused(images: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(images, tmp_path / "own"))
    pretrain(tiny(own), out=tmp_path / "run")
    changed = sorted(own.iterdir())[0]
    shutil.copy(sorted(own.iterdir())[1], changed)
    with pytest.raises(DataError, match=rf"1 of \d+ images .* \({changed.name}\); put back what"):
        resume(tmp_path / "run")


def test_images_that_were_moved_may_be_named_anew(images: Path, tmp_path: Path) -> None:
    result = pretrain(tiny(images), out=tmp_path / "run")
    moved = shutil.copytree(images, tmp_path / "moved")
    assert resume(tmp_path / "run", settings=tiny(moved, workers=0)) == result


def test_where_there_is_no_pretraining_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no pretraining here .*pretrain.toml is miss"):
        resume(tmp_path)


def test_damaged_states_are_not_begun_over(images: Path, tmp_path: Path) -> None:
    pretrain(tiny(images), out=tmp_path / "run")
    for path in (tmp_path / "run" / "last").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"no saved state in last/ can be read.* be used"):
        resume(tmp_path / "run")
    assert "encoder.safetensors" in names_in(tmp_path / "run")


def test_a_folder_that_is_taken_is_left_alone_unless_told(images: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(ConfigError, match=r"something is here already; choose another --out"):
        pretrain(tiny(images), out=tmp_path / "run")
    pretrain(tiny(images), out=tmp_path / "run", overwrite=True)
    assert {"mine.txt", "encoder.safetensors"} <= names_in(tmp_path / "run")


def test_one_goes_on_from_the_encoder_of_another(images: Path, tmp_path: Path) -> None:
    first = pretrain(tiny(images), out=tmp_path / "first")
    still = {"learning_rate": 1e-12, "weight_decay": 0.0, "encoder_weights": first.encoder}
    second = pretrain(tiny(images, **still), out=tmp_path / "second")
    before, after = (read_weights(each.encoder) for each in (first, second))
    name = "levels.0.0.weight"
    torch.testing.assert_close(before.weights[name], after.weights[name])
    assert f"starting from tiny, {before.origin}" in after.origin


def test_a_truncated_file_of_weights_is_refused(images: Path, tmp_path: Path) -> None:
    first = pretrain(tiny(images), out=tmp_path / "first")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(first.encoder.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cut.safetensors: .*damaged or cut short"):
        pretrain(tiny(images, encoder_weights=cut), out=tmp_path / "second")


def test_a_score_on_images_that_the_encoder_knows_says_so(
    drawn_folder: Path, tmp_path: Path
) -> None:
    known = pretrain(tiny(drawn_folder / "val" / "images"), out=tmp_path / "first").encoder
    images = drawn_folder / "test" / "images"
    more = {"encoder_weights": known, "epochs": 1}
    encoder = pretrain(tiny(images, **more), out=tmp_path / "second").encoder
    flags = {"data.path": drawn_folder, "model.encoder": "tiny", "preprocess.image_size": 32}
    learning = {"model.width": 1, "train.epochs": 1, "train.encoder_weights": encoder}
    run = load_run(flags={**flags, **learning, "train.trackers": ()})
    card = read_card(train(run, out=tmp_path / "run").checkpoint)
    test = find_seen(card, open_split(run.data, "test", seed=0))
    assert len(test.unmasked) == 6
    assert test.in_words().startswith("perhaps flattering: the model has learned from 6 of 6")
    assert len(find_seen(card, open_split(run.data, "val", seed=0)).unmasked) == 6
    assert not find_seen(card, open_split(run.data, "train", seed=0)).unmasked


def test_an_unknown_encoder_is_answered_with_the_nearest(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'resnet43': .*did you mean 'resnet34'\?"):
        pretrain(tiny(images, encoder="resnet43"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_of_one_pixel_and_grey_ones_are_images_too(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("L", (1, 1), 77).save(folder / "grey.png")
    Image.new("RGB", (1, 9), (200, 10, 10)).save(folder / "narrow.png")
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(folder / "sixteen.png")
    result = pretrain(tiny(folder), out=tmp_path / "run")
    assert np.isfinite(result.lowest.score)


def test_one_image_is_too_few(images: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(images / "drawn-0030.png", tmp_path / "one")
    with pytest.raises(DataError, match="only one image; at least two are wanted"):
        pretrain(tiny(tmp_path / "one"), out=tmp_path / "run")


@pytest.mark.parametrize("cut", [0, 10, 200])
def test_a_training_image_that_cannot_be_read_is_named(
    drawn_folder: Path, tmp_path: Path, cut: int
) -> None:
    folder = shutil.copytree(drawn_folder / "test", tmp_path / "data")
    content = (folder / "images" / "drawn-0031.png").read_bytes()
    (folder / "images" / "drawn-0031.png").write_bytes(content[:cut])
    with pytest.raises(DataError, match=r"drawn-0031.png"):
        pretrain(tiny(folder, seed=seed_that_trains_on("drawn-0031", folder)), out=tmp_path / "run")


def seed_that_trains_on(name: str, folder: Path) -> int:
    """Return a seed with which an image is not set aside for validation."""
    data = Data(path=folder)
    return next(seed for seed in range(99) if name in open_split(data, "train", seed=seed).names)


def test_a_loss_that_is_no_number_again_and_again_ends_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> LossValue:
        value = reconstruction_loss(*arguments)
        return value._replace(total=value.total * float("nan"))

    monkeypatch.setattr("notan.pretraining.pretrainer.reconstruction_loss", broken)
    with pytest.raises(DivergedError, match="the loss is NaN or infinite"):
        pretrain(tiny(images, epochs=9, max_rollbacks=0), out=tmp_path / "run")
    assert lines_of(tmp_path / "run" / "incidents.jsonl")[-1]["action"] == "stop"


@pytest.mark.parametrize("good_writes", [0, 1, 2])
def test_a_disk_that_fills_up_leaves_no_half_written_file(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good_writes: int
) -> None:
    calls = []

    def filling(_: int) -> None:
        calls.append(1)
        if len(calls) > good_writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", filling)
    with pytest.raises(StorageError, match=r"run/.*: could not be written \(No space left"):
        pretrain(tiny(images), out=tmp_path / "run")
    whole = ["pretrain.toml", "encoder.safetensors", "reconstructions.png"][:good_writes]
    assert names_in(tmp_path / "run") == set(whole)
