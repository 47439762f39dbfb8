"""Images through pipes: named ones, /dev/stdin and a shell's <(command), as ``-`` reads them."""

from __future__ import annotations

import csv
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from needs import case
from notan.cli.main import main
from notan.errors import DataError
from notan.io import pipes
from notan.io.images import read_image
from notan.prediction.inputs import as_image
from runs import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def image() -> Path:
    return case("13-pipe") / "a.png"


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "UNFED", 0.3)
    monkeypatch.setattr(pipes, "SILENT", 0.6)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    return path


def feed(pipe: Path, *pieces: bytes, pause: float = 0.1) -> threading.Thread:
    """Open the other end a moment later and write pieces into it."""

    def work() -> None:
        time.sleep(pause)
        with pipe.open("wb", buffering=0) as file:
            for piece in pieces:
                file.write(piece)
                time.sleep(pause)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The mask of the file itself."""
    out = tmp_path_factory.mktemp("file")
    main(["predict", str(case("13-pipe") / "a.png"), "--out", str(out)])
    return (out / "masks" / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("<(cat {image})", None),
        ("/dev/stdin < {image}", "stdin"),
        ("/dev/stdin < <(cat {image})", "stdin"),
        ("- < <(cat {image})", "stdin"),
    ],
)
def test_a_shell_may_give_an_image_through_a_pipe(
    words: str, name: str | None, image: Path, expected: bytes, tmp_path: Path
) -> None:
    command = f"{shlex.quote(sys.executable)} -m notan predict --out {tmp_path / 'out'} "
    answer = subprocess.run(
        ["bash", "-c", command + words.format(image=shlex.quote(str(image)))],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    (mask,) = (tmp_path / "out" / "masks").iterdir()
    assert mask.read_bytes() == expected
    assert name is None or mask.stem == name


def test_a_named_pipe_is_read_to_its_end(
    pipe: Path, image: Path, expected: bytes, tmp_path: Path
) -> None:
    content = image.read_bytes()
    feeder = feed(pipe, content[:50], content[50:])
    main(["predict", str(pipe), "--out", str(tmp_path / "out")])
    feeder.join(PATIENCE)
    assert (tmp_path / "out" / "masks" / "pipe.png").read_bytes() == expected
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [str(pipe)]


def test_python_reads_a_pipe_too(pipe: Path, image: Path) -> None:
    feed(pipe, image.read_bytes())
    np.testing.assert_array_equal(as_image(pipe), read_image(image))


def refused(path: Path) -> str:
    with pytest.raises(DataError) as error:
        as_image(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.usefixtures("short_patience")
def test_a_pipe_that_nobody_feeds_ends_with_a_line(
    pipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(pipe), "--out", str(tmp_path / "out")])
    assert stop.value.code == 3
    assert "nothing came through this pipe for 0.3 seconds; start what" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("start", [b"", b"\x89PNG"])
def test_a_pipe_whose_other_end_falls_silent_ends_with_a_line(pipe: Path, start: bytes) -> None:
    other = os.open(pipe, os.O_RDWR)  # an end that stays open
    try:
        os.write(other, start)
        assert "nothing came through this pipe for 0.6 seconds" in refused(pipe)
    finally:
        os.close(other)


def test_an_empty_pipe_is_said_to_be_empty(pipe: Path) -> None:
    feed(pipe, b"")
    assert "this pipe was empty" in refused(pipe)


def test_a_pipe_without_end_is_refused(pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "MAX_BYTES", 1000)
    feed(pipe, bytes(2000))
    assert "more than 1,000 bytes came through this pipe" in refused(pipe)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Path]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        yield tmp_path / "socket"


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_devices_are_refused(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["predict", device])
    assert stop.value.code == 3
    assert f"{device}: is a device, which has no end" in capsys.readouterr().err


def test_sockets_are_refused(listening: Path) -> None:
    assert "is a socket, which has no end" in refused(listening)
