"""Where a server listens, and how it begins and ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from notan.errors import ConfigError
from notan.web.addresses import listen
from notan.web.keys import read_token
from notan.web.running import WebServer
from web_server import guarded, running

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request
    from starlette.responses import Response

GOOD = "0123456789abcdef"


async def slow(request: Request) -> Response:
    await asyncio.sleep(float(request.query_params["seconds"]))
    return PlainTextResponse("done")


APP = Starlette(routes=[Route("/slow", slow)])


def test_a_port_is_bound_before_anything_is_served_and_a_free_one_can_be_asked_for() -> None:
    listener, address = listen("localhost", 0, ["Masks.Example.org"])
    with listener:
        assert address.host == "127.0.0.1"
        assert address.port > 0
        assert address.is_loopback
        assert address.named == ("masks.example.org",)
        with pytest.raises(
            ConfigError, match=rf"^port {address.port} of 127.0.0.1 is in use.*--port"
        ):
            listen("127.0.0.1", address.port)
    listen("127.0.0.1", address.port)[0].close()


@pytest.mark.parametrize(
    ("host", "port", "wanted"),
    [
        ("example.org", 0, "--host example.org: is no IP address"),
        ("", 0, "--host : is no IP address"),
        ("127.0.0.1", 65536, "--port 65536: a port of 0..65535"),
        ("127.0.0.1", -1, "--port -1"),
        ("192.0.2.1", 0, "--host 192.0.2.1: is no address of this machine"),
    ],
)
def test_an_address_that_cannot_be_taken_is_one_line(host: str, port: int, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listen(host, port)
    assert str(caught.value).startswith(wanted)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["http://x", "a b", "x/y", "", "a:b", "user@host", "-x"])
def test_a_name_that_no_host_header_can_hold_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="Host header"):
        listen("127.0.0.1", 0, [name])


def test_what_was_begun_is_finished_and_nothing_new_is_taken() -> None:
    answers: list[str] = []
    with running(guarded(APP)) as server:
        ask = threading.Thread(
            target=lambda: answers.append(httpx.get(f"{server.url}/slow?seconds=0.5").text)
        )
        ask.start()
        time.sleep(0.2)
        server.server.stop()
        server.thread.join(10)
        ask.join(10)
        assert answers == ["done"]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/slow?seconds=0")


def test_what_takes_too_long_to_finish_is_cut_off() -> None:
    with running(guarded(APP), seconds_to_finish=1) as server:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.get(f"{server.url}/slow?seconds=30", timeout=20))

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.2)
        begun = time.monotonic()
        server.server.stop()
        server.thread.join(10)
        asking.join(10)
        assert not server.thread.is_alive()
        assert time.monotonic() - begun < 8
        assert answers[0].status_code == 503
        assert "stopped" in answers[0].json()["error"]


def test_the_first_signal_stops_and_the_second_one_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stopped: list[bool] = []
    server = WebServer(APP, on_stop=lambda: stopped.append(True))
    before = signal.getsignal(signal.SIGTERM)
    with server.capture_signals():
        signal.raise_signal(signal.SIGTERM)
        assert (server.should_exit, server.force_exit, stopped) == (True, False, [True])
        assert "SIGTERM: finishing what was begun" in caplog.text
        signal.raise_signal(signal.SIGINT)
        assert server.force_exit
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_client_that_sends_nothing_does_not_keep_the_server_from_ending() -> None:
    with (
        running(guarded(APP), seconds_to_finish=1) as server,
        socket.create_connection((server.address.host, server.address.port)) as idle,
    ):
        idle.sendall(b"GET /slow HTTP/1.1\r\n")
        time.sleep(0.1)
        server.server.stop()
        server.thread.join(10)
        assert not server.thread.is_alive()


def test_a_token_is_read_from_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "token"
    path.write_text(f"{GOOD}\n")
    path.chmod(0o600)
    assert read_token(path) == GOOD
    assert caplog.text == ""
    path.chmod(0o644)
    assert read_token(path) == GOOD
    assert "chmod 600" in caplog.text
    assert GOOD not in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"with spaces in it all", b"x" * 513, b"\xff" * 20, b"two\nlines" * 3],
)
def test_what_is_no_token_is_refused_and_not_repeated(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="wanted one line of 16 to 512") as caught:
        read_token(path)
    assert "with spaces" not in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        read_token(tmp_path / "absent")
