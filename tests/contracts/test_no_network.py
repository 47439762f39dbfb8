"""Nothing calls home: from training to masks, no command and no library behind it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from needs import INSTALLED, OPENVINO
from silence import attempts

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = """
import json
from notan.cli.main import main
from notan.models import unet

unet.LEVELS = 2  # of five: a network that is soon trained and traced
for words in json.loads(sys.argv[1]):
    main(words)
"""

UNNOTICED = """
import contextlib, multiprocessing, socket, subprocess, threading

def swallow(call, *arguments):
    with contextlib.suppress(OSError):
        call(*arguments)

PLACE = ("192.0.2.1", 9)  # of the block that documents use: nobody is there
with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
    swallow(stream.connect, PLACE)
    swallow(stream.connect_ex, PLACE)
    swallow(datagrams.sendto, b"used", PLACE)
swallow(socket.create_connection, ("here.invalid", 80))
thread = threading.Thread(target=swallow, args=(socket.getaddrinfo, "thread.invalid", 80))
thread.start()
thread.join()
fork = multiprocessing.get_context("fork").Process(
    target=swallow, args=(socket.gethostbyname, "fork.invalid")
)
fork.start()
fork.join()
swallow(subprocess.run, ["curl", "http://program.invalid"])
"""

CONVERT = """
import openvino

openvino.convert_model(sys.argv[1])
"""

STOPPED = """
from notan.errors import stop_telemetry

stop_telemetry()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def test_nothing_between_training_and_masks_reaches_the_network(
    drawn_folder: Path, home: Path, tmp_path: Path
) -> None:
    model, portable = (str(tmp_path / "run" / name) for name in ("best.safetensors", "best.onnx"))
    data, images = ("--data-path", str(drawn_folder)), str(drawn_folder / "test" / "images")
    training = ("--image-size", "32", "--epochs", "1", "--out", str(tmp_path / "run"))
    results = [str(tmp_path / name) for name in ("torch", *INSTALLED)]
    commands = [
        ("train", *data, *training, "model.width=4"),
        ("evaluate", "--model", model, *data),
        ("export", "--model", model),
        ("predict", images, "--model", model, "--out", results[0]),
        *(
            ("predict", images, "--model", portable, "--backend", name, "--out", result)
            for name, result in zip(INSTALLED, results[1:], strict=True)
        ),
    ]
    assert attempts(COMMANDS, json.dumps(commands), home=home) == []
    for result in results:
        assert len(list((tmp_path / result / "masks").iterdir())) == 6


def test_whoever_calls_unnoticed_is_written_down(home: Path) -> None:
    found = [line.split("(") for line in attempts(UNNOTICED, home=home)]
    assert [event.strip() for event, *_ in found] == [
        "socket.connect",
        "socket.connect",
        "socket.sendto",
        "socket.getaddrinfo",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "subprocess.Popen",
    ]
    assert [arguments[-1].split("'")[1] for _, *arguments in found[3:6]] == [
        "here.invalid",
        "thread.invalid",
        "fork.invalid",
    ]


@OPENVINO
def test_openvino_reports_its_use_where_nobody_stops_it(portable: Path, home: Path) -> None:
    found = attempts(CONVERT, str(portable), home=home)
    assert found
    assert all("google-analytics" in line for line in found)


@OPENVINO
def test_openvino_is_stopped(portable: Path, home: Path) -> None:
    assert attempts(STOPPED + CONVERT, str(portable), home=home) == []
    assert list(home.iterdir()) == []
