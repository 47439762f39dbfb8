"""``notan train --time-limit``: from the words on the command line to what is left at the end."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from notan.cli import BEGAN
from notan.cli import train as command
from notan.cli.main import main
from notan.config import load_run
from notan.prediction.predictor import Predictor
from notan.training import TrainResult
from runs import tiny, train_own

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

QUICK = ["--image-size", "16", "--batch-size", "8", "model.width=2", "train.trackers=[]"]


def test_a_time_limit_that_no_training_can_keep_leaves_a_model_and_says_what_is_missing(
    drawn_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--data-path", str(drawn_folder), "--out", str(tmp_path / "run"), *QUICK]
    with caplog.at_level(logging.INFO, logger="notan"):
        main(["train", "--time-limit", "0.001s", *words])
    assert "a time limit of 0.001 s is too small and will not be kept" in caplog.text
    assert "the time limit left no time for the report; write it with: notan report " in caplog.text
    assert not (tmp_path / "run" / "report.html").exists()
    Predictor.load(tmp_path / "run" / "best.safetensors")


def test_the_time_limit_becomes_seconds_and_brings_its_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def start(
        _: object, __: object, flags: Any, overrides: Any, frame: object, ___: object
    ) -> TrainResult:
        seen.append((load_run(flags=flags, overrides=overrides).train, frame))
        return TrainResult(tmp_path / "best.safetensors", 0.5, 1, -1.0, time_for_report=False)

    monkeypatch.setattr(command, "_train", start)
    before = time.monotonic()
    main(["train", "--time-limit", "1.5h"])
    main(["train", "--time-limit", "600", "train.schedule=exponential", "--epochs", "7"])
    (first, frame), (second, _) = seen
    assert (first.time_limit_seconds, first.schedule) == (5400, "cosine")
    assert (second.time_limit_seconds, second.schedule, second.epochs) == (600, "exponential", 7)
    assert before <= frame.began <= BEGAN.get() <= time.monotonic()


def test_a_report_that_the_time_limit_overtakes_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = train_own(tiny(train__epochs=1), tmp_path / "run").checkpoint.parent
    late = TrainResult(run / "best.safetensors", 0.5, 1, -1.0, time_for_report=True)
    monkeypatch.setattr(command, "_train", lambda *_: late)
    main(["train", "--time-limit", "1m"])
    assert (
        "there is no report (the time limit is over); try again with: notan report" in caplog.text
    )
    assert not (run / "report.html").exists()
