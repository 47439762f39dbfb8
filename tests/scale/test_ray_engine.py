"""``notan predict --engine ray`` under a real Ray: one process's files come of it."""

from __future__ import annotations

import csv
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from image_files import photo, saved
from needs import needs
from notan.cli import predict as predict_module
from notan.cli.main import main
from notan.errors import ConfigError, MissingExtraError, NotanError
from notan.prediction.table import PredictionTable
from notan.scale import blocks, ray_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from notan.scale.blocks import Manifest

pytestmark = needs("ray")

IMAGES = 200
DEADLY, DEADLY_FILM = "p099.png", "p099.avi"
KILLER = f"""
import os, sys
def look(event, about):
    if event == "open" and str(about[0]).endswith(("{DEADLY}", "{DEADLY_FILM}")):
        os._exit(11)
sys.addaudithook(look)
"""
"""Makes every process of Ray's workers end as soon as it opens certain files."""


@pytest.fixture(scope="module")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray of this process with room for two workers; returns its address."""
    import ray

    killer = tmp_path_factory.mktemp("killer")
    (killer / "sitecustomize.py").write_text(KILLER)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        path = os.pathsep.join([str(killer), *filter(None, [os.environ.get("PYTHONPATH")])])
        patch.setenv("PYTHONPATH", path)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
        )
        signal.signal(signal.SIGTERM, before)
        yield str(ray.get_runtime_context().gcs_address)
        ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images, one of them damaged; the deadly one is not among them."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        if f"p{number:03d}.png" != DEADLY:
            image = np.roll(photo(), number, axis=0)
            saved(folder / f"p{number:03d}.png", Image.fromarray(image))
    (folder / "p033.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def predict(portable: Path) -> Callable[..., int]:
    """Run the command; returns its exit code."""

    def command(*words: object, out: Path) -> int:
        given = [str(word) for word in words]
        try:
            main(["predict", *given, "--model", str(portable), "--threads", "1", "--out", str(out)])
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return command


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "IMAGES_IN_BLOCK", 4)


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def worker_processes() -> list[int]:
    """Return the processes of workers of this Ray, by what Ray calls them."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and b"BlockWorker" in (place / "cmdline").read_bytes()[:40]:
                found.append(int(place.name))
        except OSError:
            continue  # it has ended
    return found


@pytest.mark.usefixtures("ray_here", "small_blocks")
def test_whatever_dies_every_image_is_there_once_and_as_one_process_writes_it(
    predict: Callable[..., int],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert predict(photos, out=alone) == 3
    said_alone = capsys.readouterr()
    deadly = saved(photos / DEADLY, Image.fromarray(photo()))
    chance = random.Random(0)
    killed: list[int] = []

    def note(progress: Any, manifest: Manifest, files: int) -> None:
        block(progress, manifest, files)
        if len(killed) < 5 and (there := worker_processes()):
            killed.append(chance.choice(there))
            os.kill(killed[-1], signal.SIGKILL)

    block = predict_module._Progress.block
    monkeypatch.setattr(predict_module._Progress, "block", note)
    try:
        assert predict(photos, "--engine", "ray", out=out) == 3
    finally:
        deadly.unlink()
    said = capsys.readouterr()
    assert len(set(killed)) == 5
    wanted, got = files_in(alone), files_in(out)
    failed, failed_alone = got.pop("failed.csv"), wanted.pop("failed.csv")
    assert got == wanted
    rows = list(csv.DictReader(failed.decode().splitlines()))
    assert [row["name"] for row in rows] == ["p033", "p099"]
    assert "ended without a word, 3 times" in rows[1]["reason"]
    assert failed.startswith(failed_alone)
    assert f"{IMAGES - 2} of {IMAGES} images: {out}" in said.out
    assert f"{IMAGES - 2} of {IMAGES - 1} images: {alone}" in said_alone.out


@pytest.mark.usefixtures("ray_here", "small_blocks")
def test_a_job_goes_from_one_process_to_ray_and_back(
    predict: Callable[..., int],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    assert predict(photos / "p00[0-4].png", out=out) == 0
    there = PredictionTable.read(out).rows
    capsys.readouterr()

    blocks_done: list[object] = []

    def stop(_: object, manifest: Manifest, files: int) -> None:
        blocks_done.append((manifest, files))
        if len(blocks_done) == 3:
            raise KeyboardInterrupt

    words = (photos / "p0[0-3]*.png", "--resume")
    with monkeypatch.context() as patch:
        patch.setattr(predict_module._Progress, "block", stop)
        assert predict(*words, "--engine", "ray", out=out) == 130
    done = len(PredictionTable.read(out).rows)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"notan: stopped by Ctrl-C; {done} images are done and whole: give the same command with "
        "--resume to go on"
    )
    assert len(there) < done < 40
    assert not (out / ".blocks").exists()
    assert predict(*words, out=out) == 3
    assert f"39 of 40 images: {out} ({done} were there already)" in capsys.readouterr().out
    assert predict(photos / "p0[0-3]*.png", out=alone) == 3
    assert files_in(out) == files_in(alone)


def test_sigterm_leaves_whole_blocks_and_a_folder_to_go_on_with(
    ray_here: str, predict: Callable[..., int], photos: Path, portable: Path, tmp_path: Path
) -> None:
    """Ray has a handler of its own, which would end the command without a table."""
    out, alone = tmp_path / "out", tmp_path / "alone"
    script = (
        "import sys\nfrom notan.scale import blocks\nblocks.IMAGES_IN_BLOCK = 2\n"
        "from notan.cli.main import main\nmain(sys.argv[1:])"
    )
    words = [str(photos), "--engine", "ray", "--address", ray_here, "--threads", "1"]
    words += ["--model", str(portable), "--out", str(out)]
    with subprocess.Popen(
        [sys.executable, "-c", script, "predict", *words], stderr=subprocess.PIPE, text=True
    ) as driver:
        limit = time.monotonic() + 120
        while not list((out / ".blocks").glob("*/*.json")) and driver.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.01)
        driver.send_signal(signal.SIGTERM)
        _, said = driver.communicate(timeout=120)
    assert driver.returncode == 128 + signal.SIGTERM, said
    done = len(PredictionTable.read(out).rows)
    assert said.splitlines()[-1] == (
        f"notan: stopped by SIGTERM; {done} images are done and whole: give the same command with "
        "--resume to go on"
    )
    assert 0 < done < IMAGES - 2
    assert predict(photos, "--resume", out=out) == 3
    assert predict(photos, out=alone) == 3
    assert files_in(out) == files_in(alone)


@pytest.fixture
def no_ray_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command look for a Ray although this process has one."""
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.usefixtures("no_ray_yet")
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "nothing answers there"),
        ("nowhere", "nothing answers there"),
        ("ray://127.0.0.1:10001", "HOST:PORT or auto is wanted"),
    ],
)
def test_a_wrong_address_is_one_line(
    predict: Callable[..., int],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    address: str,
    reason: str,
) -> None:
    words = ("--engine", "ray", "--address", address)
    assert predict(photos, *words, out=tmp_path / "out") == ConfigError.exit_code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"notan: --address {address}: ")
    assert reason in line
    assert not (tmp_path / "out").exists()


def test_what_is_no_ray_is_one_line_within_half_a_minute(
    photos: Path, portable: Path, tmp_path: Path
) -> None:
    """In a process that has not met Ray yet, for Ray reads at its start how patient it is to be."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls and never says a word
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        words = ["predict", str(photos), "--engine", "ray", "--address", address]
        words += ["--model", str(portable), "--out", str(tmp_path / "out")]
        ended = subprocess.run(
            [sys.executable, "-m", "notan", *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,  # 12 s are Ray's, the rest is for a busy machine
            env={**os.environ, "RAY_py_gcs_connect_timeout_s": "1"},
        )
    assert ended.returncode == ConfigError.exit_code
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"notan: --address {address}: ")
    assert "start one with: ray start --head" in line


def test_a_head_that_is_gone_is_noticed_and_one_that_stammers_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_engine, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(time, "monotonic", iter(range(100)).__next__)
    answers = iter([False, False, True, False, False, False])
    monkeypatch.setattr(ray_engine, "_answers", lambda _: next(answers))
    head = ray_engine._Head("10.0.0.1:6379")
    for _ in range(5):
        head.look()
    with pytest.raises(NotanError, match=r"at 10\.0\.0\.1:6379 is gone;.*--re"):
        head.look()


@pytest.mark.usefixtures("ray_here")
def test_an_error_of_a_worker_is_the_line_that_one_process_says(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(b"no model")
    lines = []
    for engine in ("local", "ray"):
        words = [str(photos), "--engine", engine, "--threads", "2", "--model", str(wrong)]
        with pytest.raises(SystemExit) as stop:
            main(["predict", *words, "--out", str(tmp_path / "out")])
        lines.append((stop.value.code, capsys.readouterr().err.splitlines()[-1]))
    assert lines[0] == lines[1]
    assert str(wrong) in lines[0][1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--engine", "ray", "--format", "mask,rle"), "--format rle: one file of all images"),
        (("--engine", "ray", "--profile"), "--profile measures one process"),
        (("-", "--engine", "ray"), "standard input is read by one process"),
        (("--address", "auto"), "give --engine ray too"),
        (("--engine", "dask"), "--engine"),
    ],
)
def test_what_makes_no_sense_under_ray_is_refused_before_anything_is_started(
    predict: Callable[..., int],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.setattr(ray_engine, "_ray_at", lambda _: pytest.fail("Ray was started"))
    assert predict(photos, *words, out=tmp_path / "out") == ConfigError.exit_code
    assert reason in capsys.readouterr().err


def test_without_ray_one_line_says_what_to_install(
    predict: Callable[..., int],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert predict(photos, "--engine", "ray", out=tmp_path / "out") == MissingExtraError.exit_code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "notan: --engine ray needs Ray: pip install 'notan[ray]'"
