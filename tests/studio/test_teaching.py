"""Teaching: who is drawn, what a training is given, and what becomes of its model."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from statistics import fmean
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from notan import run_process
from notan.api import load
from notan.config import Data
from notan.data.folders import open_split
from notan.data.samples import hash_ends
from notan.errors import DataError, StorageError
from notan.io.digest import hash_content
from notan.io.masks import read_mask
from notan.modelfile.card import read_card
from notan.run_folder import is_in_use
from notan.studio import lessons as lessons_module
from notan.studio.draw import Draw, open_draw
from notan.studio.lessons import Lesson, Lessons
from notan.studio.shelf import GivenModel
from notan.studio.store import OWN, TABLE
from studio_runs import (
    Served,
    accept_masks,
    error_of,
    little_model,
    open_store,
    serving,
    write_images,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COUNT = 12
SMALL = (48, 64)
PATIENCE = 120.0
IDS = [f"{number:016x}" for number in range(40)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("notan.studio.predictions.START_SECONDS", 0.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return little_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "cells", COUNT, SMALL, masks=COUNT)


@contextlib.contextmanager
def taught_by(data: Path, base: Path) -> Iterator[Served]:
    corrections = data.with_name("cells-corrections")
    given = GivenModel(base, load=lambda path: load(path, device="cpu"), device="cpu")
    with serving(data, corrections, load(base, device="cpu"), given=given) as studio:
        yield studio


@pytest.fixture
def studio(data: Path, base: Path) -> Iterator[Served]:
    with taught_by(data, base) as served:
        yield served


def status(studio: Served) -> dict[str, Any]:
    answer = httpx.get(f"{studio.url}/api/teach", headers=studio.headers, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def do(studio: Served, deed: str, **content: object) -> httpx.Response:
    where = f"{studio.url}/api/teach/{deed}"
    return httpx.post(where, headers=studio.headers, json=content, timeout=PATIENCE)


def wait(what: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def wait_idle(studio: Served) -> dict[str, Any]:
    wait(lambda: status(studio)["phase"] == "idle")
    return status(studio)


def says(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have a script take the place of the training."""
    monkeypatch.setattr(run_process, "COMMAND", (sys.executable, "-c", script))


# -- the draw -------------------------------------------------------------------------------------


def test_every_fifth_image_is_drawn_and_images_that_come_later_change_none_of_it() -> None:
    unseen: Callable[[str], bool] = lambda _: False  # noqa: E731
    first = Draw().extended(IDS[:23], is_seen=unseen)
    assert len(first.drawn) == 4
    later = first.extended(IDS, is_seen=unseen)
    assert later.drawn[:4] == first.drawn
    assert len(later.drawn) == 8
    assert {*later.drawn[4:]} <= {*IDS[23:]}
    assert {*later.drawn} | {*later.rest} == {*IDS}
    assert later.extended(IDS, is_seen=unseen) == later
    shuffled = Draw().extended(IDS[22::-1], is_seen=unseen)
    assert shuffled == first
    assert first.drawn != tuple(sorted(first.drawn))


def test_what_a_model_was_trained_on_is_never_drawn() -> None:
    seen = {*IDS[::2]}
    draw = Draw().extended(IDS, is_seen=seen.__contains__)
    assert len(draw.drawn) == 8
    assert not seen & {*draw.drawn}
    assert Draw().extended(IDS, is_seen=lambda _: True).drawn == ()


def test_a_draw_that_cannot_be_read_is_said_and_made_again_when_it_is_taken_away(
    tmp_path: Path,
) -> None:
    path = tmp_path / "draw.json"
    draw = open_draw(path, IDS, is_seen=lambda _: False)
    assert open_draw(path, IDS, is_seen=lambda _: True) == draw
    for content in (b"", b"{", b"[]", b'{"drawn": 3}', b'{"other": []}', b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read; take it away"):
            open_draw(path, IDS, is_seen=lambda _: False)
    path.unlink()
    assert open_draw(path, IDS, is_seen=lambda _: False) == draw


def test_training_and_studio_use_the_same_parts_and_no_drawn_image_is_trained_on(
    data: Path,
) -> None:
    folder = data.with_name("cells-corrections")
    store, _ = open_store(data, folder)
    accept_masks(store, range(COUNT))
    drawn = {each.name for each in store.gallery.images if each.id in store.draw.drawn}
    assert store.counts() == {"train": 8, "val": 2, "test": 2}
    before = (folder / TABLE).read_bytes()
    accept_masks(store, [])
    store.close()
    again, image = open_store(data, folder)
    journal = again.open(image)
    assert journal.version == 1
    assert (folder / TABLE).read_bytes() == before
    again.close()
    parts = {split: open_split(Data(path=folder), split, seed=5) for split in ("train", "val")}
    assert {*open_split(Data(path=folder), "test", seed=5).names} == drawn
    assert [len(part) for part in parts.values()] == [8, 2]
    assert not drawn & {*parts["train"].names, *parts["val"].names}


def test_a_table_without_parts_gets_them_and_one_with_others_is_refused(data: Path) -> None:
    folder = data.with_name("cells-corrections")
    store, _ = open_store(data, folder)
    accept_masks(store, range(6))
    store.close()
    table = folder / TABLE
    rows = list(csv.reader(table.read_text().splitlines()))
    table.write_text("\n".join(",".join(row[:-1]) for row in rows) + "\n")
    (folder / OWN / "draw.json").unlink()
    store, _ = open_store(data, folder)
    assert store.counts() == {"train": 5, "val": 1, "test": 0}
    learned = {image.id for image, _ in store.accepted()}
    assert not learned & {*store.draw.drawn}
    store.close()
    table.write_text("\n".join(",".join([*row[:-1], "tests"]) for row in rows[1:]))
    table.write_text(",".join(rows[0]) + "\n" + table.read_text() + "\n")
    with pytest.raises(DataError, match=r"'tests' is no part of .*; wanted train, val or test"):
        open_store(data, folder)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deed", "content", "code", "words"),
    [
        ("begin", {}, 400, "seconds: a whole number of 5 to 86400 is wanted"),
        ("begin", {"seconds": 1}, 400, "seconds"),
        ("begin", {"seconds": "60"}, 400, "seconds"),
        ("begin", {"seconds": True}, 400, "seconds"),
        ("begin", {"seconds": 1e9}, 400, "seconds"),
        ("begin", {"seconds": 60, "path": "/etc"}, 400, "a JSON object of number, seconds"),
        ("begin", {"seconds": 60}, 409, "5 more accepted masks wanted"),
        ("resume", {"number": 3, "seconds": 60}, 409, "5 more accepted masks wanted"),
        ("try", {"number": 3}, 409, "training 3 left no model"),
        ("use", {"number": 3}, 422, "there is no model 3"),
        ("use", {"number": -1}, 400, "number"),
        ("use", {"number": "../x"}, 400, "number"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_one_line(
    studio: Served, deed: str, content: dict[str, object], code: int, words: str
) -> None:
    answer = do(studio, deed, **content)
    assert answer.status_code == code, answer.text
    assert words in error_of(answer)
    assert status(studio)["lessons"] == []
    assert not (studio.store.folder / "models").exists()


def test_it_says_how_many_masks_are_missing_and_test_images_do_not_count(studio: Served) -> None:
    drawn = [
        n for n, each in enumerate(studio.gallery.images) if each.id in studio.store.draw.drawn
    ]
    rest = [n for n in range(COUNT) if n not in drawn]
    accept_masks(studio.store, drawn)
    assert status(studio)["why_not"].startswith("5 more accepted masks wanted")
    accept_masks(studio.store, rest[:4])
    assert "1 more accepted mask wanted" in error_of(do(studio, "begin", seconds=60))
    accept_masks(studio.store, rest[4:5])
    assert status(studio)["why_not"] == ""


def test_what_the_model_was_trained_on_neither_tests_nor_validates(studio: Served) -> None:
    store, seen = studio.store, range(4)  # the first four are those of the base
    accept_masks(store, seen)
    assert store.counts() == {"train": 4, "val": 0, "test": 0}
    drawn = [n for n, each in enumerate(store.gallery.images) if each.id in store.draw.drawn]
    assert not {*drawn} & {*seen}
    store._seen = {hash_ends(each.path) for each in store.gallery.images}
    fifth = next(n for n in range(4, COUNT) if n not in drawn)
    accept_masks(store, [fifth])
    assert "accept one of another image, to validate on" in status(studio)["why_not"]
    store._seen = frozenset()
    accept_masks(store, [n for n in range(fifth + 1, COUNT) if n not in drawn][:1])
    assert store.counts() == {"train": 5, "val": 1, "test": 0}
    assert status(studio)["why_not"] == ""


def test_without_pytorch_it_says_what_to_install(
    studio: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install 'notan[train]'" in status(studio)["why_not"]


def test_data_that_are_gone_are_named_before_anything_begins(studio: Served, data: Path) -> None:
    accept_masks(studio.store, range(COUNT))
    data.rename(data.with_name("elsewhere"))
    answer = do(studio, "begin", seconds=60)
    assert answer.status_code == 422
    assert "12 of the corrected images and masks are no longer there" in error_of(answer)
    assert "cells/images/spot-0000.png" in error_of(answer)
    assert status(studio)["lessons"] == []


def test_a_disk_that_takes_nothing_begins_no_training(
    studio: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept_masks(studio.store, range(COUNT))

    def full(path: Path, _: bytes) -> None:
        raise StorageError(f"{path}: could not be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(lessons_module, "write_bytes", full)
        answer = do(studio, "begin", seconds=60)
        assert answer.status_code == 507
        assert "No space left" in error_of(answer)
        assert status(studio)["phase"] == "idle"
        assert status(studio)["lessons"] == []
    says(monkeypatch, "raise SystemExit(3)")
    assert do(studio, "begin", seconds=60).status_code == 200
    wait_idle(studio)


# -- the process ----------------------------------------------------------------------------------

WAITS = "import sys; sys.stdin.read(); raise SystemExit(3)"


def test_one_training_at_a_time_and_it_ends_when_it_is_stopped(
    studio: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, WAITS)
    accept_masks(studio.store, range(COUNT))
    assert do(studio, "begin", seconds=60).json()["phase"] == "training"
    codes = [do(studio, "begin", seconds=60).status_code for _ in range(10)]
    codes.append(do(studio, "resume", number=1, seconds=60).status_code)
    codes.append(do(studio, "try", number=1).status_code)
    assert {*codes} == {409}
    assert do(studio, "stop").json()["phase"] in ("stopping", "idle")
    found = wait_idle(studio)
    assert [(each["number"], each["state"]) for each in found["lessons"]] == [(1, "stopped")]
    assert do(studio, "stop").status_code == 200  # there is nothing to stop


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("print('epoch 1'); print('notan: the disk is full'); raise SystemExit(9)", "the disk is"),
        ("raise ValueError('what nobody foresaw')", "ValueError: what nobody foresaw"),
        ("raise SystemExit(7)", "ended without a word (exit code 7)"),
        ("import os; os.kill(os.getpid(), 9)", "from outside by SIGKILL, as where the memory"),
    ],
)
def test_a_training_that_fails_says_why_in_one_line(
    studio: Served, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    says(monkeypatch, script)
    accept_masks(studio.store, range(COUNT))
    assert do(studio, "begin", seconds=60).status_code == 200
    (lesson,) = wait_idle(studio)["lessons"]
    assert lesson["state"] == "failed"
    assert words in lesson["error"]
    assert "\n" not in lesson["error"]
    says(monkeypatch, "raise SystemExit(4)")  # what was said before is not said again
    assert do(studio, "resume", number=1, seconds=60).status_code == 200
    (lesson,) = wait_idle(studio)["lessons"]
    assert "exit code 4" in lesson["error"]


def test_a_command_that_cannot_be_run_is_a_failure_too(
    studio: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_process, "COMMAND", ("/nowhere/python",))
    accept_masks(studio.store, range(COUNT))
    assert do(studio, "begin", seconds=60).status_code == 507
    (lesson,) = wait_idle(studio)["lessons"]
    assert lesson["state"] == "failed"


def test_a_studio_that_ends_ends_its_training(
    data: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, WAITS)
    with taught_by(data, base) as studio:
        accept_masks(studio.store, range(COUNT))
        do(studio, "begin", seconds=60)
        process = studio.teaching._process
        assert process is not None
    assert process._process.poll() is not None
    with taught_by(data, base) as again:
        assert status(again)["lessons"][0]["state"] == "stopped"


def test_it_begins_anew_from_a_model_that_cannot_be_trained_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, "import sys; print('notan:', *sys.argv[1:]); raise SystemExit(1)")
    with serving(data, tmp_path / "c") as studio:
        accept_masks(studio.store, range(COUNT))
        assert status(studio)["begins"] == "anew"
        do(studio, "begin", seconds=60)
        (lesson,) = wait_idle(studio)["lessons"]
    assert "--weights" not in lesson["error"]
    assert "train --auto" in lesson["error"]


def test_lessons_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    lessons = Lessons(tmp_path, tmp_path / OWN)
    wanted = Lesson(number=1, base="", begins="anew", seconds=5, images={}, began_at="now")
    lessons.keep(wanted)
    assert [each.state for each in Lessons(tmp_path, tmp_path / OWN)] == ["stopped"]
    (tmp_path / OWN / "lessons" / "001.json").write_bytes(b"{")
    with pytest.raises(DataError, match=r"001\.json: cannot be read; take it away"):
        Lessons(tmp_path, tmp_path / OWN)
    (tmp_path / "models" / "007").mkdir(parents=True)
    (tmp_path / OWN / "lessons" / "001.json").unlink()
    assert Lessons(tmp_path, tmp_path / OWN).next_number() == 8


def test_a_curve_is_told_while_it_is_written_and_in_few_points(tmp_path: Path) -> None:
    lessons = Lessons(tmp_path, tmp_path / OWN)
    assert lessons.curve(1) == []
    run = lessons.run(1)
    run.mkdir(parents=True)
    lines = [
        json.dumps({"epoch": n, "train/loss": 1 / n, "time_limit/seconds": n})
        if n % 3
        else json.dumps({"epoch": n, "train/loss": float("nan"), "validation/dice": n / 1000})
        for n in range(1, 1001)
    ]
    (run / "history.jsonl").write_text("\n".join(lines[:4]) + '\n{"epoch": 5, "tra')
    curve = lessons.curve(1)
    assert [each["epoch"] for each in curve] == [1, 2, 3, 4]
    assert curve[2] == {"epoch": 3, "loss": None, "dice": 0.003, "seconds": None}
    (run / "history.jsonl").write_text("\n".join(lines) + "\n")
    curve = lessons.curve(1)
    assert 100 < len(curve) < 250
    assert curve[-1]["epoch"] == 1000


# -- the whole of it ------------------------------------------------------------------------------


def mean_dice(studio: Served, model: Path) -> float:
    """Return what a model scores on the drawn images, by another way than the studio's."""
    predictor, images = load(model, device="cpu"), studio.gallery.images
    pairs = [
        (predictor(each.path).mask, read_mask(studio.store.mask_path(each)).mask)
        for each in images
        if each.id in studio.store.draw.drawn
    ]
    return fmean(
        2 * float((mask & truth).sum()) / max(1, int(mask.sum() + truth.sum()))
        for mask, truth in pairs
    )


def test_a_model_is_taught_compared_taken_remembered_and_given_back(data: Path, base: Path) -> None:
    before = {path: hash_content(path) for path in data.rglob("*.png")}
    kept = hash_content(base)
    with taught_by(data, base) as studio:
        accept_masks(studio.store, range(COUNT))
        assert status(studio)["begins"] == "weights"
        assert do(studio, "begin", seconds=12).status_code == 200
        found = wait_idle(studio)
        (lesson,) = found["lessons"]
        assert (lesson["state"], lesson["error"]) == ("done", "")
        assert any(each["dice"] is not None for each in found["curve"])
        trial = lesson["trial"]
        assert (trial["against"], trial["fault"]) == (0, "")
        assert (trial["test"]["images"], trial["val"]["images"]) == (2, 2)
        assert "too few images to tell" in trial["test"]["verdict"]
        run = studio.store.folder / "models" / "001"
        for name, model in (("before", base), ("after", run)):
            assert trial["test"][name] == pytest.approx(mean_dice(studio, model))
        assert (trial["test"]["favoured"], trial["test"]["seen"]) == (0, 0)

        card = read_card(run / "best.safetensors")
        assert (card.data.training_images, card.data.validation_images) == (8, 2)
        assert card.run.train.weights == base.resolve()
        drawn = {each.name for each in studio.gallery.images if each.id in studio.store.draw.drawn}
        names = open_split(Data(path=studio.store.folder), "test", seed=0)
        assert {*names.names} == drawn
        assert not {*names.hashes()} & {*card.data.training_hashes, *card.data.validation_hashes}

        revision = studio.teaching.shelf.predictions.revision
        answer = do(studio, "use", number=1).json()
        assert (answer["using"], answer["previous"]) == (1, 0)
        images = httpx.get(f"{studio.url}/api/images", headers=studio.headers).json()
        assert images["revision"] > revision
        assert images["model"] == card.sha256[:12]
        assert studio.store.counts() == {"train": 8, "val": 2, "test": 2}
        answer = httpx.get(studio.path(0), headers=studio.headers, timeout=PATIENCE).json()
        wanted = load(run, device="cpu")(studio.gallery.images[0].path)
        assert answer["expected_dice"] == wanted.expected_dice
        assert answer["journal"] is not None
    with taught_by(data, base) as again:
        assert status(again)["using"] == 1
        assert again.teaching.shelf.predictions.model == card.sha256
        answer = do(again, "use", number=0).json()
        assert (answer["using"], answer["previous"]) == (0, 1)
        assert do(again, "use", number=0).status_code == 200
        assert status(again)["previous"] == 1
    assert {path: hash_content(path) for path in data.rglob("*.png")} == before
    assert hash_content(base) == kept
    assert (run / "best.safetensors").is_file()


def test_a_taught_model_that_is_gone_leaves_the_one_given_in_use(
    data: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with taught_by(data, base) as studio:
        run = studio.store.folder / "models" / "001"
        run.mkdir(parents=True)
        (run / "best.safetensors").write_bytes(base.read_bytes())
        assert do(studio, "use", number=1).json()["using"] == 1
    (run / "best.safetensors").write_bytes(b"no model")
    with taught_by(data, base) as again:
        assert status(again)["using"] == 0
    assert "the taught model cannot be used, so the one given is" in caplog.text


def end_of(pid: int) -> None:
    wait(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def command(data: Path, base: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Run the studio itself; yields it and somebody who is let in."""
    words = ["-m", "notan", "studio", str(data), "--model", str(base), "--device", "cpu"]
    with subprocess.Popen(
        [sys.executable, "-u", *words, "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        link = next(line for line in lines if line.startswith("open ")).split()[1]
        with httpx.Client(base_url=link.partition("/?")[0], timeout=PATIENCE) as client:
            client.get(link)
            client.headers["origin"] = link.partition("/?")[0]
            try:
                yield process, client
            finally:
                process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kill -9")
def test_after_kill_9_the_training_ends_with_its_state_and_the_next_studio_resumes_it(
    data: Path, base: Path
) -> None:
    folder = data.with_name("cells-corrections")
    with taught_by(data, base) as studio:
        accept_masks(studio.store, range(COUNT))
    run = folder / "models" / "001"
    with command(data, base) as (process, client):
        assert client.post("/api/teach/begin", json={"seconds": 600}).status_code == 200
        wait((run / "history.jsonl").exists)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait(lambda: not is_in_use(run))
    assert list((run / "last").glob("*.safetensors"))
    epochs = len((run / "history.jsonl").read_text().splitlines())
    with command(data, base) as (_, client):
        found = client.get("/api/teach").json()
        assert [each["state"] for each in found["lessons"]] == ["stopped"]
        spent = found["spent"]
        seconds = round(spent) + 8
        assert (
            client.post("/api/teach/resume", json={"number": 1, "seconds": seconds}).status_code
            == 200
        )
        wait(lambda: client.get("/api/teach").json()["phase"] == "idle")
        (lesson,) = client.get("/api/teach").json()["lessons"]
        assert (lesson["state"], lesson["error"]) == ("done", "")
        assert lesson["trial"] is not None
    curve = Lessons(folder, folder / OWN).curve(1)
    assert [each["epoch"] for each in curve] == [*range(1, len(curve) + 1)]
    assert len(curve) > epochs
    assert curve[-1]["loss"] is not None
