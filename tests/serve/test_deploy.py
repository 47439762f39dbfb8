"""The Docker file and the systemd unit of the docs: checked by the tools, where they are."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from other_tools import ROOT

DEPLOY = ROOT / "docs" / "deploy"
UNIT, DOCKER = DEPLOY / "notan.service", DEPLOY / "Dockerfile"
MOST_EXPOSED = 20
"""Tenths, as ``systemd-analyze security`` counts them: 100 is everything."""

PATIENCE = 120.0
TOKEN = "a-token-of-the-tests-0123456789"  # noqa: S105


def unit_with(program: Path, folder: Path) -> Path:
    """Return the unit with another program, which must be there when it is checked."""
    text = UNIT.read_text().replace("/opt/notan/bin/notan", str(program))
    path = folder / "notan.service"
    path.write_text(text)
    return path


def systemd_analyze(*words: object) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is absent: it comes with systemd")
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True)


def test_systemd_takes_the_unit_and_finds_little_to_attack(tmp_path: Path) -> None:
    unit = unit_with(Path(sys.executable), tmp_path)
    done = systemd_analyze("verify", unit)
    assert (done.returncode, done.stderr) == (0, "")
    done = systemd_analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", unit)
    assert done.returncode == 0, done.stdout + done.stderr


def instructions(name: str) -> list[str]:
    """Return what follows a word in the Docker file."""
    return re.findall(rf"^{name} (.*)$", DOCKER.read_text(), re.MULTILINE)


def listed(name: str) -> list[str]:
    """Return the words of a command that the Docker file has as a list."""
    text = instructions(name)[0]
    words: list[str] = json.loads(text[text.index("[") :])
    return words


def test_the_docker_file_runs_without_rights_and_asks_for_a_token() -> None:
    (user,) = instructions("USER")
    assert all(int(each) >= 1000 for each in user.split(":"))
    start = listed("ENTRYPOINT")
    assert "--token-file" in start
    (port,) = instructions("EXPOSE")
    assert f"127.0.0.1:{port}/healthz" in instructions("HEALTHCHECK")[0]
    assert f"SocketBindAllow=tcp:{port}" in UNIT.read_text()


@pytest.mark.parametrize("kind", ["unit", "docker"])
def test_the_commands_of_both_serve(kind: str, portable: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    if kind == "unit":
        words = shlex.split(re.findall("^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)[0])
        places = {"/var/lib/notan/model.onnx": portable}
    else:
        words = [*listed("ENTRYPOINT"), *listed("CMD")]
        places = {"/model.onnx": portable, "/run/secrets/token": tmp_path / "token"}
    given = [str(places.get(word, word)) for word in words[1:]]
    serve([sys.executable, "-m", "notan", *given], is_open=kind == "unit")


def serve(command: list[str], *, is_open: bool) -> None:
    """Start a server at a free port, and ask it as its health check does."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    server = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        assert f":{port}" in server.stdout.readline()
        program = listed("HEALTHCHECK")[2].replace(":8420/", f":{port}/")
        until = time.monotonic() + PATIENCE  # the line comes just before the first answer
        while subprocess.run([sys.executable, "-c", program], capture_output=True).returncode:
            assert time.monotonic() < until
        url = f"http://127.0.0.1:{port}/v1/model"
        assert httpx.get(url, verify=False).status_code == (200 if is_open else 401)  # noqa: S501
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert httpx.get(url, headers=headers, verify=False).status_code == 200  # noqa: S501
    finally:
        server.terminate()
        server.communicate(timeout=PATIENCE)
    assert server.returncode == 0


def test_the_steps_of_the_docker_file_make_a_server(portable: Path, tmp_path: Path) -> None:
    if "NOTAN_DOCKER_STEPS" not in os.environ:
        pytest.skip("its steps download packages: set NOTAN_DOCKER_STEPS=1 to run them")
    place = tmp_path / "notan"
    for step in instructions("RUN"):
        given = step.replace("/opt/notan", str(place)).replace("/src", str(ROOT))
        subprocess.run(["bash", "-ec", given], check=True, timeout=1200)
    (tmp_path / "token").write_text(TOKEN)
    start = listed("ENTRYPOINT")
    words = [each.replace("/opt/notan", str(place)) for each in start]
    words = [each.replace("/run/secrets/token", str(tmp_path / "token")) for each in words]
    serve([*words, "--model", str(portable)], is_open=False)


def test_docker_builds_and_runs_it(portable: Path, tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("no Docker engine answers here")
    build = [docker, "build", "-q", "-f", str(DOCKER), str(ROOT)]
    image = subprocess.run(build, check=True, capture_output=True, text=True).stdout.strip()
    (tmp_path / "token").write_text(TOKEN)
    limits = ["--read-only", "--cap-drop", "ALL", "--memory", "4g", "--pids-limit", "128"]
    mounts = [
        "-v",
        f"{portable}:/model.onnx:ro",
        "-v",
        f"{tmp_path / 'token'}:/run/secrets/token:ro",
    ]
    command = [docker, "run", "--rm", "-d", "-P", *limits, *mounts, image]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        until = time.monotonic() + PATIENCE
        probe = [
            docker,
            "exec",
            name,
            *json.loads(instructions("HEALTHCHECK")[0].partition("CMD ")[2]),
        ]
        while subprocess.run(probe, capture_output=True).returncode:
            assert time.monotonic() < until
    finally:
        subprocess.run([docker, "stop", name], check=True, capture_output=True)
