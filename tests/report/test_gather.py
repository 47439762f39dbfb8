"""What a report gathers, and what it says where something is missing, broken or old."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from notan.data.synthetic import DrawnSource, write_folder
from notan.errors import CheckpointError, ConfigError, DataError
from notan.report.run import content_of, gather, page_of
from notan.run_folder import RunFolder
from notan.training import train
from report_runs import RULES, forget_data, full_score, image_row, keep_incidents, keep_score
from runs import Own, resume_own, tiny, train_own

NAMES = [f"drawn-00{number}" for number in range(24, 30)]


def content(run: Path, **arguments: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(content_of(gather(run, **arguments)))
    return found


def notices(run: Path) -> str:
    return "\n".join(gather(run).notices)


def shown(run: Path, **arguments: Any) -> str:
    """Return the page without its charts, and without the places where long words may break."""
    return page_of(gather(run, **arguments), {}, {}).replace("<wbr>", "")


@pytest.fixture
def run(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A run without a report, each test's own to spoil."""
    return Path(shutil.copytree(small_checkpoint.parent, tmp_path / "run"))


def test_the_worst_the_median_and_the_best_are_three_each(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_folder(DrawnSource(6, size=(16, 16)), images / "train")
    write_folder(DrawnSource(13, size=(16, 16), first=6), images / "val")
    run = train_on(images, tmp_path / "run")
    names = [f"drawn-00{number:02}" for number in range(6, 19)]
    rows = [image_row(name, (place + 1) / 13) for place, name in enumerate(names)]
    keep_score(run, {**full_score(names), "images": rows})
    shown = [(each["place"], each["name"]) for each in content(run)["examples"]]
    assert shown == [
        *(("worst", names[place]) for place in (0, 1, 2)),
        *(("median", names[place]) for place in (5, 6, 7)),
        *(("best", names[place]) for place in (12, 11, 10)),
    ]


def train_on(images: Path, out: Path) -> Path:
    return train(tiny(data__path=images), out=out).checkpoint.parent


def test_a_score_that_is_older_than_the_weights_is_taken_anew(run: Path) -> None:
    path = keep_score(run, full_score(NAMES))
    os.utime(path, (1, 1))
    found = content(run)
    assert found["score_file"] is None
    assert found["score"]["mean_dice"] != full_score(NAMES)["mean_dice"]


def test_an_old_score_is_better_than_none_but_is_doubted(
    run: Path,
) -> None:
    path = keep_score(run, full_score(NAMES))
    os.utime(path, (1, 1))
    forget_data(run)
    assert content(run)["score"] == full_score(NAMES)
    assert "is older than the checkpoint" in notices(run)


def test_images_that_come_out_otherwise_than_in_the_score_are_doubted(run: Path) -> None:
    keep_score(run, full_score(NAMES))
    assert " of the images below, drawn-0024 among them, come out otherwise" in notices(run)
    assert "evaluate again" in notices(run)


def test_images_that_the_model_was_trained_on_are_scored_but_marked(
    run: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    leaking = tmp_path / "leaking"
    shutil.copytree(drawn_folder / "train", leaking / "val")
    report = gather(run, data_path=leaking)
    assert report.notices == (
        "The score is NOT A TEST: the model was trained on 24 of 24 of these images.",
    )


def test_the_newest_score_of_the_split_is_taken(run: Path) -> None:
    for age, (folder, split) in enumerate(
        (
            ("evaluate-val", "val"),
            ("inference-val-2", "validation"),
            ("evaluate-test", "test"),
        )
    ):
        path = keep_score(run, {**full_score(NAMES), "rules": {**RULES, "split": split}}, folder)
        os.utime(path, (4e9 + age, 4e9 + age))
    assert content(run)["score_file"].endswith("inference-val-2/score.json")
    assert len(content(run)["scores"]) == 3


def test_the_test_split_is_read_only_when_asked_for(
    run: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(drawn_folder, tmp_path / "data"))
    for path in (images / "test").rglob("*.png"):
        path.write_text("whoever reads this fails")
    assert content(run, data_path=images)["split"] == "validation"
    with pytest.raises(DataError, match="test/"):
        gather(run, data_path=images, split="test")


def test_the_test_split_is_scored_when_asked_for(run: Path) -> None:
    assert "6 test images" in shown(run, split="test")
    assert content(run, split="test")["score"]["images"][0]["name"] == "drawn-0030"


def test_a_run_without_a_test_split_says_so(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_folder(DrawnSource(6, size=(16, 16)), images)
    run = train_on(images, tmp_path / "run")
    with pytest.raises(DataError, match="there is no test part"):
        gather(run, split="test")
    assert "set aside by the seed" in content(run)["facts"]["Split"]


def test_without_its_data_a_run_keeps_its_score(run: Path) -> None:
    keep_score(run, full_score(NAMES))
    forget_data(run)
    assert "There are no images here: gone: there is no such folder" in notices(run)
    assert content(run)["score"] == full_score(NAMES)


def test_a_data_folder_that_was_asked_for_must_be_there(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        gather(run, data_path=tmp_path / "nowhere")


def test_a_score_of_a_split_that_was_asked_for_must_be_there(run: Path) -> None:
    forget_data(run)
    with pytest.raises(DataError, match="gone: there is no such folder"):
        gather(run, split="test")


def test_the_data_may_have_moved(run: Path, drawn_folder: Path, tmp_path: Path) -> None:
    forget_data(run)
    moved = Path(shutil.copytree(drawn_folder, tmp_path / "moved"))
    assert f"--data-path {moved}" in shown(run, data_path=moved)
    assert content(run, data_path=moved)["notices"] == []


def test_a_model_and_images_of_ones_own_have_curves_at_least(tmp_path: Path) -> None:
    run = train_own(tiny(), tmp_path / "run", model=Own()).checkpoint.parent
    text = shown(run)
    assert "There are no scores and no images here" in notices(run)
    assert "notan train --recipe" not in text
    assert "Own, " in text


def test_incidents_are_told_and_escaped(run: Path) -> None:
    keep_incidents(run, {}, {"epoch": 2, "action": "go back", "loss": 7.25})
    text = shown(run)
    assert "epoch 1, batch 2" in text
    assert "back to the last good weights, learning rate times 0.25" in text
    assert "cat_1, &lt;b&gt;dog&lt;/b&gt;" in text
    assert "<b>dog" not in text
    assert len(content(run)["incidents"]) == 2


def test_many_incidents_are_shortened_on_the_page_only(run: Path) -> None:
    keep_incidents(run, *({"batch": number} for number in range(70)))
    assert "The first 50 of 70" in shown(run)
    assert len(content(run)["incidents"]) == 70


def test_an_incident_that_says_little_is_shown_all_the_same(run: Path) -> None:
    (run / "incidents.jsonl").write_text('{"epoch": 3}\n{"epoch": 4, "images": 5}\n')
    text = shown(run)
    assert "not said" in text
    assert "end of epoch 3" in text


def test_a_run_that_the_guard_stopped_is_an_error(run: Path) -> None:
    shorten_history(run, 1)
    keep_incidents(run, {"action": "stop"})
    assert 'class="verdict error"' in shown(run)
    assert content(run)["state"] == "Stopped by the guard after 1 of 14 epochs."


def shorten_history(run: Path, epochs: int) -> None:
    path = run / "history.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:epochs]))


def test_a_run_that_was_stopped_says_how_to_go_on(run: Path) -> None:
    shorten_history(run, 1)
    assert 'class="verdict warning"' in shown(run)
    assert f"notan train --resume {run}" in content(run)["state"]


def test_a_run_that_goes_on_says_so(run: Path) -> None:
    shorten_history(run, 1)
    with RunFolder(run).locked():
        assert 'class="verdict note"' in shown(run)
        assert content(run)["state"] == "Still going: 1 of 14 epochs are done."
    (run / ".lock").touch()  # what a killed run leaves is no training
    assert content(run)["state"].startswith("Stopped")


def test_a_run_that_a_budget_of_time_ended_is_finished(tmp_path: Path) -> None:
    run = train_own(tiny(train__epochs=30, train__time_limit_seconds=1e-3), tmp_path / "run")
    folder = run.checkpoint.parent
    assert 'class="verdict clean"' in shown(folder)
    assert content(folder)["state"].startswith("Finished: 1 epoch in ")
    facts = content(folder)["facts"]
    assert facts["Epochs done"] == "1"
    assert "at most 30 epochs or 0.0 s with start and end" in facts["Optimizer"]


def test_a_run_that_stopped_early_is_finished(tmp_path: Path) -> None:
    run = train_own(tiny(train__epochs=30, train__patience=1), tmp_path / "run").checkpoint.parent
    assert 'class="verdict clean"' in shown(run)
    assert "Finished early" in content(run)["state"]
    assert resume_own(run).checkpoint.parent == run  # the report is no hindrance


def test_a_run_without_a_checkpoint_yet_has_its_settings(run: Path) -> None:
    (run / "best.safetensors").unlink()
    (run / "history.jsonl").unlink()
    text = shown(run)
    assert "no checkpoint yet" in text
    assert "There is no history yet" in text
    assert "Stopped before its first epoch" in text
    assert "no epoch is written down yet" in text
    assert "image_size" in text


def test_a_damaged_checkpoint_is_named(run: Path) -> None:
    (run / "best.safetensors").write_bytes(b"PK")
    assert "The checkpoint cannot be read" in notices(run)
    assert "so it is not opened" in notices(run)


def test_weights_that_do_not_match_their_card_are_named(run: Path) -> None:
    path = run / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"oops")
    assert "SHA-256 differs" in notices(run)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        gather(run, split="test")


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"mean_dice": 0.5}',
        '{"mean_dice": 0.5, "mean_iou": 0.4, "rules": {"split": "val"}, "images": []}',
        '{"mean_dice": "high", "mean_iou": 0.4, "rules": {}, "images": [{"name": "a"}]}',
    ],
)
def test_a_broken_score_is_named_and_another_is_taken(run: Path, broken: str) -> None:
    keep_score(run, broken)
    assert "A score is left out" in notices(run)
    assert "evaluate-val/score.json" in notices(run)
    assert len(content(run)["score"]["images"]) == 6


def test_broken_lines_are_named_and_left_out(run: Path) -> None:
    shorten_history(run, 2)
    path = run / "history.jsonl"
    good = path.read_text()
    path.write_text(f'{good}[1, 2]\n{{"loss": 1}}\n{{"epoch": 3, "train/loss": NaN}}\n{{"epo')
    (run / "incidents.jsonl").write_bytes(b"\xff\xfe\n")
    assert "history.jsonl: lines 3, 4, 6 cannot be read" in notices(run)
    assert "incidents.jsonl: line 1 cannot be read" in notices(run)
    assert [epoch["epoch"] for epoch in content(run)["history"]] == [1, 2, 3]
    assert content(run)["history"][2]["train/loss"] is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Path.exists, "there is no such folder; give one that notan train made"),
        (Path.touch, "this is a file; the run folder is wanted"),
        (Path.mkdir, "there is no run here (run.toml is missing)"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, make: Any, words: str) -> None:
    make(tmp_path / "run")
    with pytest.raises(ConfigError, match=re.escape(words)):
        gather(tmp_path / "run")


def test_broken_settings_are_refused(run: Path) -> None:
    (run / "run.toml").write_text("seed = [")
    with pytest.raises(ConfigError, match=r"run.toml: not valid TOML"):
        gather(run)
