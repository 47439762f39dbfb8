"""The page that a report writes, the charts beside it, and all of it as JSON."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from notan.errors import StorageError
from notan.modelfile.card import Checkpoint, load_checkpoint, read_card, save_checkpoint
from notan.modelfile.postprocess import Postprocessing
from notan.report.charts import CAPTIONS
from notan.report.run import write_report
from report_runs import NOT_DEFINED, forget_data, full_score, keep_score

PLACES = ("worst", "worst", "worst", "best", "best", "best")
NAMES = [f"drawn-00{number}" for number in range(24, 30)]


@pytest.fixture(scope="module")
def finished(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(small_checkpoint.parent, folder)
    write_report(folder)
    return folder


@pytest.fixture
def run(small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run without a report, each test's own to spoil; drawing PNGs is half of the time."""
    monkeypatch.setattr("notan.report.run.to_png", lambda _: b"")
    return Path(shutil.copytree(small_checkpoint.parent, tmp_path / "run"))


def written(run: Path, **arguments: Any) -> str:
    """Write a report and return its page, with what stands in breakable places put together."""
    text = write_report(run, **arguments).read_text("utf-8")
    return re.sub(r"<wbr>", "", text)


def kept(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    return content


def figures_of(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "report").glob("*.png")}


def test_a_finished_run_is_shown_with_score_curves_and_images(finished: Path) -> None:
    content = kept(finished)
    card = read_card(finished / "best.safetensors")
    assert content["state"].startswith("Finished: 14 epochs in")
    assert content["notices"] == []
    assert content["score"]["mean_dice"] == pytest.approx(card.scores["dice"], abs=1e-6)
    assert [row["name"] for row in content["score"]["images"]] == NAMES
    assert content["settings"]["train"]["epochs"] == 14
    assert len(content["history"]) == 14
    assert len(content["examples"]) == 6


def test_every_figure_is_a_png_too(finished: Path) -> None:
    charts = set(CAPTIONS) - {"groups"} | {"groups-1"}
    images = {f"image-{number}-{place}" for number, place in enumerate(PLACES, start=1)}
    assert figures_of(finished) == charts | images
    for path in (finished / "report").glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"


def test_the_page_says_what_was_trained_on_what_and_how_to_do_it_again(finished: Path) -> None:
    text = (finished / "report.html").read_text("utf-8").replace("<wbr>", "")
    card = read_card(finished / "best.safetensors")
    for words in (
        f"UNet, width 4, {card.parameters:,} parameters",
        "24 to train on, 6 to validate on",
        "no border class in the data",
        card.hardware,
        "float32 (the safe choice on cpu)",
        "None: the guard had nothing to do.",
        f"notan train --recipe {finished}/run.toml",
        f"notan evaluate --model {finished}/best.safetensors",
        f"torch {card.versions['torch']}",
        "image_size",
    ):
        assert words in text


def test_the_best_epoch_is_marked(finished: Path) -> None:
    best = read_card(finished / "best.safetensors").epoch
    assert (finished / "report.html").read_text("utf-8").count(f"best: {best}") == 3


def test_a_report_is_the_same_each_time(finished: Path, tmp_path: Path) -> None:
    for place in ("one", "two"):
        write_report(finished, out=tmp_path / place)
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(names) == 2 + len(figures_of(finished))
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_kept_score_is_shown_with_all_that_it_holds(run: Path) -> None:
    keep_score(run, full_score(NAMES))
    text = written(run)
    for words in (
        "Boundary F",
        "Calibration error",
        "hausdorff95: one of the masks is empty in every image",
        "Rank correlation of expected and true Dice: 0.710",
        "small (2)",
        "please check",
        "used: 0.5",
        "Tolerance",
        "1 of 6",
    ):
        assert words in text
    assert {"reliability", "threshold", "expected-dice", "groups-1"} <= figures_of(run)
    assert kept(run)["score"] == full_score(NAMES)
    assert kept(run)["score_file"].endswith("evaluate-val/score.json")


def test_a_score_without_expectations_groups_and_counted_pixels_has_no_such_charts(
    run: Path,
) -> None:
    score = {**full_score(NAMES), "reliability": [], "groups": {}, "expected": None}
    for row in score["images"]:
        row["expected_dice"] = row["needs_review"] = None
    keep_score(run, score)
    text = written(run)
    assert "Reliability" not in text
    assert "Does it know?" not in text
    assert not {"reliability", "expected-dice", "groups-1"} & figures_of(run)
    assert f"{score['mean_dice']:.3f}" in text


def test_numbers_that_are_not_defined_are_dashes(run: Path) -> None:
    score = full_score(NAMES)
    score["pooled"] = dict.fromkeys(score["pooled"])
    score["means"] = dict.fromkeys(score["means"], NOT_DEFINED)
    score["groups"] = {"breed": {"cat": {**NOT_DEFINED, "mean": 0.5, "images": 1}}}
    keep_score(run, score)
    text = written(run)
    assert "\N{EN DASH}" in text
    assert "nan" not in re.sub(r'base64,[^"]*', "", text)
    assert "groups-1" in figures_of(run)


def test_one_image_alone_is_shown(run: Path) -> None:
    keep_score(run, full_score(NAMES[:1]))
    assert "on 1 validation image." in written(run)
    assert len(kept(run)["examples"]) == 1


def test_a_place_that_cannot_be_written_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StorageError, match="could not be written"):
        write_report(run, out=tmp_path / "out")


def test_figures_of_an_earlier_report_go_and_others_stay(run: Path) -> None:
    (run / "report").mkdir()
    for name in ("image-9-best", "groups-7", "mine"):
        (run / "report" / f"{name}.png").touch()
    write_report(run)
    assert {"groups-7", "image-9-best", "mine"} & figures_of(run) == {"mine"}


def test_values_that_are_no_numbers_are_passed_over(run: Path) -> None:
    (run / "history.jsonl").write_text('{"epoch": 1, "train/loss": "none", "seconds": null}\n')
    write_report(run)
    assert kept(run)["history"] == [{"epoch": 1}]


def test_without_its_data_a_run_keeps_its_curves(run: Path) -> None:
    forget_data(run)
    assert "How the training went" in written(run)
    assert "There are no scores and no images here: gone: there is no such" in "".join(
        kept(run)["notices"]
    )
    assert figures_of(run) == {"loss", "dice", "learning-rate"}
    assert kept(run)["score"] is None


def test_no_threshold_is_marked_where_each_image_has_its_own(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notan.report.run.training_charts", lambda *_: ())
    assert "used: 0.5" in written_with(run, Postprocessing(threshold=0.5))
    assert "used: 0.5" not in written_with(run, Postprocessing(threshold_rule="dice"))


def written_with(run: Path, postprocessing: Postprocessing) -> str:
    """Write a report of a run whose validation has chosen this postprocessing."""
    checkpoint = load_checkpoint(run / "best.safetensors")
    card = checkpoint.card.model_copy(update={"postprocessing": postprocessing})
    save_checkpoint(run / "best.safetensors", Checkpoint(card, checkpoint.weights))
    keep_score(run, full_score(NAMES))
    return written(run)
