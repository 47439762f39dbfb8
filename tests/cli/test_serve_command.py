"""``notan serve`` as a process: how it begins, what it refuses, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from forbidden import SCRIPT, run_without
from notan.cli.main import main
from notan.prediction.pixels import encode_png

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 60.0
IMAGE = encode_png(np.full((60, 80, 3), 90, np.uint8))


class Served:
    """``notan serve`` in a process without PyTorch."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, "-c", SCRIPT, "torch", "serve", "--port", "0", "--threads", "1"]
        self.process = subprocess.Popen(
            [*command, "--backend", "onnxruntime", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+) \(all routes: \1/docs\)$", line)
        assert found, line + self.end(signal.SIGKILL)[1]
        self.client = httpx.Client(base_url=found[1], timeout=PATIENCE, verify=False)  # noqa: S501
        while True:  # the line comes just before the first answer
            try:
                assert self.client.get("/healthz").status_code == 200
                break
            except httpx.ConnectError:
                time.sleep(0.02)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal and wait; return the exit code and what was said on stderr."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said


@pytest.fixture
def serve(portable: Path) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(*words: object) -> Served:
        started.append(Served("--model", portable, *words))
        return started[-1]

    yield start
    for each in started:
        each.client.close()
        if each.process.poll() is None:
            each.end(signal.SIGKILL)


def refused(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as stop:
        main(["serve", *map(str, words)])
    said = capsys.readouterr().err.splitlines()
    return stop.value.code, said[-1]


def test_a_portable_model_is_served_without_torch_until_it_is_told_to_stop(
    serve: Callable[..., Served],
) -> None:
    server = serve()
    answer = server.client.post("/v1/masks", content=IMAGE)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert server.client.get("/v1/model").json()["name"] == "small"
    code, said = server.end()
    assert (code, said) == (0, "SIGTERM: finishing what was begun\n")


def test_what_was_begun_when_the_signal_comes_is_finished(serve: Callable[..., Served]) -> None:
    server = serve("--max-waiting", "64")
    large = encode_png(np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), np.uint8))
    statuses: list[int | str] = []

    def ask() -> None:
        try:
            statuses.append(server.client.post("/v1/masks", content=large).status_code)
        except httpx.HTTPError as error:
            statuses.append(type(error).__name__)

    asking = [threading.Thread(target=ask) for _ in range(8)]
    for each in asking:
        each.start()
    while not _count(server, "notan_in_work"):
        time.sleep(0.01)
    code, said = server.end(signal.SIGINT)
    for each in asking:
        each.join(PATIENCE)
    assert code == 0
    assert "Traceback" not in said
    # whoever was connected has an answer; who came later found nobody
    assert 200 in statuses
    assert set(statuses) <= {200, 503, "ConnectError", "ReadError", "RemoteProtocolError"}


def _count(server: Served, name: str) -> float:
    lines = server.client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_limits_and_the_token_reach_the_server(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    limits = ("--max-megabytes", "0.001", "--max-megapixels", "0.004", "--deadline-seconds", "7")
    server = serve("--token-file", token, "--allow-host", "masks.example.org", *limits)
    assert server.client.post("/v1/masks", content=IMAGE).status_code == 401
    server.client.headers["authorization"] = "Bearer 0123456789abcdef"
    assert server.client.post("/v1/masks", content=bytes(1001)).status_code == 413
    answer = server.client.post("/v1/masks", content=IMAGE)  # 4800 pixels
    assert answer.status_code == 413
    assert "at most 4,000" in answer.json()["error"]
    small = encode_png(np.full((20, 20, 3), 90, np.uint8))
    headers = {"host": "masks.example.org"}
    assert server.client.post("/v1/masks", content=small, headers=headers).status_code == 200


def test_a_port_in_use_and_a_bad_address_are_one_line_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "absent.onnx"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = refused("--model", absent, "--port", port, capsys=capsys)
    assert code == 2
    assert said.startswith(f"notan: port {port} of 127.0.0.1 is in use")
    code, said = refused("--model", absent, "--host", "example.org", capsys=capsys)
    assert (code, "is no IP address" in said) == (2, True)
    code, said = refused("--model", absent, "--port", 0, capsys=capsys)
    assert (code, "absent.onnx" in said) == (5, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
def test_other_machines_are_let_in_by_a_token_alone(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if host == "::" and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    code, said = refused("--host", host, "--port", 0, capsys=capsys)
    assert code == 2
    assert "give a --token-file" in said


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--max-megabytes", "0"), "--max-megabytes is 0"),
        (("--max-megapixels", "-1"), "--max-megapixels is -1"),
        (("--max-megapixels", "nan"), "--max-megapixels is nan"),
        (("--max-waiting", "0"), "--max-waiting is 0; 1 or more"),
        (("--deadline-seconds", "inf"), "--deadline-seconds is inf"),
        (("--batch-size", "0"), "--batch-size is 0; 1 or more"),
        (("--token-file", "no/such/file"), "no/such/file: could not be read as a token"),
        (("--allow-host", "http://x/"), "'http://x/': is no name"),
        (("--threshold", "2"), "threshold is 2"),
    ],
)
def test_a_flag_that_cannot_be_kept_is_refused(
    words: tuple[Any, ...], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = refused("--port", 0, *words, capsys=capsys)
    assert code == 2
    assert wanted in said


STUDIO = ("--label-studio", "http://localhost:8080")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--label", "cell"), "--label goes with --label-studio URL"),
        (("--train-project", "7"), "--train-project goes with --label-studio URL"),
        (("--label-studio", "localhost:8080"), "is no address of a Label Studio"),
        (("--label-studio", "http://localhost:8080/studio"), "is no address of a Label Studio"),
        ((*STUDIO, "--label-studio-token-file", "no/such"), "could not be read as a token"),
        ((*STUDIO, "--train-project", "7"), "which must be a best.safetensors"),
        (
            (*STUDIO, "--train-project", "7", "--model", "a.onnx"),
            "which must be a best.safetensors",
        ),
        (
            (*STUDIO, "--train-project", "7", "--model", "a.safetensors", "--train-every", "0"),
            "--train-every is 0; 1 or more",
        ),
        (
            (
                *STUDIO,
                "--train-project",
                "7",
                "--model",
                "a.safetensors",
                "--train-time-limit",
                "x",
            ),
            "x: a time above zero is wanted",
        ),
    ],
)
def test_a_flag_of_label_studio_that_cannot_be_kept_is_refused(
    words: tuple[Any, ...],
    wanted: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "canary-of-a-token")
    code, said = refused("--port", 0, *words, capsys=capsys)
    assert code == 2
    assert wanted in said
    assert "canary" not in said


def test_label_studio_needs_its_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    code, said = refused("--port", 0, *STUDIO, capsys=capsys)
    assert (code, "needs a token of Label Studio's" in said) == (2, True)


def test_label_studio_is_answered_by_name_and_the_others_too(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a-token-of-label-studio")
    server = serve(*STUDIO, "--label", "cell")
    assert server.client.get("/health").json()["status"] == "UP"
    assert server.client.post("/v1/masks", content=IMAGE).status_code == 200
    setup = '<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i"/></View>'
    answer = server.client.post("/setup", json={"schema": setup})
    assert (answer.status_code, "no label 'cell'" in answer.text) == (422, True)


def test_a_missing_extra_is_one_line() -> None:
    for package in ("fastapi", "uvicorn", "starlette", "python_multipart"):
        result = run_without(package, "serve", "--port", "0")
        assert result.returncode == 8, result.stderr
        assert result.stderr.splitlines()[-1] == (
            f"notan: notan serve needs {package}: pip install 'notan[serve]'"
        )
        assert "Traceback" not in result.stderr
