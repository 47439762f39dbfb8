"""Faults from outside: what they cost is said, and the run goes on when they are mended."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from notan.cli.main import main
from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import DataError, StorageError
from notan.training import resume, train
from notan.training.trainer import Trainer
from runs import before_step, fate, last_state, names_in, resume_own, tiny, train_own

pytestmark = pytest.mark.usefixtures("without_reports")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    write_folder(DrawnSource(12, size=(24, 30)), folder / "train")
    write_folder(DrawnSource(3, size=(24, 30), first=12), folder / "val")
    return folder


def settings(images: Path, **flags: object) -> Any:
    # with the images kept, nothing would be read after the first epoch
    given: dict[str, object] = {"train__epochs": 3, "train__checkpoint_every_steps": 1}
    given["data__cache"] = "off"
    return tiny(**{**given, "data__path": images, **flags})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_folder_that_vanishes_costs_nothing_once_it_is_back(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    run = settings(images, data__workers=workers)
    train(run, out=tmp_path / "whole")
    vanish = before_step(5, lambda _: images.rename(tmp_path / "elsewhere"))
    monkeypatch.setattr(Trainer, "after_step", vanish)
    with pytest.raises(DataError, match=r"drawn-\d+\.png: .*there is no such") as error:
        train(run, out=tmp_path / "run")
    monkeypatch.undo()
    assert error.value.exit_code == 3
    assert str(images) in str(error.value)
    assert last_state(tmp_path / "run")["progress"]["step"] >= 5
    with pytest.raises(DataError, match="there is no such folder"):
        resume(tmp_path / "run")
    (tmp_path / "elsewhere").rename(images)
    resume(tmp_path / "run")
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_a_run_goes_on_with_images_that_have_moved(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(settings(images), out=tmp_path / "whole")
    moved = tmp_path / "moved"
    vanish = before_step(5, lambda _: images.rename(moved))
    monkeypatch.setattr(Trainer, "after_step", vanish)
    with pytest.raises(DataError):
        train(settings(images), out=tmp_path / "run")
    monkeypatch.undo()
    main(["train", "--resume", str(tmp_path / "run"), "--data-path", str(moved)])
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_an_image_that_becomes_unreadable_is_named_and_the_run_can_go_on(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    train(settings(images), out=tmp_path / "whole")
    path = images / "train" / kind / "drawn-0007.png"
    kept = path.read_bytes()
    cut = before_step(6, lambda _: path.write_bytes(kept[: len(kept) // 2]))
    monkeypatch.setattr(Trainer, "after_step", cut)
    words = ["train", "--data-path", str(images), "--out", str(tmp_path / "run")]
    words += ["--epochs", "3", "--batch-size", "3", "--image-size", "16"]
    words += [
        "--learning-rate",
        "0.003",
        "--model",
        "little",
        "model.width=2",
        "train.trackers=[]",
        "data.cache=off",
    ]
    with pytest.raises(SystemExit) as end:
        main([*words, "train.checkpoint_every_steps=1"])
    monkeypatch.undo()
    assert end.value.code == 3
    assert f"notan: {path}: " in capsys.readouterr().err
    assert last_state(tmp_path / "run")["progress"]["step"] >= 6
    path.write_bytes(kept)
    main(["train", "--resume", str(tmp_path / "run")])
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")


def test_a_best_checkpoint_that_cannot_be_written_leaves_the_one_before_and_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny(train__epochs=6, train__checkpoint_every_steps=1, train__learning_rate=0.05)
    train_own(run, tmp_path / "whole")
    replace, tries = Path.replace, []

    def refusing(source: Path, target: Path) -> Path:
        if target.name == "best.safetensors":
            tries.append(target)
            if len(tries) > 1:
                raise PermissionError(errno.EACCES, "Permission denied")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", refusing)
    with pytest.raises(StorageError, match=r"best.safetensors: could not be written \(Permission"):
        train_own(run, tmp_path / "run")
    monkeypatch.undo()
    kept = {"best.safetensors", "history.jsonl", "last", "run.toml", "validation.txt"}
    assert names_in(tmp_path / "run") == kept
    resume_own(tmp_path / "run")
    assert fate(tmp_path / "run") == fate(tmp_path / "whole")
