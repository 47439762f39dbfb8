"""The queue: bounded, fair, and free again when somebody leaves."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from notan.modelfile.postprocess import Postprocessing
from notan.prediction.pixels import encode_png
from notan.prediction.predictor import Predictor
from notan.prediction.tiles import Tiling
from notan.serve.jobs import Jobs, MaskJob, Reply
from notan.serve.metrics import resident_bytes
from notan.web.answers import RefusedError
from web_server import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from notan.prediction.predictor import Prediction
    from serving import Gate
    from web_server import Running


def image(height: int = 16, width: int = 16) -> bytes:
    return encode_png(np.full((height, width, 3), 200, np.uint8))


def reply(prediction: Prediction) -> Reply:
    return Reply(str(prediction.size).encode(), "text/plain")


def job(height: int = 16, width: int = 16) -> MaskJob:
    return MaskJob(image(height, width), (height, width), reply)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Asked:
    """A request in a thread."""

    def __init__(self, server: Running, content: bytes | None = None) -> None:
        self.answers: list[httpx.Response] = []
        self._server, self._content = server, content or image()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        self.answers.append(self._server.client.post("/v1/masks", content=self._content))

    @property
    def status(self) -> int:
        self._thread.join(PATIENCE)
        return self.answers[0].status_code


def count(server: Running, name: str) -> float:
    lines = server.client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_a_full_queue_says_when_to_come_again_and_serves_all_that_wait(
    gate: Gate, serve_gate: Callable[..., Running]
) -> None:
    server = serve_gate(most_waiting=2, workers=1)
    asked = [Asked(server)]
    gate.waiting.wait(PATIENCE)
    for number in (1, 2):
        asked.append(Asked(server))
        until(lambda n=number: count(server, "notan_waiting") == n)  # type: ignore[misc]
    refused = server.client.post("/v1/masks", content=image())
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "2 images wait already" in refused.json()["error"]
    began = time.monotonic()
    assert server.client.get("/healthz").json() == {"status": "ok"}
    assert time.monotonic() - began < 5  # it answers while the network is held up
    gate.opened.set()
    assert [each.status for each in asked] == [200, 200, 200]


def test_a_client_that_leaves_frees_its_place(
    gate: Gate, serve_gate: Callable[..., Running]
) -> None:
    server = serve_gate(most_waiting=1, workers=1)
    first = Asked(server)
    gate.waiting.wait(PATIENCE)
    content = image()
    head = f"POST /v1/masks HTTP/1.1\r\nHost: 127.0.0.1:{server.address.port}\r\n"
    head += f"Content-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((server.address.host, server.address.port)) as leaving:
        leaving.sendall(head.encode() + content)
        until(lambda: count(server, "notan_waiting") == 1)
        assert server.client.post("/v1/masks", content=content).status_code == 429
    until(lambda: count(server, "notan_waiting") == 0)
    second = Asked(server)
    until(lambda: count(server, "notan_waiting") == 1)
    gate.opened.set()
    assert (first.status, second.status) == (200, 200)
    assert len(gate.batches) == 2  # nothing was predicted for who had left


def test_what_takes_longer_than_the_deadline_is_given_up(
    gate: Gate, serve_gate: Callable[..., Running]
) -> None:
    server = serve_gate(seconds=0.2, workers=1)
    held = Asked(server)
    assert held.status == 504
    assert "longer than 0.2 seconds" in held.answers[0].json()["error"]
    waiting = Asked(server)
    assert waiting.status == 504
    assert count(server, "notan_waiting") == 0
    gate.opened.set()
    until(lambda: count(server, "notan_in_work") == 0)
    assert Asked(server).status == 200


@pytest.fixture
def make_jobs(gate: Gate) -> Callable[..., Jobs]:
    def make(predictor: Predictor | None = None, **more: int) -> Jobs:
        return Jobs(predictor or gate.predictor(None), **{"workers": 1, **more})

    return make


def run(jobs: Jobs, gate: Gate, waiting: list[MaskJob]) -> None:
    """Hold the network up by one image of another size, let others wait behind it, and go."""
    jobs.start()
    try:
        held = job(8, 8)
        jobs.put(held)
        gate.waiting.wait(PATIENCE)
        for each in waiting:
            jobs.put(each)
        gate.opened.set()
        for each in (held, *waiting):
            assert each.reply.result(PATIENCE).content == str(each.size).encode()
    finally:
        jobs.stop()


def test_what_waits_goes_together_where_the_inputs_are_of_one_size(
    gate: Gate, make_jobs: Callable[..., Jobs]
) -> None:
    waiting = [job(16, 16), job(20, 16), job(16, 16), job(16, 16), job(20, 16), job(16, 16)]
    jobs = make_jobs(batch_size=3)
    run(jobs, gate, waiting)
    assert gate.batches == [1, 3, 2, 1]
    assert (jobs.images, jobs.batches) == (7, 4)


def test_one_by_one_is_what_a_processor_gets_so_that_no_image_changes_anothers_bytes(
    gate: Gate, make_jobs: Callable[..., Jobs]
) -> None:
    run(make_jobs(), gate, [job() for _ in range(4)])
    assert gate.batches == [1] * 5


def test_all_images_in_work_have_no_more_pixels_than_one_may_have(
    gate: Gate, make_jobs: Callable[..., Jobs]
) -> None:
    jobs = make_jobs(batch_size=8, most_pixels=600, workers=3)
    jobs.start()
    waiting = [job(16, 16) for _ in range(5)]  # 256 pixels each
    for each in waiting:
        jobs.put(each)
    until(lambda: jobs.in_work == 2)
    time.sleep(0.05)
    assert (jobs.in_work, jobs.waiting) == (2, 3)
    gate.opened.set()
    for each in waiting:
        each.reply.result(PATIENCE)
    assert max(gate.batches) <= 2
    jobs.stop()


def test_a_damaged_image_fails_alone(gate: Gate, make_jobs: Callable[..., Jobs]) -> None:
    jobs = make_jobs(batch_size=3)
    jobs.start()
    held, good = job(8, 8), [job(), job()]
    damaged = MaskJob(image()[:60], (16, 16), reply)
    jobs.put(held)
    gate.waiting.wait(PATIENCE)
    for each in (good[0], damaged, good[1]):
        jobs.put(each)
    gate.opened.set()
    assert [each.reply.result(PATIENCE).content for each in good] == [b"(16, 16)"] * 2
    assert "cut short" in str(damaged.reply.exception(PATIENCE))
    jobs.stop()


def test_who_waits_when_the_server_stops_is_told(
    gate: Gate, make_jobs: Callable[..., Jobs]
) -> None:
    jobs = make_jobs()
    jobs.start()
    held, waiting = job(), job()
    jobs.put(held)
    gate.waiting.wait(PATIENCE)
    jobs.put(waiting)
    threading.Timer(0.3, gate.opened.set).start()
    jobs.stop()
    for each in (held, waiting):
        error = each.reply.exception(PATIENCE)
        assert isinstance(error, RefusedError)
        assert error.status == 503
    with pytest.raises(RefusedError, match="being stopped"):
        jobs.put(job())


def test_an_image_in_tiles_is_given_up_between_two_rows_of_them(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(predictor), "cuts", lambda *_: True)
    jobs = Jobs(predictor, workers=1)
    large = job(200, 60)
    rows = 0

    def bands(*_: object) -> object:
        nonlocal rows
        for _row in range(10):
            rows += 1
            if rows == 2:
                jobs.leave(large)
            yield np.zeros((20, 60), np.float32)

    monkeypatch.setattr(type(predictor), "predict_bands", bands)
    jobs.start()
    jobs.put(large)
    until(lambda: rows > 0 and not jobs.in_work)
    assert rows == 2
    assert not large.reply.done()
    whole = job(200, 60)
    jobs.put(whole)
    assert whole.reply.result(PATIENCE).content == b"(200, 60)"
    jobs.stop()


def test_a_mosaic_gets_the_rules_that_predict_gives_it(predictor: Predictor) -> None:
    learned = Postprocessing(threshold=0.0, keep_largest=True, fill_holes_fraction=0.01)
    tiled = Predictor(
        predictor.backend,
        predictor.preprocessor,
        postprocessing=learned,
        tiling=Tiling(always=True, scale=1.0),
    )
    jobs, found = Jobs(tiled, workers=1), list[Postprocessing]()

    def note(prediction: Prediction) -> Reply:
        found.append(prediction.postprocessing)
        return reply(prediction)

    jobs.start()
    mosaic = MaskJob(image(200, 160), (200, 160), note)
    jobs.put(mosaic)
    mosaic.reply.result(PATIENCE)
    jobs.stop()
    assert found == [tiled(np.full((200, 160, 3), 200, np.uint8)).postprocessing]
    assert found[0].fill_holes_fraction < 0.01
    assert not found[0].keep_largest


def test_memory_does_not_grow_with_the_number_of_shapes(served: Running) -> None:
    chance = np.random.default_rng(0)

    def ask(number: int) -> None:
        for _ in range(number):
            height, width = chance.integers(8, 300, 2)
            content = image(int(height), int(width))
            assert served.client.post("/v1/masks", content=content).status_code == 200

    ask(40)
    before = resident_bytes()
    ask(60)
    after = resident_bytes()
    assert before is not None
    assert after is not None
    assert after <= 1.1 * before


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own here")
def test_who_predicts_stands_back_behind_the_event_loop(gate: Gate) -> None:
    seen = []

    def look(prediction: Prediction) -> Reply:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return reply(prediction)

    jobs = Jobs(gate.predictor(), workers=1)
    jobs.start()
    gate.opened.set()
    asked = MaskJob(image(), (16, 16), look)
    jobs.put(asked)
    asked.reply.result(PATIENCE)
    jobs.stop()
    assert seen == [min(os.getpriority(os.PRIO_PROCESS, 0) + 5, 19)]
