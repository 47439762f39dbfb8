"""``train --resume``, ``pretrain --resume`` and the report go by what files hold, not by names."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from notan.config import Data
from notan.data.folders import open_split
from notan.data.samples import FileSource
from notan.data.synthetic import DrawnSource
from notan.errors import DataError, StoppedBySignal
from notan.evaluation.evaluate import evaluate, open_data, write_score
from notan.prediction.predictor import Predictor
from notan.report.run import content_of, gather
from notan.training import resume, train
from notan.training.trainer import Trainer
from runs import Drawn, ask_to_stop, before_step, history, last_state, resume_own, tiny, train_own

if TYPE_CHECKING:
    from notan.config import Run
    from notan.data.samples import Sample


@pytest.fixture
def folder(drawn_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn_folder, tmp_path / "data"))


def stopped(run: Run, out: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(2, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train(run, out=out)
    return out


def run_on(folder: Path, **flags: object) -> Run:
    return tiny(data__path=folder, train__epochs=2, train__batch_size=8, **flags)


def files(folder: Path, what: str, part: str = "train") -> list[Path]:
    return sorted((folder / part / what).iterdir())


def change(path: Path) -> None:
    """Save a file anew with other pixels of the same size."""
    image = Image.open(path)
    Image.fromarray(255 - np.asarray(image)).save(path)


@pytest.mark.parametrize("what", ["images", "masks"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_resume_whose_files_have_changed_is_refused_by_name(
    what: str, part: str, folder: Path, tmp_path: Path
) -> None:
    out = stopped(run_on(folder), tmp_path / "run")
    changed = files(folder, what, part)[1]
    change(changed)
    with pytest.raises(DataError) as refusal:
        resume(out)
    said = str(refusal.value)
    assert f"1 of {'24' if part == 'train' else '6'} images or masks" in said
    assert changed.stem in said
    assert (
        "put back what they held, start a new run, or go on all the same with --allow-cha" in said
    )
    assert "\n" not in said


def test_going_on_with_changed_files_is_said_and_noted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = stopped(run_on(folder), tmp_path / "run")
    for path in files(folder, "masks")[:5]:
        change(path)
    caplog.set_level(logging.WARNING, "notan")
    assert len(history(resume(out, allow_changes=True))) == 2
    assert "5 of 24 images or masks have changed since the run began" in caplog.text
    assert "and 2 more" in caplog.text
    resume(out)  # the state knows the new ones


def test_files_that_were_only_touched_or_moved_are_the_same(folder: Path, tmp_path: Path) -> None:
    out = stopped(run_on(folder), tmp_path / "run")
    for path in (*files(folder, "images"), *files(folder, "masks")):
        path.write_bytes(path.read_bytes())
    moved = folder.rename(tmp_path / "elsewhere")
    assert len(history(resume(out, run=run_on(moved)))) == 2


def test_pixels_in_the_middle_of_a_plainly_stored_image_count(folder: Path, tmp_path: Path) -> None:
    image, mask = files(folder, "images")[0], files(folder, "masks")[0]
    large = np.full((300, 300, 3), 90, np.uint8)
    Image.fromarray(large).save(image.with_suffix(".bmp"))
    image.unlink()
    Image.fromarray(np.uint8(255) * (np.indices((300, 300)).sum(0) % 50 < 25)).save(mask)
    out = stopped(run_on(folder), tmp_path / "run")
    whole = bytearray(image.with_suffix(".bmp").read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 40_000] = b"\xff" * 40_000
    image.with_suffix(".bmp").write_bytes(whole)
    with pytest.raises(DataError, match="1 of 24 images or masks"):
        resume(out)


def test_a_state_of_an_earlier_version_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = Trainer.capture

    def without(trainer: Trainer) -> dict[str, Any]:
        return {name: each for name, each in capture(trainer).items() if name != "contents"}

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "capture", without)
        out = stopped(run_on(folder), tmp_path / "run")
    assert "contents" not in last_state(out)
    change(files(folder, "masks")[0])
    assert len(history(resume(out))) == 2


def test_images_of_ones_own_are_known_by_their_pixels(tmp_path: Path) -> None:
    class Turned(Drawn):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            mask = sample.mask if index else ~sample.mask
            return type(sample)(sample.name, sample.image, mask)

    train_own(tiny(train__epochs=2), tmp_path / "run")
    with pytest.raises(DataError, match="1 of 6 images or masks have changed"):
        resume_own(tmp_path / "run", training=Turned(6, size=(16, 16)))


def test_one_file_that_holds_many_masks_is_read_once(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    read: list[Path] = []

    def hash_content(path: Path) -> str:
        read.append(path)
        return "x"

    monkeypatch.setattr("notan.data.samples.hash_content", hash_content)
    source = open_split(Data(path=folder), "train", seed=0)
    pairs = [replace(pair, mask=source.pairs[0].mask) for pair in source.pairs]
    FileSource(pairs, source.read_labels).content_hashes()
    assert read == [source.pairs[0].mask]


@pytest.fixture
def scored(folder: Path, tmp_path: Path) -> Path:
    """A run with a score of its validation images."""
    best = train(run_on(folder), out=tmp_path / "run").checkpoint
    predictor = Predictor.load(best)
    assert predictor.card
    source = open_data(predictor.card, "validation", data_path=folder).source
    write_score(best.parent / "evaluate-val", evaluate(predictor, source, split="validation"))
    return best.parent


def test_a_score_of_the_files_as_they_are_is_kept(scored: Path) -> None:
    report = gather(scored)
    assert report.score_path == scored / "evaluate-val" / "score.json"
    assert not any("changed" in notice for notice in report.notices)


@pytest.mark.parametrize("what", ["images", "masks"])
def test_a_score_of_files_that_have_changed_is_taken_anew(
    what: str, folder: Path, scored: Path
) -> None:
    before = gather(scored).score
    change(files(folder, what, "val")[2])
    report = gather(scored)
    assert before
    assert report.score
    assert report.score_path is None
    assert report.score.images != before.images
    assert any("have changed since that score was taken" in each for each in report.notices)
    shown = json.loads(content_of(report))["examples"]
    dice = {image.name: image.dice for image in report.score.images}
    assert {each["name"]: each["dice"] for each in shown} == dice


def test_a_score_that_cannot_be_taken_anew_is_doubted(folder: Path, scored: Path) -> None:
    files(folder, "images", "val")[2].write_bytes(b"no image")
    report = gather(scored)
    assert report.examples == ()
    assert any("have changed since that score was taken" in each for each in report.notices)


def test_a_score_remembers_the_content_of_what_was_scored() -> None:
    source = DrawnSource(3, size=(16, 16))
    hashes = source.content_hashes()
    assert len({*hashes}) == 3
    assert hashes == DrawnSource(3, size=(16, 16)).content_hashes()
    assert hashes != DrawnSource(3, size=(16, 16), first=1).content_hashes()
