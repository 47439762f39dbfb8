"""notan studio: what it refuses, what it says, and how it begins and ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from forbidden import SCRIPT, run_without
from notan.cli.main import main
from notan.io.digest import hash_content
from studio_runs import write_images

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    return write_images(tmp_path / "cells", 2, (40, 50))


@pytest.mark.parametrize(
    ("words", "code", "wanted"),
    [
        (["{data}/nowhere"], 3, "nowhere: there is no such folder"),
        (["{data}/empty"], 3, "empty: no images here"),
        (["{data}", "--corrections", "{data}"], 2, "lies in the data folder"),
        (["{data}", "--corrections", "{other}"], 2, "holds something else"),
        (["{data}", "--port", "{taken}"], 2, "is in use"),
        (["{data}", "--port", "70000"], 2, "a port of 0..65535 is wanted"),
        (["{data}", "--batch-size", "4"], 2, "predicts one image at a time"),
        (["{data}", "--model", "{data}/images/spot-0000.png"], 5, "spot-0000.png"),
        (["{data}", "--compare", "{data}/images/spot-0000.png"], 5, "spot-0000.png"),
        (["{data}", "--findings", "{data}/images/spot-0000.png"], 3, "this is no check.json"),
        (["{data}", "--findings", "{data}/nowhere.json"], 3, "nowhere.json: could not be read"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    wanted: str,
) -> None:
    (data / "empty").mkdir()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with socket.create_server(("127.0.0.1", 0)) as other:
        places = {"data": data, "other": tmp_path / "thesis", "taken": other.getsockname()[1]}
        with pytest.raises(SystemExit) as ended:
            main(["studio", *(word.format(**places) for word in words)])
    said = capsys.readouterr().err
    assert ended.value.code == code, said
    assert wanted in said
    assert said.count("\n") == 1


def test_a_missing_extra_is_named(data: Path) -> None:
    result = run_without("starlette", "studio", data)
    assert result.returncode == 8
    assert result.stderr == "notan: notan studio needs starlette: pip install 'notan[studio]'\n"


def test_it_needs_no_torch_is_opened_once_and_ends_when_told(data: Path, tmp_path: Path) -> None:
    before = {path: hash_content(path) for path in data.rglob("*.png")}
    words = ["studio", str(data), "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", SCRIPT, "torch", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        assert first == f"2 images; corrections: {data}-corrections\n"
        link = second.split()[1]
        with httpx.Client(follow_redirects=True) as browser:
            assert "notan studio" in browser.get(link).text
            about = browser.get(link.partition("?")[0] + "api/about").json()
            assert about["title"] == "cells"
            assert about["network"] == "unet"
        assert httpx.get(link).status_code == 401
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert link.partition("t=")[2] not in errors + rest
    assert {path: hash_content(path) for path in data.rglob("*.png")} == before
    assert not (tmp_path / "cells-corrections" / "corrections.csv").exists()
