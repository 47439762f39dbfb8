"""The other routes, who may ask them, and what asks all of them."""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from starlette.routing import Route

from notan.prediction.pixels import encode_png
from notan.serve import ServeSettings, make_app
from notan.serve.app import OPEN_PATHS
from notan.serve.label_studio import LabelStudio
from notan.serve.origin import Origin
from notan.web.keys import Keys
from web_server import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

    from notan.prediction.predictor import Predictor
    from notan.web.addresses import Address
    from serving import Gate
    from web_server import Running

TOKEN = "a-token-of-the-tests-0123456789"  # noqa: S105
CHECKS = ("not_a_server_error", "status_code_conformance", "response_schema_conformance")
IMAGE = encode_png(np.full((20, 30, 3), 90, np.uint8))


@pytest.fixture(scope="module")
def locked(predictor: Predictor) -> Iterator[Running]:
    theirs = LabelStudio(Origin("http://127.0.0.1:1", "a-token", 1000))

    def make(address: Address) -> Any:
        return make_app(predictor, address, keys=Keys(TOKEN), label_studio=theirs)

    with running(make) as server:
        yield server


def api_of(server: Running) -> FastAPI:
    api: FastAPI = server.server.config.app.app.app  # type: ignore[union-attr]
    return api


def routes(server: Running) -> list[tuple[str, str]]:
    """Every method and path, from the table of routes: a new one cannot be forgotten."""
    found = [
        (method, each.path)
        for each in api_of(server).routes
        if isinstance(each, Route)
        for method in each.methods or ()
        if method != "HEAD"
    ]
    assert len(found) >= 9
    return found


def test_the_routes_of_label_studio_are_among_those_that_are_tried(locked: Running) -> None:
    found = {path for _, path in routes(locked)}
    assert {"/health", "/setup", "/predict", "/webhook"} <= found


@pytest.mark.parametrize("token", [None, "wrong", f"{TOKEN}x"])
def test_no_route_answers_without_the_token_but_for_the_sign_of_life(
    locked: Running, token: str | None
) -> None:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    for method, path in routes(locked):
        answer = locked.client.request(method, path, headers=headers, content=IMAGE)
        assert answer.status_code == (200 if path in OPEN_PATHS else 401), path
    right = {"authorization": f"Bearer {TOKEN}"}
    for method, path in routes(locked):
        content = IMAGE if method == "POST" else None
        answer = locked.client.request(method, path, headers=right, content=content)
        # the image is no JSON, which Label Studio's routes want
        assert answer.status_code in (200, 307, 415, 422), path


def test_every_route_refuses_foreign_hosts_and_origins(served: Running, locked: Running) -> None:
    for method, path in routes(locked):
        for headers in ({"host": "evil.test"}, {"origin": "null"}, {"origin": "http://evil.test"}):
            for server in (served, locked):
                answer = server.client.request(method, path, headers=headers, content=IMAGE)
                assert answer.status_code == 403, (path, headers)
            assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/docs/../etc/x", "/docs/%2e%2e/x", "/x"])
def test_no_path_leads_to_a_file(served: Running, path: str) -> None:
    assert served.client.get(path).status_code == 404


def test_the_card_is_told_without_the_places_that_it_names(
    served: Running, predictor: Predictor
) -> None:
    told = served.client.get("/v1/model").json()
    assert predictor.card
    assert told["name"] == "small"
    assert told["card"]["sha256"] == predictor.card.sha256
    assert told["card"]["data"]["training_images"] == predictor.card.data.training_images
    assert told["most_pixels"] == 100_000
    assert "/" not in str(told["card"]["run"]["data"])


def test_the_metrics_are_what_prometheus_reads(served: Running) -> None:
    served.client.post("/v1/masks", content=IMAGE)
    served.client.get("/no/such/thing")
    served.client.get("/healthz", headers={"host": "evil.test"})
    answer = served.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for line in answer.text.splitlines():
        if line.startswith("# TYPE"):
            kinds[line.split()[2]] = line.split()[3]
        elif not line.startswith("#"):
            found = re.fullmatch(r'([a-z_]+(?:\{(?:[a-z0-9_]+="[^"]*",?)*\})?) (\S+)', line)
            assert found, line
            samples[found[1]] = float(found[2])
    assert samples['notan_requests_total{route="/v1/masks",status="200"}'] >= 1
    assert samples['notan_requests_total{route="none",status="404"}'] >= 1
    assert samples['notan_requests_total{route="none",status="403"}'] >= 1
    assert samples["notan_images_total"] >= 1
    assert samples["notan_pixels_total"] >= 600
    assert samples["process_resident_memory_bytes"] > 1e6
    assert (
        samples["notan_request_seconds_count"] == samples['notan_request_seconds_bucket{le="+Inf"}']
    )
    assert kinds["notan_request_seconds"] == "histogram"
    assert 'name="small"' in answer.text


def test_the_docs_need_nothing_from_elsewhere_and_name_every_route(served: Running) -> None:
    page = served.client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"https?://|<script|style=|onclick", page.text)
    links = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert links
    for link in links:
        assert served.client.get(link).status_code == 200
    for method, path in served_routes(served):
        assert f"{method} {path}" in page.text
    assert served.client.get("/").headers["location"] == "/docs"


def served_routes(server: Running) -> list[tuple[str, str]]:
    schema = server.client.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    return [(m.upper(), path) for path, each in schema["paths"].items() for m in each]


def test_no_secret_and_no_body_stands_in_a_log(
    locked: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    headers = {"authorization": f"Bearer {TOKEN}", "cookie": "c=canary-cookie"}
    for method, path in routes(locked):
        locked.client.request(method, f"{path}?p=canary-query", headers=headers, content=b"canary")
    ours = [each.getMessage() for each in caplog.records if not each.name.startswith("http")]
    assert not [line for line in ours if "canary" in line or TOKEN in line]


def test_the_sign_of_life_comes_while_the_network_works(
    gate: Gate, serve_gate: Callable[..., Running]
) -> None:
    server = serve_gate()
    asking = [
        threading.Thread(target=server.client.post, args=("/v1/masks",), kwargs={"content": IMAGE})
        for _ in range(4)
    ]
    for each in asking:
        each.start()
    gate.waiting.wait(20)
    began = time.monotonic()
    for _ in range(20):
        assert server.client.get("/healthz").status_code == 200
    assert time.monotonic() - began < 5  # all twenty, on a busy machine
    gate.opened.set()
    for each in asking:
        each.join(20)


def test_a_fault_of_ours_is_told_in_the_log_alone(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("a canary of a bug")

    monkeypatch.setattr(type(predictor), "predict_many", broken)
    with running(lambda address: make_app(predictor, address)) as server:
        answer = server.client.post("/v1/masks", content=IMAGE)
        assert answer.status_code == 500
        assert "canary" not in answer.text
        assert "a canary of a bug" in caplog.text
        monkeypatch.undo()
        assert server.client.post("/v1/masks", content=IMAGE).status_code == 200


def test_schemathesis_finds_no_fault(predictor: Predictor) -> None:
    theirs = LabelStudio(Origin("http://127.0.0.1:1", "a-token", 1000))

    def make(address: Address) -> Any:
        limits = ServeSettings(seconds=20)
        return make_app(predictor, address, settings=limits, label_studio=theirs)

    with running(make) as server:
        schema = schemathesis.openapi.from_dict(server.client.get("/openapi.json").json())
        schema.config.update(base_url=server.url)
        checks = [
            schemathesis.checks.CHECKS.get_one(name)
            for name in (
                "not_a_server_error",
                "status_code_conformance",
                "response_schema_conformance",
            )
        ]
        asked = 0
        for result in schema.get_all_operations():
            operation: Any = result.ok()  # type: ignore[union-attr]

            @given(case=operation.as_strategy())
            @settings(
                max_examples=40,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def ask(case: Any) -> None:
                nonlocal asked
                asked += 1
                case.validate_response(case.call(), checks=checks)

            ask()
        assert asked >= 60
        assert server.client.get("/healthz").status_code == 200
