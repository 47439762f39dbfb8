"""Trackers follow a training; none that fails or is absent ends one, and none goes online unasked.

MLflow and Weights & Biases run in an environment of their own that has notan's packages too: see
other_tools.py.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from notan.cli.main import main
from notan.comparison.benchmark import BenchmarkPlan
from notan.config import Run, asked_settings, load_run, run_to_toml
from notan.errors import ConfigError, MissingExtraError, StoppedBySignal
from notan.modelfile.card import Card, read_card
from notan.training import Tracker, trackers, trainer
from notan.training.trainer import Trainer
from other_tools import ROOT, run_theirs
from runs import ask_to_stop, before_step, lines_of, names_in, resume_own, tiny, train_own, weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from notan.types import RGBImage


class Notebook(Tracker):
    """A tracker of one's own, which writes all down; or fails where it is told to."""

    def __init__(self, fails: str = "") -> None:
        self.told: list[tuple[Any, ...]] = []
        self.fails = fails

    def note(self, what: str, *more: object) -> None:
        self.told.append((what, *more))
        if what == self.fails:
            raise OSError(f"no {what}\ntoday")

    def begin(self, settings: Mapping[str, object], folder: Path, first_epoch: int) -> None:
        self.note("begin", settings["train.learning_rate"], folder.name, first_epoch)

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        self.note("epoch", number, values["validation/dice"])

    def image(self, number: int, name: str, image: RGBImage) -> None:
        assert image.dtype == np.uint8
        self.note("image", number, name, image.shape)

    def document(self, name: str, text: str) -> None:
        self.note("document", name, text)

    def end(self, how: str) -> None:
        self.note("end", how)


def test_a_tracker_of_ones_own_is_told_of_everything(tmp_path: Path) -> None:
    book = Notebook()
    result = train_own(tiny(train__epochs=2, train__log_images=1), tmp_path / "run", logger=book)
    curve = lines_of(tmp_path / "run" / "history.jsonl")
    assert book.told[0] == ("begin", 3e-3, "run", 1)
    epochs = [each[1:] for each in book.told if each[0] == "epoch"]
    assert epochs == [(line["epoch"], line["validation/dice"]) for line in curve]
    assert ("image", 1, "drawn-0006", (16, 16, 3)) in book.told
    name, text = next(each[1:] for each in book.told if each[0] == "document")
    assert (name, Card.model_validate_json(text)) == ("card.json", read_card(result.checkpoint))
    assert book.told[-1] == ("end", "finished")


def test_it_hears_that_a_training_was_stopped_and_where_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, first, second = tiny(train__epochs=3), Notebook(), Notebook()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "after_step", before_step(3, ask_to_stop))
        with pytest.raises(StoppedBySignal):
            train_own(run, tmp_path / "run", logger=first)
    resume_own(tmp_path / "run", logger=second)
    assert first.told[-1] == ("end", "stopped")
    assert second.told[0] == ("begin", 3e-3, "run", 2)
    told = [each[1] for each in (*first.told, *second.told) if each[0] == "epoch"]
    assert told == [1, 2, 3]


@pytest.mark.parametrize("method", ["begin", "epoch", "image", "document", "end"])
def test_one_that_fails_is_left_out_with_one_warning_and_the_training_goes_on(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    run, book = tiny(train__epochs=2), Notebook(fails=method)
    with caplog.at_level(logging.WARNING, logger="notan"):
        result = train_own(run, tmp_path / "run", logger=book)
    said = [each for each in caplog.messages if "follows this training no longer" in each]
    assert said == [f"Notebook follows this training no longer: OSError: no {method} today"]
    assert book.told[-1][0] == method
    assert weights(result) == weights(train_own(run, tmp_path / "alone"))


@pytest.mark.parametrize("words", [["train.trackers=wandb"], ["train.trackers=['mlflow','wandb']"]])
def test_an_absent_one_is_refused_before_the_training_with_what_to_install(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # as one of its runs leaves it; it is no package
    monkeypatch.syspath_prepend(str(tmp_path))
    there = importlib.util.find_spec

    def absent(name: str) -> Any:
        found = there(name)
        return None if name == "mlflow" or (found and found.origin) else found

    monkeypatch.setattr(trackers, "find_spec", absent)
    wanted = r"is not installed: pip install 'notan\[(wandb|mlflow)\]', or leave it out$"
    with pytest.raises(MissingExtraError, match=wanted):
        train_own(load_run(overrides=words), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_tensorboard_nothing_is_asked_for_unless_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "overlay_image", lambda *_: pytest.fail("drawn for nobody"))
        train_own(tiny(train__trackers=None), tmp_path / "run", logger=print)
    assert "tensorboard" not in names_in(tmp_path / "run")
    with pytest.raises(MissingExtraError, match="names tensorboard, which is not installed"):
        train_own(tiny(train__trackers=("tensorboard",)), tmp_path / "named")


def test_an_unknown_one_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'tensorboard', 'mlflow' or 'wandb'.*found 'wanbd'"):
        load_run(overrides=["train.trackers=wanbd"])


@pytest.mark.parametrize(("before", "now"), [(True, None), (False, ())])
def test_the_setting_of_earlier_versions_is_read(
    tmp_path: Path, before: bool, now: tuple[str, ...] | None, small_checkpoint: Path
) -> None:
    recipe, word = tmp_path / "run.toml", f"tensorboard = {str(before).lower()}"
    recipe.write_text(f"[train]\n{word}\nepochs = 3\n")
    run = load_run(recipe)
    assert (run.train.trackers, run.train.epochs) == (now, 3)
    assert "tensorboard" not in run_to_toml(run)
    words = [f"train.{word.replace(' ', '')}"]
    assert asked_settings(overrides=words) == ({} if before else {"train.trackers": ()})
    card = json.loads(read_card(small_checkpoint).model_dump_json())
    del card["run"]["train"]["trackers"]
    card["run"]["train"]["tensorboard"] = before
    assert Card.model_validate_json(json.dumps(card)).run.train.trackers == now
    plan = {"models": ["unet"], "seeds": 2, "run": {"train": {"tensorboard": before}}}
    assert BenchmarkPlan.model_validate_json(json.dumps(plan)).run == Run(
        train=run.train.model_copy(update={"epochs": 100})
    )


def test_overwriting_removes_what_trackers_left(tmp_path: Path) -> None:
    run, folder = tiny(), tmp_path / "run"
    train_own(run, folder)
    for name in ("mlflow", "wandb", "tensorboard"):
        (folder / name).mkdir()
    (folder / "trackers.json").write_text("{}")
    train_own(run, folder, overwrite=True)
    assert not {"mlflow", "wandb", "tensorboard", "trackers.json"} & names_in(folder)


def test_the_report_goes_to_trackers_that_know_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, page = Notebook(), tmp_path / "report.html"
    page.write_text("<!DOCTYPE html>")
    monkeypatch.setattr(trackers, "NAMED", {"mlflow": lambda: book, "wandb": lambda: book})
    monkeypatch.setattr(Notebook, "begin", lambda *_: None)
    trackers.hand_in(("mlflow",), tmp_path, page)
    (tmp_path / "trackers.json").write_text("no JSON")
    trackers.hand_in(("mlflow",), tmp_path, page)
    assert book.told == []
    (tmp_path / "trackers.json").write_text('{"mlflow": "1"}')
    trackers.hand_in(("mlflow", "wandb"), tmp_path, page)
    assert book.told == [("document", "report.html", "<!DOCTYPE html>"), ("end", "finished")]


THEIRS = """
import json, os, socket, sys
from pathlib import Path

from notan.cli.main import main
from notan.training import resume
from runs import add_little, ask_to_stop, before_step
from notan.training.trainer import Trainer

socket.gethostname = lambda: "somebodys-machine"
add_little()
given = json.loads(sys.stdin.read())
folder, after_step = Path(given["out"]), Trainer.after_step
Trainer.after_step = before_step(given["stop"], ask_to_stop)
try:
    main(given["words"])
except SystemExit as end:
    assert end.code == 143, end.code
Trainer.after_step = after_step
main(["train", "--resume", str(folder)])

from mlflow import MlflowClient
from mlflow.telemetry.client import get_telemetry_client

client = MlflowClient((folder / "mlflow").as_uri())
(run,) = client.search_runs([client.get_experiment_by_name("notan").experiment_id])
found = [*(folder / "wandb").glob("offline-run-*")]
records = b"".join(file.read_bytes() for file in folder.rglob("*.wandb"))
print("FOUND", json.dumps({
    "steps": [each.step for each in client.get_metric_history(run.info.run_id, "validation/dice")],
    "dice": [each.value for each in client.get_metric_history(run.info.run_id, "validation/dice")],
    "status": run.info.status,
    "width": run.data.params["model.width"],
    "artifacts": sorted(each.path for each in client.list_artifacts(run.info.run_id)),
    "image": [each.path for each in client.list_artifacts(run.info.run_id, "validation")],
    "tracked": json.loads((folder / "trackers.json").read_text()),
    "mlflow run": run.info.run_id,
    "telemetry": get_telemetry_client() is not None,
    "wandb runs": sorted({each.name.rpartition("-")[2] for each in found}),
    "wandb documents": sorted({path.name for each in found for path in (each / "files").iterdir()}),
    "curve": b"validation/dice" in records,
    "host": b"somebodys-machine" in records,
    "environment": {name: os.environ[name] for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING")},
}))
"""

UNREACHABLE = """
import json, sys
from notan.cli.main import main
from runs import add_little

add_little()
main(json.loads(sys.stdin.read())["words"])
"""


def words_of(folder: Path, data: Path, named: str) -> list[str]:
    words = ["train", "--data-path", str(data), "--out", str(folder), "--epochs", "3"]
    words += ["--batch-size", "8", "--image-size", "16", "model.name=little", "model.width=2"]
    return [*words, f"train.trackers={named}", "train.log_images=1"]


def test_mlflow_and_wandb_keep_everything_in_the_run_folder_and_go_on_in_the_same_run(
    tmp_path: Path, drawn_folder: Path
) -> None:
    folder = tmp_path / "run"
    words = words_of(folder, drawn_folder, "mlflow,wandb")
    given = json.dumps({"out": str(folder), "words": words, "stop": 5})
    told = run_theirs("trackers", THEIRS, given, ROOT / "src", ROOT / "tests")
    found = json.loads(told.partition("FOUND ")[2])
    curve = lines_of(folder / "history.jsonl")
    assert found["steps"] == [1, 2, 3]
    assert found["dice"] == [line["validation/dice"] for line in curve]
    assert (found["status"], found["width"]) == ("FINISHED", "2")
    assert found["artifacts"] == ["card.json", "report.html", "validation"]
    assert found["image"] == ["validation/drawn-0024"]
    assert found["tracked"] == {"mlflow": found["mlflow run"], "wandb": found["wandb runs"][0]}
    assert len(found["wandb runs"]) == 1
    assert {"card.json", "report.html", "media"} <= {*found["wandb documents"]}
    assert (found["curve"], found["host"], found["telemetry"]) == (True, False, False)
    assert found["environment"] == {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}


def test_a_server_that_does_not_answer_costs_one_warning(
    tmp_path: Path, drawn_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    folder = tmp_path / "run"
    given = json.dumps({"words": words_of(folder, drawn_folder, "mlflow")})
    told = run_theirs("trackers", UNREACHABLE, given, ROOT / "src", ROOT / "tests")
    assert "Best validation Dice: " in told
    assert not {"mlflow", "trackers.json"} & names_in(folder)


def test_the_command_line_takes_a_list_of_trackers(
    tmp_path: Path, drawn_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(tmp_path / "run", drawn_folder, "tensorboard,comet")
    with pytest.raises(SystemExit):
        main(words)
    assert "train.trackers.1: Input should be 'tensorboard', 'mlflow'" in capsys.readouterr().err
