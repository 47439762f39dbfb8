"""Who is let in and what: the guard that stands before every server of ours."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from notan.errors import DataError
from notan.web.addresses import Address
from notan.web.answers import error_handlers
from notan.web.guard import BodyLimits, Guard
from notan.web.keys import Keys
from web_server import guarded, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from web_server import Running

TOKEN = "a-token-of-the-tests-0123456789"  # noqa: S105
HOST = "127.0.0.1:8420"
ADDRESS = Address("127.0.0.1", 8420)


async def size(request: Request) -> Response:
    return JSONResponse({"bytes": len(await request.body())})


async def hello(request: Request) -> Response:
    return PlainTextResponse(f"hello {request.url.query}")


async def ours(_: Request) -> Response:
    raise DataError("the image\nis   damaged")


async def broken(_: Request) -> Response:
    raise RuntimeError("a canary secret")


APP = Starlette(
    routes=[
        Route("/", hello),
        Route("/health", hello),
        Route("/size", size, methods=["POST", "PUT", "DELETE"]),
        Route("/ours", ours),
        Route("/broken", broken),
    ],
    exception_handlers=error_handlers(),
)


def ask(method: str, path: str = "/", *, guard: Guard | None = None, **more: Any) -> httpx.Response:
    """Ask a guarded application without a network."""

    async def do() -> httpx.Response:
        transport = httpx.ASGITransport(guard or Guard(APP, ADDRESS), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
            return await client.request(method, path, **more)

    return asyncio.run(do())


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(guarded(APP, limits=BodyLimits(most_bytes=1000, pause_seconds=0.2))) as server:
        yield server


@pytest.mark.parametrize("host", [HOST, "localhost:8420", "LOCALHOST:8420", "[::1]:8420"])
def test_a_host_header_that_names_this_server_is_let_through(host: str) -> None:
    assert ask("GET", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.test", "evil.test:8420", "localhost.evil.test:8420", "127.0.0.1.evil.test:8420",
        "127.0.0.1", "localhost", "127.0.0.1:1", "127.0.0.1:84200", "user@127.0.0.1:8420", "",
        "127.0.0.1:8420,evil.test", "0.0.0.0:8420", "2130706433:8420", "localhost:8420.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/size", "/nothing"])
def test_a_host_header_of_another_name_is_refused_everywhere(host: str, path: str) -> None:
    answer = ask("GET", path, headers={"host": host})
    assert answer.status_code == 403
    assert "Host header" in answer.json()["error"]


@pytest.mark.parametrize("hosts", [b"", b"Host: 127.0.0.1:%d\r\nHost: evil.test\r\n"])
def test_no_host_header_and_two_are_refused(served: Running, hosts: bytes) -> None:
    lines = hosts % served.address.port if hosts else hosts
    answer = served.raw(b"GET / HTTP/1.1\r\n" + lines + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400")


def test_what_a_server_for_the_network_is_called_must_be_told_exactly() -> None:
    address = Address("0.0.0.0", 8420, ("masks.example.org",))  # noqa: S104
    assert address.is_ours("masks.example.org", "10.0.0.5")
    assert address.is_ours("10.0.0.5:8420", "10.0.0.5")
    assert not address.is_ours("10.0.0.6:8420", "10.0.0.5")
    assert not address.is_ours("masks.example.org:8420", "10.0.0.5")
    assert address.url == "http://127.0.0.1:8420"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": f"http://{HOST}"}, 200),
        ({"origin": f"http://{HOST}", "sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({}, 200),
        ({"origin": "null"}, 403),
        ({"origin": "http://evil.test"}, 403),
        ({"origin": "http://localhost:8420"}, 403),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": f"http://{HOST}.evil.test"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
    ],
)
def test_what_a_page_of_another_origin_sends_is_refused(
    headers: dict[str, str], status: int
) -> None:
    for method in ("POST", "PUT", "DELETE"):
        answer = ask(method, "/size", headers=headers)
        assert answer.status_code == status
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_link_on_another_site_opens_a_page_but_no_script_of_it_reads_one() -> None:
    foreign = {"sec-fetch-site": "cross-site"}
    assert ask("GET", headers={**foreign, "sec-fetch-mode": "navigate"}).status_code == 200
    assert ask("GET", headers={**foreign, "sec-fetch-mode": "no-cors"}).status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200), ("GET", "/nothing", 404), ("POST", "/", 405), ("GET", "/ours", 422),
        ("GET", "/broken", 500),
    ],
)  # fmt: skip
def test_every_answer_has_the_headers_that_protect_a_browser(
    method: str, path: str, status: int
) -> None:
    answer = ask(method, path)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "unsafe-inline" not in answer.headers["content-security-policy"]
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_error_is_one_line_of_json_and_a_fault_of_ours_tells_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert ask("GET", "/ours").json() == {"error": "the image is damaged"}
    assert ask("GET", "/nothing").json() == {"error": "there is no /nothing here"}
    assert "canary" not in ask("GET", "/broken").text
    assert "a canary secret" in caplog.text


def basic(words: str) -> str:
    return f"Basic {base64.b64encode(words.encode()).decode()}"


def test_a_program_needs_the_token_and_only_an_open_path_does_without() -> None:
    guard = Guard(APP, ADDRESS, keys=Keys(TOKEN), open_paths=("/health",))
    for right in (f"Bearer {TOKEN}", basic(f"label-studio:{TOKEN}")):
        headers = {"authorization": right}
        assert ask("POST", "/size", guard=guard, headers=headers).status_code == 200
    assert ask("GET", "/health", guard=guard).status_code == 200
    wrong = [None, "", "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN]
    wrong += ["Basic", "Basic !", basic(f"{TOKEN}:x"), basic(TOKEN), basic(f"a:{TOKEN}x")]
    for given in wrong:
        headers = {} if given is None else {"authorization": given}
        for path in ("/", "/size", "/nothing", "/health/", "//health", "/health/../size"):
            answer = ask("POST", path, guard=guard, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"


def test_a_browser_comes_in_once_by_its_address_and_then_by_a_cookie() -> None:
    keys = Keys()
    guard = Guard(APP, ADDRESS, keys=keys)
    token = keys.one_time()
    answer = ask("GET", f"/?page=2&t={token}", guard=guard)
    assert (answer.status_code, answer.headers["location"]) == (303, "/?page=2")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("notan-8420=")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert token not in cookie
    assert keys.token not in cookie

    assert ask("GET", f"/?t={token}", guard=guard).status_code == 401  # it was used
    headers = {"cookie": f"other=1; {cookie.partition(';')[0]}"}
    assert ask("GET", guard=guard, headers=headers).status_code == 200
    again = ask("GET", f"/?t={token}", guard=guard, headers=headers)  # a reload of the old address
    assert (again.status_code, again.headers["location"]) == (303, "/")
    own = {"origin": f"http://{HOST}"}
    assert ask("POST", "/size", guard=guard, headers={**headers, **own}).status_code == 200
    assert ask("POST", "/size", guard=guard, headers=headers).status_code == 403  # no page said so
    headers = {"cookie": "notan-8420=wrong"}
    assert ask("GET", guard=guard, headers=headers).status_code == 401


@pytest.mark.parametrize("path", ["//evil.test/", "/%5Cevil.test", "/\\evil.test"])
def test_the_way_back_from_a_one_time_token_leads_nowhere_else(path: str) -> None:
    keys = Keys()
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path}
    scope["headers"] = [(b"host", HOST.encode())]
    scope["query_string"] = f"t={keys.one_time()}".encode()
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    asyncio.run(Guard(APP, ADDRESS, keys=keys)(scope, receive, send))
    location = dict(sent[0]["headers"])[b"location"]
    assert location.startswith(b"/")
    assert not location.startswith((b"//", b"/\\"))


def test_two_servers_have_no_secret_in_common() -> None:
    one, other = Keys(), Keys()
    assert one.token != other.token
    assert one.one_time() != one.one_time()
    assert not other.spend(one.one_time())


def test_a_body_is_whole_when_it_is_passed_on(served: Running) -> None:
    content = bytes(1000)
    assert served.client.post("/size", content=content).json() == {"bytes": 1000}
    pieces = iter([content[:300], content[300:]])
    assert served.client.post("/size", content=pieces).json() == {"bytes": 1000}


def request_to(server: Running, body: bytes, *headers: str) -> bytes:
    host = f"Host: 127.0.0.1:{server.address.port}"
    lines = ["POST /size HTTP/1.1", host, *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", ("Content-Length: 1000000000000",), b"413"),
        (b"", ("Content-Length: 1001",), b"413"),
        (b"x" * 10, ("Content-Length: 1000",), b"408"),  # and no more comes
        (b"3E9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n", ("Transfer-Encoding: chunked",), b"413"),
        (b"", ("Content-Length: -1",), b"400"),
        (b"", ("Content-Length: ٣",), b"400"),
        (b"", (f"X-Long: {'x' * 1_000_000}",), b"400"),
        (b"", (*["X-Many: x"] * 20_000,), b"400"),
    ],
    ids=["terabyte", "one-more", "stops", "chunks", "negative", "no-digit", "long", "many"],
)
def test_a_body_that_is_too_large_or_never_ends_is_refused_at_once(
    served: Running, body: bytes, headers: tuple[str, ...], status: bytes
) -> None:
    answer = served.raw(request_to(served, body, *headers))
    assert answer.split()[1:2] == [status]
    assert served.client.post("/size", content=b"still there").json() == {"bytes": 11}


@pytest.mark.parametrize("megabytes", [1, 30])
def test_who_still_sends_a_refused_body_hears_why(served: Running, megabytes: int) -> None:
    content = bytes(megabytes * 1_000_000)
    for body in (content, iter([content, content])):  # with a length, and in chunks
        answer = served.client.post("/size", content=body)
        assert answer.status_code == 413
        assert "the body has more than 1,000 bytes" in answer.json()["error"]


def test_bodies_that_have_no_room_together_are_told_to_come_again() -> None:
    limits = BodyLimits(most_bytes=1000, most_bytes_together=1500, pause_seconds=5)
    with running(guarded(APP, limits=limits)) as server:
        where = (server.address.host, server.address.port)
        with socket.create_connection(where) as slow:
            slow.sendall(request_to(server, bytes(900), "Content-Length: 1000"))
            seen = [200]
            for _ in range(200):
                answer = server.client.post("/size", content=bytes(900))
                if answer.status_code != 200:
                    break
            seen.append(answer.status_code)
            assert seen == [200, 429]
            assert answer.headers["retry-after"] == "1"
            slow.sendall(bytes(100))
            assert b"200" in slow.recv(1000)
        assert server.client.post("/size", content=bytes(900)).status_code == 200


def test_some_paths_take_larger_bodies() -> None:
    guard = Guard(APP, ADDRESS, limits=BodyLimits(most_bytes=10), larger_bodies={"/size": 20})
    assert ask("POST", "/size", guard=guard, content=bytes(20)).status_code == 200
    assert ask("POST", "/size", guard=guard, content=bytes(21)).status_code == 413
    assert ask("POST", "/", guard=guard, content=bytes(11)).status_code == 413


def test_no_secret_of_a_request_stands_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = Keys(TOKEN)
    token = keys.one_time()
    with running(guarded(APP, keys=keys)) as server:
        headers = {"authorization": f"Bearer {TOKEN}", "cookie": "c=canary-cookie"}
        for path in ("/", "/broken", "/nothing", "/size"):
            request = b"POST %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode()
            server.raw(request)
            with httpx.Client() as client:
                client.post(f"{server.url}{path}", headers=headers, content=b"canary-body")
                client.get(f"{server.url}{path}?t={token}")
    ours = [each.getMessage() for each in caplog.records if not each.name.startswith("http")]
    assert not [line for line in ours if "canary-" in line or TOKEN in line or token in line]
