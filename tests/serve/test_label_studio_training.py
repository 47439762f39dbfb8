"""Training on annotations of Label Studio: what is learned, when, and what cannot go wrong."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from notan.api import load
from notan.data.annotations.label_studio import encode_brush
from notan.data.synthetic import DrawnSource
from notan.errors import DataError, NotanError
from notan.io.images import read_image
from notan.metrics.counts import Counts
from notan.prediction.pixels import encode_png
from notan.serve import make_app
from notan.serve.label_studio import LabelStudio
from notan.serve.origin import Origin
from notan.serve.teaching import Retrainer, RetrainSettings
from stand_in_label_studio import OLDER, StandIn, stand_in
from web_server import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from notan.prediction.predictor import Predictor

SOURCE = DrawnSource(8, size=(32, 32), seed=2)
WAIT, IGNORED = 120.0, "ignored"


@pytest.fixture
def studio() -> Iterator[StandIn]:
    with stand_in() as found:
        for number, sample in enumerate(SOURCE, start=1):
            found.files[f"/data/upload/3/{number}.png"] = encode_png(sample.image)
            found.tasks.append(task(number, sample.mask))
        yield found


def task(number: int, mask: Any, **more: object) -> dict[str, Any]:
    """A task as Label Studio exports it."""
    value = {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["shape"]}
    region = {"type": "brushlabels", "original_width": 32, "original_height": 32, "value": value}
    annotation = {"result": [region], "was_cancelled": False, "updated_at": "2026-01-01", **more}
    return {
        "id": number,
        "data": {"image": f"/data/upload/3/{number}.png"},
        "annotations": [annotation],
    }


def teacher(studio: StandIn, base: Path, folder: Path, **more: Any) -> Retrainer:
    def load(path: Path) -> Any:
        return path

    return Retrainer(
        Origin(studio.url, OLDER, 10**6), RetrainSettings(3, base, folder, **more), load
    )


def masks_in(folder: Path) -> dict[str, Any]:
    found = {}
    for part in ("train", "val"):
        for path in sorted((folder / "data" / part / "masks").iterdir()):
            found[f"{part}/{path.stem}"] = read_image(path)[..., 0] > 0
    return found


def test_annotations_become_a_folder_of_which_every_fifth_is_kept_apart(
    studio: StandIn, tmp_path: Path
) -> None:
    school = teacher(studio, tmp_path / "base.safetensors", tmp_path, label="shape")
    assert school.collect() == (6, 2)
    found = masks_in(tmp_path)
    assert [name for name in found if name.startswith("val")] == ["val/2", "val/6"]
    for name, mask in found.items():
        assert (mask == SOURCE[int(name.partition("/")[2]) - 1].mask).all()
    # annotated anew, taken back, skipped, and new: what was kept apart stays apart
    whole = np.ones((32, 32), np.bool_)
    studio.tasks[1]["annotations"].append(task(2, whole, updated_at="2026-02-02")["annotations"][0])
    studio.tasks[2]["annotations"] = []
    studio.tasks[3]["annotations"][0]["was_cancelled"] = True
    studio.asked.clear()
    assert school.collect() == (4, 2)
    assert masks_in(tmp_path)["val/2"].all()
    assert studio.paths == ["/api/projects/3/export?exportType=JSON"]  # images are fetched once


def test_what_is_damaged_is_left_out_and_too_little_is_said(
    studio: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    studio.tasks[0]["data"] = {"image": "http://127.0.0.1:1/data/upload/3/1.png"}
    studio.tasks[1]["annotations"][0]["result"][0]["value"]["rle"] = [1]
    studio.tasks[2]["annotations"][0]["result"][0]["original_width"] = 9
    studio.files["/data/upload/3/4.png"] = b"no image"
    studio.tasks[4] = "no task"
    school = teacher(studio, tmp_path / "base.safetensors", tmp_path)
    assert sum(school.collect()) == 3
    for number in (1, 2, 3, 4):
        assert f"task {number} is left out" in caplog.text
    studio.tasks[1:] = []
    with pytest.raises(DataError, match="0 images are annotated; 2 or more"):
        school.collect()
    studio.tasks = {"error": "x"}  # type: ignore[assignment]
    with pytest.raises(NotanError, match="no list of tasks"):
        school.collect()


def test_any_number_of_wishes_are_one_training_more(studio: StandIn, tmp_path: Path) -> None:
    school = teacher(studio, tmp_path / "base.safetensors", tmp_path, every=3)
    begun, go = threading.Semaphore(0), threading.Semaphore(0)
    trained = []

    def train(_: object) -> None:
        begun.release()
        assert go.acquire(timeout=WAIT)
        trained.append(1)

    school.train = train  # type: ignore[assignment,method-assign]
    school.start(SimpleNamespace(predictor=None))  # type: ignore[arg-type]
    for annotation in (1, 1, 2, 2):  # Label Studio tells of each twice
        school.count(annotation)
    assert not begun.acquire(timeout=0.1)
    school.count(3)
    assert begun.acquire(timeout=WAIT)
    for _ in range(200):
        school.ask()
    go.release(3)
    assert begun.acquire(timeout=WAIT)
    school.stop()
    assert len(trained) == 2
    assert not begun.acquire(blocking=False)


def test_a_webhook_trains_and_the_better_model_is_served(
    studio: StandIn,
    small_checkpoint: Path,
    predictor: Predictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A real training; the server answers meanwhile."""
    trained, judged = threading.Event(), threading.Event()

    def opened(path: Path) -> Predictor:
        trained.set()
        return load(path, threads=1)

    settings = RetrainSettings(3, small_checkpoint, tmp_path, seconds=15)
    school = Retrainer(Origin(studio.url, OLDER, 10**6), settings, opened)
    scores = iter((0.5, 0.6))

    def judge(_: Predictor) -> float:
        judged.set()
        return next(scores)

    monkeypatch.setattr(school, "_judge", judge)
    theirs = LabelStudio(school.origin, None, school)
    with running(lambda address: make_app(predictor, address, label_studio=theirs)) as server:
        ask = server.client.post
        old = server.client.get("/v1/model").json()["card"]["sha256"]
        said: dict[str, Any] = {"action": "START_TRAINING", "project": {"id": 4}}
        assert ask("/webhook", json=said).status_code == 409
        said["project"]["id"] = 3
        assert ask("/webhook", json={**said, "action": "TASKS_CREATED"}).json()["status"] == IGNORED
        assert ask("/webhook", json=said).json() == {"status": "training"}
        while not trained.wait(0.5):
            assert ask("/v1/masks", content=encode_png(SOURCE[0].image)).is_success
            logs = [path.read_text() for path in tmp_path.glob("*.log")]
            assert not [text for text in logs if "notan: " in text or "Traceback" in text], logs
        assert judged.wait(WAIT)
        while server.client.get("/v1/model").json()["card"]["sha256"] == old:
            time.sleep(0.01)  # the thread is about to change it
        assert ask("/v1/masks", content=encode_png(SOURCE[0].image)).is_success
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_models_are_judged_on_what_was_kept_apart(
    studio: StandIn, predictor: Predictor, tmp_path: Path
) -> None:
    school = teacher(studio, tmp_path / "base.safetensors", tmp_path)
    school.collect()
    ours = [predictor(SOURCE[at - 1].image).mask for at in (2, 6)]
    dice = [
        Counts.of(mask, SOURCE[at - 1].mask).dice for mask, at in zip(ours, (2, 6), strict=True)
    ]
    assert school._judge(predictor) == pytest.approx(np.mean(dice), abs=1e-6)


def test_a_worse_model_is_not_served(
    studio: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    school = teacher(studio, tmp_path / "base.safetensors", tmp_path)
    scores = iter((0.8, 0.7, 0.8, 0.8))
    monkeypatch.setattr(school, "_run", lambda *_: None)
    monkeypatch.setattr(school, "_judge", lambda _: next(scores))
    assert school.train(None) is None  # type: ignore[arg-type]
    found: object = school.train(None)  # type: ignore[arg-type]
    assert found == tmp_path / "run" / "best.safetensors"


def test_a_training_that_fails_says_why_and_none_begins_after_the_end(
    studio: StandIn, tmp_path: Path
) -> None:
    school = teacher(studio, tmp_path / "absent.safetensors", tmp_path)
    with pytest.raises(NotanError, match=r"absent.safetensors.*exit code \d+"):
        school.train(None)  # type: ignore[arg-type]
    school.start(SimpleNamespace(predictor=None))  # type: ignore[arg-type]
    school.stop()
    with pytest.raises(NotanError, match="being stopped"):
        school.train(None)  # type: ignore[arg-type]
